"""Times the forms of one token operator in interleaved rounds, in the target's runtime.

A trial is a small model of four calls, which share their rows and differ in their indices, on
inputs of the shapes in the real model. Indices are drawn as a match makes them: kept and merged
rows are a permutation, and several merged rows may have one destination. It goes through the
target's own lowering and builder, one model for each form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.backends.known import REFERENCE
from tokexport.exporter.build.artifact import build
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.speed.interleaved import Ratio, measure, repeated, repetitions
from tokexport.exporter.speed.time_limits import TimeLimits, time_limits
from tokexport.exporter.tuning.choices import TunedForm
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner, here
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.onnx_passes.every_target.choose_forms import TokenCall
from tokexport.graph_passes.ops import onnx_functions as functions
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import RuntimesError
from tokexport.runtimes.tolerances.neighbourhoods import within_local_floor

#: How many calls a trial's model holds: what a run costs by itself is shared among them.
CALLS: Final = 4
PAIRS: Final = 20
#: By how much a gain must lie above 1.
LEAST_GAIN: Final = 0.03
#: How far a form may be off the standard one, as a share of the scale around each number.
_TOLERANCE: Final = {"fp32": 1e-4, "int8": 1e-4, "bf16": 0.05, "fp16": 0.01}


@dataclass(frozen=True)
class Trial:
    """The result of a trial.

    Attributes:
        chosen: The form to take; None where the standard form itself failed.
        refused: Why a form was left out, by its name.
    """

    chosen: TunedForm | None
    refused: Mapping[str, str]


def try_forms(
    call: TokenCall,
    forms: Sequence[str],
    backend: Backend,
    precision: str,
    folder: Path,
    threads: int | None = None,
    limits: TimeLimits | None = None,
) -> Trial:
    """Times the forms of a call in interleaved rounds and chooses one.

    A gain counts where the 95 % bootstrap interval of the ratio of medians to the standard form
    lies above 1.03 as a whole, and the ratio of minima too: where other programs use the processor,
    they may disturb the median of one form and not of another, and the minima show it. Of the forms
    whose gain counts, the one with the smallest median is timed again beside the standard form
    alone, since the best of several is overestimated by chance; it is chosen if the gain counts
    again, and the second ratio is reported. Otherwise the standard form stays.

    Args:
        call: What the call looks like.
        forms: Its forms, the standard one first.
        backend: The target.
        precision: What the artifact computes in.
        folder: An empty folder for the models.
        threads: The most threads for the runtime; None leaves the choice to it.
        limits: How long it may take; None asks the environment.
    """
    generator = np.random.default_rng(0)
    feeds = {
        _input_name(call, position, copy): array
        for copy in range(CALLS)
        for position, array in enumerate(draw_arguments(call, generator))
    }
    runs: dict[str, Callable[[], dict[str, Array]]] = {}
    refused: dict[str, str] = {}
    wanted: dict[str, Array] = {}
    with ExitStack() as stack:
        for form in forms:
            try:
                made = _runner(call, form, feeds, backend, precision, folder / form, threads)
                runner = stack.enter_context(made)
                arrays = {spec.name: feeds[spec.name] for spec in runner.inputs}
                found = runner.run(arrays)
                run = here(runner).bound(arrays)
            except RuntimesError as error:
                refused[form] = error.what
                if form == forms[0]:
                    return Trial(None, refused)
                continue
            wanted = wanted or found
            if _agrees(found, wanted, _TOLERANCE[precision]):
                runs[form] = run
            else:
                refused[form] = f"it gives another result than {forms[0]}"
        return Trial(fastest(runs, forms[0], limits or time_limits()), refused)


def fastest(
    runs: Mapping[str, Callable[[], object]], standard: str, limits: TimeLimits
) -> TunedForm:
    """Times the runs of the forms, chooses, and times the choice once more.

    Args:
        runs: A run of each form.
        standard: The standard form.
        limits: How long it may take.
    """
    if len(runs) == 1:
        return unchanged(standard, {})
    count = repetitions(runs[standard], limits.sample_s)
    found = _timed(runs, standard, count, limits)
    if found.form == standard:
        return found
    both = {name: runs[name] for name in (standard, found.form)}
    again = _timed(both, standard, count, limits)
    return replace(again, times_us=found.times_us)


def _timed(
    runs: Mapping[str, Callable[[], object]], standard: str, count: int, limits: TimeLimits
) -> TunedForm:
    """Times runs in interleaved rounds, each so often, and chooses."""
    speed = measure(
        {form: repeated(run, count) for form, run in runs.items()},
        baseline=standard,
        pairs=PAIRS,
        time_limit_s=limits.trial_s,
        settle_s=limits.pause_s,
    )
    times = {
        form: 1e3 * timing.median_ms / (count * CALLS) for form, timing in speed.timings.items()
    }
    return choose(times, speed.ratios, standard)


def choose(times_us: Mapping[str, float], ratios: Mapping[str, Ratio], standard: str) -> TunedForm:
    """Chooses the form with the smallest median of those whose gain is beyond noise.

    Args:
        times_us: The median of each form.
        ratios: How many times as fast as the standard form each other one is.
        standard: The standard form; it stays where no other form gains enough.
    """
    least = 1 + LEAST_GAIN
    faster = [form for form, ratio in ratios.items() if min(ratio.low, ratio.of_minima) > least]
    if not faster:
        return unchanged(standard, times_us)
    form = min(faster, key=lambda form: times_us[form])
    found = ratios[form]
    return TunedForm(
        form, standard, found.of_medians, found.low, found.high, found.of_minima, times_us
    )


def unchanged(standard: str, times_us: Mapping[str, float]) -> TunedForm:
    """Returns the choice of the standard form."""
    return TunedForm(standard, standard, 1.0, 1.0, 1.0, 1.0, times_us)


def draw_arguments(call: TokenCall, generator: np.random.Generator) -> list[Array]:
    """Draws the inputs of a call, as a match makes them.

    Raises:
        KeyError: The operator does not move tokens.
    """
    inputs = functions.signatures()[call.operator].inputs
    shapes = {name: shape for (name, _), shape in zip(inputs, call.shapes, strict=True)}
    found = {
        name: generator.standard_normal(shapes[name]).astype(np.float32)
        for name, kind in inputs
        if kind == "T"
    }
    if "size" in found:
        found["size"] = generator.integers(1, 5, shapes["size"]).astype(np.float32)
    batch = shapes[inputs[0][0]][0]
    if "index" in shapes:
        rows, count = shapes[inputs[0][0]][1], shapes["index"][1]
        adds = call.operator.startswith("scatter") and call.operator != "scatter_tokens_none"
        found["index"] = _rows(generator, batch, count, rows, unique=count <= rows and not adds)
    else:
        kept, merged = shapes["kept"][1], shapes["src"][1]
        ranked = _rows(generator, batch, kept + merged, kept + merged, unique=True)
        found["kept"] = np.sort(ranked[:, merged:], axis=1)
        found["src"] = ranked[:, :merged].copy()
        found["dst"] = _rows(generator, batch, merged, _destinations(call, shapes), unique=False)
    return [found[name] for name, _ in inputs]


def _destinations(call: TokenCall, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns how many rows others are merged into."""
    if "b" in shapes:
        return shapes["b"][1]
    given = {name: numbers[0] for name, numbers in call.attributes}
    return math.ceil((shapes["x"][1] - given["b_start"]) / given["step"])


