#!/bin/sh
# Installs the Debian packages that building, the demo and the tests need: `deps.sh`, or `deps.sh bench` for those of
# the benchmark as well. As root it installs what is missing; otherwise it prints the one line that does, and fails.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# program:package. The program decides, so that one from elsewhere counts as well.
programs='g++:g++ make:make qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils qemu-nbd:qemu-utils
qemu-storage-daemon:qemu-system-common nbdkit:nbdkit nbdinfo:libnbd-bin nbd-server:nbd-server openssl:openssl
certtool:gnutls-bin ssh:openssh-client sshd:openssh-server xmllint:libxml2-utils zstd:zstd mkfs.ext4:e2fsprogs systemd-analyze:systemd
virsh:libvirt-clients virt-qemu-run:libvirt-daemon-driver-qemu python3:python3'
bench_programs='mmdebstrap:mmdebstrap restic:restic nbdcopy:libnbd-bin /usr/bin/time:time'
# file:package, for what the peers of the benchmark are built with.
files=
bench_files='/usr/include/sodium.h:libsodium-dev /usr/include/sys/acl.h:libacl1-dev /usr/include/lz4.h:liblz4-dev
/usr/include/zstd.h:libzstd-dev /usr/include/xxhash.h:libxxhash-dev /usr/include/openssl/ssl.h:libssl-dev'
# Services among these: the tests need their programs, nobody asked for a daemon.
services='nbd-server ssh'

if [ "${1:-}" = bench ]; then
    programs="$programs $bench_programs pkg-config:pkg-config"
    files=$bench_files
fi

# RocksDB's bindings are generated with libclang and its own headers, of whatever version Debian has.
missing_libclang() {
    for headers in /usr/lib/llvm-*/lib/clang/*/include/stddef.h; do
        version=$(echo "$headers" | sed -n 's,^/usr/lib/llvm-\([0-9]*\)/.*,\1,p')
        set -- /usr/lib/llvm-"$version"/lib/libclang*.so*
        [ ! -e "$headers" ] || [ ! -e "$1" ] || return 0
    done
    version=$(apt-cache pkgnames libclang1- | sed -n 's/^libclang1-\([0-9]*\)$/\1/p' | sort -n | tail -n 1)
    echo "libclang1-${version:-14} libclang-common-${version:-14}-dev"
}

missing() {
    for pair in $programs; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    done
    for pair in $files; do
        [ -e "${pair%%:*}" ] || echo "${pair#*:}"
    done
    missing_libclang
    # Debian keeps what `python3 -m venv` needs in a package of its own.
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

missing_line() {
    missing | tr ' ' '\n' | sort -u | tr '\n' ' ' | sed 's/ $//'
}

apt_install() {
    apt-get -qq -y install --no-install-recommends "$@" >/dev/null
}

# Twice at most: installing Debian's qemu-system-x86 removes a newer qemu-utils, which is then missing in its turn.
install_missing() {
    export DEBIAN_FRONTEND=noninteractive
    echo "deps: apt-get update"
    apt-get -qq update
    for attempt in first second; do
        packages=$(missing_line)
        [ -n "$packages" ] || return 0
        echo "deps: installing $packages ($attempt pass)"
        before=$(for name in $services; do [ ! -e "/lib/systemd/system/$name.service" ] || printf "%s " "$name"; done)
        # Where a newer qemu-utils comes from a backports suite that apt still knows, only that suite's others fit to it.
        # shellcheck disable=SC2086 # a list of packages
        if ! apt_install $packages; then
            suite=$(. /etc/os-release && echo "$VERSION_CODENAME")-backports
            echo "deps: they do not fit to what is installed; trying those of $suite"
            apt_install -t "$suite" $packages
        fi
        for name in $services; do
            case " $before " in *"$name"*) continue ;; esac
            [ -d /run/systemd/system ] && [ -e "/lib/systemd/system/$name.service" ] || continue
            systemctl disable --now "$name" >/dev/null 2>&1 || true
        done
    done
}

packages=$(missing_line)
if [ -n "$packages" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "deps: these Debian packages are missing; install them with:" >&2
        echo "  sudo apt-get install -y --no-install-recommends $packages" >&2
        exit 1
    fi
    install_missing
    packages=$(missing_line)
    if [ -n "$packages" ]; then
        echo "deps: still missing after apt-get install: $packages" >&2
        exit 1
    fi
fi
if ! command -v cargo >/dev/null; then
    echo "deps: Rust is missing (1.95 or later): see https://rustup.rs" >&2
    exit 1
fi
"$(dirname "$0")/guest-files.sh"
"$(dirname "$0")/moto.sh"
