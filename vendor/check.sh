#!/usr/bin/env bash
# check.sh - compares what vendor/*.h declares with the headers of each series of OpenZFS in src/zfs/version.rs, by
# compiling both together.
#
#   vendor/check.sh
#
# A prototype, a constant, an offset or a size that differs is a compile error, and this fails. So does a declaration
# of vendor/*.h that vendor/check.c compares with nothing. The headers come from the packages libzfslinux-dev
# (prototypes) and zfs-dkms (the module's sources, for the layouts) of Debian's releases. They are only unpacked, into the
# cache of tests/vm/lib.sh. Needs gcc, and the network the first time.
set -eu -o pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../tests/vm/lib.sh"
headers=$cache/headers
bullet_list() { sed 's/^/  /' >&2; }

# Every name in our headers that stands for something of ZFS is compared in check.c. (Functions are: the compiler
# compares two declarations of one name by itself.)
unchecked=$(
  grep -ohE '\b(ZFS_BACKUP_(IOC|OST)|DATA_TYPE|LZC_SEND_FLAG|LZC_DATSET_TYPE|NV|B)_[A-Z0-9_]+\b|\b(zc|dds|drr)_[a-z_]+' "$here"/*.h |
    grep -vxE 'ZFS_BACKUP_.*_H|NV_CONST' | sort -u |
    while read -r name; do grep -qE "^SAME(_PLACE)?\(.*\b$name\b" "$here/check.c" || echo "$name"; done
)
[ -z "$unchecked" ] || { bullet_list <<<"$unchecked"; die 'vendor/check.c compares these names of vendor/*.h with nothing'; }

# The package lists of the releases that have these series, apart from the machine's own and from those of debian_apt.
header_apt() { APT_CONFIG="$headers/apt/apt.conf" "$@"; }

header_apt_update() {
  local codename uri key
  debian_apt_update
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  read -r uri key < <(apt_source "$codename")
  mkdir -p "$headers"/apt/{lists/partial,cache/archives/partial}
  sed -e "s|$cache/apt|$headers/apt|" -e '/preferences/d' "$cache/apt/apt.conf" >"$headers/apt/apt.conf"
  for release in bookworm bookworm-backports trixie trixie-backports; do
    echo "deb ${key:+[signed-by=$key] }$uri $release contrib"
  done >"$headers/apt/sources.list"
  printf 'Acquire::http::Timeout "20";\n' >>"$headers/apt/apt.conf"
  header_apt apt-get -qq update >&2 || say "could not read all package lists of $uri"
}

# versions SERIES: those that both packages have there; one of each upstream version.
versions() {
  [ -e "$headers/apt/apt.conf" ] || header_apt_update
  comm -12 <(madison libzfslinux-dev "$1") <(madison zfs-dkms "$1") | sort -rV | awk -F- '!seen[$1]++'
}
madison() { header_apt apt-cache madison "$1" | awk -v s="$2." 'index($3, s) == 1 { print $3 }' | sort -u; }

# unpacked VERSION: a folder with both packages of that version; downloaded once.
unpacked() {
  local folder=$headers/$1 work deb
  if [ ! -d "$folder" ]; then
    work=$(mktemp -d "$headers/unpacking.XXXXXX")
    (cd "$work" && header_apt apt-get -qq download "libzfslinux-dev=$1" "zfs-dkms=$1" >&2) ||
      die "could not download libzfslinux-dev and zfs-dkms $1"
    for deb in "$work"/*.deb; do dpkg -x "$deb" "$work/root"; done
    mv "$work/root" "$folder"
    rm -rf "$work"
  fi
  echo "$folder"
}

# check VERSION NV_CONST
check() {
  local root source system library
  root=$(unpacked "$1")
  source=$(echo "$root"/usr/src/zfs-*)
  system=("-DNV_CONST=$2" -isystem "$root/usr/include/libzfs" -isystem "$root/usr/include/libspl")
  gcc -fsyntax-only -Wall -Wextra -Werror "${system[@]}" "$here/check.c" ||
    die "vendor/*.h declares a function or constant otherwise than libzfs_core or libnvpair of ZFS $1"
  gcc -fsyntax-only -Wall -Wextra -Werror -DWITH_SOURCE "${system[@]}" -isystem "$source/include" \
    -isystem "$source/include/os/linux/zfs" "$here/check.c" ||
    die "vendor/zfs_layout.h differs from the sources of ZFS $1"
  for library in libzfs_core libnvpair; do
    case $(readlink "$root"/usr/lib/*/$library.so "$root"/lib/*/$library.so) in
    *$library.so.3.*) ;;
    *) die "$library of ZFS $1 is not $library.so.3, which src/zfs/core.rs opens" ;;
    esac
  done
  say "ZFS $1: the same"
}

series=$(sed -n 's/^const COMPILED_SERIES.*= \[\(.*\)\];$/\1/p' "$here/../src/zfs/version.rs" | tr -d '",')
[ -n "$series" ] || die 'src/zfs/version.rs has no list COMPILED_SERIES'
for one in $series; do
  found=$(versions "$one")
  # The lists of an earlier run may be older than the series.
  [ -n "$found" ] || { header_apt_update; found=$(versions "$one"); }
  [ -n "$found" ] || die "Debian's mirror has no package libzfslinux-dev of series $one"
  const=const
  [ "$one" != 2.1 ] || const=
  for version in $found; do check "$version" "$const"; done
done
