#!/bin/sh
# Backup and restore over HTTP against what the same server takes and gives: s3.sh AQUIFER [ROUNDS] [MIB]
#
# The server is moto on loopback, in memory: one Python process. It has the first processor and its clients the second, so
# that a client's work takes nothing away from the server; still the figures are ratios within a round, never rates of a
# bucket. The floors are PUTs and GETs of bodies of 32 MiB out of memory and into nothing, four at a time, of as many
# bytes, and the same backup and restore with a directory in place of the bucket: what is slower of the two is the ratio's.
# The data is random: nothing deduplicates or compresses away.
set -eu
umask 077
. "$(dirname "$0")/common.sh"

aquifer=$1
rounds=${2:-3}
mib=${3:-1024}
scratch=$(mktemp -d)
memory=$(mktemp -d -p /dev/shm)
server=
trap 'rm -rf "$scratch" "$memory"; [ -z "$server" ] || kill "$server"' EXIT
trap 'exit 1' INT TERM

"$(dirname "$0")/../scripts/moto.sh"
address=127.0.0.1:3907
start_server() {
    [ -z "$server" ] || { kill "$server"; wait "$server" 2>/dev/null || true; }
    taskset -c 0 "$HOME/.cache/aquifer/moto/bin/moto_server" -H 127.0.0.1 -p 3907 >"$scratch/moto.log" 2>&1 &
    server=$!
    for _ in $(seq 300); do
        ! curl --silent --output /dev/null "http://$address/" || break
        sleep 0.1
    done
    curl --silent --fail --output /dev/null -X PUT "http://$address/bench"
}

# The slower of two floors as a part of what we took.
ratio() { awk -v one="$1" -v two="$2" -v ours="$3" 'BEGIN { print (one > two ? one : two) / ours }'; }

head -c $((32 << 20)) /dev/urandom >"$memory/body"
head -c $((mib << 20)) /dev/urandom >"$scratch/disk.raw"
printf '[default]\naws_access_key_id = any\naws_secret_access_key = any\n' >"$scratch/credentials"
make_config "$scratch"
url="s3://bench/main?endpoint=http://$address&credentials-file=$scratch/credentials"
ours() {
    taskset -c 1 "$aquifer" --config "$scratch/aquifer.toml" --state-dir "$scratch/state" \
        --password-file "$scratch/password" --json -r "$place" "$@"
}
# No letter stands for the number: the names of the folders hold some.
numbers=$(seq $((mib / 32)))
puts() { echo "$numbers" | taskset -c 1 xargs -P 4 -I {} curl --silent --fail --output /dev/null -T "$memory/body" "http://$address/bench/{}"; }
# Moto gives nothing to nobody; what it is signed with does not matter.
gets() {
    echo "$numbers" | taskset -c 1 xargs -P 4 -I {} curl --silent --fail --output /dev/null --aws-sigv4 aws:amz:us-east-1:s3 \
        --user any:any "http://$address/bench/{}"
}

# Backs up into $place and restores from it, as a host that has nothing but the repository and the password.
there_and_back() {
    rm -rf "$scratch/state" "$scratch/out.raw"
    ours repository init >/dev/null
    at=$(seconds); ours backup disk --image "root=$scratch/disk.raw" >"$scratch/backup.json"; backup=$(since "$at")
    rm -rf "$scratch/state"
    at=$(seconds); ours restore latest:disk --disk "root=raw:$scratch/out.raw" >"$scratch/restore.json"; restore=$(since "$at")
    cmp "$scratch/disk.raw" "$scratch/out.raw"
}

echo "round  puts s  locally s  backup s  ratio   gets s  locally s  restore s  ratio"
for round in $(seq "$rounds"); do
    rm -rf "$scratch/repository"
    place=$scratch/repository
    there_and_back
    local_backup=$backup local_restore=$restore
    # A new server for each, or the second would find memory scarcer than the first did.
    start_server
    at=$(seconds); puts; put=$(since "$at")
    at=$(seconds); gets; get=$(since "$at")
    start_server
    place=$url
    there_and_back
    printf '%5s  %6.2f  %9.2f  %8.2f  %5.2f  %7.2f  %9.2f  %9.2f  %5.2f\n' "$round" \
        "$put" "$local_backup" "$backup" "$(ratio "$put" "$local_backup" "$backup")" \
        "$get" "$local_restore" "$restore" "$(ratio "$get" "$local_restore" "$restore")"
done
for job in backup restore; do
    echo "$job: $(grep -o '"requests":{[^}]*}' "$scratch/$job.json")"
done
