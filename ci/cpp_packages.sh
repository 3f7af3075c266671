#!/usr/bin/env bash
# Puts what examples/cpp is built with, and this system lacks, under build/cpp-packages/usr.
#
# The packages are Debian's nlohmann-json3-dev and libpng-dev. Needs apt, and no rights: they are
# unpacked, and nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/cpp-packages
test -e /usr/include/nlohmann/json.hpp && test -e /usr/include/png.h && exit 0
test -e "$place/usr/include/nlohmann/json.hpp" && exit 0
rm -rf "$place"
mkdir -p "$place/apt/lists/partial" "$place/apt/archives/partial"
. /etc/os-release
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
  "http://deb.debian.org/debian ${VERSION_CODENAME:-trixie} main" > "$place/apt/sources.list"
options=(
  -qq
  -o "Dir::Etc::sourcelist=$place/apt/sources.list" -o Dir::Etc::sourceparts=/nonexistent
  -o "Dir::State::lists=$place/apt/lists" -o "Dir::Cache::archives=$place/apt/archives"
  -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Install-Recommends=false
  -o Debug::NoLocking=true
)
apt-get "${options[@]}" update
cd "$place/apt/archives"
names=(nlohmann-json3-dev)
if ! test -e /usr/include/png.h; then # its library has another name from Debian 13 on
  library=$(apt-cache "${options[@]}" depends libpng-dev | sed -n "s/.*Depends: \(libpng16[^ ]*\)$/\1/p")
  names+=(libpng-dev "$library" zlib1g-dev)
fi
apt-get "${options[@]}" download "${names[@]}"
for package in *.deb; do dpkg -x "$package" "$place"; done
rm -r "$place/apt"
