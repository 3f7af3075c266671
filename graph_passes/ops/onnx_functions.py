"""Defines the bodies of the ``tokexport`` operators in standard ONNX (opset 20).

Each operator is a model-local function of domain ``tokexport``. A runtime with a native kernel of
that name uses it, any other inlines the body, so an artifact runs everywhere. No body holds a
scatter reduction, a sort of integers or a top-k with a computed k: TensorRT takes none of them.
Rows are reduced with a one-hot matrix instead::

    sum    dst + H·src              H (B, N, K) = [index[b, k] == n]
    mean   (dst + H·src) / (1 + Σ_k H)
    amax   max(dst, max_k (H ? src : -inf))

A row that holds an infinity makes a sum or mean NaN in every destination of its image (0·inf);
finite rows are exact. Names say the variant, since a function body cannot branch on an attribute.
``fused_functions`` and ``both_ways_functions`` hold those that only a lowering calls,
``token_forms`` other bodies of the same operators, which a measurement may choose.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import onnx
import onnx.parser

from tokexport.graph_passes.ops.both_ways_functions import BOTH_WAYS
from tokexport.graph_passes.ops.fused_functions import FUSED, Signature, softmax_of
from tokexport.graph_passes.ops.ops import MODES, NAMESPACE
from tokexport.graph_passes.ops.token_forms import FORMS, HITS, form_name

DOMAIN: Final = NAMESPACE
DOMAIN_VERSION: Final = 1
OPSET: Final = 20


_GATHER = Signature((("x", "T"), ("index", "I")), (("y", "T"),))
_SCATTER = Signature((("dst", "T"), ("index", "I"), ("src", "T")), (("y", "T"),))
_MERGE = Signature(
    (("a", "T"), ("b", "T"), ("kept", "I"), ("src", "I"), ("dst", "I")), (("y", "T"),)
)
_MATCH = Signature(
    (("scores", "T"),), (("kept", "I"), ("src", "I"), ("dst", "I")), (("r", "ints"),)
)
_ATTENTION = Signature((("q", "T"), ("k", "T"), ("v", "T")), (("y", "T"),), (("scale", "float"),))
_SIZED = Signature((*_ATTENTION.inputs, ("log_size", "T")), (("y", "T"),), (("scale", "float"),))

# x (B, N, C), index (B, K) -> (B, K, C); GatherND with batch_dims copies whole rows.
_GATHER_BODY = """
  last = Constant <value_ints = [2]> ()
  rows = Unsqueeze (index, last)
  y = GatherND <batch_dims = 1> (x, rows)
"""

_ONE_HOT = (
    HITS
    + """
  one_hot = CastLike (hits, src)
  total = MatMul (one_hot, src)
  writers = ReduceSum <keepdims = 1> (one_hot, last_axis)
  unit_number = Constant <value_float = 1.0> ()
  unit = CastLike (unit_number, src)
"""
)
_WRITTEN = """
  nothing_number = Constant <value_float = 0.0> ()
  nothing = CastLike (nothing_number, src)
  written = Greater (writers, nothing)
"""
# masked (B, N, K, C): the row where it goes to n, else what the reduction ignores.
_MASKED = (
    HITS
    + """
  three = Constant <value_ints = [3]> ()
  two = Constant <value_ints = [2]> ()
  hits_wide = Unsqueeze (hits, three)
  src_wide = Unsqueeze (src, one_axis)
  ignored_number = Constant <value_float = {ignored}> ()
  ignored = CastLike (ignored_number, src)
  masked = Where (hits_wide, src_wide, ignored)
  reduced = {reduce} <keepdims = 0> (masked, two)
"""
)
_ANY_WRITER = """
  hits_number = Cast <to = 1> (hits)
  hit_largest = ReduceMax <keepdims = 1> (hits_number, last_axis)
  written = Cast <to = 9> (hit_largest)
"""
_SCATTER_BODIES: Final[dict[tuple[str, bool], str]] = {
    ("none", True): """
  last = Constant <value_ints = [2]> ()
  batch = Shape <start = 0, end = 1> (index)
  index_shape = Shape (index)
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  batch_count = Squeeze (batch)
  images = Range (zero, batch_count, one)
  column_axis = Constant <value_ints = [1]> ()
  image_column = Unsqueeze (images, column_axis)
  image = Expand (image_column, index_shape)
  image_wide = Unsqueeze (image, last)
  index_wide = Unsqueeze (index, last)
  places = Concat <axis = 2> (image_wide, index_wide)
  y = ScatterND (dst, places, src)
""",
    ("sum", True): _ONE_HOT + "  y = Add (dst, total)\n",
    ("mean", True): _ONE_HOT
    + """
  sum = Add (dst, total)
  number = Add (writers, unit)
  y = Div (sum, number)
""",
    ("sum", False): _ONE_HOT + _WRITTEN + "  y = Where (written, total, dst)\n",
    ("mean", False): _ONE_HOT
    + _WRITTEN
    + """
  number = Max (writers, unit)
  mean = Div (total, number)
  y = Where (written, mean, dst)
""",
}
for _mode, _reduce, _ignored, _join in (
    ("amax", "ReduceMax", "-inf", "Max"),
    ("amin", "ReduceMin", "inf", "Min"),
    ("prod", "ReduceProd", "1.0", "Mul"),
):
    _masked = _MASKED.format(ignored=_ignored, reduce=_reduce)
    _SCATTER_BODIES[_mode, True] = _masked + f"  y = {_join} (dst, reduced)\n"
    _SCATTER_BODIES[_mode, False] = _masked + _ANY_WRITER + "  y = Where (written, reduced, dst)\n"

# best, partner (B, Na); src by descending best; dst the partners of src.
_BEST = """
  last = Constant <value_ints = [-1]> ()
  best = ReduceMax <keepdims = 0> (scores, last)
  partner = ArgMax <axis = -1, keepdims = 0> (scores)
  taken_count = Constant <value_ints: ints = @r> ()
  rows = Shape <start = 1, end = 2> (scores)
