#!/usr/bin/env bash
# Puts ONNX Runtime's C headers under build/ort-headers: what Debian's libonnxruntime-dev holds.
#
# pip's onnxruntime ships none. The test that holds runtimes/native/ort/abi.h to the real header
# looks there, and in /usr/include. Needs apt, and no rights: nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/ort-headers
test -e "$place/onnxruntime_c_api.h" && exit 0
mkdir -p "$place/apt/lists/partial" "$place/apt/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
  "http://deb.debian.org/debian trixie main" > "$place/apt/sources.list"
options=(
  -qq
  -o "Dir::Etc::sourcelist=$place/apt/sources.list" -o Dir::Etc::sourceparts=/nonexistent
  -o "Dir::State::lists=$place/apt/lists" -o "Dir::Cache::archives=$place/apt/archives"
  -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
)
apt-get "${options[@]}" update
cd "$place/apt"
apt-get "${options[@]}" download libonnxruntime-dev
dpkg -x libonnxruntime-dev_*.deb extracted
cp extracted/usr/include/onnxruntime/*.h "$place"
rm -r "$place/apt"