def _rows(
    generator: np.random.Generator, batch: int, count: int, rows: int, *, unique: bool
) -> Array:
    """Draws row indices (B, K) below ``rows``."""
    if not unique:
        return generator.integers(0, rows, (batch, count))
    return np.stack([generator.permutation(rows)[:count] for _ in range(batch)])


def trial_model(call: TokenCall, feeds: Mapping[str, Array]) -> ir.Model:
    """Returns a model of ``CALLS`` calls; of each result it gives the sum of the rows.

    Args:
        call: What the calls look like.
        feeds: The inputs of the model, those that are constants of it among them.
    """
    inputs = functions.signatures()[call.operator].inputs
    outputs = functions.signatures()[call.operator].outputs
    attributes: dict[str, Any] = {name: list(numbers) for name, numbers in call.attributes}
    axis = helper.make_tensor("row_axis", TensorProto.INT64, [1], [1])
    given: dict[str, onnx.ValueInfoProto] = {}
    constants: dict[str, onnx.TensorProto] = {"row_axis": axis}
    nodes, results = [], []
    for copy in range(CALLS):
        names = [_input_name(call, position, copy) for position in range(len(inputs))]
        for position, name in enumerate(names):
            kind = TensorProto.INT64 if inputs[position][1] == "I" else TensorProto.FLOAT
            if position in call.constant:
                constants[name] = onnx.numpy_helper.from_array(feeds[name], name)
            else:
                given[name] = helper.make_tensor_value_info(name, kind, call.shapes[position])
        made = [f"{name}_{copy}" for name, _ in outputs]
        nodes.append(
            helper.make_node(
                call.operator, names, made, f"call{copy}", domain=functions.DOMAIN, **attributes
            )
        )
        for name in made:
            nodes.append(helper.make_node("ReduceSum", [name, "row_axis"], [f"{name}_sum"]))
            results.append(
                helper.make_tensor_value_info(f"{name}_sum", TensorProto.FLOAT, [None] * 3)
            )
    graph = helper.make_graph(nodes, "trial", [*given.values()], results, [*constants.values()])
    opsets = [
        helper.make_opsetid("", functions.OPSET),
        helper.make_opsetid(functions.DOMAIN, functions.DOMAIN_VERSION),
    ]
    made_of = functions.with_callees({call.operator})
    model = helper.make_model(graph, functions=made_of, opset_imports=opsets, ir_version=10)
    return ir.from_proto(model)


def _input_name(call: TokenCall, position: int, copy: int) -> str:
    """Returns the name of an input: each copy has its own indices, and all share the rows."""
    name, kind = functions.signatures()[call.operator].inputs[position]
    return f"{name}{copy}" if kind == "I" else name


def _runner(
    call: TokenCall,
    form: str,
    feeds: Mapping[str, Array],
    backend: Backend,
    precision: str,
    folder: Path,
    threads: int | None,
) -> Runner:
    """Builds the model of a form as the target builds what it ships, and opens it."""
    folder.mkdir()
    passes = backend.lowering(pipelines.FP32, {call: form})
    model = pipelines.lower(trial_model(call, feeds), passes).model
    lowered = folder / REFERENCE.artifact
    save_onnx(model, lowered)
    if backend.runs_lowered:
        return WorkerRunner(Opening(lowered, threads=threads))
    # What int8 makes integers of are linears: the calls stay in float32.
    precision = "fp32" if precision == "int8" else precision
    build(backend, lowered, folder, precision)
    opening = Opening(folder / backend.artifact, precision=precision, threads=threads)
    return WorkerRunner(opening, lowered)


def _agrees(found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: float) -> bool:
    """Returns whether two forms give the same numbers."""
    return all(within_local_floor(one, found[name], tolerance) for name, one in wanted.items())
