"""Holds right artifacts to fresh inputs: whatever fails is a false alarm."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from helpers.planting.ways import TARGETS, Asked, Way, run_file

from tokexport.exporter.build import run_stage
from tokexport.exporter.errors import GateError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.measured_gates import require_stable_outputs
from tokexport.exporter.parity.proof import ParityError, Proof
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner

_NARROWED = ("without kernels", "artifact")


class Honest:
    """The right steps of one way, opened once.

    Args:
        way: The way of the model.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self._built: dict[tuple[str, Path, str], Path] = {}

    def runs(self, seed: int, half: bool = False) -> dict[str, str]:
        """Holds every step to eager on the inputs of a seed.

        Args:
            seed: The seed.
            half: Whether OpenVINO runs in the half precisions of this processor too.

        Returns:
            By run, ``openvino, native``: '' where it passed, ``tied: …`` where a near-tie fell the
            other way, ``refused: …`` where rounding to a half type decides, else why it failed.
        """
        way, found = self._way, {}
        asked = way.asked(way.drawn(seed))
        names = way.names
        steps: dict[str, tuple[str, Callable[[Batches], Any], Callable[[Batches], Any]]] = {
            "rewritten": (
                "rewritten",
                lambda batches: run_stage.run_graph(way.rewritten, batches, names),
                lambda batches: run_stage.run_graph(
                    way.replay().graph.module, batches, way.replay().results
                ),
            ),
            "onnx": (
                "onnx",
                partial(run_stage.run_onnx, way.emitted),
                lambda batches: run_stage.run_onnx(way.replay().emitted, batches),
            ),
            "lowered for openvino": (
                "lowered",
                partial(run_stage.run_onnx, way.lowered("openvino")),
                lambda batches: run_stage.run_onnx(way.replay("openvino").lowered, batches),
            ),
        }
        for name, (stage, run, replay) in steps.items():
            found[name] = self._held(asked, stage, run, replay)
        for target in TARGETS:
            for native in (False, True):
                name = f"{target}, {'native' if native else 'without kernels'}"
                found[name] = self._artifact(asked, target, native, "fp32")
        for precision in self._halves if half else ():
            narrow = way.asked(asked.batches, precision)
            try:
                require_stable_outputs(narrow.gates.narrowed, half=False, precision=precision)
            except GateError as error:
                found[f"openvino, {precision}"] = f"refused: {error.what}"
                continue
            found[f"openvino, {precision}"] = self._artifact(narrow, "openvino", True, precision)
        return found

    @cached_property
    def _halves(self) -> list[str]:
        """The half precisions that this processor has; it computes in another for one it lacks."""
        path = self._way.built("openvino", self._way.lowered("openvino"))
        found: list[str] = []
        for precision in ("bf16", "fp16"):
            with WorkerRunner(Opening(path, precision=precision)) as runner:
                if runner.runtime.details["inference_precision"] == precision:
                    found.append(precision)
        return found

    def _artifact(self, asked: Asked, target: str, native: bool, precision: str) -> str:
        way = self._way

        def run(file: Path, batches: Batches) -> Any:
            key = target, file, precision
            if key not in self._built:
                self._built[key] = way.built(target, file, precision)
            return run_file(self._built[key], batches, native, precision)

        stage = "artifact" if native else "without kernels"
        return self._held(
            asked,
            stage,
            partial(run, way.lowered(target)),
            lambda batches: run(way.replay(target).lowered, batches),
            precision,
        )

    def _held(
        self,
        asked: Asked,
        stage: str,
        run: Callable[[Batches], Any],
        replay: Callable[[Batches], Any],
        precision: str = "fp32",
    ) -> str:
        """Holds one step; returns what is to be said of it, '' where nothing is."""
        narrowed = () if precision == "fp32" else _NARROWED
        proof: Proof = asked.proof(self._way.size, narrowed)

        def replay_stage(failed: Any) -> Any:
            graph = self._way.replay().graph
            teller = self._way.teller(stage, asked.batches, proof, graph, replay, precision)
            return teller(failed)

        try:
            proof.check(stage, run(asked.batches), replay_stage)
        except ParityError as error:
            return error.stages[-1].detail
        ties = proof.stages[-1].ties
        return "" if ties is None else f"tied: {'; '.join(ties.decisions)}"
