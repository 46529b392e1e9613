#!/usr/bin/env bash
# check.sh - holds what vendor/*.h declares against the headers of OpenZFS 2.1 and 2.3, by compiling both together.
#
#   vendor/check.sh
#
# A prototype, a constant, an offset or a size that differs is a compile error, and this fails. The headers are
# Debian's packages libzfslinux-dev (prototypes) and zfs-dkms (the module's sources, for the layouts); they are
# only unpacked, into the cache of tests/vm/lib.sh. Needs gcc, and the network the first time.
set -eu -o pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../tests/vm/lib.sh"

# newest PACKAGE SERIES: the newest version of that series.
newest() { debian_apt apt-cache madison "$1" | awk -v s="$2." 'index($3, s) == 1 { print $3 }' | sort -rV | sed q; }

# unpacked SERIES: a folder with both packages of that series; downloaded once.
unpacked() {
  local version folder work deb
  version=$(newest libzfslinux-dev "$1")
  [ -n "$version" ] || { debian_apt_update; version=$(newest libzfslinux-dev "$1"); }
  [ -n "$version" ] || die "Debian's packages here have no libzfslinux-dev of series $1"
  folder=$cache/headers/$version
  if [ ! -d "$folder" ]; then
    mkdir -p "$cache/headers"
    work=$(mktemp -d "$cache/headers/unpacking.XXXXXX")
    (cd "$work" && debian_apt apt-get download "libzfslinux-dev=$version" "zfs-dkms=$version" >&2)
    for deb in "$work"/*.deb; do dpkg -x "$deb" "$work/root"; done
    mv "$work/root" "$folder"
    rm -rf "$work"
  fi
  echo "$folder"
}

# check SERIES NV_CONST
check() {
  local root source system
  root=$(unpacked "$1")
  source=$(echo "$root"/usr/src/zfs-"$1".*)
  system=("-DNV_CONST=$2" -isystem "$root/usr/include/libzfs" -isystem "$root/usr/include/libspl")
  gcc -fsyntax-only -Wall -Wextra -Werror "${system[@]}" "$here/check.c" ||
    die "vendor/*.h declares a function or constant otherwise than libzfs_core or libnvpair of ZFS $1"
  gcc -fsyntax-only -Wall -Wextra -Werror -DWITH_SOURCE "${system[@]}" -isystem "$source/include" \
    -isystem "$source/include/os/linux/zfs" "$here/check.c" ||
    die "vendor/zfs_layout.h differs from the sources of ZFS $1"
  say "ZFS $1: the same"
}

check 2.1 ''
check 2.3 const
