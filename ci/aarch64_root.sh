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
mkdir -p "$place/apt/lists/partial" "$place/apt/archives/partial" "$place/root"
. /etc/os-release
echo "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
  "http://deb.debian.org/debian ${VERSION_CODENAME:-trixie} main" > "$place/apt/sources.list"
touch "$place/apt/status"
options=(
  -qq
  -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o "Dir::State::status=$place/apt/status"
  -o "Dir::Etc::sourcelist=$place/apt/sources.list" -o Dir::Etc::sourceparts=/nonexistent
  -o "Dir::State::lists=$place/apt/lists" -o "Dir::Cache::archives=$place/apt/archives"
  -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Install-Recommends=false
  -o Debug::NoLocking=true
)
apt-get "${options[@]}" update
apt-get "${options[@]}" -y --download-only install python3 libstdc++6
for package in "$place"/apt/archives/*.deb; do dpkg -x "$package" "$place/root"; done
rm -r "$place/apt"
version=$(basename "$(ls -d "$place"/root/usr/bin/python3.* | grep -E 'python3\.[0-9]+$')")
wheels=(--only-binary=:all: --python-version "${version#python}" --no-deps -c constraints.txt)
for glibc in 17 24 26 27 28 31 34 35; do wheels+=(--platform "manylinux_2_${glibc}_aarch64"); done
"$python" -m pip -qq --disable-pip-version-check install --target "$place/site" "${wheels[@]}" \
  --platform manylinux2014_aarch64 numpy onnxruntime openvino openvino-telemetry
touch "$place/whole"
