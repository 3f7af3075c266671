#!/usr/bin/env bash
# Puts what examples/cpp is built with, and this system lacks, under build/cpp-packages/usr.
#
# The packages are Debian's nlohmann-json3-dev and libpng-dev, whose library has another name from
# Debian 13 on.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/cpp-packages
test -e /usr/include/nlohmann/json.hpp && test -e /usr/include/png.h && exit 0
test -e "$place/usr/include/nlohmann/json.hpp" && exit 0
rm -rf "$place"
names=(nlohmann-json3-dev libpng-dev zlib1g-dev)
ci/unpack_debian.sh --alone "$place" "${names[@]}" libpng16-16t64 2> /dev/null ||
  ci/unpack_debian.sh --alone "$place" "${names[@]}" libpng16-16
