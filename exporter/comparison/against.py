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
from tokexport.exporter.comparison.built_anew import answers_as_built_now
from tokexport.exporter.comparison.bundle_replay import bundle_replay
from tokexport.exporter.comparison.bundle_source import (
    config_of,
    require_same_inputs,
    require_same_outputs,
)
from tokexport.exporter.comparison.decision_agreement import (
    DecisionAgreement,
    agreement_over_all,
)
from tokexport.exporter.comparison.figures import Figures, figures
from tokexport.exporter.comparison.reference_batches import reference_batches
from tokexport.exporter.comparison.source_examples import as_compiled
from tokexport.exporter.comparison.verdicts import (
    ARITHMETIC,
    IDENTICAL,
    TIES_ONLY,
    VERDICTS,
    WRONG,
)
from tokexport.exporter.eager.example_inputs import picture_options
from tokexport.exporter.errors import GateError, listed
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.inputs.kinds import kind_of_inputs
from tokexport.exporter.json_values import plain
from tokexport.exporter.parity.proof import ParityError, ReplayStage, StageResult
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
from tokexport.runtimes.bundle.manifest import Manifest, RuntimeInfo, TensorSpec
from tokexport.runtimes.cores.free_cores import allowed_cores
from tokexport.runtimes.loading import load
from tokexport.runtimes.pictures.preprocessing import Preprocessing
from tokexport.runtimes.signatures import trusted_manifest
from tokexport.runtimes.tolerances.neighbourhoods import as_samples
from tokexport.runtimes.verification import reference_inputs

#: Why an artifact that was built anew is replayed where the bundle's own is not excused.
_SAME_ANEW: Final = (
    "an artifact that is built here answers bit by bit as the bundle does, and near-ties explain it"
)
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
            ``other``; or ``unknown`` in bundles made before they were hashed. Another graph may use
            the same ones in another order.
        structure: The same of the graph; ``unknown`` under another version of torch too. Another
            graph is no other model: the outputs say what it computes.
        preprocessing: What differs in the preprocessing: by step, of the bundle and of the source;
            empty where one of them does not say it.
        constants: What differs in the numbers and texts that the model returns beside tensors.
        outputs: The verdict of every output.
        ties: How many samples a near-tie excuses.
        stages: The stages of the source that were compared on the way, in order.
        decisions: How every decision of the model falls in the bundle, in order; empty where the
            model decides nothing, or the artifact does not show it.
        replayed_anew: Why an artifact that was built anew was replayed in place of the bundle's, a
            clause; '' where the bundle's own was, or none had to be.
        other_batches: How many samples the bundle's other artifacts take at once, which were not
            compared: ``verify`` alone replays them.
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
    constants: Mapping[str, tuple[Any, Any]]
    outputs: Mapping[str, OutputVerdict]
    ties: int
    stages: tuple[StageResult, ...]
    decisions: tuple[DecisionAgreement, ...] = ()
    replayed_anew: str = ""
    other_batches: tuple[int, ...] = ()

    @property
    def decision_agreement(self) -> float | None:
        """The share of all positions and truth values that are eager's; None without any."""
        return agreement_over_all(self.decisions)

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
            reasons.append(f"the preprocessing is another: {listed(_clauses(self.preprocessing))}")
        if self.constants:
            reasons.append(f"what it returns is another: {listed(_clauses(self.constants))}")
        return "; ".join(reasons)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names, and the verdict."""
        data: dict[str, Any] = plain(self)
        said = {"verdict": self.verdict, "why_not": self.why_not}
        return {**said, "decision_agreement": self.decision_agreement, **data}

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
    preprocess: str | None = None,
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
        inputs: A file of real samples, or a folder of pictures; without it those of the bundle's
            reference data are taken.
        preprocess: The steps from a picture to the input; None takes those of the source, else of
            the bundle.
        samples: How many of them are used, evenly spaced; None uses all.
        threads: The most threads of eager and the runtime; None leaves it to them.
        require_kernels: Whether to refuse a bundle that would run without its native kernels.
        progress: Shows the stages; silent without one.

    Raises:
        UsageError: The options or inputs do not fit.
        OtherModelError: The source takes or gives something else than the bundle.
        ModelNotSupportedError: The source cannot become a static graph.
        GateError: A stage of the source leaves its gate before the bundle is run.
        tokexport.runtimes.errors.RuntimesError: The bundle is altered, or cannot run here.
    """
    manifest = trusted_manifest(bundle)
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    ops.register()
    WORKER.start(REFERENCE.runtime, manifest.runtime.name)
    own = reference_inputs(bundle)
    firsts = {name: array[0] for name, array in own.items()}
    source = as_compiled(source, manifest, firsts)
    if source.preprocessing is None and inputs is not None and kind_of_inputs(inputs).of_pictures:
        steps = manifest.preprocessing
        known = None if steps is None else Preprocessing.from_json(steps)
        source = replace(source, preprocessing=known)
    with scratch_folder() as scratch:
        config = config_of(manifest, scratch / "unbuilt", inputs, samples, threads)
        config = replace(
            config,
            require_kernels=require_kernels,
            reduce=recipe or config.reduce,
            preprocess=preprocess,
        )
        with compile_run(source, config, checklist) as run:
            try:
                return _held(run, bundle, manifest, None if inputs else own)
            except GateError as error:
                error.fix = "The source alone leaves its gate: compile it, and see its stages."
                raise


