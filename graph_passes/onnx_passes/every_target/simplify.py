"""Simplifies the exporter's model: folds constants and drops identities.

Before → after, for example::

    Reshape(Reshape(x, s), t)            →  Reshape(x, t)
    Cast(x: float → float), x + 0        →  x
    Transpose(Transpose(x, p), q)        →  Transpose(x, p · q)

It stands in for the optimiser of ``torch.onnx.export``, whose rule ``SlicesSplit`` compares every
node with every pair of slices: 49 of the 66 seconds in which MCTF of DeiT-S was written under a
profiler. The other rules of its list are here, but for those of biases that are zeros, which stay,
and of computed shapes, of which a static graph has none.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

from tokexport.graph_passes.onnx_passes.graph.node_pass import OnnxPass

#: Rounds of folding and rewriting: what one leaves behind may be foldable in the next.
ROUNDS: Final = 2

_RULES: Final = (
    *rules.mul_by_1_rule.commute(),
    *rules.add_0_rule.commute(),
    rules.sub_0_rule,
    rules.div_by_1_rule,
    rules.dropout_zero_rule,
    rules.dropout_inference_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.min_min_rule,
    rules.max_max_rule,
    rules.min_max_rule,
    rules.max_min_rule,
    rules.successive_clip_relu_rule,
    rules.successive_relu_clip_rule,
    rules.successive_relu_rule,
    rules.successive_clip_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,  # before reshape_reshape_rule, which counts on it
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
)

#: Behind the rounds: every constant is an initializer, and nothing is computed twice.
_TIDY: Final = ir.passes.Sequential(
    common.RemoveUnusedOpsetsPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.LiftSubgraphInitializersToMainGraphPass(),
    common.DeduplicateInitializersPass(),
    common.CommonSubexpressionEliminationPass(),
    common.OutputFixPass(),
    common.NameFixPass(),
)


class Simplify(OnnxPass):
    """Simplifies a model as it comes from ``torch.onnx.export(…, optimize=False)``."""

    name = "simplify"
    comes_before = ("add functions",)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Simplifies in place."""
        common.InlinePass()(model)
        rewrite = RewritePass(_RULES)
        for _ in range(ROUNDS):
            folded = optimizer.fold_constants(model, onnx_shape_inference=True)
            rewritten = rewrite(model)
            optimizer.remove_unused_nodes(model)
            if not (folded.modified or rewritten.modified):
                break
        _TIDY(model)
        return ir.passes.PassResult(model, modified=True)
