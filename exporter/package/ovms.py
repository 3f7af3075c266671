"""Packages a bundle for OpenVINO Model Server.

::

    OUTPUT/config.json              which models to serve, and what to compute in
    OUTPUT/NAME/1/model.xml         the IR, with its .bin
    OUTPUT/NAME-batch8/1/model.xml  that for another number of samples, where the bundle has one

``config.json`` names the folder of each model relative to itself. The server takes one IR a model,
and the versions of a model are not sizes of its batch: so each artifact is a model.
"""

from __future__ import annotations

import json
from typing import Any

from tokexport.exporter.errors import UsageError
from tokexport.exporter.package.content import Content, PackageFiles, Source
from tokexport.exporter.package.options import PackageOptions
from tokexport.runtimes.openvino.runner import FLAVOUR, HINTS


def model_name(name: str, batch: int) -> str:
    """Returns the name of the model that a further artifact is served as.

    Args:
        name: That of the first artifact.
        batch: The samples that it takes at once.
    """
    return f"{name}-batch{batch}"


def ovms_files(content: Content, options: PackageOptions) -> PackageFiles:
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
    named = {one.batch: model_name(content.name, one.batch) for one in manifest.ladder}
    named[manifest.batch] = content.name
    configs = [
        {
            "config": {
                "name": name,
                "base_path": name,
                "target_device": "CPU",
                "plugin_config": plugin,
            }
        }
        for name in named.values()
    ]
    text = json.dumps({"model_config_list": configs}, indent=2) + "\n"
    files: dict[str, Source] = {"config.json": text.encode()}
    for one in manifest.ladder:
        for path in content.read_by(one.artifact).values():
            files[f"{named[one.batch]}/1/model{path.suffix}"] = path
    notes = []
    if manifest.rungs:
        shown = ", ".join(f"{name} takes {batch}" for batch, name in named.items())
        notes.append(f"Each artifact is a model with weights of its own: {shown} samples.")
    if manifest.checks is not None:
        notes.append(f"A client has to read the output {manifest.checks.output}: it must be true.")
    if manifest.input_ranges:
        notes.append("The server does not refuse whole numbers outside the input_ranges.")
    return PackageFiles(files, notes=tuple(notes))
