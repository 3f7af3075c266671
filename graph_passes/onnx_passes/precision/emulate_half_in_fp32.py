"""Computes a half-precision graph where a runtime has no kernels for it, rounding as it would.

Before → after::

    y = MatMul(a, b)     a, b and y in half
    →  y = Cast(MatMul(Cast(a), Cast(b)))           float32 between the casts

Every result is rounded to half, once: what a kernel gives that sums in float32.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import Counted, OnnxPass
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement

_HALF: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class EmulateHalfInFp32(OnnxPass):
    """Puts casts around every operator that reads or gives half; the types have to be known."""

    name = "emulate half in fp32"

    def call(self, model: ir.Model) -> Counted:
        """Rewrites in place."""
        found = [node for node in model.graph if _is_half(node)]
        for node in found:
            new = Replacement(node)
            inputs = [
                new.call("Cast", value, to=ir.DataType.FLOAT) if _half(value) else value
                for value in node.inputs
            ]
            attributes = {name: each.value for name, each in node.attributes.items()}
            first = new.call(
                node.op_type,
                *inputs,
                outputs=len(node.outputs),
                domain=node.domain,
                **attributes,
            )
            made = first.producer()
            assert made is not None
            new.put(
                *(
                    new.call("Cast", result, to=value.dtype) if _half(value) else result
                    for value, result in zip(node.outputs, made.outputs, strict=True)
                )
            )
        return Counted(model, bool(found), len(found))


def _is_half(node: ir.Node) -> bool:
    if node.domain == "" and node.op_type in ("Cast", "Constant"):
        return False
    return any(map(_half, (*node.inputs, *node.outputs)))


def _half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in _HALF
