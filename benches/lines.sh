#!/bin/sh
# Reading over long lines and over TLS: our client beside nbdcopy, both into nothing: lines.sh NBDREAD IMAGE [ROUNDS]
#
# nbdkit serves the image (from the page cache) through its delay filter, or over TLS with a certificate made here. nbdcopy
# runs with every setting below and its best one counts; ours runs once as it chooses itself, and once with one connection.
# Only what is allocated is read. A ratio is taken inside a round; the medians are printed.
set -eu
umask 077
. "$(dirname "$0")/common.sh"

nbdread=$1
image=$2
rounds=${3:-3}
scratch=$(mktemp -d)
server=
trap 'rm -rf "$scratch"; [ -z "$server" ] || kill "$server"' EXIT
trap 'exit 1' INT TERM

# Wall seconds of a command.
timed() { at=$(seconds); "$@" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }; since "$at"; }

certificates() {
    certtool --generate-privkey --outfile "$scratch/ca-key.pem"
    printf 'cn = bench\nca\ncert_signing_key\n' >"$scratch/ca.info"
    certtool --generate-self-signed --load-privkey "$scratch/ca-key.pem" --template "$scratch/ca.info" \
        --outfile "$scratch/ca-cert.pem"
    certtool --generate-privkey --outfile "$scratch/server-key.pem"
    printf 'cn = localhost\ndns_name = localhost\ntls_www_server\nsigning_key\nencryption_key\n' >"$scratch/server.info"
    certtool --generate-certificate --load-privkey "$scratch/server-key.pem" --template "$scratch/server.info" \
        --load-ca-certificate "$scratch/ca-cert.pem" --load-ca-privkey "$scratch/ca-key.pem" --outfile "$scratch/server-cert.pem"
}

# Serves the image with the words for nbdkit that follow.
serve() {
    [ -z "$server" ] || { kill "$server"; wait "$server" 2>/dev/null || true; }
    rm -f "$scratch/socket"
    nbdkit --foreground --exit-with-parent --pidfile "$scratch/pid" --unix "$scratch/socket" "$@" &
    server=$!
    await_socket "$scratch/socket"
}

# The fastest of nbdcopy's settings: seconds and the setting.
best_nbdcopy() {
    for setting in $settings; do
        words=$(echo "$setting" | awk -F/ '{ print "--connections=" $1 " --requests=" $2 " --request-size=" $3 }')
        # shellcheck disable=SC2086 # three words
        echo "$(timed nbdcopy $words "$uri" null:) $setting"
    done | sort -n | head -n 1
}

measure() {
    line=$1
    cat "$image" >/dev/null
    for round in $(seq "$rounds"); do
        best=$(best_nbdcopy)
        theirs=${best% *}
        ours=$(timed "$nbdread" "$uri")
        one=$(timed "$nbdread" "$uri" 1)
        echo "$theirs $ours $one" >>"$scratch/$line"
        printf '%-8s %5s  %8.2f  %-14s %8.2f  %10.2f  %5.2f  %5.2f\n' "$line" "$round" "$theirs" "${best#* }" "$ours" "$one" \
            "$(awk -v a="$ours" -v b="$theirs" 'BEGIN { print a / b }')" "$(awk -v a="$one" -v b="$ours" 'BEGIN { print a / b }')"
    done
    printf '%-8s median of the ratios to nbdcopy: %.2f; of one connection to ours: %.2f\n' "$line" \
        "$(awk '{ print $2 / $1 }' "$scratch/$line" | median)" "$(awk '{ print $3 / $2 }' "$scratch/$line" | median)"
}

echo "line     round  nbdcopy s  best setting    ours s  one conn. s  ratio  gain"
settings='4/64/262144 4/16/1048576 8/64/262144 8/16/1048576 16/16/262144 16/16/1048576'
uri="nbd+unix:///?socket=$scratch/socket"
serve --filter=delay file "$image" rdelay=10ms
measure 10ms
serve --filter=delay file "$image" rdelay=50ms
measure 50ms
certificates 2>"$scratch/log"
settings='1/64/262144 2/64/262144 4/64/262144 4/16/1048576'
serve --tls=require --tls-certificates="$scratch" file "$image"
uri="nbds+unix:///?socket=$scratch/socket&tls-certificates=$scratch"
measure tls
