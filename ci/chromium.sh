#!/usr/bin/env bash
# Puts Chromium under build/chromium, for the tests that open pages in a browser; what Debian has.
#
# Needs apt, and no rights: the packages are unpacked, with those that they need and this system
# lacks, and nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/chromium
test -x "$place/chromium" && exit 0
command -v chromium > /dev/null && exit 0
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
apt-get "${options[@]}" -y --download-only install chromium
for package in "$place"/apt/archives/*.deb; do dpkg -x "$package" "$place/root"; done
libraries=$(find "$place/root" -path "*/lib/*" -name "*.so*" -printf "%h:" | tr ":" "\n" | sort -u | tr "\n" ":")
cat > "$place/chromium" <<EOF
#!/usr/bin/env bash
export LD_LIBRARY_PATH="$libraries"
test -e /etc/fonts/fonts.conf || export FONTCONFIG_SYSROOT="$place/root"
exec "$place/root/usr/lib/chromium/chromium" "\$@"
EOF
chmod +x "$place/chromium"
rm -r "$place/apt"
