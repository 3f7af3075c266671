#!/usr/bin/env bash
# Puts the packages of examples/javascript under build/javascript/node_modules: npm's alone, by its lock.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/javascript
cmp -s examples/javascript/package-lock.json "$place/package-lock.json" && test -e "$place/installed" && exit 0
rm -rf "$place"
mkdir -p "$place"
cp examples/javascript/package.json examples/javascript/package-lock.json examples/javascript/.npmrc "$place"
cd "$place"
npm ci --no-audit --no-fund --loglevel=error > /dev/null
rm -f node_modules/onnxruntime-web/dist/*.map
touch installed
