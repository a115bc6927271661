#!/bin/sh
# Several disks at once, and several machines at once, against one after the other: several.sh AQUIFER IMAGE [ROUNDS]
#
# Four disks of 1 GiB, cut from the image, each served by a qemu-nbd of its own. In each round they are backed up one after
# the other, then as four disks of one machine, then as four machines by four processes, each time into a new repository;
# all are in the page cache, and the destination is synced inside the clock. A ratio is one after the other's seconds by
# the others'; it is more than 1 where doing it at once is faster. The last columns say whether anybody starved: when the
# first of four machines was done, and when the last.
set -eu
umask 077
. "$(dirname "$0")/common.sh"

aquifer=$1
image=$2
rounds=${3:-3}
scratch=$(mktemp -d -p "$(dirname "$image")")
servers=
trap 'for server in $servers; do kill "$server" 2>/dev/null || true; done; rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

over() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }
make_config "$scratch"
# The command with a state folder of its own, as another host would have.
ours() {
    state=$1
    shift
    "$aquifer" --config "$scratch/aquifer.toml" --state-dir "$scratch/$state" --password-file "$scratch/password" \
        -r "$scratch/repository" --json "$@" >"$scratch/$state.out" 2>"$scratch/$state.err" || {
        cat "$scratch/$state.err" >&2
        exit 1
    }
}
fresh() {
    rm -rf "$scratch/repository" "$scratch"/state*
    ours state repository init
    for disk in 0 1 2 3; do cp -r "$scratch/state" "$scratch/state$disk"; done
    cat "$scratch"/disk?.raw >/dev/null
    sync
}

for disk in 0 1 2 3; do
    dd if="$image" of="$scratch/disk$disk.raw" bs=1M skip=$((disk * 1024)) count=1024 conv=sparse status=none
    truncate -s 1G "$scratch/disk$disk.raw"
    qemu-nbd -r -t -e 8 -f raw -k "$scratch/disk$disk.sock" "$scratch/disk$disk.raw" &
    servers="$servers $!"
done
for disk in 0 1 2 3; do await_socket "$scratch/disk$disk.sock"; done
export_of() { echo "vd$1=nbd+unix:///?socket=$scratch/disk$1.sock"; }

echo "round  in turn s  four disks s  ratio  four machines s  ratio  first s  last s"
for round in $(seq "$rounds"); do
    fresh
    at=$(seconds)
    for disk in 0 1 2 3; do ours state backup "machine$disk" --nbd "$(export_of $disk)"; done
    sync -f "$scratch"
    turn=$(since "$at")
    fresh
    at=$(seconds)
    ours state backup machine --nbd "$(export_of 0)" --nbd "$(export_of 1)" --nbd "$(export_of 2)" --nbd "$(export_of 3)"
    sync -f "$scratch"
    disks=$(since "$at")
    fresh
    at=$(seconds)
    jobs=
    for disk in 0 1 2 3; do
        { ours "state$disk" backup "machine$disk" --nbd "$(export_of $disk)"; since "$at" >"$scratch/took$disk"; } &
        jobs="$jobs $!"
    done
    for job in $jobs; do wait "$job"; done
    sync -f "$scratch"
    machines=$(since "$at")
    printf '%5s  %9.2f  %12.2f  %5s  %15.2f  %5s  %7.2f  %6.2f\n' "$round" "$turn" "$disks" "$(over "$turn" "$disks")" "$machines" \
        "$(over "$turn" "$machines")" "$(cat "$scratch"/took? | sort -n | head -n 1)" "$(cat "$scratch"/took? | sort -n | tail -n 1)"
done
