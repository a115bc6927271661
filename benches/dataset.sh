#!/bin/sh
# Makes the benchmark's disk: a Debian root file system of real packages in an ext4 image.
# What it is not: a boot test. Nothing in it is started; only its bytes matter.
# Law: the same package versions give the same content; sizes, seeds and uuids are fixed here.
# usage: dataset.sh DIR        (root, for mmdebstrap; makes DIR/disk.raw once and keeps it)
set -eu
dir=$1 image=$1/disk.raw size_mib=5120
[ -e "$image" ] && exit 0
for tool in mmdebstrap mkfs.ext4; do
    command -v "$tool" >/dev/null || { echo "dataset: $tool is missing; run: make deps" >&2; exit 1; }
done
mirror=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
[ -n "$mirror" ] || mirror=$(awk '$1 == "deb" { print $2; exit }' /etc/apt/sources.list)
packages=linux-image-amd64,initramfs-tools,openssh-server,rsyslog,vim,git,curl,ca-certificates,python3,python3-pip
packages=$packages,python3-numpy,build-essential,gdb,postgresql,postgresql-contrib,apache2,php-cli,man-db,rsync
packages=$packages,libreoffice-core-nogui,libreoffice-writer-nogui,libreoffice-calc-nogui,texlive-latex-recommended
packages=$packages,openjdk-17-jdk-headless,golang-1.19-src,nginx-light,redis-server,sqlite3,perl-doc
export SOURCE_DATE_EPOCH=1700000000 DEBIAN_FRONTEND=noninteractive LC_ALL=C
mkdir -p "$dir"
root=$dir/root
rm -rf "$root" "$image.part"
# The downloaded .debs stay inside: a disk has incompressible files too.
mmdebstrap --quiet --mode=root --variant=important --skip=cleanup/apt,check/empty \
    --aptopt='APT::Install-Recommends "false"' --aptopt='APT::Keep-Downloaded-Packages "true"' \
    --include="$packages" bookworm "$root" "deb $mirror bookworm main"
# Logs: text that compresses well, as every server has it.
mkdir -p "$root/var/log/app"
awk 'BEGIN { srand(7); for (n = 0; n < 1600000; n++) printf "10.%d.%d.%d - - [%d] \"GET /items/%d HTTP/1.1\" %d %d\n",
    rand() * 256, rand() * 256, rand() * 256, 1700000000 + n, rand() * 1000000, rand() < 0.9 ? 200 : 404, rand() * 90000 }' \
    > "$root/var/log/app/access.log"
truncate -s ${size_mib}M "$image.part"
mkfs.ext4 -q -F -m 1 -U 0f0f0f0f-0000-4000-8000-000000000001 \
    -E hash_seed=0f0f0f0f-0000-4000-8000-000000000002,lazy_itable_init=0,lazy_journal_init=0 \
    -d "$root" "$image.part"
rm -rf "$root"
mv "$image.part" "$image"