"""
# The rest in index order without sorting integers: taken rows get the keys Na…2Na-1, the rest its
# own index, and the Na - r smallest keys (exact in float32 below 2²⁴) are taken in order.
_MATCH_BODY = (
    _BEST
    + """
  best_values, src = TopK <axis = -1, largest = 1, sorted = 1> (best, taken_count)
  dst = GatherElements <axis = 1> (partner, src)
  one_axis = Constant <value_ints = [1]> ()
  last_axis = Constant <value_ints = [2]> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  count = Squeeze (rows)
  ids = Range (zero, count, one)
  src_column = Unsqueeze (src, last_axis)
  hits = Equal (src_column, ids)
  hits_number = Cast <to = 1> (hits)
  taken = ReduceMax <keepdims = 0> (hits_number, one_axis)
  behind = Cast <to = 1> (count)
  ids_number = Cast <to = 1> (ids)
  penalty = Mul (taken, behind)
  key = Add (penalty, ids_number)
  left = Sub (rows, taken_count)
  keys, kept = TopK <axis = -1, largest = 0, sorted = 1> (key, left)
"""
)
_MATCH_BY_SCORE_BODY = (
    _BEST
    + """
  best_values, ranked = TopK <axis = -1, largest = 1, sorted = 1> (best, rows)
  from_first = Constant <value_ints = [0]> ()
  axis = Constant <value_ints = [1]> ()
  src = Slice (ranked, from_first, taken_count, axis)
  kept = Slice (ranked, taken_count, rows, axis)
  dst = GatherElements <axis = 1> (partner, src)
"""
)
_ATTENTION_BODY = softmax_of("q", "k") + "  y = MatMul (weights, v)\n"
_SIZED_BODY = softmax_of("q", "k", sized=True) + "  y = MatMul (weights, v)\n"


def scatter_name(mode: str, include_self: bool) -> str:
    """Returns the function that scatters rows in this mode."""
    return f"scatter_tokens_{mode}" + ("" if include_self or mode == "none" else "_exclude_self")


def merge_name(mode: str) -> str:
    """Returns the function that merges rows in this mode."""
    return f"merge_tokens_{mode}"


def match_name(order: str) -> str:
    """Returns the function that matches with the kept rows in this order."""
    return "bipartite_match" if order == "index" else "bipartite_match_by_score"


def _merge_body(mode: str) -> str:
    rest = f"  rest = {DOMAIN}.gather_tokens (a, kept)\n"
    if mode == "none":
        return rest + "  y = Concat <axis = 1> (rest, b)\n"
    return (
        rest
        + f"  moved = {DOMAIN}.gather_tokens (a, src)\n"
        + f"  merged = {DOMAIN}.{scatter_name(mode, True)} (b, dst, moved)\n"
        + "  y = Concat <axis = 1> (rest, merged)\n"
    )


def _definitions() -> dict[str, tuple[Signature, str]]:
    found: dict[str, tuple[Signature, str]] = {
        "gather_tokens": (_GATHER, _GATHER_BODY),
        "bipartite_match": (_MATCH, _MATCH_BODY),
        "bipartite_match_by_score": (_MATCH, _MATCH_BY_SCORE_BODY),
        "attention": (_ATTENTION, _ATTENTION_BODY),
        "sized_attention": (_SIZED, _SIZED_BODY),
    }
    for (mode, include_self), body in _SCATTER_BODIES.items():
        found[scatter_name(mode, include_self)] = (_SCATTER, body)
    for mode in MODES:
        found[merge_name(mode)] = (_MERGE, _merge_body(mode))
    found |= FUSED | BOTH_WAYS
    for operator, forms in FORMS.items():
        signature, standard = found[operator]
        for form, other in forms.items():
            body = standard if other is None else other
            found[form_name(operator, form)] = (signature, body)
    return found


@cache
def signatures() -> dict[str, Signature]:
    """Returns the signature of every function of the domain."""
    return {name: signature for name, (signature, _) in _definitions().items()}


@cache
def function(name: str) -> onnx.FunctionProto:
    """Returns the function of that name, its body in standard ONNX."""
    signature, body = _definitions()[name]
    attributes = ", ".join(attribute for attribute, _ in signature.attributes)
    head = f"{name} <{attributes}>" if attributes else name
    inputs = ", ".join(n for n, _ in signature.inputs)
    outputs = ", ".join(n for n, _ in signature.outputs)
    text = (
        f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, "{DOMAIN}" : {DOMAIN_VERSION}]>\n'
        f"{head} ({inputs}) => ({outputs}) {{\n{body}}}\n"
    )
    proto: onnx.FunctionProto = onnx.parser.parse_function(text)
    return proto


def with_callees(names: set[str]) -> list[onnx.FunctionProto]:
    """Returns the functions named and all that their bodies call, callees first."""
    ordered: dict[str, onnx.FunctionProto] = {}

    def visit(name: str) -> None:
        if name in ordered:
            return
        proto = function(name)
        for node in proto.node:
            if node.domain == DOMAIN:
                visit(node.op_type)
        ordered[name] = proto

    for name in sorted(names):
        visit(name)
    return list(ordered.values())
