#!/bin/sh
# Runs the probe against S3 servers that are not part of `make test`, and prints what it said of each:
#   s3-servers.sh AQUIFER [moto] [s3s-fs] [garage]     (all three without names)
# Garage may not hold the log: two hosts then back up into it at once with the log in a directory, and one restores, while
# a node is killed in the middle of each.
# s3s-fs and garage are built by cargo into the cache folder once, which takes minutes. Everything runs on loopback, in
# a scratch folder, and ends with this script.
set -eu
umask 077

aquifer=$1
shift
[ $# -gt 0 ] || set -- moto s3s-fs garage
cache="$HOME/.cache/aquifer/s3-servers"
scratch=$(mktemp -d)
pids=
stop() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $pids; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap stop EXIT
trap 'exit 1' INT TERM

# The server in $1 with further arguments, its output in a file of its own.
start() {
    timeout 900 "$@" >>"$scratch/$(basename "$1").log" 2>&1 &
    pid=$!
    pids="$pids $pid"
}

# Installs a crate's program at one version.
install_crate() {
    [ -x "$cache/bin/$1" ] || CARGO_TARGET_DIR="$cache/target" cargo install --quiet --locked --root "$cache" "$@"
}

# Waits until something answers at this address.
listening() {
    for _ in $(seq 300); do
        ! curl --silent --output /dev/null "http://$1/" || return 0
        sleep 0.2
    done
    echo "nothing listens at $1" >&2
    cat "$scratch"/*.log >&2
    return 1
}

# Probes the bucket `probe` at this address with this access key, and shows the verdict.
probe() {
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$3" "$4" >"$scratch/credentials"
    url="s3://probe/main?endpoint=http://$2&region=$5&credentials-file=$scratch/credentials"
    echo "== $1"
    for _ in 1 2 3; do
        "$aquifer" -r "$url" repository probe || true
    done
}

run_moto() {
    "$(dirname "$0")/moto.sh"
    start "$HOME/.cache/aquifer/moto/bin/moto_server" -H 127.0.0.1 -p 3905
    listening 127.0.0.1:3905
    curl --silent --fail --output /dev/null -X PUT http://127.0.0.1:3905/probe
    probe "moto $(cat "$HOME/.cache/aquifer/moto/version")" 127.0.0.1:3905 any any us-east-1
}

run_s3s_fs() {
    install_crate s3s-fs --version 0.14.1 --features binary
    mkdir -p "$scratch/s3s/probe"
    start "$cache/bin/s3s-fs" --host 127.0.0.1 --port 3906 --access-key AKIDTEST --secret-key SECRET "$scratch/s3s"
    listening 127.0.0.1:3906
    probe "s3s-fs 0.14.1" 127.0.0.1:3906 AKIDTEST SECRET us-east-1
}

# A command of garage's first node.
garage() {
    "$cache/bin/garage" -c "$scratch/garage-1.toml" "$@" 2>>"$scratch/garage-cli.log"
}

start_node() {
    start "$cache/bin/garage" -c "$scratch/garage-$1.toml" server
    eval "node_$1=$pid"
}

# The hard end of one node: its watcher ends with it.
kill_node() {
    eval "pid=\$node_$1"
    pkill -KILL -P "$pid"
    wait "$pid" 2>/dev/null || true
}

# Waits until the job of this process, whose events go to this file, is under way.
under_way() {
    until grep -q '"event":"progress"' "$2"; do
        kill -0 "$1"
        sleep 0.05
    done
}

# Aquifer as the host with this name: a state folder of its own, packs in the bucket, the log in a directory.
host() {
    name=$1
    shift
    "$aquifer" --config "$scratch/empty.toml" --state-dir "$scratch/state-$name" --password-file "$scratch/password" \
        --json -r "$url" --log "$scratch/log" "$@"
}

# Two writers at once and then a restorer, each of which loses a node in the middle.
nodes_die() {
    : >"$scratch/empty.toml"
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$scratch/password"
    for image in one two; do head -c 400M /dev/urandom >"$scratch/$image.raw"; done
    host first repository init >/dev/null
    for image in one two; do : >"$scratch/$image.json"; done
    host first backup one --image "root=$scratch/one.raw" >"$scratch/one.json" & first=$!
    host second backup two --image "root=$scratch/two.raw" >"$scratch/two.json" & second=$!
    under_way "$first" "$scratch/one.json"
    kill_node 3
    wait "$first" && wait "$second"
    echo "two backups, node 3 killed in the middle: both committed"
    start_node 3
    listening 127.0.0.1:3930
    while garage status | grep -q FAILED; do sleep 0.5; done
    : >"$scratch/restore.json"
    host third restore latest:one --disk "root=raw:$scratch/out.raw" >"$scratch/restore.json" & restore=$!
    under_way "$restore" "$scratch/restore.json"
    kill_node 2
    wait "$restore"
    cmp "$scratch/one.raw" "$scratch/out.raw"
    echo "a restore without any local state, node 2 killed in the middle: the same bytes"
    host fourth verify --level chunks >/dev/null
    echo "verify --level chunks with node 2 still dead: clean"
}

run_garage() {
    install_crate garage --version 2.5.0
    secret=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    for node in 1 2 3; do
        cat >"$scratch/garage-$node.toml" <<X
metadata_dir = "$scratch/garage-$node/meta"
data_dir = "$scratch/garage-$node/data"
db_engine = "sqlite"
replication_factor = 3
rpc_bind_addr = "127.0.0.1:39${node}1"
rpc_public_addr = "127.0.0.1:39${node}1"
rpc_secret = "$secret"
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:39${node}0"
root_domain = ".s3.garage.localhost"
X
        chmod 600 "$scratch/garage-$node.toml"
        start_node "$node"
    done
    listening 127.0.0.1:3910
    listening 127.0.0.1:3920
    listening 127.0.0.1:3930
    for node in 1 2 3; do
        id=$("$cache/bin/garage" -c "$scratch/garage-$node.toml" node id -q 2>/dev/null)
        [ "$node" = 1 ] || garage node connect "$id" >/dev/null
        garage layout assign -z "zone$node" -c 1G "${id%%@*}" >/dev/null
    done
    garage layout apply --version 1 >/dev/null
    garage key create probe >"$scratch/key"
    garage bucket create probe >/dev/null
    garage bucket allow --read --write --owner probe --key probe >/dev/null
    id=$(grep -oE 'GK[0-9a-f]{24}' "$scratch/key" | head -n 1)
    secret=$(grep -i secret "$scratch/key" | grep -oE '[0-9a-f]{64}' | head -n 1)
    probe "garage 2.5.0, three nodes" 127.0.0.1:3910 "$id" "$secret" garage
    nodes_die
}

for server in "$@"; do
    case $server in
        moto) run_moto ;;
        s3s-fs) run_s3s_fs ;;
        garage) run_garage ;;
        *) echo "s3-servers: unknown server $server" >&2; exit 2 ;;
    esac
done
