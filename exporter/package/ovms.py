"""Packages a bundle for OpenVINO Model Server.

::

    OUTPUT/config.json         which models to serve, and what to compute in
    OUTPUT/NAME/1/model.xml    the IR, with its .bin

``config.json`` names the folder of the model relative to itself.
"""

from __future__ import annotations

import json
from typing import Any

from tokexport.exporter.errors import UsageError
from tokexport.exporter.package.content import Content, Files, Source
from tokexport.exporter.package.options import PackageOptions
from tokexport.runtimes.openvino.runner import FLAVOUR, HINTS


def ovms_files(content: Content, options: PackageOptions) -> tuple[Files, tuple[str, ...]]:
    """Returns the files of the folder, and what the server does otherwise than ``run``.

    Raises:
        UsageError: The bundle is for another runtime: nothing says that OpenVINO answers alike.
    """
    manifest = content.manifest
    if manifest.runtime.flavour != FLAVOUR:
        raise UsageError(
            f"OpenVINO Model Server runs bundles for openvino, and this one is for "
            f"{manifest.target}.",
            fix="Compile the model with --target openvino.",
        )
    plugin: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[manifest.precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if options.threads is not None:
        plugin["INFERENCE_NUM_THREADS"] = options.threads
    config = {
        "name": content.name,
        "base_path": content.name,
        "target_device": "CPU",
        "plugin_config": plugin,
    }
    text = json.dumps({"model_config_list": [{"config": config}]}, indent=2) + "\n"
    files: dict[str, Source] = {"config.json": text.encode()}
    for name, path in content.read_by(manifest.artifact).items():
        files[f"{content.name}/1/{name}"] = path
    notes = []
    if manifest.rungs:
        notes.append(f"Only the artifact for {manifest.batch} samples is served.")
    if manifest.checks is not None:
        notes.append(f"A client has to read the output {manifest.checks.output}: it must be true.")
    if manifest.input_ranges:
        notes.append("The server does not refuse whole numbers outside the input_ranges.")
    return files, tuple(notes)
