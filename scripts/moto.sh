#!/bin/sh
# Installs moto, the S3 server of the tests, into the cache folder: a Python environment of its own, nothing system-wide.
set -eu

version=5.2.1
folder="$HOME/.cache/aquifer/moto"
[ "$(cat "$folder/version" 2>/dev/null)" = "$version" ] && exit 0

echo "moto: installing moto $version into $folder"
rm -rf "$folder"
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check "moto[server]==$version"
# Last: its presence says that the rest is whole.
echo "$version" >"$folder/version"
