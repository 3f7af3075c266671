"""Measures the rounding error of a model's outputs, from which the tolerances of fp32 are made.

Two errors are measured on the traced graph, with its decisions in fp32 held fixed:

* how far eager is from the same graph in float64, whatever types the code names;
* how far the graph in float64 moves when every result is moved, up or down by chance, as far as
  rounding could (Monte Carlo arithmetic: Parker, "Monte Carlo Arithmetic", 1997), and sums as far
  as their order could (``accumulation``). The error of a sigmoid and the like is a share of the
  number that it is a part of, as runtimes compute small results with the error of large ones. This
  error does not depend on eager, so a fault of the trace does not widen it; and it is not zero
  where eager, by chance, is exact.

Along an axis a Fourier transform sums n terms f x with |f| = s, so a product in its place is off by
about √(PART n / 2) s √(Σ |x|²) last bits, as ``accumulation`` says of others; several axes are as
many products. By Parseval's theorem s² Σ |x|² is the mean of |y|² over the axes that are
transformed, whatever the norm.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.rounding.accumulation import PART, reordered
from tokexport.exporter.rounding.column_rounding import draws_of
from tokexport.exporter.rounding.quantised_run import QuantisedRun, int8_runs
from tokexport.exporter.rounding.score_rounding import Moved, Scores, moved
from tokexport.graph_passes.torch_passes.canonicalize.expand_cdist import ExpandCdist
from tokexport.graph_passes.torch_passes.canonicalize.fourier_products import steps
from tokexport.graph_passes.torch_passes.graph.calls import base_name
from tokexport.graph_passes.torch_passes.graph.complex_pairs import is_complex, real_type
from tokexport.graph_passes.torch_passes.graph.decisions import (
    ReplayGraph,
    expose_values,
    make_replay_graph,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import differences, epsilon

#: Operators that move, join or select values, and round none.
_MOVES: Final = frozenset(
    name
    for line in (
        "_unsafe_view alias as_strided cat chunk clone constant_pad_nd contiguous copy detach",
        "diagonal embedding expand expand_as flatten flip full_like gather getitem index index_put",
        "index_select lift_fresh_copy narrow new_zeros permute repeat reshape roll scatter select",
        "select_scatter slice slice_scatter split split_with_sizes squeeze stack t take_along_dim",
        "transpose unbind unfold unsqueeze view view_as where zeros_like",
        "abs amax amin masked_fill max max_pool2d_with_indices maximum min minimum neg relu sort",
        "topk",
    )
    for name in line.split()
)

#: Operators that runtimes compute from a number that stays where the result vanishes: 1, or the
#: operand.
_PARTS_OF_ONE: Final = frozenset(("sigmoid", "tanh", "erf", "hardsigmoid"))
_PARTS_OF_INPUT: Final = frozenset(("gelu", "silu", "mish", "hardswish"))
#: How many last bits polynomials in their place are off by, where it is more than one: the largest
#: that PyTorch and ONNX Runtime showed on normal numbers, rounded up.
_LAST_BITS: Final[Mapping[str, float]] = {
    **dict.fromkeys(("gelu", "silu", "mish"), 6.0),
    **dict.fromkeys(("tanh", "log", "log_softmax", "logsumexp"), 5.0),
    **dict.fromkeys(("cos", "sin", "pow", "sigmoid", "softmax", "exp", "erf", "rsqrt"), 2.5),
}
#: The errors of an operator without a form in float64.
_NO_FLOAT64: Final = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)
#: How far apart the seeds of two runs of one batch are.
_NEXT_SEED: Final = 104729


@dataclass(frozen=True)
class Rounding:
    """The rounding error of every floating output.

    Attributes:
        rows: The batches it was measured on.
        by_chance: How far rounded results move it, (rows, …) by output.
        by_half: The same where every result is rounded to a half type; empty where none is asked
            for.
        scores: How far rounded results move the numbers that decisions are about.
        half_scores: The same for a half type.
        from_float64: How far eager is from float64, (rows, …) by output; empty where the graph
            does not run in float64.
        why_not: The reason for that, in words.
        by_int8: How far int8 moves every output, (rows × runs, …): all runs of a row, then the
            next; empty where none is asked for.
        draws: How many runs those of rounded results are the largest of.
    """

    rows: tuple[int, ...]
    by_chance: Mapping[str, Array]
    by_half: Mapping[str, Array]
    from_float64: Mapping[str, Array]
    scores: Scores
    half_scores: Scores
    why_not: str = ""
    by_int8: Mapping[str, Array] = field(default_factory=dict)
    draws: int = 1


def measure_rounding(
    captured: GraphModule,
    batches: Batches,
    outputs: Mapping[str, Array],
    rows: Sequence[int],
    half: str | None = None,
    int8: bool = False,
    samples: int = 1,
) -> Rounding:
    """Runs the traced graph in float64, exactly and with rounded results.

    Args:
        captured: The traced model, unlifted, before any pass.
        batches: The inputs.
        outputs: What eager gave in fp32, (batches, …) each, in the graph's order.
        rows: The batches to run.
        half: A half type whose rounding is measured too: ``float16`` or ``bfloat16``.
        int8: Whether the error of products of 8 bits is measured too.
        samples: How many samples a batch has.
    """
    spelled = _with_distances_spelled(captured)
    replay = make_replay_graph(spelled, batches.names, tuple(outputs))
    measuring = _Measuring(captured, replay, batches, outputs, rows, half, int8, samples)
    try:
        return measuring.run(in_float64(replay.module), wide=True)
    except _NO_FLOAT64 as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    replay = make_replay_graph(spelled, batches.names, tuple(outputs))
    measuring = _Measuring(captured, replay, batches, outputs, rows, half, int8, samples)
    measured = measuring.run(replay.module, wide=False)
    return replace(measured, why_not=f"it does not run in float64: {reason}")


def _with_distances_spelled(captured: GraphModule) -> GraphModule:
    """Returns a copy that computes distances as torch does, which rounds inside for many rows."""
    graph = copy.deepcopy(captured.graph)
    before = set(graph.nodes)
    ExpandCdist().call(Editor(graph))
    for node in graph.find_nodes(op="call_function", target=aten.clamp.default):
        if node not in before:  # √(max(|a|² + |b|² - 2 a·b, 0))
            (difference,) = node.all_input_nodes
            node.target, node.args = _square_of, (difference, difference.args[0])
    return GraphModule(captured, graph)


def _square_of(difference: Tensor, size: Tensor) -> Tensor:
    """Returns the square of a distance: the difference of a sum of squares of that size."""
    return difference.clamp(0)


class _Measuring:
    """Runs one graph exactly and with rounded results; see ``measure_rounding``."""

    def __init__(
        self,
        captured: GraphModule,
        replay: ReplayGraph,
        batches: Batches,
        outputs: Mapping[str, Array],
        rows: Sequence[int],
        half: str | None,
        int8: bool,
        samples: int,
    ) -> None:
        self._int8_runs = int8_runs(outputs, rows) if int8 else 0
        self._draws = draws_of(outputs, len(rows), samples)
        self._replay, self._batches, self._samples = replay, batches, samples
        self._outputs, self._rows = outputs, tuple(rows)
        own = _rounding_of(replay.module)
        self._sizes = {"chance": own}
        if half is not None:
            self._sizes["half"] = {name: max(size, epsilon(half)) for name, size in own.items()}
        scores = {name for decision in replay.decisions for name in decision.scores}
        #: The values of the traced graph that the scores among the results are.
        known = {node.name for node in captured.graph.nodes}
        self._scores = {
            name: source
            for name in replay.exposed
            if name in scores
            if (source := next((n for n in replay.sources[name].names if n in known), None))
        }
        decisions = [replay.sources[name].names[0] for name in replay.decision_inputs]
        self._in_float32 = expose_values(captured, [*decisions, *self._scores.values()])

    def run(self, graph: GraphModule, wide: bool) -> Rounding:
        """Measures on a graph, in float64 if it is wide."""
        off: dict[str, dict[str, list[Array]]]
        off = {"chance": {}, "half": {}, "float64": {}, "int8": {}}
        scores: dict[str, dict[str, dict[int, Moved]]] = {"chance": {}, "half": {}}
        for row in self._rows:
            exact, rounded, quantised, own = self._run_batch(graph, row, wide)
            for found in quantised:
                for name, array in self._apart(exact, found).items():
                    off["int8"].setdefault(name, []).append(array)
            for kind, runs in rounded.items():
                apart = [self._apart(exact, found) for found in runs]
                for name in apart[0]:
                    most = np.maximum.reduce([one[name] for one in apart])
                    off[kind].setdefault(name, []).append(most)
                found = runs[0]
                for name, source in self._scores.items():
                    if name not in exact:  # whole numbers come out exactly
                        continue
                    pair = (differences(exact[name], near) for near in (found[name], own[name]))
                    one = moved(exact[name], np.maximum(*map(_finite, pair)), self._samples)
                    scores[kind].setdefault(source, {})[row] = one
            eager = {name: array[row] for name, array in self._outputs.items()}
            for name, array in self._apart(exact, eager).items():
                off["float64"].setdefault(name, []).append(array)
        stacked = {
            kind: {name: np.stack(parts) for name, parts in each.items()}
            for kind, each in off.items()
        }
        far = stacked["float64"] if wide else {}
        by_chance, by_half = stacked["chance"], stacked["half"]
        found_scores = scores["chance"], scores["half"]
        int8 = stacked["int8"]
        return Rounding(self._rows, by_chance, by_half, far, *found_scores, "", int8, self._draws)

    def _run_batch(
        self, graph: GraphModule, row: int, wide: bool
    ) -> tuple[
        dict[str, Array],
        dict[str, list[dict[str, Array]]],
        list[dict[str, Array]],
        dict[str, Array],
    ]:
        """Returns the results of a batch: exactly, by kind of rounding, in int8, and scores."""
        batch = {name: self._batches.arrays[name][row] for name in self._batches.names}
        tensors = tensors_of(batch)
        names = (*self._outputs, *self._replay.exposed)
        with torch.no_grad():
            values = self._in_float32(*tensors)
        decisions = values[: len(self._replay.decision_inputs)]
        with torch.no_grad(), _default_dtype(torch.float64 if wide else torch.float32):
            given = tuple(_doubled([*tensors, *decisions])) if wide else (*tensors, *decisions)
            exact = _named(names, graph(*given))
            rounded = {
                kind: [
                    _named(names, _Rounded(graph, sizes, seed).run(*given))
                    for seed in range(row, row + self._draws * _NEXT_SEED, _NEXT_SEED)
                ]
                for kind, sizes in self._sizes.items()
            }
            quantised = [
                _named(names, QuantisedRun(graph, row * self._int8_runs + run).run(*given))
                for run in range(self._int8_runs)
            ]
        return exact, rounded, quantised, _named([*self._scores], values[len(decisions) :])

    def _apart(self, exact: Mapping[str, Array], found: Mapping[str, Array]) -> dict[str, Array]:
        """Returns how far every floating output is from the exact one."""
        apart = {}
        for name, array in self._outputs.items():
            if array.dtype.kind != "f":
                continue
            if exact[name].shape != found[name].shape:
                raise ValueError(f"its output '{name}' has another shape")
            apart[name] = _finite(differences(exact[name], found[name]))
        return apart


class _Rounded(Interpreter):
    """Runs a graph whose results are moved as far as rounding could.

    Args:
        module: The graph.
        sizes: The largest relative error of every node that rounds, by name.
        seed: The seed of the errors.
    """

    def __init__(self, module: GraphModule, sizes: Mapping[str, float], seed: int) -> None:
        super().__init__(module)
        self._sizes = sizes
        self._random = torch.Generator().manual_seed(seed)

    def run_node(self, n: Node) -> Any:
        """Runs one node and moves its floating results.

        The square of a distance is as far off as it may be, where a draw might take some for exact.
        """
        if n.target is _square_of:
            (difference, scale), _ = self.fetch_args_kwargs_from_env(n)
            return difference.clamp(0) + self._sizes[n.name] * scale
        result = super().run_node(n)
        size = self._sizes.get(n.name)
        if size is None:
            return result
        if isinstance(result, Tensor):
            taken = self.fetch_args_kwargs_from_env(n)
            bits = _LAST_BITS.get(base_name(n.target), 1.0)
            parts, whole = complex_parts(result) if is_complex(n) else (result, self._whole(n))
            moved = like(result, self._moved(parts, size, whole, bits))
            ordered = reordered(n.target, *taken, result, moved, self._random)
            return moved_transform(n, result, ordered, self._random)
        return tuple(
            self._moved(each, size) if isinstance(each, Tensor) else each for each in result
        )

    def _whole(self, node: Node) -> Tensor | None:
        """Returns the number that a result's error is a part of; None where it is the result."""
        name = base_name(node.target)
        if name in _PARTS_OF_ONE:
            return torch.ones(())
        if name in _PARTS_OF_INPUT and isinstance(node.args[0], Node):
            source: Tensor = self.env[node.args[0]]
            return source
        return None

    def _moved(
        self, tensor: Tensor, size: float, whole: Tensor | None = None, bits: float = 1.0
    ) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        # Of the tensor's own strides, as views behind it were traced on those.
        chance = torch.empty_like(tensor).uniform_(1 - size, 1 + size, generator=self._random)
        # Whole numbers in floats are counts and positions, which come out exactly.
        moved = torch.where(tensor == tensor.round(), tensor, chance.mul_(tensor))
        if whole is None:
            return moved
        # A half type rounds the result alone: what computes it has the range of float32.
        least = min(size, bits * epsilon("float32"))
        return moved + whole * torch.empty_like(moved).uniform_(
            -least, least, generator=self._random
        )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Sets the type of calls that make tensors of numbers without naming a type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _rounding_of(module: GraphModule) -> dict[str, float]:
    """Returns the largest relative error of each node that rounds its result, by its name."""
    found = {}
    for node in module.graph.nodes:
        calls = node.op == "call_function" and not only_moves(node.target)
        if not calls and node.op != "placeholder":
            continue
        values = node.meta.get("val")
        for value in values if isinstance(values, tuple | list) else (values,):
            if isinstance(value, Tensor) and real_type(value.dtype).is_floating_point:
                bits = _LAST_BITS.get(base_name(node.target), 1.0)
                kind = real_type(value.dtype)
                found[node.name] = bits * epsilon(str(kind).removeprefix("torch."))
                break
    return found


