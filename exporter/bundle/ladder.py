"""Puts the artifacts of one model for several batches into one bundle.

::

    BUNDLE/model.onnx                 the artifact of the first batch
    BUNDLE/model.batch8.onnx          that of a further one
    BUNDLE/model.onnx.data            the weights of all of them
    BUNDLE/reference.batch8.npz       what the further one is verified against
    BUNDLE/report.batch8.json         the report of its compile
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from tokexport.exporter.errors import GateError, ModelNotSupportedError
from tokexport.runtimes.bundle.bundle_runner import BundleRunner
from tokexport.runtimes.bundle.manifest import Manifest, Rung, differs_beyond_batch
from tokexport.runtimes.bundle.reference import read_reference
from tokexport.runtimes.errors import InputMismatchError
from tokexport.runtimes.loading import open_runner
from tokexport.runtimes.verification import VerifyResult, verify_runner


def rung_name(name: str, batch: int) -> str:
    """Returns the name of a further artifact's file: ``model.batch8.onnx`` of ``model.onnx``."""
    path = PurePath(name)
    return f"{path.stem}.batch{batch}{path.suffix}"


def joined(manifests: Sequence[Manifest]) -> Manifest:
    """Returns the manifest of a bundle with several artifacts.

    Args:
        manifests: The manifest of each of them by itself, as it was compiled.

    Raises:
        ModelNotSupportedError: The model for one batch is another one than for the next.
    """
    first, *others = manifests
    for other in others:
        _require_one_model(first, other)
    return dataclasses.replace(
        first,
        samples_independent=all(one.samples_independent for one in manifests),
        rungs=tuple(
            Rung(
                artifact=rung_name(one.artifact, one.batch),
                reference=rung_name(one.reference, one.batch),
                inputs=one.inputs,
                outputs=one.outputs,
                gates=one.gates,
                input_ranges=one.input_ranges,
                checks=one.checks,
                latency_ms=one.latency_ms,
                kept_onnx=one.kept_onnx and rung_name(one.kept_onnx, one.batch),
            )
            for one in others
        ),
    )


def _require_one_model(first: Manifest, other: Manifest) -> None:
    """Refuses artifacts that differ by more than their batch."""
    if kind := differs_beyond_batch(first, other):
        raise _another_model(kind, first, other, getattr(first, kind), getattr(other, kind))
    for what, one, two in (
        ("fixed inputs", _constants(first), _constants(other)),
        ("returned constants", first.constant_outputs, other.constant_outputs),
        ("weights", _weights(first), _weights(other)),
        ("tokens", first.token_schedule, other.token_schedule),
    ):
        if one != two:
            raise _another_model(what, first, other, one, two)


def _another_model(
    what: str, first: Manifest, other: Manifest, one: object, two: object
) -> ModelNotSupportedError:
    texts = (
        ", ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in (one, two)
    )
    return ModelNotSupportedError(
        f"The {what} of the model for {other.batch} samples are not those for {first.batch}.",
        where="; and ".join(texts),
        fix="Compile a bundle for each batch.",
    )


def _constants(manifest: Manifest) -> list[str]:
    return [str(one) for one in manifest.constant_inputs]


def _weights(manifest: Manifest) -> object:
    return (manifest.fingerprint or {}).get("weights_set_sha256")


def hold_ladder(bundle: Path, manifest: Manifest, threads: int | None) -> bool:
    """Compares each artifact with the reference of every other, and with its own.

    So what the bundle answers does not depend on how samples are split over its artifacts, nor on
    what fills up a batch.

    Args:
        bundle: The folder, with the artifacts under their last names.
        manifest: The manifest of all of them.
        threads: Number of threads for a CPU runtime; None leaves the choice to the runtime.

    Returns:
        Whether samples may be split over the artifacts: none of them refused those of another.

    Raises:
        GateError: An output of an artifact leaves the gate of a reference.
    """
    splits = bool(manifest.samples_independent)
    for own in manifest.ladder:
        runner = open_runner(bundle, own, threads=threads)
        runner.hold_to(own.checks)
        with BundleRunner([runner], [own]) as alone:
            for other in manifest.ladder:
                if own.batch != other.batch and not manifest.samples_independent:
                    continue
                reference = read_reference(bundle, other)
                try:
                    found = verify_runner(alone, other, reference)
                except InputMismatchError:
                    splits = False
                    continue
                _require_within(own, other, found)
    return splits


def _require_within(own: Manifest, other: Manifest, found: VerifyResult) -> None:
    failed = [f"output '{one.name}' {one.why_not}" for one in found.outputs if not one.passed]
    if failed:
        raise GateError(
            f"The artifact for {own.batch} samples answers otherwise than eager did for "
            f"{other.batch}: {'; '.join(failed)}.",
            where="Samples split over the artifacts would be answered by chance.",
            fix="Compile a bundle for each batch: the model depends on how many samples there are, "
            "or decides near-ties otherwise then.",
        )


def filling_warnings(runner: BundleRunner, samples: int) -> tuple[str, ...]:
    """Returns what a reader has to know where samples share batches that others may answer in.

    Args:
        runner: What is loaded.
        samples: How many samples it ran on, the last batch filled up by repeats.
    """
    batch = runner.batches[0]
    manifest = runner.manifest
    if manifest.samples_independent or batch == 1 or samples % batch == 0:
        return ()
    return (
        f"The last batch of {batch} was filled up, and an answer may depend on the others of its "
        "batch: the compile did not show that it does not.",
    )


def move_rung(folder: Path, bundle: Path, names: Mapping[str, str]) -> None:
    """Moves the files of a further artifact into the folder of the bundle.

    Args:
        folder: The folder that it was compiled into; it goes.
        bundle: The folder of the bundle.
        names: The new name of each file that stays, by its name; the others go.
    """
    for path in sorted(folder.iterdir()):
        if path.name in names:
            path.rename(bundle / names[path.name])
        else:
            path.unlink()
    folder.rmdir()
