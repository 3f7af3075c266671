#!/usr/bin/env bash
# Puts ONNX Runtime's C headers under build/ort-headers: what Debian's libonnxruntime-dev holds.
#
# pip's onnxruntime ships none. The test that holds runtimes/native/ort/abi.h to the real header
# looks there, and in /usr/include.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/ort-headers
test -e "$place/onnxruntime_c_api.h" && exit 0
rm -rf "$place"
ci/unpack_debian.sh --alone --suite trixie "$place/package" libonnxruntime-dev
cp "$place"/package/usr/include/onnxruntime/*.h "$place"
rm -r "$place/package"
