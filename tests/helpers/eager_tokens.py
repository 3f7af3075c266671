"""What the operators that move tokens give in torch, on the arguments of a function's call."""

from __future__ import annotations

import torch
from helpers.function_models import Call

from tokexport.graph_passes.ops import onnx_functions as functions
from tokexport.graph_passes.ops import ops

SCATTERS = {
    functions.scatter_name(mode, own): (mode, own)
    for mode in ops.MODES
    for own in (True, False)
    if mode != "none" or own
}
MERGES = {functions.merge_name(mode): mode for mode in ops.MODES}


def tensors(call: Call) -> list[torch.Tensor]:
    """Returns the arguments of a call."""
    return [torch.from_numpy(array) for array in call.inputs]


def moved(call: Call) -> list[torch.Tensor] | None:
    """Returns what a gather, scatter or merge gives; None of any other call."""
    inputs = tensors(call)
    if call.name == "gather_tokens":
        return [ops.gather_tokens(*inputs)]
    if call.name in SCATTERS:
        return [ops.scatter_tokens(*inputs, *SCATTERS[call.name])]
    if call.name in MERGES:
        return [ops.merge_tokens(*inputs, MERGES[call.name])]
    return None
