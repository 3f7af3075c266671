"""Builds wheels with native kernels for Linux on x86 and 64-bit ARM, against an old glibc.

    python ci/wheels.py [--output dist] [--machine aarch64]

PyPI's ziglang is the compiler, so it takes neither a container nor a machine of the kind. A wheel
holds the kernels for ONNX Runtime; those for OpenVINO fit one version of it and its C++ library,
and are built where the package is installed from source. auditwheel says which systems a wheel
fits, and names it so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from tokexport.exporter.bench_bundle.own_wheel import build_wheel
from tokexport.exporter.errors import UsageError

ROOT: Final = Path(__file__).parents[1]
MACHINES: Final = ("x86_64", "aarch64")
#: The glibc that is linked against, and the tag that a wheel has to meet.
GLIBC: Final = "2.17"
TAG: Final = "manylinux_2_17"
LIBRARY: Final = "tokexport/runtimes/native/tokexport_native.so"
#: What the library shows of itself; zig links its C++ library into it.
EXPORTS: Final = "{ global: RegisterCustomOps; tokexport_kernels; local: *; };\n"


def main() -> int:
    """Builds, and prints where the wheels are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="Where the wheels go.")
    parser.add_argument("--machine", action="append", choices=MACHINES, help="All without it.")
    options = parser.parse_args()
    for machine in options.machine or MACHINES:
        print(build(machine, options.output.resolve()))
    return 0


def build(machine: str, output: Path) -> Path:
    """Builds the wheel for a machine, and returns it.

    Raises:
        SystemExit: It has no kernels, or fits fewer systems than the tag says.
        UsageError: pip built none.
    """
    folder = ROOT / "build" / "wheels" / machine
    plain = folder / "plain"
    shutil.rmtree(plain, ignore_errors=True)
    plain.mkdir(parents=True)
    compiler, exports = folder / "c++", folder / "exports.map"
    command = f'"{sys.executable}" -m ziglang c++ -target {machine}-linux-gnu.{GLIBC}'
    compiler.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    compiler.chmod(0o755)
    exports.write_text(EXPORTS, encoding="utf-8")
    defined = {
        "CMAKE_CXX_COMPILER": str(compiler),
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": machine,
        "CMAKE_MODULE_LINKER_FLAGS": f"-Wl,--version-script={exports},-s",
        "TOKEXPORT_OPENVINO": "OFF",
    }
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "CMAKE_ARGS": " ".join(f'"-D{name}={value}"' for name, value in defined.items()),
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",  # what wheels are named by
        "TOKEXPORT_OPENVINO": "0",
    }
    try:
        wheel = build_wheel(ROOT, plain, ["-C", f"build-dir={folder / 'cmake'}"], environment)
    except UsageError as error:
        raise SystemExit(error.where) from error
    with zipfile.ZipFile(wheel) as archive:
        if LIBRARY not in archive.namelist():
            raise SystemExit(f"{wheel.name} has no kernels: their build failed.")
    output.mkdir(parents=True, exist_ok=True)
    repaired = folder / "repaired"
    shutil.rmtree(repaired, ignore_errors=True)
    repair = ["repair", "--plat", "auto", "--wheel-dir", str(repaired), str(wheel)]
    subprocess.run([sys.executable, "-m", "auditwheel", *repair], env=environment, check=True)
    (found,) = repaired.glob("*.whl")
    if f"{TAG}_{machine}" not in found.name:
        raise SystemExit(f"{found.name} does not fit {TAG}_{machine}.")
    return Path(shutil.copy(found, output))


if __name__ == "__main__":
    sys.exit(main())
