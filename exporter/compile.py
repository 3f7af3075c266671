"""The way of a model: source, reduce, capture, rewrite, emit, lower, build, verify, bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from rich.console import Console
from torch import nn

from tokexport.exporter import hops
from tokexport.exporter.accuracy_gate import accuracy_of, accuracy_warning, require_accuracy
from tokexport.exporter.benchmark import require_speedup
from tokexport.exporter.build import build
from tokexport.exporter.bundle import BundleWriter, save_reference
from tokexport.exporter.config import CompileConfig, CompileOptions, compile_config
from tokexport.exporter.edge_proof import EdgeProof
from tokexport.exporter.emit import emit
from tokexport.exporter.errors import GateError
from tokexport.exporter.example_inputs import constants_of, prepare
from tokexport.exporter.gate_advice import advice_for
from tokexport.exporter.gate_warnings import gate_warnings, half_warning, spread_warnings
from tokexport.exporter.gates import narrowed_hops
from tokexport.exporter.kept_batches import gates_to_verify_by, kept_batches, kept_of_gates
from tokexport.exporter.machine import describe_machine
from tokexport.exporter.measured_gates import measured_gates, require_steady
from tokexport.exporter.new_manifest import new_manifest
from tokexport.exporter.noise import capture_without_noise, reference_of, without_noise
from tokexport.exporter.parity import Proof
from tokexport.exporter.precision import arithmetic_of, precision_warnings, with_quantisation
from tokexport.exporter.process_state import process_unchanged
from tokexport.exporter.progress import Checklist
from tokexport.exporter.reduction.reduced_source import reduced_source
from tokexport.exporter.report import FAILED, Report
from tokexport.exporter.settled_state import settled_warning
from tokexport.exporter.source import Source
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.exporter.speed import busy_warning, over_unreduced, time_against_eager, timed_name
from tokexport.exporter.stages import StageFolder
from tokexport.exporter.token_cap import under_cap
from tokexport.exporter.told_hops import ToldHops, ToldWay
from tokexport.exporter.trace_difference import differences_named
from tokexport.exporter.tuning import tune
from tokexport.exporter.whole_number_ranges import RunBatches
from tokexport.exporter.worker.process import WORKER
from tokexport.exporter.worker.runner import open_in_worker
from tokexport.graph_passes import ops, pipelines
from tokexport.graph_passes.decisions import unlifted
from tokexport.graph_passes.torch_passes.widen_half import half_lines
from tokexport.runtimes.base import Runner
from tokexport.runtimes.errors import NoDeviceError
from tokexport.runtimes.manifest import PASSED, Manifest
from tokexport.runtimes.verification import REFERENCE_NAME

REPORT_NAME = "report.json"


@dataclass(frozen=True)
class CompileResult:
    """What a compile gave.

    Attributes:
        status: ``PASSED``, or ``BUILT, NOT RUN`` where no device could run the engine here.
        report: Parity hop by hop, speed, and what it was measured on.
        bundle: The folder.
    """

    status: str
    report: Report
    bundle: Path


@process_unchanged()
def compile(
    model: nn.Module | Source,
    example_inputs: Any = None,
    target: str = "ort",
    *,
    output: str | Path | None = None,
    progress: Checklist | None = None,
    **options: Unpack[CompileOptions],
) -> CompileResult:
    """Compiles a model for a target, proves it against eager PyTorch and writes a bundle.

    With ``reduce`` a token reduction goes into the model first, and the reduced module in eager is
    what everything is held to.

    Args:
        model: The module as you use it, in any mode; it is left as it was.
        example_inputs: A tensor, a tuple of them, or a dict by the names of ``forward``.
        target: ``ort``, ``openvino`` or ``trt``.
        output: The folder that becomes the bundle; it has to be given.
        progress: Shows the stages; silent without one.
        options: Further fields of ``CompileConfig``, as ``CompileOptions`` types them:
            inputs, samples, input_shape, batch, reduce, restore, precision, quantization, atol,
            seed, min_speedup, require_run, keep_stages, force, drop_noise, token_cap, timed, tune,
            threads, constants.

    Raises:
        UsageError: The options or inputs do not fit.
        ModelNotSupportedError: The model cannot become a static graph.
        tokexport.graph_passes.reduction.errors.SurgeryError: The reduction cannot go into it.
        GateError: The surgery, parity, speed or a required run failed; there is no bundle then.
        WriteError: The bundle cannot be written.
        tokexport.runtimes.errors.RuntimesError: The target's runtime is missing or failed.
    """
    config = compile_config(target, output, options)
    source = model if isinstance(model, Source) else source_in_memory(model, example_inputs)
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    known: dict[str, Any] = _known_at_first(source, config)
    ops.register()
    WORKER.start("ort", config.target)  # it gets ready while the model is traced
    with ExitStack() as stack:
        stage = stack.enter_context(checklist).stage
        bundle = stack.enter_context(BundleWriter(config.output, config.force))
        kept = stack.enter_context(StageFolder(config))
        stack.enter_context(_report_on_failure(known, checklist))

        reduced = None
        if config.reduce is not None:
            with stage("reduce"):
                reduced = reduced_source(source, config)
                source, known["reduction"] = reduced.source, reduced.use

        with stage("reference"):
            given, inputs, batches = prepare(source, config)
            batches = replace(batches, watch=checklist.counted)
            size = inputs[0].shape[0] if inputs[0].shape else 1
            drop = config.drop_noise
            given, batches, cap = under_cap(given, batches, size, config.caps, drop)
            known |= {"token_cap": cap, "constant_inputs": constants_of(given)}
            known |= {"inputs": batches.origin, "samples": batches.samples, "batches": len(batches)}
            flat, known["noise"] = without_noise(given, batches, drop)
            reference = reference_of(flat, batches)
            names = tuple(reference.outputs)
            # Labels of no class end it here.
            accuracy_of(reference.outputs, reference.outputs, batches)
            if reduced is not None:
                known["reduction"] = reduced.compared(reference.outputs, batches)

        with stage("capture"):
            program = capture_without_noise(flat, batches)
            kept.save_program("captured", program)
            captured = unlifted(program)
            outputs = reference.outputs
            gates = measured_gates(
                captured,
                batches,
                outputs,
                size,
                config.precision,
                config.atol,
                advice_for(config),
            )
            half = half_lines(captured.graph)
            require_steady(gates.captured, bool(half))
            narrowed = gates.narrowed
            warnings = (
                *gate_warnings(gates.fp32, cap),
                *half_warning(half),
                *settled_warning(flat),
                *spread_warnings(narrowed),
                *precision_warnings(config),
                *(() if reduced is None else reduced.use.warnings),
            )
            by_hop = {"captured": gates.captured} | dict.fromkeys(narrowed_hops(config), narrowed)
            proof = Proof(
                outputs,
                gates.fp32,
                by_hop,
                narrowed_hops(config),
                samples=size,
                scores=gates.scores_by_hop(narrowed_hops(config)),
            )
            known |= {"gates": narrowed, "hops": proof.hops, "warnings": warnings}
            with differences_named(captured, flat, batches):
                proof.check("captured", hops.run_graph(captured, batches, names))
            require_steady(gates.fp32, bool(half))  # a fault of the trace would look like rounding
            require_steady(narrowed, bool(half), config.precision)
            edges = EdgeProof(flat, captured, inputs, batches, reference, config, cap)

        with stage("rewrite"):
            rewritten = pipelines.rewrite(program)
            schedule = rewritten.token_schedule
            known |= {"token_schedule": schedule, "recognised": rewritten.recognised}
            kept.save_program("rewritten", rewritten.program)
            way = ToldWay(
                rewritten.program,
                batches.names,
                names,
                config.target,
                config.precision,
                kept.path / "told",
            )
            told = ToldHops(captured, way, batches, proof)
            found = hops.run_graph(unlifted(rewritten.program), batches, names)
            proof.check("rewritten", found, told.rewritten)

        with stage("emit"), kept.explain():
            onnx_model = emit(rewritten.program, flat.spec.names, names)
            emitted = kept.save_onnx("emitted", onnx_model)
            proof.check("onnx", hops.run_onnx(emitted, batches), told.onnx)

        with stage("lower"), kept.explain():
            arithmetic = arithmetic_of(config, onnx_model, batches)
            if config.tune:
                with stage("tune"):
                    known["tuning"], way.forms = tune(onnx_model, config, arithmetic)
                    known["warnings"] += known["tuning"].warnings
            onnx_model = pipelines.lower(onnx_model, config.target, arithmetic, way.forms)
            lowered = kept.save_onnx("lowered", onnx_model)
            if config.target != "ort":  # for ort this very file is the artifact
                found = hops.run_lowered(lowered, batches, arithmetic)
                proof.check("lowered", found, told.lowered)
                known["accuracy"] = accuracy_of(reference.outputs, found, batches)
                require_accuracy(known["accuracy"], config)

        with stage("build"), kept.explain(lowered):
            bundle.require_space(_size(lowered.parent))
            runtime = build(config.target, lowered, bundle.path, config.precision, batches)
            runtime = with_quantisation(runtime, config, arithmetic)
            manifest = new_manifest(
                config,
                source,
                given,
                inputs,
                reference,
                known.get("reduction"),
                known.get("tuning"),
                schedule,
                runtime,
            )
            known |= {"runtime": runtime, "artifact_bytes": _size(bundle.path)}

        earlier: dict[str, RunBatches] = {
            "captured": lambda batches: hops.run_graph(captured, batches, names),
            "rewritten": lambda batches: hops.run_graph(
                unlifted(rewritten.program), batches, names
            ),
            "onnx": lambda batches: hops.run_onnx(emitted, batches),
            "lowered": lambda batches: hops.run_lowered(lowered, batches, arithmetic),
        }
        if config.target == "ort":
            del earlier["lowered"]  # this very file is the artifact

        with (
            kept.explain(),
            _opened(bundle.path, manifest, lowered, config.threads) as (runner, why_not),
        ):
            if runner is None:
                known["not_run_reason"] = why_not
                _require_no_run(config, why_not)
                with stage("edges"):
                    run_lowered = earlier.pop("lowered")
                    tell_at = partial(told.at, manifest)
                    known["edges"] = edges.hold("lowered", run_lowered, tell_at, earlier)
            else:
                with stage("verify"):
                    again = None if config.precision == "int8" else partial(told.artifact, manifest)
                    if runner.runtime.details.get("kernel_calls"):
                        with open_in_worker(
                            bundle.path, manifest, onnx=lowered, native=False
                        ) as without:
                            found = hops.run_artifact(without, batches)
                        tell = again and partial(again, native=False)
                        proof.check("without kernels", found, tell)
                    found = hops.run_artifact(runner, batches)
                    proof.check("artifact", found, again)
                    runtime = with_quantisation(runner.runtime, config, arithmetic)
                    manifest = replace(manifest, status=PASSED, runtime=runtime)
                    known |= {
                        "runtime": runtime,
                        "accuracy": accuracy_of(reference.outputs, found, batches),
                    }
                    require_accuracy(known["accuracy"], config)
                with stage("edges"):
                    known["edges"] = edges.hold(
                        "artifact",
                        partial(hops.run_artifact, runner),
                        partial(told.at, manifest),
                        earlier,
                    )
                if config.timed:
                    with stage("speed"):
                        unreduced = None if reduced is None else reduced.unreduced
                        speed = time_against_eager(given, runner, batches, config, unreduced)
                        known |= {
                            "speed": speed,
                            "speed_over_unreduced": over_unreduced(speed, config.seed),
                            "warnings": known["warnings"] + busy_warning(),
                        }
                        if config.min_speedup is not None:
                            name = timed_name(config, runner)
                            require_speedup(speed, name, config.min_speedup)

        with stage("bundle"):
            narrowed, said = gates_to_verify_by(proof, found, narrowed, config)
            manifest = replace(
                manifest,
                gates={spec.name: narrowed[spec.name].for_manifest() for spec in manifest.outputs},
                input_ranges=known["edges"].ranges,
            )
            said += known["edges"].warnings()
            said += accuracy_warning(known.get("accuracy"), config)
            known |= {"gates": narrowed, "warnings": known["warnings"] + said}
            ran = manifest if manifest.status == PASSED else None
            chosen = kept_batches(proof, found, partial(told.own_decisions, ran))
            known["warnings"] += chosen.warnings
            save_reference(
                bundle.path / REFERENCE_NAME,
                {name: batches.arrays[name][chosen.rows] for name in batches.names},
                {spec.name: chosen.outputs[spec.name] for spec in manifest.outputs},
                chosen.steady,
                kept_of_gates(narrowed, chosen.rows),
            )
            known |= {"status": manifest.status, "bundle": str(config.output)}
            report = _report(known, checklist)
            report.write(bundle.path / REPORT_NAME)
            return CompileResult(manifest.status, report, bundle.commit(manifest))


def _known_at_first(source: Source, config: CompileConfig) -> dict[str, Any]:
    """Returns the fields of the report that are settled before anything runs."""
    return {
        "target": config.target,
        "status": FAILED,
        "precision": config.precision,
        "source": {
            "kind": source.kind,
            "location": source.location,
            "sha256": source.sha256,
            "notes": list(source.notes),
        },
        "inputs": "",
        "samples": 0,
        "machine": describe_machine({"torch": config.threads or torch.get_num_threads()}),
    }


def _report(known: dict[str, Any], checklist: Checklist) -> Report:
    fields = {**known, "hops": tuple(known.get("hops", ()))}
    return Report(**fields, stage_seconds=checklist.seconds)


@contextmanager
def _report_on_failure(known: dict[str, Any], checklist: Checklist) -> Iterator[None]:
    """Hands what is known so far to a gate that fails, so that it can be shown."""
    try:
        yield
    except GateError as error:
        hops_so_far = known.get("hops", ())
        failed = next((hop.name for hop in hops_so_far if not hop.passed), None)
        error.report = _report({**known, "first_failure": failed}, checklist)
        raise


@contextmanager
def _opened(
    folder: Path, manifest: Manifest, lowered: Path, threads: int | None
) -> Iterator[tuple[Runner | None, str]]:
    """Opens the artifact, or says why this machine has no device that an engine runs on."""
    try:
        runner = open_in_worker(folder, manifest, onnx=lowered, threads=threads)
    except NoDeviceError as error:
        yield None, error.what
        return
    with runner:
        yield runner, ""


def _require_no_run(config: CompileConfig, why_not: str) -> None:
    if config.require_run or config.min_speedup is not None:
        wanted = "--require-run" if config.require_run else "--min-speedup"
        raise GateError(
            f"The engine was built and did not run here, and {wanted} asks for a run.",
            where=why_not,
            fix="Compile on a machine with a GPU that the engine is for, or leave the option out.",
        )


def _size(folder: Path) -> int:
    """Returns the bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())
