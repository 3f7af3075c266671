"""Writes a rewritten program as an ONNX model with functions of domain ``tokexport``.

Torch's ONNX exporter first replaces each operator that has no ONNX form by operators that have one,
for which it traces the whole graph again. A rewritten graph seldom holds one of the former, and is
then handed over as a program that need not be traced again::

    aten.linear, aten.mul, tokexport.merge_tokens    as it is
    aten.linear, aten.celu                           traced anew: celu becomes others
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import opset20 as op
from onnxscript.values import Op, Opset
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx import Graph
from torch.utils import _pytree as pytree

from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.exporter.torch_warnings import exporter_silenced, torch_warnings_silenced
from tokexport.graph_passes.errors import PassError
from tokexport.graph_passes.ops import onnx_functions as functions
from tokexport.graph_passes.pipelines import simplify_exported
from tokexport.graph_passes.stack_traces import innermost_line, origin
from tokexport.graph_passes.torch_errors import in_words


class DecomposedProgram(ExportedProgram):
    """A copy of a program with a graph of its own, which stays where no operator is replaced.

    Args:
        program: A functional program of one trace; its weights are shared.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(
            root=program.graph_module,
            graph=copy.deepcopy(program.graph),
            graph_signature=program.graph_signature,
            state_dict=program.state_dict,
            range_constraints=program.range_constraints,
            module_call_graph=program.module_call_graph,
            example_inputs=program.example_inputs,
            constants=program.constants,
            verifiers=program.verifiers,
        )
        self._given = program

    def run_decompositions(
        self,
        decomp_table: Mapping[Any, Callable[..., Any]] | None = None,
        decompose_custom_triton_ops: bool = False,
    ) -> ExportedProgram:
        """Returns this program itself where none of its operators is in the table."""
        table = None if decomp_table is None else dict(decomp_table)
        if table is not None and not any(node.target in table for node in self.graph.nodes):
            return self
        traced: ExportedProgram = self._given.run_decompositions(table, decompose_custom_triton_ops)
        return traced


def without_a_trace(program: ExportedProgram) -> ExportedProgram:
    """Returns a program that the exporter traces again only where an operator needs it.

    It is the one given where its graph holds other graphs, or values of several traces.
    """
    return DecomposedProgram(program) if _is_of_one_trace(program.graph) else program


def _is_of_one_trace(graph: Graph) -> bool:
    traces = set()
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            return False
        if node.op == "call_function" and "val" not in node.meta:
            return False
        values = pytree.tree_leaves(node.meta.get("val"))
        traces |= {one.fake_mode for one in values if isinstance(one, FakeTensor)}
    return len(traces) == 1


_FLOATS = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]
_INDEX = "tensor(int64)"
_ATTRIBUTES = {"ints": onnx.defs.OpSchema.AttrType.INTS, "float": onnx.defs.OpSchema.AttrType.FLOAT}


