#!/bin/sh
# Installs the peers that `make bench` compares with, as far as they can be had: peers.sh DIR
# Programs of crates.io go to DIR/bin, those of PyPI each into an environment of its own; Debian's are used where they are.
# What cannot be installed is named, and left out of the comparison. Installed once, kept.
set -u
dir=$1
mkdir -p "$dir"

crate() {
    program=$1
    shift
    [ -x "$dir/bin/$program" ] || CARGO_TARGET_DIR=$dir/target cargo install --quiet --locked --root "$dir" "$@" ||
        echo "peers: $program cannot be installed, and is left out" >&2
}

# A program, and the packages for one environment in the order in which they go in.
python() {
    program=$1
    shift
    [ ! -x "$dir/$program/bin/$program" ] || return 0
    python3 -m venv "$dir/$program"
    for package in "$@"; do
        "$dir/$program/bin/pip" install --quiet --disable-pip-version-check "$package" || {
            rm -rf "${dir:?}/$program"
            echo "peers: $program cannot be installed, and is left out" >&2
            return 0
        }
    done
}

crate rustic rustic-rs --version 0.11.4
crate bupstash bupstash --version 0.12.0
python borg borgbackup==1.4.5
# Benji's YAML reader is older than this Python; without a compiler it goes without its extension.
(export CC=/bin/false; python benji 'ruamel.yaml<0.16')
python benji 'ruamel.yaml<0.16' 'benji[compression]==0.17.0'
rm -rf "$dir/target"
