#!/usr/bin/env bash
# Puts what examples/cpp is built with, and this system lacks, under build/cpp-packages/usr.
#
# The packages are Debian's nlohmann-json3-dev, libpng-dev and libssl-dev, whose libraries have other
# names from Debian 13 on.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/cpp-packages
headers=(nlohmann/json.hpp png.h openssl/evp.h)
are_in() {
  local header
  for header in "${headers[@]}"; do test -e "$1/$header" || return 1; done
}
are_in /usr/include && exit 0
are_in "$place/usr/include" && test -e "$place/usr/include/openssl/opensslconf.h" && exit 0
rm -rf "$place"
names=(nlohmann-json3-dev libpng-dev zlib1g-dev libssl-dev)
ci/unpack_debian.sh --alone "$place" "${names[@]}" libpng16-16t64 libssl3t64 2> /dev/null ||
  ci/unpack_debian.sh --alone "$place" "${names[@]}" libpng16-16 libssl3
# OpenSSL has headers beside, which a compiler looks for in the system's folder alone.
ln -s "$place"/usr/include/*/openssl/*.h "$place/usr/include/openssl"
