"""Names the formats that a bundle is packaged in: one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tokexport.exporter.package.content import Content, Files
from tokexport.exporter.package.modelpack import modelpack_files
from tokexport.exporter.package.oci import oci_files
from tokexport.exporter.package.options import PackageOptions
from tokexport.exporter.package.ovms import ovms_files
from tokexport.exporter.package.tar_file import tar_files
from tokexport.exporter.package.triton import triton_files


@dataclass(frozen=True)
class Contents:
    """What a format writes.

    Attributes:
        files: The files by their names.
        digest: ``sha256:`` and the hash of what names the package; '' for that of its bytes.
        notes: What a server does otherwise than ``tokexport run``, a sentence each.
    """

    files: Files
    digest: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackageFormat:
    """A format.

    Attributes:
        about: What it is, a clause.
        contents: Returns what is written of a bundle.
        next: What to do with it; ``{output}`` and ``{name}`` stand for themselves.
        is_file: Whether it is one file, a tar; else a folder.
        options: The options that it takes beside ``--name``.
    """

    about: str
    contents: Callable[[Content, PackageOptions], Contents]
    next: str
    is_file: bool = False
    options: frozenset[str] = frozenset()


def _tar(content: Content, options: PackageOptions) -> Contents:
    return Contents(tar_files(content))


def _triton(content: Content, options: PackageOptions) -> Contents:
    files, notes = triton_files(content, options)
    return Contents(files, notes=notes)


def _ovms(content: Content, options: PackageOptions) -> Contents:
    files, notes = ovms_files(content, options)
    return Contents(files, notes=notes)


def _oci(content: Content, options: PackageOptions) -> Contents:
    return Contents(*oci_files(content))


def _modelpack(content: Content, options: PackageOptions) -> Contents:
    return Contents(*modelpack_files(content))


FORMATS: Final[Mapping[str, PackageFormat]] = MappingProxyType(
    {
        "tar": PackageFormat(
            "a reproducible tar of the bundle", _tar, "tar -xf {output}", is_file=True
        ),
        "triton": PackageFormat(
            "a model repository of Triton Inference Server",
            _triton,
            "tritonserver --model-repository {output}",
            options=frozenset({"batching", "delay_us", "instances", "threads", "kernels"}),
        ),
        "ovms": PackageFormat(
            "a folder that OpenVINO Model Server serves",
            _ovms,
            "ovms --config_path {output}/config.json --rest_port 8000",
            options=frozenset({"threads"}),
        ),
        "oci": PackageFormat(
            "an OCI image layout, a layer a file",
            _oci,
            "skopeo copy oci:{output}:latest docker://REGISTRY/{name}",
        ),
        "modelpack": PackageFormat(
            "the same, with the media types of CNCF ModelPack",
            _modelpack,
            "skopeo copy oci:{output}:latest docker://REGISTRY/{name}",
        ),
    }
)
