#!/usr/bin/env bash
# Puts a Python for 64-bit ARM with numpy and the runtimes under build/aarch64-root, to be emulated.
#
# Debian's packages and PyPI's wheels are unpacked there, in the versions of constraints.txt. Needs apt
# and a Python with pip (the one that PYTHON names), and no rights: nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/aarch64-root
python=${PYTHON:-.venv/bin/python}
test -e "$place/whole" && exit 0
rm -rf "$place"
ci/unpack_debian.sh --architecture arm64 "$place/root" python3 libstdc++6
version=$(basename "$(ls -d "$place"/root/usr/bin/python3.* | grep -E 'python3\.[0-9]+$')")
wheels=(--only-binary=:all: --python-version "${version#python}" --no-deps -c constraints.txt)
for glibc in 17 24 26 27 28 31 34 35; do wheels+=(--platform "manylinux_2_${glibc}_aarch64"); done
"$python" -m pip -qq --disable-pip-version-check install --target "$place/site" "${wheels[@]}" \
  --platform manylinux2014_aarch64 numpy onnxruntime openvino openvino-telemetry
touch "$place/whole"
