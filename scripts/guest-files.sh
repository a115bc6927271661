#!/bin/sh
# Fetches what the test guest is made of into the cache folder: Debian's cloud kernel, and the guest agent with the
# libraries that it loads. Both are unpacked there and never installed.
set -eu

folder="$HOME/.cache/aquifer/guest"
[ -s "$folder/release" ] && exit 0

kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
if [ -z "$kernel" ]; then
    echo "guest-files: apt knows no linux-image-cloud-amd64: run \`apt-get update\` as root" >&2
    exit 1
fi
echo "guest-files: fetching $kernel and qemu-guest-agent"
mkdir -p "$folder"
scratch=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && apt-get -qq -o APT::Sandbox::User=root download "$kernel" qemu-guest-agent)
for package in "$scratch"/*.deb; do
    dpkg-deb -x "$package" "$scratch/root"
done

cp "$scratch"/root/boot/vmlinuz-* "$folder/vmlinuz"
mkdir -p "$folder/modules" "$folder/agent/usr/sbin"
find "$scratch/root" -name 'virtio*.ko*' -exec cp {} "$folder/modules/" \;
cp "$scratch/root/usr/sbin/qemu-ga" "$folder/agent/usr/sbin/"
libraries=$(ldd "$folder/agent/usr/sbin/qemu-ga")
case $libraries in *"not found"*)
    echo "guest-files: the guest agent needs libraries that are not installed: $libraries" >&2
    exit 1 ;;
esac
# shellcheck disable=SC2086 # a list of paths
(cd / && cp -L --parents $(echo "$libraries" | grep -o '/[^ ]*') "$folder/agent/")
# Last: its presence says that the rest is whole.
basename "$kernel" | sed 's/^linux-image-//' >"$folder/release"
