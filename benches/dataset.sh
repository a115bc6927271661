#!/bin/sh
# Makes the benchmark's disks: three days of a Debian server, as ext4 images DIR/day0.raw, day1.raw and day2.raw.
#   day0  installed: services, an office suite, TeX, a JDK, the downloaded packages, a database, logs, pictures
#   day1  upgraded with all updates and a few new packages; the database worked, logs were rotated, pictures came and went
#   day2  a quiet day: a little database work, a little log, a few pictures
# Each day is a copy of the one before, mounted and worked on, so that blocks change where a file system changes them.
# What it is not: a boot test. Only PostgreSQL is ever started.
# Law: sizes, seeds and uuids are fixed here; the packages are what the mirror has on the day, and two database clients at
# once do not meet in the same order twice, so that two images are alike and never the same.
# usage: dataset.sh DIR        (root, for loop mounts and chroot; makes what is missing and keeps it)
set -eu
dir=$1 size_mib=5120
root=$dir/root
for tool in mmdebstrap mkfs.ext4 losetup mount chroot; do
    command -v "$tool" >/dev/null || { echo "dataset: $tool is missing; run: scripts/deps.sh bench" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "dataset: loop mounts need root; run: sudo make bench" >&2; exit 1; }
uris() { awk '/^URIs:/ { print $2 }' /etc/apt/sources.list.d/debian.sources 2>/dev/null; awk '$1 == "deb" { print $2 }' /etc/apt/sources.list 2>/dev/null; }
mirror=$(uris | head -n 1)
security=$(uris | grep -m 1 security || true)
[ -n "$mirror" ] || { echo "dataset: no Debian mirror in /etc/apt" >&2; exit 1; }
day0_packages=linux-image-amd64,initramfs-tools,openssh-server,rsyslog,vim,git,curl,ca-certificates,python3,python3-pip
day0_packages=$day0_packages,python3-numpy,build-essential,gdb,postgresql,postgresql-contrib,apache2,php-cli,man-db,rsync
day0_packages=$day0_packages,libreoffice-core-nogui,libreoffice-writer-nogui,libreoffice-calc-nogui,perl-doc
day0_packages=$day0_packages,texlive-latex-recommended,openjdk-17-jdk-headless
day1_packages="nginx-light redis-server golang-1.19-src sqlite3 tmux"
export SOURCE_DATE_EPOCH=1700000000 DEBIAN_FRONTEND=noninteractive LC_ALL=C
mkdir -p "$root"

leave() {
    for below in proc dev/shm dev; do ! mountpoint -q "$root/$below" || umount "$root/$below"; done
    ! mountpoint -q "$root" || umount "$root"
}
trap leave EXIT
trap 'exit 1' INT TERM

enter() {
    mount -o loop,noatime "$1" "$root"
    [ -e "$root/proc" ] || return 0
    mount -t proc proc "$root/proc"
    mount --bind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/dev/shm"
    # No daemon starts when its package is installed.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
}

# Runs a line as the database's owner, between its start and its end.
with_database() {
    mkdir -p "$root/run/postgresql"
    chroot "$root" chown postgres /run/postgresql
    chroot "$root" pg_ctlcluster 15 main start
    chroot "$root" su postgres -s /bin/sh -c "cd /tmp; $1; psql -q -c checkpoint" >"$dir/database.log" 2>&1
    chroot "$root" pg_ctlcluster 15 main stop
}

# Lines of a web server's log: seed, count, file.
web_log() {
    awk -v seed="$1" -v count="$2" 'BEGIN { srand(seed)
        for (n = 0; n < count; n++) printf "10.%d.%d.%d - - [%d] \"GET /items/%d HTTP/1.1\" %d %d \"-\" \"agent/%d.%d\"\n",
            rand() * 256, rand() * 256, rand() * 256, 1700000000 + n, rand() * 1000000, rand() < 0.9 ? 200 : 404,
            rand() * 90000, rand() * 9, rand() * 99 }' >>"$root/var/log/app/$3"
}

# Pictures, which do not compress: seed, count, name.
pictures() {
    python3 - "$1" "$2" "$root/srv/pictures/$3" <<'P'
import random, sys
seed, count, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dice = random.Random(seed)
for number in range(count):
    with open(f"{name}-{number:03}.jpg", "wb") as file:
        file.write(dice.randbytes(dice.randrange(200_000, 6_000_000)))
P
}

install_day() {
    truncate -s ${size_mib}M "$dir/new.raw"
    mkfs.ext4 -q -F -m 1 -U 0f0f0f0f-0000-4000-8000-000000000001 \
        -E hash_seed=0f0f0f0f-0000-4000-8000-000000000002,lazy_itable_init=0,lazy_journal_init=0 "$dir/new.raw"
    enter "$dir/new.raw"
    mmdebstrap --quiet --mode=root --variant=important --skip=cleanup/apt,check/empty \
        --aptopt='APT::Install-Recommends "false"' --aptopt='APT::Keep-Downloaded-Packages "true"' \
        --include="$day0_packages" bookworm "$root" "deb $mirror bookworm main"
    leave
    enter "$dir/new.raw"
    mkdir -p "$root/var/log/app" "$root/srv/pictures"
    web_log 1 900000 access.log.1
    web_log 2 600000 access.log
    pictures 3 60 old
    with_database "createdb app; pgbench -q -i -s 25 app; pgbench -n --random-seed=8 -c 2 -t 2000 app"
}

upgrade_day() {
    {
        echo "deb $mirror bookworm main"
        echo "deb $mirror bookworm-updates main"
        [ -z "$security" ] || echo "deb $security bookworm-security main"
    } >"$root/etc/apt/sources.list"
    chroot "$root" apt-get -qq clean
    chroot "$root" apt-get -qq update
    chroot "$root" apt-get -y --no-install-recommends -o Dpkg::Options::=--force-confold upgrade >"$dir/upgrade.log" 2>&1
    # shellcheck disable=SC2086 # a list of packages
    chroot "$root" apt-get -y --no-install-recommends install $day1_packages >>"$dir/upgrade.log" 2>&1
    with_database "pgbench -n --random-seed=9 -c 2 -t 10000 app"
    gzip -n "$root/var/log/app/access.log.1"
    mv "$root/var/log/app/access.log.1.gz" "$root/var/log/app/access.log.2.gz"
    mv "$root/var/log/app/access.log" "$root/var/log/app/access.log.1"
    web_log 4 200000 access.log
    rm "$root"/srv/pictures/old-00?.jpg
    pictures 5 6 new
}

quiet_day() {
    with_database "pgbench -n --random-seed=10 -c 2 -t 1000 app"
    web_log 6 60000 access.log
    pictures 7 3 quiet
}

# Makes the image of a day from that of the day before.
day() {
    [ ! -e "$dir/$1.raw" ] || return 0
    echo "dataset: $1"
    rm -f "$dir/new.raw"
    case $1 in
        day0) install_day ;;
        day1) cp --sparse=always "$dir/day0.raw" "$dir/new.raw"; enter "$dir/new.raw"; upgrade_day ;;
        day2) cp --sparse=always "$dir/day1.raw" "$dir/new.raw"; enter "$dir/new.raw"; quiet_day ;;
    esac
    df -m "$root" | tail -n 1
    sync -f "$root"
    # What was freed on the first day was never written.
    [ "$1" != day0 ] || fstrim "$root"
    leave
    mv "$dir/new.raw" "$dir/$1.raw"
}
day day0
day day1
day day2
