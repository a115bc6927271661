#!/bin/sh
# Packs an installed tree into aquifer-VERSION-MACHINE.tar.gz beside the binary, with its SHA-256.
# usage: dist.sh BINARY
set -eu
binary=$1
top=$(dirname "$0")/..
version=$("$binary" --version | awk '{ print $2 }')
name=aquifer-$version-$(uname -m)
out=$(dirname "$binary")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$top/scripts/install.sh" "$binary" "$scratch/$name" /usr /etc
tar -C "$scratch" --sort=name --owner=0 --group=0 --numeric-owner -czf "$out/$name.tar.gz" "$name"
(cd "$out" && sha256sum "$name.tar.gz" | tee "$name.tar.gz.sha256")
echo "dist: $out/$name.tar.gz"
