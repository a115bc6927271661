#!/bin/sh
# Unpacks the QEMU of bookworm-backports into the cache folder, beside the installed one, and prints its prefix:
#   AQUIFER_QEMU_PREFIX=$(scripts/qemu-backports.sh) make slow
# Nothing is installed, and the machine's own sources are left as they are.
set -eu

folder="$HOME/.cache/aquifer/qemu-backports"
if [ ! -e "$folder/complete" ]; then
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/debs"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
    echo "deb [signed-by=$keyring] ${mirror:?apt knows no source of bookworm} bookworm-backports main" \
        >"$folder/apt/sources.list"
    apt() {
        apt-get -qq -o "Dir::Etc::sourcelist=$folder/apt/sources.list" -o Dir::Etc::sourceparts=- \
            -o "Dir::State::lists=$folder/apt/lists" -o "Dir::Cache=$folder/apt" -o APT::Sandbox::User=root "$@" >&2
    }
    apt update
    (cd "$folder/debs" && apt download qemu-system-x86 qemu-system-common qemu-system-data qemu-utils seabios)
    for package in "$folder"/debs/*.deb; do
        dpkg-deb -x "$package" "$folder/root"
    done
    touch "$folder/complete"
fi
echo "$folder/root"
