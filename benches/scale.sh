#!/bin/sh
# Time and memory against the size of a disk and against the number of backups: scale.sh AQUIFER FOLDER FIGURES [GIB...]
#
# Writes FIGURES, lines of `series x seconds peak_mib`, for `compare scale` to draw.
#   Sizes: disks of 1, 10 and 100 GiB (or those named) full of nbdkit's pattern, which compresses to a fifth and has no two
#   equal chunks: first backup, unchanged backup without a bitmap, verification. Restores of up to 10 GiB, compared.
#   A disk of 10 TiB with 10 GiB of random data strewn over it: first backup, unchanged backup.
#   Numbers: 64 backups of one disk of 1 GiB, of which 16 MiB change each time; every eighth is restored and listed.
# FOLDER must have room for a third of the largest disk, and for twice the 10 GiB.
set -eu
umask 077
. "$(dirname "$0")/common.sh"

aquifer=$1
folder=$2
figures=$3
shift 3
sizes=${*:-1 10 100}
scratch=$(mktemp -d -p "$folder")
server=
trap 'rm -rf "$scratch"; [ -z "$server" ] || kill "$server" 2>/dev/null' EXIT
trap 'exit 1' INT TERM

make_config "$scratch"
# Times one command; with two words of a series before it, its figures are kept.
ours() {
    series=$1 x=$2
    shift 2
    /usr/bin/time -f '%e %M' -o "$scratch/time" "$aquifer" --config "$scratch/aquifer.toml" --state-dir "$scratch/state" \
        --password-file "$scratch/password" -r "$scratch/repository" --json "$@" >"$scratch/out" 2>"$scratch/err" || {
        cat "$scratch/err" >&2
        exit 1
    }
    [ "$series" = - ] || awk -v series="$series" -v x="$x" '{ printf "%s\t%s\t%.2f\t%.0f\n", series, x, $1, $2 / 1024 }' \
        "$scratch/time" | tee -a "$figures"
}
fresh() {
    rm -rf "$scratch/repository" "$scratch/state"
    ours - - repository init
}
serve() {
    [ -z "$server" ] || { kill "$server"; wait "$server" 2>/dev/null || true; }
    rm -f "$scratch/socket"
    "$@" &
    server=$!
    await_socket "$scratch/socket"
}
nbd="vda=nbd+unix:///?socket=$scratch/socket"

: >"$figures"
for gib in $sizes; do
    serve nbdkit --foreground --exit-with-parent --unix "$scratch/socket" pattern "${gib}G"
    fresh
    ours first "$gib" backup disk --nbd "$nbd"
    ours unchanged "$gib" backup disk --nbd "$nbd"
    ours verify "$gib" verify --level chunks
    if [ "$gib" -le 10 ]; then
        ours restore "$gib" restore latest:disk --disk "vda=raw:$scratch/out.raw" --verify
        rm "$scratch/out.raw"
    fi
done

serve nbdkit --foreground --exit-with-parent --unix "$scratch/socket" sparse-random 10T percent=0.1 runlength=1048576 \
    random-content=true seed=1
fresh
ours first-10t 10240 backup disk --nbd "$nbd"
ours unchanged-10t 10240 backup disk --nbd "$nbd"

head -c 1G /dev/urandom >"$scratch/disk.raw"
fresh
for number in $(seq 64); do
    serve qemu-nbd -r -t -e 8 -f raw -k "$scratch/socket" "$scratch/disk.raw"
    ours nth-backup "$number" backup disk --nbd "$nbd"
    if [ $((number % 8)) = 0 ]; then
        ours nth-restore "$number" restore latest:disk --disk "vda=raw:$scratch/out.raw"
        cmp "$scratch/disk.raw" "$scratch/out.raw"
        rm "$scratch/out.raw"
        ours nth-list "$number" list
    fi
    # Sixteen places of 1 MiB, others each time.
    for place in $(seq 16); do
        dd if=/dev/urandom of="$scratch/disk.raw" bs=1M count=1 seek=$(((number * 37 + place * 61) % 1024)) conv=notrunc status=none
    done
done
ours prune 64 prune --keep-last 1 --force
ours collect 64 collect