def _held(
    run: CompileRun, bundle: Path, manifest: Manifest, own: Mapping[str, Array] | None
) -> AgainstSource:
    """Runs the stages of the source, and the bundle in place of an artifact.

    Args:
        run: The compile of the source.
        bundle: The folder.
        manifest: What it holds.
        own: The inputs of its reference data; None where others are read.
    """

    def known(inputs: tuple[TensorSpec, ...]) -> Batches:
        require_same_inputs(inputs, manifest, bundle)
        assert own is not None
        return reference_batches(own, inputs, str(bundle))

    reduced = reduce(run)
    answered = reference(run, reduced, None if own is None else known)
    require_same_inputs(answered.inputs, manifest, bundle)
    require_same_outputs(answered, manifest, bundle)
    captured = capture(run, answered)
    rewritten = rewrite(run, answered, captured)
    emitted = emit(run, answered, captured, rewritten)
    lowered = lower(run, answered, captured, emitted)
    stages = tuple(run.record.stages)
    with (
        run.stage("verify"),
        load(
            bundle,
            threads=run.config.threads or allowed_cores(),
            require_kernels=run.config.require_kernels,
            batches=[manifest.batch],
        ) as loaded,
    ):
        runner = loaded.runners[manifest.batch]
        runner.hold_to(None)  # what its checks say is an output of the graph, and is compared too
        found = run_stage.run_artifact(runner, answered.batches)
        replayed = bundle_replay(run, bundle, manifest, answered, captured, lowered)
        # int8 has no replay: its gate is one over all samples
        replay = replayed.replay if run.config.precision != "int8" else None
        result = _checked(captured, found, replay)
        anew = ""
        if (
            not result.passed
            and replay is not None
            and not replayed.why_not
            and answers_as_built_now(run, lowered, manifest, answered.batches, found)
        ):
            # what showing a value changes in a half precision is no fault of the bundle
            result = _checked(captured, found, partial(lowered.stages.replay.artifact, manifest))
            anew = _SAME_ANEW if result.passed else ""
    weights, structure = _hashes(run, manifest)
    its = picture_options(answered.source, run.config).steps(answered.inputs)
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
        preprocessing=_preprocessing(manifest.preprocessing, steps),
        constants=_differences(manifest.constant_outputs, answered.reference.constants),
        outputs=_verdicts(result, answered, captured, found),
        ties=0 if result.ties is None else len(result.ties.samples),
        stages=stages,
        decisions=replayed.decisions,
        replayed_anew=replayed.why_not or anew,
        other_batches=tuple(one.batch for one in manifest.ladder[1:]),
    )


def _checked(
    captured: Captured, found: Mapping[str, Array], replay: ReplayStage | None
) -> StageResult:
    """Compares the bundle with eager, in place of whatever was said of it before."""
    proof = captured.proof
    proof.stages = [stage for stage in proof.stages if stage.name != "artifact"]
    try:
        proof.check("artifact", found, replay)
    except ParityError as error:
        return error.stages[-1]
    return proof.stages[-1]


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


def _hashes(run: CompileRun, manifest: Manifest) -> tuple[str, str]:
    """Returns whether weights and structure are those that the bundle was compiled from."""
    now, before = run.record.fingerprint, manifest.fingerprint
    if now is None or before is None:
        return UNKNOWN, UNKNOWN
    structure = SAME if before.get("structure_sha256") == now.structure_sha256 else OTHER
    if structure == OTHER and before.get("torch") != now.torch:
        structure = UNKNOWN
    # another graph may use the same weights in another order
    key = "weights_sha256" if structure == SAME else "weights_set_sha256"
    return SAME if before.get(key) == getattr(now, key) else OTHER, structure


def _preprocessing(
    ours: Mapping[str, Any] | None, its: Mapping[str, Any] | None
) -> dict[str, tuple[Any, Any]]:
    """Returns the steps that differ, where both sides say theirs; where each was found is none."""
    if ours is None or its is None:
        return {}
    one, other = (_without_origin(steps) for steps in (ours, its))
    inner = _preprocessing(one.pop("embedded", None), other.pop("embedded", None))
    return _differences(one, other) | inner


def _without_origin(steps: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in steps.items() if name != "origin"}


def _differences(ours: Mapping[str, Any], its: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (ours.get(key), its.get(key)) for key in sorted({*ours, *its})}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _clauses(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Returns a clause for each pair of values that differ."""
    return [
        f"{name} is {ours} in the bundle and {its} in the source"
        for name, (ours, its) in pairs.items()
    ]
