#!/bin/sh
# Fetches Debian's cloud kernel for the test guest into the cache folder. It is unpacked there and never installed.
set -eu

folder="$HOME/.cache/aquifer/kernel"
[ -s "$folder/release" ] && exit 0

package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
if [ -z "$package" ]; then
    echo "guest-kernel: apt knows no linux-image-cloud-amd64: run \`apt-get update\` as root" >&2
    exit 1
fi
echo "guest-kernel: fetching $package"
mkdir -p "$folder"
scratch=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && apt-get -qq -o APT::Sandbox::User=root download "$package")
dpkg-deb -x "$scratch"/linux-image-*.deb "$scratch/root"
mkdir -p "$folder/modules"
find "$scratch/root" -name 'virtio*.ko*' -exec cp {} "$folder/modules/" \;
cp "$scratch"/root/boot/vmlinuz-* "$folder/vmlinuz"
# Last: its presence says that the rest is whole.
echo "${package#linux-image-}" >"$folder/release"
