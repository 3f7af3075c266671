#!/usr/bin/env bash
# Compiles the model for both runtimes into bundles/, with ToMe in every block.
set -euo pipefail
mkdir -p bundles
for target in ort openvino; do
  tokexport compile weights.safetensors --builder model:build --code-path . --reduce tome:r=3 \
    --inputs digits.npz --samples 64 --batch 8 --target "$target" --output "bundles/vit-$target" --force
done
