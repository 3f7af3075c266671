#!/usr/bin/env bash
# Puts a compiler for 64-bit ARM and its emulator under build/aarch64, for the tests of ARM's kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/aarch64
PATH=$place/bin:$PATH
command -v aarch64-linux-gnu-g++ > /dev/null && command -v qemu-aarch64 > /dev/null && exit 0
rm -rf "$place"
mkdir -p "$place/bin"
ci/unpack_debian.sh "$place/root" g++-aarch64-linux-gnu qemu-user
# The linker's scripts name the libraries by where they would be installed.
grep -lI "GNU ld script" "$place"/root/usr/aarch64-linux-gnu/lib/*.so 2> /dev/null |
  xargs -r sed -i "s#/usr/aarch64-linux-gnu/#$place/root&#g"
for name in aarch64-linux-gnu-g++ qemu-aarch64; do
  test -x "$place/root/usr/bin/$name" || continue
  cat > "$place/bin/$name" <<END
#!/usr/bin/env bash
export LD_LIBRARY_PATH="$place/root/usr/lib/$(uname -m)-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$place/root/usr/bin/$name" "\$@"
END
  chmod +x "$place/bin/$name"
done
