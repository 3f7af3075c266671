"""Runs a bundle for a lock: on its reference data, and on labelled samples where there are some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from os.path import relpath
from pathlib import Path

import numpy as np

from tokexport.exporter.comparison.verdicts import ARITHMETIC, IDENTICAL, TIES_ONLY, WRONG
from tokexport.exporter.errors import InputError
from tokexport.exporter.inputs.batches import Batches, read_inputs
from tokexport.exporter.inputs.class_numbers import classes_of_bundle
from tokexport.exporter.inputs.pictures import PictureOptions
from tokexport.exporter.lock.facts import facts_of, hash_of
from tokexport.exporter.lock.lock_file import (
    BundleFacts,
    Environment,
    HeldToSource,
    LabelledInputs,
    Measured,
    OutputFigures,
)
from tokexport.exporter.parity.hits import hits
from tokexport.runtimes.bundle.bundle_files import file_in
from tokexport.runtimes.bundle.manifest import Manifest, RuntimeInfo, batch_of
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.cores.free_cores import allowed_cores
from tokexport.runtimes.errors import NoDeviceError
from tokexport.runtimes.files.onnx_contents import onnx_contents
from tokexport.runtimes.loading import load
from tokexport.runtimes.native_library import NO_KERNELS
from tokexport.runtimes.processor import instruction_set
from tokexport.runtimes.signatures import trusted_manifest
from tokexport.runtimes.verification import (
    OutputResult,
    VerifyResult,
    require_gates,
    verify_artifacts,
)


@dataclass(frozen=True)
class MeasureOptions:
    """What a bundle is measured with.

    Attributes:
        inputs: Labelled samples, a file or a folder as ``compile`` takes them; None without any.
        samples: How many of them are used, evenly spaced; None uses all.
        threads: The most threads of a runtime; None leaves it to the runtime.
        require_kernels: Whether to refuse a bundle that would run without its native kernels.
        hold_to_source: Holds a bundle to its source; None without one.
    """

    inputs: Path | None = None
    samples: int | None = None
    threads: int | None = None
    require_kernels: bool = False
    hold_to_source: Callable[[Path], HeldToSource] | None = None


@dataclass(frozen=True)
class Measurement:
    """What a bundle is, and how it did here.

    Attributes:
        facts: What it is.
        measured: How it did; None where no device could run it.
        failures: What is wrong with it, by output, a clause; empty where nothing is.
        why_not_run: Why it was not run, a sentence; '' where it was.
    """

    facts: BundleFacts
    measured: Measured | None
    failures: dict[str, str]
    why_not_run: str = ""


def measure(bundle: Path, lock: Path, options: MeasureOptions) -> Measurement:
    """Runs a bundle here, and says what it is.

    Args:
        bundle: The folder that compile wrote.
        lock: The lock, whose folder the place of labelled samples is relative to.
        options: What it is run on, and how.

    Raises:
        InputError: The labelled samples do not fit, or have no labels.
        tokexport.runtimes.errors.RuntimesError: The bundle is altered, or cannot run here.
    """
    manifest = trusted_manifest(bundle)
    require_gates(bundle, manifest)
    try:
        loaded = load(
            bundle,
            threads=options.threads or allowed_cores(),
            require_kernels=options.require_kernels,
        )
    except NoDeviceError as error:
        return Measurement(facts_of(bundle, manifest), None, {}, error.what)
    with loaded:
        found = verify_artifacts(bundle, manifest, loaded.runners)
        labelled = _labelled(loaded.runners[manifest.batch], manifest, lock, options)
    source = None if options.hold_to_source is None else options.hold_to_source(bundle)
    outputs, failures = {}, {}
    for name, its, one in found.named_outputs():
        outputs[name] = _figures(one, its)
        if one.passed:
            continue
        if its is found and _is_excused(one.name, source):
            outputs[name] = replace(outputs[name], verdict=TIES_ONLY)
        else:
            failures[name] = one.why_not
    measured = Measured(
        environment=environment_of(found.runtime),
        outputs=outputs,
        layer_precisions=_layer_precisions(found.runtime),
        kernel_calls=_kernel_calls(bundle, manifest, found.runtime),
        labelled=labelled,
        source=source,
    )
    return Measurement(facts_of(bundle, manifest), measured, failures)


def _is_excused(output: str, source: HeldToSource | None) -> bool:
    """Returns whether near-ties alone bring an output of the first artifact out of its tolerance.

    The source says so: it is compared with that artifact.
    """
    if source is None or source.verdict == WRONG:
        return False
    return source.outputs.get(output) == TIES_ONLY


def environment_of(runtime: RuntimeInfo) -> Environment:
    """Returns what runs a bundle here."""
    kernels = str(runtime.details.get("kernels", NO_KERNELS))
    return Environment(runtime.flavour, runtime.version, instruction_set(), kernels)


def _layer_precisions(runtime: RuntimeInfo) -> tuple[str, ...]:
    """Returns the precisions of the layers, in order; OpenVINO alone says them."""
    found = runtime.details.get("layer_precisions", [])
    return tuple(found) if isinstance(found, list) else ()


def _kernel_calls(bundle: Path, manifest: Manifest, runtime: RuntimeInfo) -> int | None:
    """Returns how many native kernels run: OpenVINO counts them, ONNX Runtime takes every call."""
    artifact = file_in(bundle, manifest.artifact)
    if artifact.suffix == ".onnx":
        ran = runtime.details.get("kernels") != NO_KERNELS
        return onnx_contents(artifact).function_calls if ran else 0
    calls = runtime.details.get("kernel_calls")
    return calls if isinstance(calls, int) else None


def _figures(one: OutputResult, found: VerifyResult) -> OutputFigures:
    far = one.comparison
    if not one.passed:
        verdict = WRONG
    elif found.left_out:
        verdict = TIES_ONLY
    else:
        verdict = IDENTICAL if far.max_abs == 0 else ARITHMETIC
    return OutputFigures(
        verdict=verdict,
        max_abs=far.max_abs,
        mean_abs=far.mean_abs,
        rms=far.rms,
        cosine=far.cosine,
        top1_agreement=far.top1_agreement,
        share_of_allowed=None if one.worst is None else one.worst.share,
        allowance=one.allowance,
        scale=far.scale,
    )


def _labelled(
    runner: Runner, manifest: Manifest, lock: Path, options: MeasureOptions
) -> LabelledInputs | None:
    """Classifies labelled samples; None without any."""
    if options.inputs is None:
        return None
    known = partial(classes_of_bundle, manifest)
    pictures = PictureOptions(own=manifest.preprocessing, known=known)
    batches = read_inputs(
        options.inputs,
        runner.inputs,
        batch_of(runner.inputs),
        options.samples,
        runner.constants,
        pictures,
    )
    if batches.labels is None:
        raise InputError(
            "The samples have no labels, so there is no accuracy to lock.",
            where=str(options.inputs),
            fix="Add an array 'labels' with a class for each sample, or put pictures into a "
            "subfolder for each class.",
        )
    output = manifest.outputs[0].name
    logits = np.stack([runner.run(batch)[output] for batch in batches])
    right = hits(logits, batches.labels)
    chosen = logits.reshape(-1, logits.shape[-1])[: batches.samples].argmax(axis=-1)
    return LabelledInputs(
        path=Path(relpath(options.inputs, lock.parent)).as_posix(),
        samples=batches.samples,
        inputs_sha256=_hash_of_samples(batches),
        labels_sha256=hash_of([batches.labels]),
        accuracy=float(right.mean()),
        predictions=" ".join(map(str, chosen.tolist())),
    )


def _hash_of_samples(batches: Batches) -> str:
    """Returns the hash of the samples, whatever the batch they were cut into."""
    return hash_of(
        array.reshape(-1, *array.shape[2:])[: batches.samples] for array in batches.arrays.values()
    )
