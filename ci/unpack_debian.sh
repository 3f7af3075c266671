#!/usr/bin/env bash
# Unpacks packages of Debian into a folder:
#
#   ci/unpack_debian.sh [--alone] [--suite NAME] [--architecture NAME] PLACE PACKAGE...
#
# With them go those that they need and this system lacks, or for another architecture all that they
# need; --alone leaves these out. Suite and architecture are those of this system where none is named.
# Needs apt, and no rights: nothing is installed.
set -euo pipefail
alone=
suite=
architecture=
while true; do
  case ${1-} in
    --alone) alone=1; shift ;;
    --suite) suite=$2; shift 2 ;;
    --architecture) architecture=$2; shift 2 ;;
    *) break ;;
  esac
done
place=$1
shift
. /etc/os-release
mkdir -p "$place"
apt=$(mktemp -d "$place/.apt-XXXXXX")
trap 'rm -rf "$apt"' EXIT
chmod 755 "$apt" # apt downloads as a user of its own
mkdir -p "$apt/lists/partial" "$apt/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
  "http://deb.debian.org/debian ${suite:-${VERSION_CODENAME:-trixie}} main" > "$apt/sources.list"
options=(
  -qq
  -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/nonexistent
  -o "Dir::State::lists=$apt/lists" -o "Dir::Cache::archives=$apt/archives"
  -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Install-Recommends=false
  -o Debug::NoLocking=true
)
if test -n "$architecture"; then
  touch "$apt/status" # of a system without packages
  options+=(
    -o "APT::Architecture=$architecture" -o "APT::Architectures::=$architecture"
    -o "Dir::State::status=$apt/status"
  )
fi
apt-get "${options[@]}" update
if test -n "$alone"; then
  (cd "$apt/archives" && apt-get "${options[@]}" download "$@")
else
  apt-get "${options[@]}" -y --download-only install "$@"
fi
for package in "$apt"/archives/*.deb; do dpkg -x "$package" "$place"; done
