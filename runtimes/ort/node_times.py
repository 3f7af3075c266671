"""Times the nodes of an ONNX model by ONNX Runtime's own profile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.node_times import NodeTime, medians
from tokexport.runtimes.ort.runner import OrtRunner

_KERNEL: Final = "_kernel_time"


def node_times(
    model: Path, arrays: Mapping[str, Array], runs: int, threads: int | None = None
) -> tuple[NodeTime, ...]:
    """Runs a model some times, and returns the median of each node.

    Args:
        model: The ONNX file.
        arrays: The inputs, by name; it may hold more than the model takes.
        runs: How many runs count; one before them does not.
        threads: Threads within an operator; None leaves the choice to ORT.
    """
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "profile"
        with OrtRunner.from_file(model, threads=threads, profile=prefix) as runner:
            given = {spec.name: arrays[spec.name] for spec in runner.inputs}
            for _ in range(runs + 1):
                runner.run(given)
            events = json.loads(runner.end_profile().read_text(encoding="utf-8"))
    return medians([*_by_run(events)][1:])


def _by_run(events: list[dict[str, Any]]) -> Iterator[list[tuple[str, float]]]:
    """Yields the nodes of every run in the order they ran, each with its milliseconds."""
    nodes = [
        (event["ts"], event["name"].removesuffix(_KERNEL), event["dur"] / 1e3)
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)
    ]
    nodes.sort(key=lambda node: node[0])
    for event in events:
        if event.get("name") == "model_run":
            begin, end = event["ts"], event["ts"] + event["dur"]
            yield [(name, ms) for at, name, ms in nodes if begin <= at <= end]