def only_moves(target: Any) -> bool:
    """Returns whether an operator moves, joins or selects values, and rounds none."""
    return base_name(target) in _MOVES


def _named(outputs: Collection[str], results: Sequence[Tensor]) -> dict[str, Array]:
    """Returns the outputs among the results of a replay graph, in float64."""
    return {
        name: tensor.detach().double().numpy()
        for name, tensor in zip(outputs, results, strict=False)
        if tensor.is_floating_point()
    }


def _finite(off: Array) -> Array:
    """Treats what cannot be compared as unmoved: there the model itself is not finite."""
    found: Array = np.where(np.isfinite(off), off, 0.0)
    return found


def _doubled(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(t.double() if t.is_floating_point() else t for t in tensors)


def in_float64(module: GraphModule) -> GraphModule:
    """Converts a copy of a graph to float64: its weights, and every type that a call names."""
    for node in module.graph.nodes:
        if node.op == "get_attr":
            *path, name = node.target.split(".")
            owner = module.get_submodule(".".join(path))
            value = getattr(owner, name)
            if isinstance(value, Tensor) and value.is_floating_point():
                delattr(owner, name)
                owner.register_buffer(name, value.detach().double())
        node.args = tuple(map(_wider, node.args))
        node.kwargs = {name: _wider(value) for name, value in node.kwargs.items()}
    module.recompile()
    return module


def _wider(value: Any) -> Any:
    return WIDEST.get(value, value) if isinstance(value, torch.dtype) else value


#: The types of a graph in float64, in place of the narrower types of the code.
WIDEST: Final = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex32, torch.complex64), torch.complex128),
}


