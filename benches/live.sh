#!/bin/sh
# An unchanged disk of a running QEMU, with its bitmap: live.sh AQUIFER [ROUNDS]
#
# From the command's start until it has ended: password, index, monitor, one transaction, export, what the bitmap tells,
# COMMIT, everything taken down again. Two machines, one with a disk of 5 GiB and one with a sparse one of 1 TiB; both have
# 64 MiB of data. Then the same after 16 MiB were written. The guests have no system: what is timed does not ask one.
set -eu
umask 077
. "$(dirname "$0")/common.sh"

aquifer=$1
rounds=${2:-7}
scratch=$(mktemp -d)
machines=
trap 'for machine in $machines; do kill "$machine" 2>/dev/null || true; done; rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

make_config "$scratch"
ours() {
    "$aquifer" --config "$scratch/aquifer.toml" --state-dir "$scratch/state" --password-file "$scratch/password" \
        -r "$scratch/repository" --json "$@" >"$scratch/out" 2>"$scratch/err" || { cat "$scratch/err" >&2; exit 1; }
}

start_machine() {
    qemu-img create -q -f qcow2 "$scratch/$1.qcow2" "$1"
    qemu-io -f qcow2 -c 'write -P 7 0 64M' "$scratch/$1.qcow2" >/dev/null
    qemu-system-x86_64 -nodefaults -display none -machine pc,accel=tcg -m 64 \
        -blockdev "driver=qcow2,node-name=vda,file.driver=file,file.filename=$scratch/$1.qcow2" \
        -device virtio-blk-pci,drive=vda,id=disk \
        -qmp "unix:$scratch/$1.qmp,server=on,wait=off" -monitor "unix:$scratch/$1.hmp,server=on,wait=off" >"$scratch/$1.log" 2>&1 &
    machines="$machines $!"
    await_socket "$scratch/$1.hmp"
}

# Writes into a machine's disk, as its guest would.
write_some() {
    python3 - "$scratch/$1.hmp" "qemu-io -d /machine/peripheral/disk/virtio-backend \"write -P $2 $3 16M\"" <<'P'
import socket, sys
monitor = socket.socket(socket.AF_UNIX)
monitor.connect(sys.argv[1])
said = b""
while not said.endswith(b"(qemu) "):
    said += monitor.recv(4096)
monitor.sendall(sys.argv[2].encode() + b"\n")
said = b""
while not said.endswith(b"(qemu) "):
    said += monitor.recv(4096)
P
    # The command's own words go where QEMU's go.
    grep -q "wrote 16777216/16777216 bytes at offset $((${3%M} << 20))" "$scratch/$1.log" || { cat "$scratch/$1.log" >&2; exit 1; }
}

timed_backup() {
    at=$(seconds)
    ours backup "$1" --qmp "unix:$scratch/$1.qmp"
    since "$at" >>"$scratch/$1.$2"
}

ours repository init
for size in 5G 1T; do
    start_machine "$size"
    timed_backup "$size" full
done
for round in $(seq "$rounds"); do
    for size in 5G 1T; do
        timed_backup "$size" unchanged
        write_some "$size" "$round" "$((round * 32))M"
        timed_backup "$size" written
        # What was written was read, and nothing else.
        grep -q '"read_bytes":16777216,' "$scratch/out" || { cat "$scratch/out" >&2; exit 1; }
    done
done
echo "disk  first s  unchanged s  lowest  highest  16 MiB written s"
for size in 5G 1T; do
    printf '%-4s  %7.3f  %11.3f  %6.3f  %7.3f  %16.3f\n' "$size" "$(cat "$scratch/$size.full")" \
        "$(median <"$scratch/$size.unchanged")" "$(sort -n "$scratch/$size.unchanged" | head -n 1)" \
        "$(sort -n "$scratch/$size.unchanged" | tail -n 1)" "$(median <"$scratch/$size.written")"
done