def emit(
    program: ExportedProgram, input_names: Sequence[str], output_names: Sequence[str]
) -> ir.Model:
    """Returns the ONNX model (opset 20) of a rewritten program; weights stay shared with it.

    Raises:
        ModelNotSupportedError: An operator of the graph has no ONNX form.
    """
    with torch_warnings_silenced(), exporter_silenced(), torch.no_grad():
        try:
            exported = torch.onnx.export(
                without_a_trace(program),
                dynamo=True,
                opset_version=functions.OPSET,
                custom_translation_table=_translations(),
                verbose=False,
                optimize=False,
            )
            model = None if exported is None else simplify_exported(exported.model)
        except PassError:
            raise
        except Exception as error:
            raise _refusal(error) from error
    if model is None:
        raise ModelNotSupportedError("torch.onnx.export gave no model for this graph.")
    _rename(model.graph.inputs, input_names, model)
    _rename(model.graph.outputs, output_names, model)
    return model


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Maps each torch operator to what writes its ONNX function call."""
    domain = torch.ops.tokexport

    def scatter(dst: Any, index: Any, src: Any, mode: str, include_self: bool) -> Any:
        return _operator(functions.scatter_name(mode, include_self))(dst, index, src)

    def match(scores: Any, r: int, order: str) -> Any:
        return _operator(functions.match_name(order))(scores, r=[r])

    def merge(a: Any, b: Any, kept: Any, src: Any, dst: Any, mode: str) -> Any:
        return _operator(functions.merge_name(mode))(a, b, kept, src, dst)

    def attention(q: Any, k: Any, v: Any, log_size: Any, scale: float) -> Any:
        if log_size is None:
            return _operator("attention")(q, k, v, scale=scale)
        return _operator("sized_attention")(q, k, v, log_size, scale=scale)

    return {
        torch.ops.aten.sort.stable: stable_sort,
        torch.ops.aten.prod.dim_int: _product,
        torch.ops.aten.prod.default: _product_of_all,
        torch.ops.aten.logsumexp.default: _log_sum_exp,
        domain.gather_tokens.default: _call_gather,
        domain.scatter_tokens.default: scatter,
        domain.bipartite_match.default: match,
        domain.merge_tokens.default: merge,
        domain.sized_attention.default: attention,
    }


def stable_sort(self: Any, *, stable: bool, dim: int = -1, descending: bool = False) -> Any:
    """Sorts by a TopK of all values: of equal values the lower index comes first (TopK-11)."""
    count: Any = op.Constant(value_ints=[self.shape[dim]])
    return op.TopK(self, count, axis=dim, largest=int(descending), sorted=1)


def _product(self: Any, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Any:
    axes: Any = op.Constant(value_ints=[dim])
    return op.ReduceProd(self, axes, keepdims=int(keepdim))


def _product_of_all(self: Any, *, dtype: Any = None) -> Any:
    return op.ReduceProd(self, keepdims=0)


def _log_sum_exp(self: Any, dim: Sequence[int], keepdim: bool = False) -> Any:
    """Computes logsumexp with the largest value subtracted first, as PyTorch does.

    ReduceLogSumExp of ONNX Runtime does not subtract it in a row that begins with -inf, and loses
    the other numbers of that row where they lie below -88.
    """
    axes: Any = op.Constant(value_ints=[*dim] or [*range(len(self.shape))])
    largest: Any = op.ReduceMax(self, axes, keepdims=1)
    zero: Any = op.Constant(value_float=0.0)
    largest = op.Where(op.IsInf(largest), op.CastLike(zero, largest), largest)
    summed = op.ReduceSum(op.Exp(op.Sub(self, largest)), axes, keepdims=1)
    found = op.Add(op.Log(summed), largest)
    return found if keepdim else op.Squeeze(found, axes)


def _call_gather(x: Any, index: Any) -> Any:
    return _operator("gather_tokens")(x, index)


def _operator(name: str) -> Op:
    """Returns the function as an operator that the exporter's recorder can call."""
    signature = functions.signatures()[name]
    formal = onnx.defs.OpSchema.FormalParameter
    schema = onnx.defs.OpSchema(
        name,
        functions.DOMAIN,
        functions.DOMAIN_VERSION,
        inputs=[formal(n, "T" if kind == "T" else _INDEX) for n, kind in signature.inputs],
        outputs=[formal(n, "T" if kind == "T" else _INDEX) for n, kind in signature.outputs],
        type_constraints=[("T", _FLOATS, "Any float tensor.")],
        attributes=[
            onnx.defs.OpSchema.Attribute(n, _ATTRIBUTES[kind]) for n, kind in signature.attributes
        ],
    )
    return Op(Opset(functions.DOMAIN, functions.DOMAIN_VERSION), name, schema)


def _rename(values: Sequence[ir.Value], names: Sequence[str], model: ir.Model) -> None:
    """Gives graph inputs or outputs the user's names; renames other values that have them."""
    wanted = set(names)
    own = set(values)
    for node in model.graph:
        for value in node.outputs:
            if value.name in wanted and value not in own:
                value.name = f"{value.name}__inner"
    for value in model.graph.initializers.values():
        if value.name in wanted:
            raise ModelNotSupportedError(
                f"A weight of the graph is called '{value.name}' like an input or output.",
                fix="Rename the argument of forward or the key of the output.",
            )
    for value, name in zip(values, names, strict=True):
        value.name = name


def _refusal(error: Exception) -> ModelNotSupportedError:
    """Returns the error that names the operator without an ONNX form, and its line."""
    node = _failed_node(error)
    if node is not None:
        return ModelNotSupportedError(
            f"The operator {node.target} has no ONNX form.",
            where=origin(node),
            fix="Write that line with other operations.",
        )
    text = "\n".join(str(cause) for cause in _causes(error))
    trace = innermost_line(text)
    return ModelNotSupportedError(
        f"The graph cannot be written as ONNX: {in_words(_causes(error)[-1])}.",
        where=f"At {trace}" if trace else "",
        fix="Compile with --keep-stages, and look at rewritten.pt2 in the folder it leaves.",
    )


def _failed_node(error: BaseException) -> torch.fx.Node | None:
    """Returns the node at which the exporter failed, for its source line."""
    for cause in _causes(error):
        named = re.search(r"translating node %(\w+) :", str(cause))
        trace = cause.__traceback__
        while named and trace is not None:
            for value in trace.tb_frame.f_locals.values():
                if isinstance(value, torch.fx.Node) and value.name == named[1]:
                    return value
            trace = trace.tb_next
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """Returns an error and its causes, the first cause last."""
    return [error, *(_causes(error.__cause__) if error.__cause__ else ())]
