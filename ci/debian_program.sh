#!/usr/bin/env bash
# Puts a program of Debian under build/NAME, for the tests that run it: ci/debian_program.sh NAME PATH.
#
# NAME is the package and the program; PATH is where the package has it. Needs apt, and no rights: the
# packages are unpacked, with those that they need and this system lacks, and nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1 path=$2
place=$PWD/build/$name
test -x "$place/$name" && exit 0
command -v "$name" > /dev/null && exit 0
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
apt-get "${options[@]}" -y --download-only install "$name"
for package in "$place"/apt/archives/*.deb; do dpkg -x "$package" "$place/root"; done
libraries=$(find "$place/root" -path "*/lib/*" -name "*.so*" -printf "%h:" | tr ":" "\n" | sort -u | tr "\n" ":")
cat > "$place/$name" <<EOF
#!/usr/bin/env bash
export LD_LIBRARY_PATH="$libraries"
test -e /etc/fonts/fonts.conf || export FONTCONFIG_SYSROOT="$place/root"
exec "$place/root/$path" "\$@"
EOF
chmod +x "$place/$name"
rm -r "$place/apt"
