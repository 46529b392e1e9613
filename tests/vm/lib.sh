# shellcheck shell=bash
# lib.sh - what scripts/deps and the scripts of tests/vm share. Sourced by bash, not run.
#
#   cache       the folder for all that is costly to make and may be deleted at any time
#   say, die    one line on stderr; die also ends the script
#   debian_apt  apt-get and apt-cache with more of Debian than the machine is set up for

cache="${ZFS_BACKUP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/zfs-backup}"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$@"; exit 1; }

# Runs TOOL (apt-get, apt-cache) with the machine's own mirror, but with its contrib area and its
# backports as well: ZFS is only there. Sources and lists are ours, in the cache: the machine's own
# apt settings stay as they are. What is installed is still the machine's (Dir::State::status).
debian_apt() {
  local tool=$1; shift
  "$tool" -q -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$cache/apt/sources" \
    -o Dir::State::lists="$cache/apt/lists" -o Dir::Cache="$cache/apt/cache" \
    -o Acquire::Languages=none -o Acquire::Retries=3 \
    -o APT::Sandbox::User=root "$@" # the cache is in a home folder, which apt's own user cannot read
}

# Writes the sources for debian_apt and reads the package lists. Sets nothing; needs the network.
debian_apt_update() {
  local codename uri key
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  [ "$(. /etc/os-release && echo "$ID")" = debian ] || die "this needs Debian: the kernel and ZFS come from its packages"
  # The entry that carries the plain release (not -security): its address and its key, in either format.
  read -r uri key < <(
    { cat /etc/apt/sources.list.d/*.sources 2>/dev/null; echo; } | awk -v suite="$codename" '
      function flush(  i, n, s) {
        n = split(suites, s, " ")
        for (i = 1; i <= n; i++) if (s[i] == suite && type ~ /(^| )deb( |$)/) { print uri, key; exit }
        type = uri = suites = key = ""
      }
      /^#/ { next }
      /^[[:space:]]*$/ { flush(); next }
      tolower($1) == "types:" { $1 = ""; type = $0 }
      tolower($1) == "uris:" { uri = $2 }
      tolower($1) == "suites:" { $1 = ""; suites = $0 }
      tolower($1) == "signed-by:" { key = $2 }
      END { flush() }'
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | awk -v suite="$codename" '
      $1 != "deb" { next }
      { key = ""; if (match($0, /signed-by=[^] ,]+/)) key = substr($0, RSTART + 10, RLENGTH - 10)
        sub(/\[[^]]*\] */, ""); if ($3 == suite) print $2, key }'
  ) || die "no apt source of this machine carries $codename"
  mkdir -p "$cache"/apt/{sources,lists/partial,cache/archives/partial}
  cat >"$cache/apt/sources/debian.sources" <<END
Types: deb
URIs: $uri
Suites: $codename $codename-backports
Components: main contrib
${key:+Signed-By: $key}
END
  debian_apt apt-get update >&2 || die "could not read the package lists of $codename and its backports"
}
