"""Packages a bundle as a model repository of Triton Inference Server.

::

    OUTPUT/NAME/config.pbtxt   what Triton has to know
    OUTPUT/NAME/labels.txt     a class a line, where the bundle names its classes
    OUTPUT/NAME/warmup/…       a sample of the reference, which is run when the model is loaded
    OUTPUT/NAME/1/…            the artifact; for batching model.py and serving.json too

An artifact has a fixed batch, and Triton's own batching wants an open one. So without batching a
request is one whole batch (``max_batch_size: 0``); with it Triton's python backend runs
``model.py``, which splits and fills up what Triton has joined.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.errors import UsageError
from tokexport.exporter.inputs.class_numbers import one_line
from tokexport.exporter.package.content import Content, PackageFiles, Source, is_batched
from tokexport.exporter.package.options import PackageOptions
from tokexport.exporter.package.triton_config import TritonModel, WarmUp
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.batch_plan import BatchPlan
from tokexport.runtimes.bundle.manifest import Manifest, TensorSpec, common_ranges
from tokexport.runtimes.openvino.runner import HINTS

_MODEL: Final = Path(__file__).with_name("triton_model.py.txt")
#: Triton's backend and the python backend's runtime, by the flavour of a bundle.
_BACKENDS: Final = {
    "onnxruntime-cpu": ("onnxruntime", "onnxruntime"),
    "openvino-cpu": ("openvino", "openvino"),
    "tensorrt": ("tensorrt", None),
}

#: The parameter of a backend that says how many threads an instance has.
_THREADS: Final = {
    "onnxruntime": "intra_op_thread_count",
    "openvino": "INFERENCE_NUM_THREADS",
}


def triton_files(content: Content, options: PackageOptions) -> PackageFiles:
    """Returns the files of the repository, and what Triton does otherwise than ``run``.

    Raises:
        UsageError: Triton has no backend for the bundle, or cannot batch it.
    """
    manifest = content.manifest
    backend, runtime = _BACKENDS.get(manifest.runtime.flavour, (None, None))
    if backend is None:
        raise UsageError(
            f"Triton has no backend for {manifest.runtime.flavour}.",
            fix="Package a bundle for ort, openvino or NVIDIA's TensorRT.",
        )
    if options.kernels is not None and backend != "onnxruntime":
        raise UsageError(
            f"Triton's backend {backend} takes no library of kernels from a model.",
            fix="Leave --kernels out, or package a bundle for ort.",
        )
    files: dict[str, Source] = {}
    for one in content.ladder() if options.batching else (manifest,):
        files |= {f"1/{name}": path for name, path in content.read_by(one.artifact).items()}
    if options.batching:
        model, more = _batched(content, options, runtime)
    else:
        model, more = _plain(content, options, backend)
    labels = _labels(manifest)
    warm_up, data = _warm_up(content, model)
    model = dataclasses.replace(model, labels=labels and labels[0], warm_up=warm_up)
    files |= {**more, **data, "config.pbtxt": model.config().encode()}
    if labels is not None:
        files["labels.txt"] = labels[1].encode()
    placed = {f"{content.name}/{name}": file for name, file in files.items()}
    return PackageFiles(placed, notes=_notes(manifest, options))


def _plain(
    content: Content, options: PackageOptions, backend: str
) -> tuple[TritonModel, dict[str, Source]]:
    """Returns the model under the runtime's own backend: a request is a whole batch."""
    manifest = content.manifest
    parameters = {}
    if backend == "openvino" and manifest.precision == "bf16":
        parameters["HINT_BF16"] = "YES"
    if options.threads is not None:
        if backend not in _THREADS:
            raise UsageError(f"{backend} has no threads to set.", fix="Leave --threads out.")
        parameters[_THREADS[backend]] = str(options.threads)
    if options.delay_us:
        raise UsageError(
            "A request waits for others only where they are joined.",
            fix="Pass --batching too, or leave --delay-us out.",
        )
    if backend == "openvino":
        _require_served(*manifest.inputs, *manifest.computed)
    return TritonModel(
        name=content.name,
        backend=backend,
        file=manifest.artifact,
        inputs=manifest.inputs,
        outputs=manifest.computed,
        instances=options.instances,
        on_gpu=backend == "tensorrt",
        parameters=parameters,
        library=options.kernels,
    ), {}


def _require_served(*specs: TensorSpec) -> None:
    """Refuses what Triton's backend for OpenVINO takes no tensors of.

    Raises:
        UsageError: One is a scalar, or of 64-bit floats.
    """
    for spec in specs:
        if not spec.shape or spec.dtype == "float64":
            raise UsageError(
                "Triton's backend openvino takes no scalars and no float64.",
                where=str(spec),
                fix="Compile the model with --target ort.",
            )


