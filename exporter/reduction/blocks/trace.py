"""Traces one block alone, for any batch and any number of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from tokexport.exporter.capture.traced_lines import tracing
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.reduction.blocks.observed_calls import Call
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.stack_traces import raised_at
from tokexport.graph_passes.torch_errors import in_words


class _Alone(nn.Module):
    """A block as a function of its tensors, the tokens first, to its tokens."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._parameters = call.module._parameters
        self._buffers = call.module._buffers
        self._modules = call.module._modules
        self._call = (call,)

    def forward(self, *tensors: Tensor) -> Any:
        (call,) = self._call
        leaves = list(call.leaves)
        for position, tensor in zip((call.tokens, *call.extras), tensors, strict=True):
            leaves[position] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, call.tree)
        results = pytree.tree_leaves(call.module.forward(*args, **kwargs))
        return results[call.result_tokens]


def trace_block(call: Call) -> ExportedProgram:
    """Returns the graph of a block whose batch and number of tokens are symbols.

    Its inputs are the tokens (B, N, C) and the block's other tensors.

    Raises:
        SurgeryError: torch.export cannot trace the block alone.
    """
    x = call.x if call.x.shape[0] > 1 else call.x.repeat(2, 1, 1)  # one of a size 1 is never free
    tensors = (x, *(call.leaves[position] for position in call.extras))
    free = tuple(dict.fromkeys(range(tensor.dim()), Dim.AUTO) for tensor in tensors)
    free[0][2] = Dim.STATIC
    with evaluation(call.module), tracing():
        try:
            return torch.export.export(_Alone(call), tensors, dynamic_shapes=(free,), strict=False)
        except Exception as error:
            raise SurgeryError(
                f"The block '{call.path}' cannot be traced for any number of tokens: "
                f"{in_words(error)}.",
                where=raised_at(error),
                fix="Reduce a model whose blocks take any number of tokens: no windows, no bias "
                "between positions.",
            ) from error
