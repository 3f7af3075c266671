"""Runs a graph with products of 8-bit numbers, to measure the error of int8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.runtimes.arrays import Array

#: How many steps an operand of 8 bits has on either side of zero.
_STEPS: Final = 127
#: The positions of a product's factors, and the axis along which the second is summed.
_FACTORS: Final = {
    aten.linear.default: (0, 1, -1),
    aten.matmul.default: (0, 1, -2),
    aten.mm.default: (0, 1, -2),
    aten.bmm.default: (0, 1, -2),
    aten.addmm.default: (1, 2, -2),
    aten.baddbmm.default: (1, 2, -2),
}
_ATTENTION: Final = aten.scaled_dot_product_attention.default
#: How many values of each channel are wanted, to estimate the error of int8.
_VALUES: Final = 16


class QuantisedRun(Interpreter):
    """Runs a graph whose products read factors that are rounded to 8 bits, up or down by chance.

    A factor of weights has a range for each column of the result, as a runtime gives it, and one
    that was computed has a range for all of it. Zero stays zero.

    Args:
        module: The graph.
        seed: The seed of the chances.
    """

    def __init__(self, module: GraphModule, seed: int) -> None:
        super().__init__(module)
        self._random = torch.Generator().manual_seed(seed)

    def run_node(self, n: Node) -> Any:
        """Runs one node, on rounded factors where it is a product."""
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        rounded = list(args)
        for place, axis in _factors(n):
            if place < len(rounded) and isinstance(rounded[place], Tensor):
                rounded[place] = self._rounded(rounded[place], axis)
        return self.call_function(n.target, tuple(rounded), kwargs)

    def _rounded(self, factor: Tensor, axis: int | None) -> Tensor:
        if not factor.is_floating_point() or not factor.numel():
            return factor
        size = factor.abs()
        largest = size.amax() if axis is None else size.amax(axis, keepdim=True)
        step = torch.where(largest > 0, largest / _STEPS, 1.0)
        chance = torch.empty_like(factor).uniform_(generator=self._random)
        found: Tensor = (factor / step + chance).floor() * step
        return torch.where(factor.isfinite(), found, factor)


def _factors(node: Node) -> Iterator[tuple[int, int | None]]:
    """Yields the places of a product's factors, with the axis of those that are weights."""
    if node.target == _ATTENTION:
        yield from ((place, None) for place in range(3))
    elif node.target in _FACTORS:
        first, second, axis = _FACTORS[node.target]
        yield first, None
        weights = node.args[second]
        of_weights = isinstance(weights, Node) and weights.op == "get_attr"
        yield second, axis if of_weights else None


def int8_runs(outputs: Mapping[str, Array], rows: Sequence[int]) -> int:
    """Returns how often int8 is run, for enough values of each channel."""
    floating = [array for array in outputs.values() if array.dtype.kind == "f" and array.size]
    values = min((max(array[0].size // array.shape[-1], 1) for array in floating), default=1)
    return min(max(-(-_VALUES // (values * len(rows))), 1), _VALUES // 4)