def complex_parts(value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the parts (…, 2) of complex numbers, and what they are off by as a part of (…, 1).

    That is the absolute value: what a product gives may cancel in one part.
    """
    return torch.view_as_real(value.resolve_conj()), value.abs().unsqueeze(-1)


def like(value: Tensor, parts: Tensor) -> Tensor:
    """Returns parts (…, 2) as complex numbers where a value is of them; else as they are."""
    return torch.view_as_complex(parts) if value.is_complex() else parts


def moved_transform(node: Node, exact: Tensor, moved: Tensor, random: torch.Generator) -> Tensor:
    """Moves the result of a Fourier transform, by chance, as far as the order of its terms could.

    Args:
        node: The call.
        exact: What it gave.
        moved: The same, rounded already.
        random: Draws the errors.

    Returns:
        Numbers of the type of ``moved``; ``moved`` itself where the call is no transform.
    """
    along = steps(node, exact.shape) if node.op == "call_function" else None
    if not along or not exact.numel():
        return moved
    axes = sorted({step.axis for step in along})
    count = sum(exact.shape[axis] for axis in axes)
    far = exact.abs().square().mean(axes, keepdim=True).sqrt()
    far = far * math.sqrt(PART * count / 2) * epsilon("float32")
    parts = torch.view_as_real(moved) if moved.is_complex() else moved.unsqueeze(-1)
    chance = torch.empty_like(parts).uniform_(-1, 1, generator=random) * far.unsqueeze(-1)
    parts = parts + chance
    return torch.view_as_complex(parts) if moved.is_complex() else parts.squeeze(-1)
