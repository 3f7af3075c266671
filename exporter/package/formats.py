"""Names the formats that a bundle is packaged in: one table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tokexport.exporter.package.content import Content, PackageFiles
from tokexport.exporter.package.modelpack import modelpack_files
from tokexport.exporter.package.oci import oci_files
from tokexport.exporter.package.options import PackageOptions
from tokexport.exporter.package.ovms import ovms_files
from tokexport.exporter.package.tar_file import tar_files
from tokexport.exporter.package.triton import triton_files


@dataclass(frozen=True)
class PackageFormat:
    """A format.

    Attributes:
        files: Returns what is written of a bundle.
        next: Returns what to do with it, a command, from the output and the name of the model.
        own: The names of the files that a package may have, a pattern behind the model's name for
            ``{name}``: those that an earlier one at the output may be replaced with.
        is_file: Whether it is one file, a tar; else a folder.
        options: The options that it takes beside ``--name``.
    """

    files: Callable[[Content, PackageOptions], PackageFiles]
    next: Callable[[Path, str], str]
    own: str = ""
    is_file: bool = False
    options: frozenset[str] = frozenset()


def _unpack(output: Path, name: str) -> str:
    return f"tar -xf {_operand(output)}"


def _serve_triton(output: Path, name: str) -> str:
    return f"tritonserver --model-repository {_operand(output)}"


def _serve_ovms(output: Path, name: str) -> str:
    return f"ovms --config_path {_operand(output / 'config.json')} --rest_port 8000"


def _push(output: Path, name: str) -> str:
    """Returns how skopeo copies a layout, whose folder it takes up to the first colon."""
    place, before = shlex.quote(str(output)), ""
    if ":" in str(output):
        place, before = ".", f"cd {_operand(output)} && "
    # as a registry takes names of repositories
    repository = re.sub(r"[._-]{2,}", "-", name.lower()).strip("._-")
    return f"{before}skopeo copy oci:{place}:latest docker://REGISTRY/{repository}"


def _operand(path: Path) -> str:
    """Returns a path that no command takes for an option or for a place on another machine."""
    text = str(path)
    odd = not path.is_absolute() and (text.startswith("-") or ":" in text)
    return shlex.quote(f"./{text}" if odd else text)


#: The files of artifacts in a folder of a version.
_ARTIFACT: Final = r"model(\.batch\d+)?\.(onnx|onnx\.data|xml|bin|engine)"
#: Those in that of Triton.
_SERVED: Final = rf"{_ARTIFACT}|model\.py|serving\.json"
#: The files of an OCI layout.
_LAYOUT: Final = r"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}"

FORMATS: Final[Mapping[str, PackageFormat]] = MappingProxyType(
    {
        "tar": PackageFormat(tar_files, _unpack, is_file=True),
        "triton": PackageFormat(
            triton_files,
            _serve_triton,
            rf"{{name}}/(config\.pbtxt|labels\.txt|warmup/\d+-\w+|1/({_SERVED}))",
            options=frozenset({"batching", "delay_us", "instances", "threads", "kernels"}),
        ),
        "ovms": PackageFormat(
            ovms_files,
            _serve_ovms,
            rf"config\.json|{{name}}(-batch\d+)?/1/{_ARTIFACT}",
            options=frozenset({"threads"}),
        ),
        "oci": PackageFormat(
            oci_files,
            _push,
            _LAYOUT,
        ),
        "modelpack": PackageFormat(
            modelpack_files,
            _push,
            _LAYOUT,
        ),
    }
)
