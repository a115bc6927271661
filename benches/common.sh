# What the benchmarks in shell share; sourced, never run.

seconds() { date +%s.%N; }
# Seconds that have passed since such a moment.
since() { awk -v from="$1" -v to="$(seconds)" 'BEGIN { print to - from }'; }
# The middle of the numbers on its input, one a line; the mean of the middle two when their number is even.
median() { sort -n | awk '{ n[NR] = $1 } END { printf "%.3f", NR % 2 ? n[(NR + 1) / 2] : (n[NR / 2] + n[NR / 2 + 1]) / 2 }'; }

# Waits for a socket that a server is about to make.
await_socket() {
    for _ in $(seq 300); do
        [ ! -S "$1" ] || return 0
        sleep 0.1
    done
    echo "no server makes the socket $1" >&2
    exit 1
}

# An empty configuration and a password, in a folder.
make_config() {
    printf '' >"$1/aquifer.toml"
    head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$1/password"
}
