"""Holds a bundle to a source: is it still that model?

The source goes through the stages of a compile up to the lowered graph, as the bundle was compiled;
in place of an artifact that would be built now, the one of the bundle is compared with eager, and
where it leaves its gate it is replayed with eager's decisions, as every stage of a compile is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from tokexport.exporter.backends.known import REFERENCE
from tokexport.exporter.build import run_stage
from tokexport.exporter.bundle.run_bundle import write_arrays
from tokexport.exporter.comparison.figures import Figures, figures
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.errors import GateError, UsageError, listed
from tokexport.exporter.json_values import plain
from tokexport.exporter.parity.proof import ParityError, StageResult
from tokexport.exporter.progress import Checklist
from tokexport.exporter.source import Source
from tokexport.exporter.stages.artifact_stages import emit, lower
from tokexport.exporter.stages.run import CompileRun, compile_run
from tokexport.exporter.stages.traced_stages import (
    Answered,
    Captured,
    capture,
    reduce,
    reference,
    rewrite,
)
from tokexport.exporter.system.process_state import process_unchanged
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.process import WORKER
from tokexport.graph_passes.ops import ops
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import Manifest, RuntimeInfo, read_manifest
from tokexport.runtimes.loading import load
from tokexport.runtimes.tolerances.neighbourhoods import as_samples
from tokexport.runtimes.verification import reference_inputs

#: The verdicts, from the nearest to the farthest.
IDENTICAL: Final = "identical"
ARITHMETIC: Final = "arithmetic"
TIES_ONLY: Final = "ties only"
WRONG: Final = "wrong"
VERDICTS: Final = (IDENTICAL, ARITHMETIC, TIES_ONLY, WRONG)
#: What is known of a hash that two sides may share.
SAME: Final = "same"
OTHER: Final = "other"
UNKNOWN: Final = "unknown"


@dataclass(frozen=True)
class OutputVerdict:
    """How one output of a bundle stands to eager.

    Attributes:
        verdict: ``identical``; ``arithmetic``, inside its tolerance; ``ties only``, where with
            eager's decisions it is; or ``wrong``.
        figures: How far it is off, near-ties counted in.
        failure: What leaves its tolerance, a clause; '' where nothing does.
    """

    verdict: str
    figures: Figures
    failure: str = ""


@dataclass(frozen=True)
class AgainstSource:
    """Whether a bundle is still the model of a source.

    Attributes:
        bundle: The bundle's folder.
        source: Where the model was read from.
        runtime: What ran the bundle.
        precision: What the bundle computes in.
        inputs: Where the inputs come from, a clause.
        samples: How many samples were compared.
        weights: Whether the source has the weights that the bundle was compiled from: ``same``,
            ``other``; or ``unknown``, where the graph may use them in another order or the bundle
            was made before they were hashed.
        structure: The same of the graph; ``unknown`` under another version of torch too. Another
            graph is no other model: the outputs say what it computes.
        preprocessing: What differs in the preprocessing: by step, of the bundle and of the source.
        outputs: The verdict of every output.
        ties: How many samples a near-tie excuses.
        stages: The stages of the source that were compared on the way, in order.
    """

    bundle: Path
    source: str
    runtime: RuntimeInfo
    precision: str
    inputs: str
    samples: int
    weights: str
    structure: str
    preprocessing: Mapping[str, tuple[Any, Any]]
    outputs: Mapping[str, OutputVerdict]
    ties: int
    stages: tuple[StageResult, ...]

    @property
    def verdict(self) -> str:
        """The farthest verdict of an output; ``wrong`` where it is another model's bundle too."""
        found = [one.verdict for one in self.outputs.values()]
        return WRONG if self.why_not else max(found, key=VERDICTS.index)

    @property
    def why_not(self) -> str:
        """Why the bundle is not that model, a clause; '' where it is."""
        reasons = [
            f"output '{name}' {one.failure}"
            for name, one in self.outputs.items()
            if one.verdict == WRONG
        ]
        if self.weights == OTHER:
            reasons.append("the weights are others")
        if self.preprocessing:
            reasons.append(f"the preprocessing is another: {listed(self.differences)}")
        return "; ".join(reasons)

    @property
    def differences(self) -> list[str]:
        """What differs in the preprocessing, a clause each."""
        return [
            f"{step} is {ours} in the bundle and {its} in the source"
            for step, (ours, its) in self.preprocessing.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names, and the verdict."""
        data: dict[str, Any] = plain(self)
        return {"verdict": self.verdict, "why_not": self.why_not, **data}

    def failed(self) -> GateError | None:
        """Returns the error that says why the bundle is not that model; None where it is."""
        if self.verdict != WRONG:
            return None
        return GateError(
            f"The bundle is not the model of {self.source}: {self.why_not}.",
            where=f"{self.bundle}, run on {self.runtime.flavour} {self.runtime.version}.",
            fix="Compile the source anew, or pass the source that the bundle was compiled from.",
        )


@process_unchanged()
def verify_against(
    bundle: Path,
    source: Source,
    *,
    recipe: str | None = None,
    inputs: Path | None = None,
    samples: int | None = None,
    threads: int | None = None,
    require_kernels: bool = False,
    progress: Checklist | None = None,
) -> AgainstSource:
    """Compares a bundle with a source, as a compile of that source would.

    Args:
        bundle: The folder that compile wrote.
        source: The model, as it was read.
        recipe: The reduction that is put into the source; None takes that of the manifest.
        inputs: A file of real samples; without it those of the bundle's reference data are taken.
        samples: How many of them are used, evenly spaced; None uses all.
        threads: The most threads of eager and the runtime; None leaves it to them.
        require_kernels: Whether to refuse a bundle that would run without its native kernels.
        progress: Shows the stages; silent without one.

    Raises:
        UsageError: The options or inputs do not fit, or the bundle takes other inputs.
        ModelNotSupportedError: The source cannot become a static graph.
        GateError: A stage of the source leaves its gate before the bundle is run.
        tokexport.runtimes.errors.RuntimesError: The bundle is altered, or cannot run here.
    """
    manifest = read_manifest(bundle)
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    ops.register()
    WORKER.start(REFERENCE.runtime, manifest.runtime.name)
    with scratch_folder() as scratch:
        given = inputs or _saved_inputs(bundle, manifest, scratch / "reference.npz")
        config = _config(manifest, scratch / "unbuilt", given, samples, threads)
        config = replace(config, require_kernels=require_kernels, reduce=recipe or config.reduce)
        with compile_run(source, config, checklist) as run:
            return _held(run, bundle, manifest)


def _held(run: CompileRun, bundle: Path, manifest: Manifest) -> AgainstSource:
    """Runs the stages of the source, and the bundle in place of an artifact."""
    reduced = reduce(run)
    answered = reference(run, reduced)
    _require_same_form(answered, manifest, bundle)
    captured = capture(run, answered)
    rewritten = rewrite(run, answered, captured)
    emitted = emit(run, answered, captured, rewritten)
    lowered = lower(run, answered, captured, emitted)
    stages = tuple(run.record.stages)
    # int8 has no replay: its gate is one over all samples
    replays = run.config.precision != "int8"
    replay = partial(lowered.stages.replay.artifact, manifest) if replays else None
    with (
        run.stage("verify"),
        load(
            bundle, threads=run.config.threads, require_kernels=run.config.require_kernels
        ) as runner,
    ):
        runner.hold_to(None)  # what its checks say is an output of the graph, and is compared too
        found = run_stage.run_artifact(runner, answered.batches)
        try:
            captured.proof.check("artifact", found, replay)
        except ParityError as error:
            result = error.stages[-1]
        else:
            result = captured.proof.stages[-1]
    weights, structure = _hashes(run, manifest)
    its = run.source.preprocessing
    steps = None if its is None else its.to_json()
    return AgainstSource(
        bundle=bundle,
        source=run.source.location,
        runtime=runner.runtime,
        precision=manifest.precision,
        inputs=answered.batches.origin,
        samples=answered.batches.samples,
        weights=weights,
        structure=structure,
        preprocessing=_differences(manifest.preprocessing, steps),
        outputs=_verdicts(result, answered, captured, found),
        ties=0 if result.ties is None else len(result.ties.samples),
        stages=stages,
    )


def _verdicts(
    result: StageResult, answered: Answered, captured: Captured, found: Mapping[str, Array]
) -> dict[str, OutputVerdict]:
    """Judges every output by itself, as it came and with eager's decisions."""
    verdicts = {}
    for name, wanted in answered.reference.outputs.items():
        measured = figures(*(as_samples(one, answered.size) for one in (wanted, found[name])))
        failure = captured.proof.gates_of("artifact")[name].judge(wanted, found[name]).failure
        if measured.identical:
            verdict = IDENTICAL
        elif not failure:
            verdict = ARITHMETIC
        else:
            verdict = TIES_ONLY if result.passed else WRONG
        verdicts[name] = OutputVerdict(verdict, measured, failure if verdict == WRONG else "")
    return verdicts


def _config(
    manifest: Manifest, output: Path, inputs: Path, samples: int | None, threads: int | None
) -> CompileConfig:
    """Returns the options that the bundle was compiled with, as far as they shape its graph."""
    options: dict[str, Any] = manifest.options or {}  # bundles made before have none
    first = manifest.inputs[0].shape if manifest.inputs else ()
    one = len(manifest.inputs) == 1 and not manifest.constant_inputs
    return CompileConfig(
        target=manifest.target,
        output=output,
        precision=manifest.precision,
        inputs=inputs,
        samples=samples,
        input_shape=first if one else None,
        batch=first[0] if first else None,
        constants={each.name: each.array for each in manifest.constant_inputs} or None,
        reduce=None if manifest.reduction is None else manifest.reduction["recipe"],
        timed=False,
        threads=threads,
        token_cap=options.get("token_cap"),
        drop_noise=options.get("drop_noise", False),
        quantization=options.get("quantization"),
        weight_bits=options.get("weight_bits"),
    )


def _saved_inputs(bundle: Path, manifest: Manifest, path: Path) -> Path:
    """Writes the inputs of a bundle's reference data as a file of samples."""
    own = reference_inputs(bundle)
    batch = manifest.inputs[0].shape[:1]
    arrays = {
        spec.name: own[spec.name].reshape(-1, *spec.shape[1:])
        if spec.shape[:1] == batch
        else own[spec.name][0]
        for spec in manifest.inputs
    }
    write_arrays(path, arrays)
    return path


def _require_same_form(answered: Answered, manifest: Manifest, bundle: Path) -> None:
    """Refuses a source of other inputs or outputs than the bundle's."""
    outputs = answered.reference.outputs
    ours = {spec.name: (spec.shape, spec.dtype) for spec in manifest.computed}
    its = {name: (array.shape[1:], str(array.dtype)) for name, array in outputs.items()}
    if answered.inputs != manifest.inputs or ours != its:
        raise UsageError(
            "The source takes or gives something else than the bundle.",
            where=f"{bundle}: {'; '.join(map(str, manifest.inputs))} → "
            f"{'; '.join(map(str, manifest.outputs))}; the source: "
            f"{'; '.join(map(str, answered.inputs))} → {listed([*its])}",
            fix="Pass the source that the bundle was compiled from.",
        )


def _hashes(run: CompileRun, manifest: Manifest) -> tuple[str, str]:
    """Returns whether weights and structure are those that the bundle was compiled from."""
    now, before = run.record.fingerprint, manifest.fingerprint
    if now is None or before is None:
        return UNKNOWN, UNKNOWN
    structure = SAME if before.get("structure_sha256") == now.structure_sha256 else OTHER
    if structure == OTHER and before.get("torch") != now.torch:
        structure = UNKNOWN
    if before.get("weights_sha256") == now.weights_sha256:
        return SAME, structure
    return OTHER if structure == SAME else UNKNOWN, structure


def _differences(
    ours: Mapping[str, Any] | None, its: Mapping[str, Any] | None
) -> dict[str, tuple[Any, Any]]:
    """Returns the steps that differ; where they were found is none of them."""
    keys = {*(ours or {}), *(its or {})} - {"origin"}
    pairs = {key: ((ours or {}).get(key), (its or {}).get(key)) for key in sorted(keys)}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
