# shellcheck shell=bash
# lib.sh - what scripts/deps and the scripts of tests/vm share. Sourced by bash, not run.
#
#   cache              the folder for all that is costly to make; it may be deleted at any time
#   say, die           one line on stderr; die also ends the script
#   debian_apt_update  reads the package lists of the machine's own Debian mirror, with ZFS in them
#   debian_apt         runs an apt command on those lists

cache="${ZFS_BACKUP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/zfs-backup}"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$@"; exit 1; }

# ZFS is in Debian's contrib area and, in its newer version, in the backports. Most machines have neither in
# their sources, so these sources and lists are our own, in the cache; the machine's apt settings stay as they
# are. What counts as installed is still what the machine has.
debian_apt() { APT_CONFIG="$cache/apt/apt.conf" "$@"; }

# Prints the address, and the key if any, of the machine's apt source for a suite.
apt_source() {
  { cat /etc/apt/sources.list.d/*.sources 2>/dev/null || true; echo; } | awk -v suite="$1" '
    function stanza(  i, n, names) {
      n = split(suites, names, " ")
      for (i = 1; i <= n; i++) if (names[i] == suite && types ~ /(^| )deb( |$)/) print uri, key
      types = uri = suites = key = ""
    }
    /^#/ { next }
    /^[[:space:]]*$/ { stanza(); next }
    tolower($1) == "types:" { $1 = ""; types = $0 }
    tolower($1) == "uris:" { uri = $2 }
    tolower($1) == "suites:" { $1 = ""; suites = $0 }
    tolower($1) == "signed-by:" { key = $2 }
    END { stanza() }'
  { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } | awk -v suite="$1" '
    $1 != "deb" { next }
    {
      key = ""
      if (match($0, /signed-by=[^] ,]+/)) key = substr($0, RSTART + 10, RLENGTH - 10)
      sub(/\[[^]]*\] */, "")
      if ($3 == suite) print $2, key
    }'
}

debian_apt_update() {
  local codename suite uri key
  [ "$(. /etc/os-release && echo "$ID")" = debian ] || die "this needs Debian: the kernel and ZFS come from its packages"
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mkdir -p "$cache"/apt/{lists/partial,cache/archives/partial}
  cat >"$cache/apt/apt.conf" <<END
Dir::Etc::sourcelist "$cache/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "$cache/apt/preferences";
Dir::State::lists "$cache/apt/lists";
Dir::Cache "$cache/apt/cache";
Acquire::Languages "none";
Acquire::Retries "3";
# Else it is apt's own user, who may not read a home folder.
APT::Sandbox::User "root";
END
  # With the updates, where the machine has them: what is installed from there must not look too new.
  for suite in "$codename" "$codename-updates" "$codename-security"; do
    read -r uri key < <(apt_source "$suite") || continue
    echo "deb ${key:+[signed-by=$key] }$uri $suite main contrib"
    [ "$suite" != "$codename" ] || echo "deb ${key:+[signed-by=$key] }$uri $codename-backports main contrib"
  done >"$cache/apt/sources.list"
  grep -q -- -backports "$cache/apt/sources.list" || die "no apt source of this machine carries $codename"
  # qemu's packages exclude one another across versions: where the machine has some from the backports, all come from there.
  : >"$cache/apt/preferences"
  if dpkg-query -W -f '${db:Status-Status} ${Version}\n' 'qemu-*' 2>/dev/null | grep -q '^installed .*~bpo'; then
    printf 'Package: %s\nPin: release n=%s\nPin-Priority: 500\n' 'qemu-* seabios' "$codename-backports" >"$cache/apt/preferences"
  fi
  # One at a time: apt does not wait for another that reads the same lists.
  debian_apt flock "$cache/apt/lock" apt-get -qq update >&2 ||
    die "could not read the package lists of $codename and its backports"
}
