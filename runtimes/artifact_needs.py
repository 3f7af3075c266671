"""Finds what a built artifact needs of a machine, from its own bytes and from what built it.

- ONNX Runtime: a version that reads the file's IR version and opset. 1.22 is the oldest that runs
  what tokexport writes: 1.17 refuses IR version 10, and 1.18 to 1.21 give two nodes one name where
  the native kernels are left out (measured with all of them).
- OpenVINO: the year of the version that wrote the IR. Newer ones read older IR, and nothing is
  promised the other way round.
- TensorRT: the flavour, its exact version, the system, the architecture and a listed GPU.

Sources: onnxruntime.ai/docs/reference/compatibility.html;
docs.openvino.ai on the compatibility of IR; docs.nvidia.com on the portability of engines.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Final

from tokexport.runtimes.bundle.manifest import RuntimeInfo
from tokexport.runtimes.bundle.requirements import Requirements, release
from tokexport.runtimes.files.onnx_contents import onnx_contents
from tokexport.runtimes.processor import BYTE_SUMS

#: The package of each flavour's runtime.
PACKAGES: Final = {
    "onnxruntime-cpu": "onnxruntime",
    "openvino-cpu": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
#: The oldest ONNX Runtime that was tried with success, and the newest of what it reads for sure.
_OLDEST_ORT: Final = "1.22"
_IR_VERSION: Final = 10
_OPSET: Final = 21


def artifact_needs(artifact: Path, built: RuntimeInfo) -> Requirements:
    """Returns what an artifact needs of a machine.

    Args:
        artifact: The file that was built here.
        built: What built it.

    Raises:
        tokexport.runtimes.files.onnx_contents.ContentsError: It is no ONNX file.
        OSError: It cannot be read.
    """
    package = PACKAGES[built.flavour]
    match built.flavour:
        case "onnxruntime-cpu":
            at_least, why = _reads_onnx(artifact, built.version)
            return Requirements(
                package, at_least=at_least, why=why, instruction_sets=byte_sums_needed(built)
            )
        case "openvino-cpu":
            year = (release(built.version) or (0,))[0]
            return Requirements(
                package,
                at_least=f"{year}.0",
                why=f"its IR was written by OpenVINO {built.version}",
            )
    listed = built.details.get("compute_capabilities", [])
    return Requirements(
        package,
        exactly=built.version,
        why="an engine runs on exactly the version that built it",
        architectures=(architecture(),),
        systems=(sys.platform,),
        compute_capabilities=tuple(listed) if isinstance(listed, list) else (),
    )


def byte_sums_needed(built: RuntimeInfo) -> tuple[str, ...]:
    """Returns the instruction sets of which int8 weights of 8 bits need one on x86; () of others.

    Args:
        built: What built the artifact.
    """
    return BYTE_SUMS if built.details.get("weight_bits") == 8 else ()


def architecture() -> str:
    """Returns this machine's architecture by the name that Linux has for it."""
    found = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(found, found)


def _reads_onnx(artifact: Path, built_by: str) -> tuple[str, str]:
    """Returns the oldest ONNX Runtime that reads a file, and why."""
    found = onnx_contents(artifact)
    why = f"it has IR version {found.ir_version} and opset {found.opset}"
    if found.ir_version <= _IR_VERSION and found.opset <= _OPSET:
        return _OLDEST_ORT, why
    numbers = release(built_by) or ()
    return ".".join(map(str, numbers[:2])), why