def _batched(
    content: Content, options: PackageOptions, runtime: str | None
) -> tuple[TritonModel, dict[str, Source]]:
    """Returns the model under the python backend, which batches."""
    manifest, ladder = content.manifest, content.ladder()
    if not all(map(is_batched, ladder)):
        raise UsageError(
            "Triton cannot batch the bundle: not all inputs and outputs begin with the batch.",
            where="; ".join(map(str, (*manifest.inputs, *manifest.outputs))),
            fix="Leave --batching out: a request is then what the artifact takes.",
        )
    if any(one.batch > 1 and not one.samples_independent for one in ladder):
        raise UsageError(
            "Triton cannot batch the bundle: its samples may change one another's answers.",
            where="The compile did not show that they do not.",
            fix="Leave --batching out, or compile the model anew.",
        )
    if runtime is None:
        raise UsageError(
            "Batching is for bundles of ort and openvino.", fix="Leave --batching out."
        )
    plan = BatchPlan({one.batch: one.latency_ms for one in ladder})
    ranges = common_ranges([one.input_ranges for one in ladder])
    serving: dict[str, Any] = {
        "runtime": runtime,
        "precision": HINTS.get(manifest.precision, ""),
        "threads": options.threads or 0,
        "library": options.kernels,
        "rungs": [
            {
                "batch": one.batch,
                "artifact": one.artifact,
                "weights": content.weights_of(one.artifact),
                "checks": _checks(one),
            }
            for one in ladder
        ],
        "plan": [plan.cut(count + 1) for count in range(ladder[-1].batch)],
        "inputs": [{"name": spec.name, "range": ranges.get(spec.name)} for spec in manifest.inputs],
        "outputs": [{"name": one.name} for one in manifest.outputs],
    }
    model = TritonModel(
        name=content.name,
        backend="python",
        file="model.py",
        inputs=tuple(map(_one_sample, manifest.inputs)),
        outputs=tuple(map(_one_sample, manifest.outputs)),
        batches=tuple(one.batch for one in ladder),
        instances=options.instances,
        delay_us=options.delay_us,
    )
    text = json.dumps(serving, indent=2, ensure_ascii=False) + "\n"
    return model, {"1/model.py": _MODEL.read_bytes(), "1/serving.json": text.encode()}


def _checks(manifest: Manifest) -> dict[str, Any] | None:
    """Returns the output of an artifact's checks, and what each says of an input that fails it."""
    checks = manifest.checks
    if checks is None:
        return None
    return {"output": checks.output, "held": list(map(str, checks.held))}


def _one_sample(spec: TensorSpec) -> TensorSpec:
    return dataclasses.replace(spec, shape=spec.shape[1:])


def _warm_up(content: Content, model: TritonModel) -> tuple[tuple[WarmUp, ...], dict[str, Source]]:
    """Returns a request that warms up, and the files of its data.

    Nothing is made up where the bundle has no reference: random numbers may be those that it
    refuses, and Triton then loads no model.
    """
    found: list[WarmUp] = []
    files: dict[str, Source] = {}
    sample = content.sample()
    for index, spec in enumerate(model.inputs if sample else ()):
        array: Array = sample[spec.name][0] if model.batches else sample[spec.name]
        name = f"{index}-{spec.dtype}"  # names of inputs may be none of files
        files[f"warmup/{name}"] = array.tobytes()
        found.append(WarmUp(dataclasses.replace(spec, shape=array.shape), name))
    return tuple(found), files


def _labels(manifest: Manifest) -> tuple[str, str] | None:
    """Returns the output whose entries are the classes, and their names, a line each."""
    if manifest.scores is not None and manifest.labels is not None:
        return manifest.scores.output, _lines(manifest.labels)
    classes = manifest.classes  # as bundles made before have it
    if not classes:
        return None
    most = max(classes.values())
    for spec in manifest.outputs:
        if len(spec.shape) == 2 and spec.shape[1] > most:
            names = {number: name for name, number in classes.items()}
            return spec.name, _lines([names.get(index, "") for index in range(most + 1)])
    return None


def _lines(names: Sequence[str]) -> str:
    return "".join(f"{one_line(name)}\n" for name in names)


def _notes(manifest: Manifest, options: PackageOptions) -> tuple[str, ...]:
    found = []
    if manifest.runtime.details.get("weight_bits") == 8:
        found.append("On a processor without VNNI it answers wrongly, and Triton does not refuse.")
    if options.batching:
        return tuple(found)
    if manifest.rungs:
        found.append(
            f"Only the artifact for {manifest.batch} samples is served; --batching takes all."
        )
    if manifest.checks is not None:
        found.append(f"A client has to read the output {manifest.checks.output}: it must be true.")
    if manifest.input_ranges:
        found.append("Triton does not refuse whole numbers outside the manifest's input_ranges.")
    if manifest.runtime.flavour == "openvino-cpu" and manifest.precision != "bf16":
        found.append(
            "OpenVINO may compute in bf16 on processors that have it; --batching asks for the "
            "precision of the bundle."
        )
    return tuple(found)
