#!/usr/bin/env bash
# Puts a compiler for 64-bit ARM and its emulator under build/aarch64, for the tests of ARM's kernels.
#
# Needs apt, and no rights: the packages are unpacked, with those that they need and this system
# lacks, and nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/aarch64
PATH=$place/bin:$PATH
command -v aarch64-linux-gnu-g++ > /dev/null && command -v qemu-aarch64 > /dev/null && exit 0
rm -rf "$place"
mkdir -p "$place/apt/lists/partial" "$place/apt/archives/partial" "$place/bin"
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
apt-get "${options[@]}" -y --download-only install g++-aarch64-linux-gnu qemu-user
for package in "$place"/apt/archives/*.deb; do dpkg -x "$package" "$place/root"; done
# The linker's scripts name the libraries by where they would be installed.
grep -lI "GNU ld script" "$place"/root/usr/aarch64-linux-gnu/lib/*.so 2> /dev/null |
  xargs -r sed -i "s#/usr/aarch64-linux-gnu/#$place/root&#g"
for name in aarch64-linux-gnu-g++ qemu-aarch64; do
  test -x "$place/root/usr/bin/$name" || continue
  cat > "$place/bin/$name" <<EOF
#!/usr/bin/env bash
export LD_LIBRARY_PATH="$place/root/usr/lib/$(uname -m)-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$place/root/usr/bin/$name" "\$@"
EOF
  chmod +x "$place/bin/$name"
done
rm -r "$place/apt"
