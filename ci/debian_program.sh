#!/usr/bin/env bash
# Puts a program of Debian under build/NAME, for the tests that run it:
#
#   ci/debian_program.sh NAME PATH [SUITE]
#
# NAME is the package and the program; PATH is where the package has it; SUITE is Debian's release,
# where another than this system's has it. Nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1 path=$2 suite=${3-}
place=$PWD/build/$name
test -x "$place/$name" && exit 0
command -v "$name" > /dev/null && exit 0
rm -rf "$place"
ci/unpack_debian.sh ${suite:+--alone --suite "$suite"} "$place/root" "$name"
libraries=$(find "$place/root" -path "*/lib/*" -name "*.so*" -printf "%h:" | tr ":" "\n" | sort -u | tr "\n" ":")
cat > "$place/$name" <<END
#!/usr/bin/env bash
export LD_LIBRARY_PATH="$libraries"
test -e /etc/fonts/fonts.conf || export FONTCONFIG_SYSROOT="$place/root"
exec "$place/root/$path" "\$@"
END
chmod +x "$place/$name"
