#!/usr/bin/env bash
# Puts Triton Inference Server with its python backend under build/triton, for the test that asks one.
#
# PyPI's nvidia-pytriton has both inside, for the processor too; nothing of it is installed here. Its
# backend knows numpy 1 alone, so that the models get an environment of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$PWD/build/triton
test -x "$place/serve" && exit 0
rm -rf "$place"
python=${1:-python3}
"$python" -m venv "$place/env"
pip=("$place/env/bin/python" -m pip -q --disable-pip-version-check)
"${pip[@]}" install "numpy<2" $(grep -E "^(onnxruntime|openvino)==" constraints.txt)
"${pip[@]}" download --no-deps --only-binary :all: --dest "$place" nvidia-pytriton==0.7.0
"$place/env/bin/python" -m zipfile -e "$place"/nvidia_pytriton-*.whl "$place"
rm "$place"/nvidia_pytriton-*.whl
triton=$place/pytriton/tritonserver
version=$("$place/env/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cp "$triton/python_backend_stubs/$version/triton_python_backend_stub" "$triton/backends/python/"
chmod +x "$triton/backends/python/triton_python_backend_stub" "$triton/bin/tritonserver"
libraries=$("$place/env/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
cat > "$place/serve" <<EOF
#!/usr/bin/env bash
export PATH="$place/env/bin:\$PATH" LD_LIBRARY_PATH="$place/nvidia_pytriton.libs:$libraries"
exec "$triton/bin/tritonserver" --backend-directory "$triton/backends" --http-address 127.0.0.1 \\
  --allow-grpc false --allow-metrics false "\$@"
EOF
chmod +x "$place/serve"
