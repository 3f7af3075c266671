"""Finds the stage, the block and the node at which a bundle or a compile first differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tokexport.exporter.backends.known import REFERENCE
from tokexport.exporter.bisection.readme import readme
from tokexport.exporter.bisection.reproduction import Reproduction, require_free
from tokexport.exporter.bisection.result import Bisection, Fault
from tokexport.exporter.bisection.stage_search import Found, StageSearch
from tokexport.exporter.bisection.stage_walk import GivenBundle, Walk, walk_stages
from tokexport.exporter.comparison.bundle_source import (
    config_of,
    require_same_inputs,
    require_same_outputs,
)
from tokexport.exporter.comparison.reference_batches import reference_batches
from tokexport.exporter.comparison.source_examples import as_compiled
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.proof import STAGES
from tokexport.exporter.progress import Checklist
from tokexport.exporter.source import Source
from tokexport.exporter.stages.run import compile_run
from tokexport.exporter.stages.traced_stages import Answered
from tokexport.exporter.system.output_file import check_outside
from tokexport.exporter.system.process_state import process_unchanged
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.process import WORKER
from tokexport.graph_passes.ops import ops
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.bundle_files import check_files
from tokexport.runtimes.bundle.manifest import Manifest, TensorSpec
from tokexport.runtimes.compatibility import check_processor
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.loading import check_contents
from tokexport.runtimes.signatures import trusted_manifest
from tokexport.runtimes.verification import reference_inputs


@process_unchanged()
def bisect_compile(
    source: Source,
    config: CompileConfig,
    output: Path,
    *,
    progress: Checklist | None = None,
) -> Bisection:
    """Runs the stages of a compile, and finds where the first that differs goes wrong.

    Args:
        source: The model, as it was read.
        config: The options of the compile; its output is not written.
        output: The folder of the reproduction; with ``force`` it may be there already.
        progress: Shows the stages; silent without one.

    Raises:
        UsageError: The options or inputs do not fit.
        ModelNotSupportedError: The source cannot become a static graph.
        GateError: Something else than the parity of a stage fails.
        WriteError: The reproduction cannot be written.
        tokexport.runtimes.errors.RuntimesError: The runtime is missing or failed.
    """
    require_free(output, config.force)
    ops.register()
    WORKER.start(REFERENCE.runtime, config.backend.runtime)
    with scratch_folder() as scratch:
        own = replace(config, output=scratch / "unbuilt", keep_stages=False, timed=False)
        return _bisected(source, own, output, None, progress)


@process_unchanged()
def bisect_bundle(
    source: Source,
    bundle: Path,
    output: Path,
    *,
    recipe: str | None = None,
    inputs: Path | None = None,
    samples: int | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Checklist | None = None,
) -> Bisection:
    """Runs the stages of a source and the artifact of a bundle, and finds where they part.

    Args:
        source: The model, as it was read.
        bundle: The folder that compile wrote; its files may have been altered since.
        output: The folder of the reproduction.
        recipe: The reduction that is put into the source; None takes that of the manifest.
        inputs: A file of real samples; without it those of the bundle's reference data are taken.
        samples: How many of them are used, evenly spaced; None uses all.
        threads: The most threads of eager and the runtime; None leaves it to them.
        force: Whether an earlier reproduction at ``output`` may be replaced.
        progress: Shows the stages; silent without one.

    Raises:
        UsageError: The options or inputs do not fit, or the bundle takes other inputs.
        ModelNotSupportedError: The source cannot become a static graph.
        GateError: Something else than the parity of a stage fails.
        WriteError: The reproduction cannot be written.
        tokexport.runtimes.errors.RuntimesError: The bundle cannot run here.
    """
    require_free(output, force)
    check_outside(output, bundle)
    manifest = trusted_manifest(bundle)
    check_processor(manifest)
    check_contents(bundle, manifest)
    ops.register()
    WORKER.start(REFERENCE.runtime, manifest.runtime.name)
    arrays = reference_inputs(bundle)
    firsts = {name: array[0] for name, array in arrays.items()}
    source = as_compiled(source, manifest, firsts)
    with scratch_folder() as scratch:
        config = config_of(manifest, scratch / "unbuilt", inputs, samples, threads)
        config = replace(config, reduce=recipe or config.reduce)
        given = _given(bundle, manifest, None if inputs else arrays)
        return _bisected(source, config, output, given, progress)


def _given(bundle: Path, manifest: Manifest, own: Mapping[str, Array] | None) -> GivenBundle:
    def known(inputs: tuple[TensorSpec, ...]) -> Batches:
        require_same_inputs(inputs, manifest, bundle)
        assert own is not None
        return reference_batches(own, inputs, str(bundle))

    def check(answered: Answered) -> None:
        require_same_inputs(answered.inputs, manifest, bundle)
        require_same_outputs(answered, manifest, bundle)

    return GivenBundle(bundle, manifest, None if own is None else known, check)


def _bisected(
    source: Source,
    config: CompileConfig,
    output: Path,
    bundle: GivenBundle | None,
    progress: Checklist | None,
) -> Bisection:
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    with compile_run(source, config, checklist) as run:
        walk = walk_stages(run, bundle)
        found: Found | None = None
        if walk.stage:
            with run.stage("search"):
                found = StageSearch(walk).first()
        result = _result(walk, bundle, found)
        if found is None:
            return result
        with run.stage("reproduction"):
            kernels = config.backend.kernels() if found.suspect.native else None
            folder = Reproduction(output, _runtime(walk), config.precision, kernels)
            named = replace(result, output=output)
            text = readme(named)
            artifact = walk.artifact if _is_built(walk) else None
            written = folder.write(found.suspect, artifact, named.to_json(), text)
        return replace(named, reproduces=written.reproduces, seconds=dict(checklist.seconds))


def _runtime(walk: Walk) -> str:
    """Returns what runs the node of a reproduction: the runtime of the stage."""
    return walk.run.config.backend.runtime if _is_built(walk) else REFERENCE.runtime


def _is_built(walk: Walk) -> bool:
    """Returns whether the stage is one of the artifact itself."""
    return walk.stage in ("artifact", "without kernels")


def _result(walk: Walk, bundle: GivenBundle | None, found: Found | None) -> Bisection:
    config, answered = walk.run.config, walk.answered
    assert answered is not None
    passed = tuple(one.name for one in walk.stages if one.passed)
    return Bisection(
        source=walk.run.source.location,
        bundle=None if bundle is None else bundle.folder,
        target=config.target,
        precision=config.precision,
        inputs=answered.batches.origin,
        samples=answered.batches.samples,
        altered=bundle is not None and _is_altered(bundle),
        other_batches=tuple(one.batch for one in bundle.manifest.ladder[1:]) if bundle else (),
        fault=_fault(walk, found) if walk.stage else None,
        ties=len({sample for one in walk.ties for sample in one.samples}),
        passed=passed,
        output=None,
        reproduces=False,
        seconds=dict(walk.run.checklist.seconds),
    )


def _is_altered(bundle: GivenBundle) -> bool:
    try:
        check_files(bundle.folder, bundle.manifest)
    except BundleError:
        return True
    return False


def _fault(walk: Walk, found: Found | None) -> Fault:
    assert walk.result is not None
    fault = Fault(walk.stage, _meaning(walk), walk.result.detail)
    if found is None:
        return fault
    suspect = found.suspect
    return replace(
        fault,
        node=suspect.node,
        value=suspect.value,
        operator=suspect.operator,
        nodes=suspect.nodes,
        block=found.place.block,
        made_by=found.made_by,
        line=found.place.line,
        why=suspect.why,
        difference=suspect.difference.said,
        error=suspect.difference.error,
        allowed=suspect.difference.allowed,
    )


def _meaning(walk: Walk) -> str:
    """Returns what a difference first seen at the stage means."""
    if walk.stage == "artifact" and walk.artifact is not None and not walk.artifact.native:
        return "The artifact's file computes something else than what its source is lowered to."
    return STAGES[walk.stage]
