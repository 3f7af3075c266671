#!/usr/bin/env bash
# Puts a compiler for 64-bit ARM and its emulator under build/aarch64, for the tests of ARM's kernels.
#
# The emulator is QEMU 10, which is Debian 13's and needs no library: 7.2, Debian 12's, multiplies
# matrices wrongly where a processor has SME.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/aarch64
PATH=$place/bin:$PATH
compiler=aarch64-linux-gnu-g++
mkdir -p "$place/bin"
if ! command -v $compiler > /dev/null; then
  rm -rf "$place/root"
  ci/unpack_debian.sh "$place/root" g++-aarch64-linux-gnu
  # The linker's scripts name the libraries by where they would be installed.
  grep -lI "GNU ld script" "$place"/root/usr/aarch64-linux-gnu/lib/*.so 2> /dev/null |
    xargs -r sed -i "s#/usr/aarch64-linux-gnu/#$place/root&#g"
  cat > "$place/bin/$compiler" <<END
#!/usr/bin/env bash
export LD_LIBRARY_PATH="$place/root/usr/lib/$(uname -m)-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$place/root/usr/bin/$compiler" "\$@"
END
  chmod +x "$place/bin/$compiler"
fi
if ! qemu-aarch64 --version 2> /dev/null | grep -qE 'version [1-9][0-9]\.'; then
  ci/unpack_debian.sh --alone --suite trixie "$place/emulator" qemu-user
  mv "$place/emulator/usr/bin/qemu-aarch64" "$place/bin"
  rm -r "$place/emulator"
fi
