#!/bin/sh
# Places the binary, its man pages and completions, the systemd units and the configuration.
# usage: install.sh BINARY DESTDIR PREFIX SYSCONFDIR      An existing configuration is left as it is.
set -eu
binary=$1 destdir=$2 prefix=$3 sysconfdir=$4
top=$(dirname "$0")/..
share=$destdir$prefix/share
lib=$destdir$prefix/lib
etc=$destdir$sysconfdir/aquifer
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

install -D -m 755 "$binary" "$destdir$prefix/bin/aquifer"

"$binary" man "$scratch/man"
install -D -m 644 -t "$share/man/man1" "$scratch"/man/*.1

completion() {
    "$binary" completions "$1" >"$scratch/completion"
    install -D -m 644 "$scratch/completion" "$share/$2"
}
completion bash bash-completion/completions/aquifer
completion zsh zsh/site-functions/_aquifer
completion fish fish/vendor_completions.d/aquifer.fish

for unit in "$top"/systemd/*.service "$top"/systemd/*.timer; do
    sed "s,/usr/local/bin/aquifer,$prefix/bin/aquifer," "$unit" >"$scratch/unit"
    install -D -m 644 "$scratch/unit" "$lib/systemd/system/$(basename "$unit")"
done
install -D -m 644 "$top/systemd/sysusers.d/aquifer.conf" "$lib/sysusers.d/aquifer.conf"
install -D -m 644 "$top/systemd/tmpfiles.d/aquifer.conf" "$lib/tmpfiles.d/aquifer.conf"

install -d -m 750 "$etc"
[ -e "$etc/aquifer.toml" ] || install -m 640 "$top/config/aquifer.toml" "$etc/aquifer.toml"
for example in "$top"/config/*; do
    [ ! -f "$example" ] || install -D -m 644 -t "$share/doc/aquifer/examples" "$example"
done
install -D -m 644 -t "$share/doc/aquifer" "$top/LICENSE" "$top/README.md"

# The user and the rights, when this is the running system and not a package in the making.
if [ -z "$destdir" ] && [ "$(id -u)" = 0 ]; then
    if command -v systemd-sysusers >/dev/null; then systemd-sysusers "$lib/sysusers.d/aquifer.conf"; fi
    if command -v systemd-tmpfiles >/dev/null; then systemd-tmpfiles --create "$lib/tmpfiles.d/aquifer.conf"; fi
    if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
fi
