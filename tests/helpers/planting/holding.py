"""Holds a fault to the proof of a compile, and says which step it was blamed on.

A fault of one stage is in everything behind it. So the stages before it are right, that of its
stage is checked with the fault in it, told how to decide by a told graph with the same fault in it;
and where it passes there, the edges are held with the fault in the last step.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from helpers.planting import in_onnx, in_torch
from helpers.planting.plants import How, Plant, drawn
from helpers.planting.ways import Asked, Way, run_file
from torch.fx import GraphModule

from tokexport.exporter.build import run_stage
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.errors import GateError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.measured_gates import measured_gates, require_stable_outputs
from tokexport.exporter.parity.proof import ParityError, Proof, ReplayStage
from tokexport.exporter.rounding.measure import in_float64
from tokexport.graph_passes.torch_passes.graph.decisions import ReplayGraph, make_replay_graph
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.errors import RuntimesError
from tokexport.runtimes.tolerances.neighbourhoods import differences

#: The stages that faults are planted in, and the compared stages that each is rightly blamed on.
BLAMED: Final[dict[str, tuple[str, ...]]] = {
    "captured": ("captured",),
    "rewritten": ("rewritten",),
    "emitted": ("onnx",),
    "lowered for openvino": ("lowered",),
    "built for openvino": ("without kernels", "artifact"),
    "kernels of openvino": ("artifact",),
    "built for ort": ("artifact",),
}
CAUGHT, SILENT, EXCUSED, BROKEN, GONE = "caught", "passed", "excused", "did not run", "gone"

Run = Callable[[Batches], Mapping[str, Array]]


@dataclass(frozen=True)
class Outcome:
    """What became of a plant.

    Attributes:
        result: ``caught``; ``passed``; ``excused`` where it passed as a near-tie, which the report
            of a compile tells; ``did not run`` where a runtime refused it.
        at: The stage that it was blamed on, or '' where it was not caught.
        detail: What the proof said, or what was excused.
        effect: The largest difference that it makes, as a share of what is allowed there; None
            where it was caught.
        on: What inputs it is largest on.
    """

    result: str
    at: str = ""
    detail: str = ""
    effect: float | None = None
    on: str = ""

    def rightly(self, stage: str) -> bool:
        """Tells whether it was caught and blamed on its own stage."""
        return self.result == CAUGHT and self.at in BLAMED[stage]

    @property
    def equivalent(self) -> bool:
        """Whether it makes no difference beyond what is allowed, on whatever was tried."""
        return self.result in (SILENT, EXCUSED) and self.effect is not None and self.effect <= 1


@dataclass(frozen=True)
class _Planted:
    """A stage with a fault in it, and without.

    Attributes:
        checked: The stage at which it is compared.
        run: Runs it.
        right: Runs it without the fault.
        graph: The graph whose decisions are inputs, as that stage has it.
        told: Runs that one; None where the fault has no place in it.
        module: The graph of torch with the fault, where it is one.
        wide: The right graph of torch and that one, where float64 can tell what the fault does.
    """

    checked: str
    run: Run
    right: Run
    graph: Callable[[], ReplayGraph]
    replay: Callable[[Batches], Any] | None
    module: GraphModule | None = None
    wide: tuple[GraphModule, ...] | None = None


def candidates(way: Way, stage: str, draw: random.Random) -> list[tuple[str, str, How]]:
    """Returns every fault (node, kind, how) that a stage can have."""
    if stage in ("captured", "rewritten"):
        module = way.captured if stage == "captured" else way.rewritten
        return in_torch.faults_in(module, draw)
    model = ir.load(_file(way, stage))
    if stage == "kernels of openvino":
        return in_onnx.faults_of_kernels(model)
    return in_onnx.faults_in(model, draw)


def draw_plants(way: Way, name: str, counts: Mapping[str, int], seed: int) -> list[Plant]:
    """Draws so many faults of every stage.

    Args:
        way: The way of the model.
        name: What the model is called.
        counts: How many of each stage.
        seed: The seed.
    """
    found = []
    for stage, count in counts.items():
        draw = random.Random(f"{seed} {name} {stage}")
        chosen = drawn(candidates(way, stage, draw), count, draw)
        found += [Plant(name, stage, *one) for one in chosen]
    return found


def hold(way: Way, plant: Plant) -> Outcome:
    """Plants a fault, holds its stage and the edges to the proof, and says what became of it."""
    try:
        planted = _plant(way, plant)
    except (ValueError, KeyError, IndexError):
        return Outcome(GONE, detail="there is no such node in the graph any more")
    try:
        proofs = _hold(way, plant, planted)
    except ParityError as error:
        return Outcome(CAUGHT, error.stages[-1].name, error.stages[-1].detail)
    except GateError as error:
        return Outcome(CAUGHT, "no stage", error.what)
    except (RuntimesError, RuntimeError) as error:
        return Outcome(BROKEN, planted.checked, str(error).splitlines()[0])
    ties = [
        tie for proof in proofs for checked in proof.stages if (tie := checked.ties) is not None
    ]
    effect, on = _effect(way, planted)
    said = "; ".join(decision for tie in ties for decision in tie.decisions)
    return Outcome(EXCUSED if ties else SILENT, "", said, effect, on)


def _file(way: Way, stage: str) -> Path:
    if stage == "emitted":
        return way.emitted
    return way.lowered("ort" if stage.endswith("ort") else "openvino")


def _plant(way: Way, plant: Plant) -> _Planted:
    names = way.names
    if plant.stage in ("captured", "rewritten"):
        right = way.captured if plant.stage == "captured" else way.rewritten
        module = in_torch.planted(right, plant.node, plant.how)

        def graph() -> ReplayGraph:
            return make_replay_graph(module, way.samples.batches.names, names)

        def replay(batches: Batches) -> Any:
            own = graph()
            return run_stage.run_graph(own.module, batches, (*own.outputs, *own.exposed))

        wide = None if plant.how["change"] == "bf16" else (right, module)
        runs = partial(_on_graph, module, names), partial(_on_graph, right, names)
        return _Planted(plant.stage, *runs, graph, replay, module, wide)
    file = _file(way, plant.stage)
    wrong = _with_fault(way, file, plant.node, plant)
    target = "ort" if plant.stage.endswith("ort") else "openvino"
    replay_artifacts = way.replay(target)
    return _Planted(
        BLAMED[plant.stage][0],
        _runner(way, plant.stage, wrong),
        _runner(way, plant.stage, file),
        lambda: replay_artifacts.graph,
        partial(_run_told, way, plant),
    )


def _on_graph(module: GraphModule, names: tuple[str, ...], batches: Batches) -> dict[str, Array]:
    return run_stage.run_graph(module, batches, names)


def _with_fault(way: Way, file: Path, node: str, plant: Plant) -> Path:
    model = ir.load(file)
    in_onnx.plant(model, node, plant.how)
    path = way.new_folder("planted") / file.name
    save_onnx(model, path)
    return path


def _runner(way: Way, stage: str, file: Path) -> Run:
    """Returns what runs the file of a stage as its comparison does."""
    if stage in ("emitted", "lowered for openvino"):
        return partial(run_stage.run_onnx, file)
    target = "ort" if stage.endswith("ort") else "openvino"
    native = stage != "built for openvino"
    made: list[Path] = []

    def run(batches: Batches) -> dict[str, Array]:
        if not made:
            made.append(way.built(target, file))
        found: dict[str, Array] = run_file(made[0], batches, native)
        return found

    return run


def _run_told(way: Way, plant: Plant, batches: Batches) -> Any:
    """Runs a stage told how to decide, with the fault in it."""
    replay = way.replay("ort" if plant.stage.endswith("ort") else "openvino")
    file, right = (
        (replay.emitted, way.emitted)
        if plant.stage == "emitted"
        else (replay.lowered, _file(way, plant.stage))
    )
    node: str | None = plant.node
    if plant.how["change"] not in ("kernel", "inputs"):
        node = in_onnx.same_place(ir.load(right), ir.load(file), plant.node)
    if node is not None:
        file = _with_fault(way, file, node, plant)
    return _runner(way, plant.stage, file)(batches)


def _hold(way: Way, plant: Plant, planted: _Planted) -> list[Proof]:
    """Checks the stage and the edges; returns their proofs."""
    samples = way.samples
    if planted.checked == "captured":
        assert planted.module is not None
        outputs, batches = samples.outputs, samples.batches
        gates = measured_gates(planted.module, batches, outputs, way.size)
        require_stable_outputs(gates.captured, half=False)
        proof = Asked(batches, samples.reference, gates).proof(way.size)
        proof.check("captured", planted.run(batches))
        require_stable_outputs(gates.fp32, half=False)
        edges = way.edges_of(planted.module)
    else:
        proof = samples.proof(way.size)
        replay_stage = _teller(way, planted, planted.checked, samples.batches, proof)
        proof.check(planted.checked, planted.run(samples.batches), replay_stage)
        edges = way.edges
    proofs = [proof]

    right = _right_before(way, plant.stage)
    earlier = {name: step.run for name, step in right.items()}
    if planted.checked not in ("artifact", "without kernels"):
        earlier[planted.checked] = planted.run

    def replay_at(checked: str, batches: Batches, proof: Proof) -> ReplayStage:
        proofs.append(proof)
        return _teller(way, right.get(checked, planted), checked, batches, proof)

    edges.hold("artifact", planted.run, replay_at, earlier)
    return proofs


def _teller(
    way: Way, planted: _Planted, checked: str, batches: Batches, proof: Proof
) -> ReplayStage:
    def replay_stage(failed: Any) -> Any:
        assert planted.replay is not None
        ask = way.teller(checked, batches, proof, planted.graph(), planted.replay)
        return ask(failed)

    return replay_stage


def _right_before(way: Way, stage: str) -> dict[str, _Planted]:
    """Returns the right steps before a stage, by name and in order."""
    found: dict[str, _Planted] = {}
    for checked, before in (
        ("captured", "captured"),
        ("rewritten", "rewritten"),
        ("onnx", "emitted"),
        ("lowered", "lowered for openvino"),
    ):
        if checked in BLAMED[stage]:
            break
        if not (checked == "lowered" and stage.endswith("ort")):
            found[checked] = _right(way, before, checked)
    return found


def _right(way: Way, stage: str, checked: str) -> _Planted:
    """Returns a stage without a fault."""
    names = way.names
    if stage in ("captured", "rewritten"):
        module = way.captured if stage == "captured" else way.rewritten
        replay = make_replay_graph(module, way.samples.batches.names, names)
        shown = (*replay.outputs, *replay.exposed)
        run = partial(_on_graph, module, names)
        return _Planted(checked, run, run, lambda: replay, partial(_on_graph, replay.module, shown))
    target = "openvino" if stage.startswith("lowered") else "ort"
    runs = _runner(way, stage, _file(way, stage))
    replay_artifacts = way.replay(target)

    def run_replay(batches: Batches) -> Any:
        file = replay_artifacts.emitted if stage == "emitted" else replay_artifacts.lowered
        return run_stage.run_onnx(file, batches)

    return _Planted(checked, runs, runs, lambda: replay_artifacts.graph, run_replay)


def _effect(way: Way, planted: _Planted) -> tuple[float, str]:
    """Returns the largest difference that a fault makes, as a share of what is allowed, and where.

    On the samples, on the edges and on other seeds; of a graph of torch in float64, if it runs in
    that, so that no near-tie falls the other way by rounding. What is nearer to eager than the
    right stage is, which decided a tie otherwise, is that much off only.
    """
    found = {"the samples": (way.samples.proof(way.size), way.samples.batches)}
    if way.edges.any:
        found["the edges"] = way.edges.proof()
    found["other seeds"] = way.others.proof(way.size), way.others.batches
    most, on = 0.0, ""
    for where, (proof, batches) in found.items():
        right, wrong = _pair(way, planted, batches)
        share = max(
            min(_share(proof, name, one[name], wrong[name]) for one in (right, proof.expected))
            for name in proof.expected
        )
        if share > most:
            most, on = share, where
    return most, on


def _pair(way: Way, planted: _Planted, batches: Batches) -> tuple[Mapping[str, Array], ...]:
    """Returns what a stage answers without its fault and with it."""
    if planted.wide is not None:
        try:
            return tuple(_in_float64(module, way.names, batches) for module in planted.wide)
        except Exception:  # whatever an operator without a form in float64 raises
            pass
    return planted.right(batches), planted.run(batches)


def _in_float64(module: GraphModule, names: tuple[str, ...], batches: Batches) -> dict[str, Array]:
    own = in_float64(GraphModule(module, copy.deepcopy(module.graph)))
    arrays = {
        name: array.astype(np.float64) if array.dtype.kind == "f" else array
        for name, array in batches.arrays.items()
    }
    torch.set_default_dtype(torch.float64)
    try:
        return run_stage.run_graph(own, replace(batches, arrays=arrays), names)
    finally:
        torch.set_default_dtype(torch.float32)


def _share(proof: Proof, name: str, right: Array, wrong: Array) -> float:
    gate = proof.gates_of("artifact")[name]
    if right.shape != wrong.shape:
        return float("inf")
    if gate.allowed is None:
        return float("inf") if not np.array_equal(right, wrong) else 0.0
    error = differences(right, wrong, gate.allowed)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / gate.allowed)
    return float(share.max(initial=0.0))
