"""Defines functions that fuse parts of a ViT block, each a native kernel of ONNX Runtime.

The lowering for ONNX Runtime puts them in; without the library of kernels their bodies run, the
same computation in standard operators. ``runtimes/native`` holds the kernels.

=============================  ==================================================================
``linear``                     x w + bias; the weights lie in panels of 32 columns
``linear_gelu``                GELU (exact) of it
``linear_add``                 a residual added to it
``patch_embed``                the patches of images, times w, and rows of their own in front
``integer_linear``             the same product in 8-bit integers, and with ``_gelu`` and ``_add``
``layer_norm``                 LayerNormalization over the last axis
``rows_attention``             attention on heads that lie side by side in rows
``rows_sized_attention``       the same with a bias for each key
``rows_attention_by_size``     the same with the logarithm of each key's size as the bias
``attention_weights``          the softmax of it alone, (B, H, Nq, N)
``sized_attention_weights``    the same with a bias for each key
``attention_weights_by_size``  the same with the logarithm of each key's size as the bias
``cosine_match``               the match of ToMe: the cosine of two halves of the tokens
``merge_by_size``              the mean of what is merged, weighted with the sizes
``cosine_merge_norm``          both of them, and the layer norm of what they give
=============================  ==================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Signature:
    """The inputs, outputs and attributes of a function.

    Attributes:
        inputs: Name and kind of each input: T a float tensor, I an int64 and B an int8 one.
        outputs: The same of each output.
        attributes: Name and type of each attribute: ``ints`` or ``float``.
    """

    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    attributes: tuple[tuple[str, str], ...] = ()


#: Columns of a panel of packed weights.
PANEL: Final = 32

_X_PANELS_BIAS = (("x", "T"), ("panels", "T"), ("bias", "T"))
_LINEAR = Signature(_X_PANELS_BIAS, (("y", "T"),))
_LINEAR_ADD = Signature((*_X_PANELS_BIAS, ("residual", "T")), (("y", "T"),))
_PATCH_EMBED = Signature(
    (("images", "T"), ("panels", "T"), ("bias", "T"), ("rows", "T")),
    (("y", "T"),),
    (("patch", "ints"), ("kernel", "ints"), ("first", "ints")),
)
_X_BYTES_BIAS = (("x", "T"), ("panels", "B"), ("scales", "T"), ("bias", "T"))
_INTEGER_LINEAR = Signature(_X_BYTES_BIAS, (("y", "T"),))
_INTEGER_LINEAR_ADD = Signature((*_X_BYTES_BIAS, ("residual", "T")), (("y", "T"),))
_NORM = Signature(
    (("x", "T"), ("weight", "T"), ("bias", "T")), (("y", "T"),), (("epsilon", "float"),)
)
_HEADS = (("scale", "float"), ("heads", "ints"), ("depth", "ints"))
_STARTS = (("q_start", "ints"), ("k_start", "ints"), ("v_start", "ints"))
_ROWS = Signature((("q", "T"), ("k", "T"), ("v", "T")), (("y", "T"),), _HEADS + _STARTS)
_SIZED_ROWS = Signature((*_ROWS.inputs, ("log_size", "T")), (("y", "T"),), _HEADS + _STARTS)
_ROWS_BY_SIZE = Signature((*_ROWS.inputs, ("size", "T")), (("y", "T"),), _HEADS + _STARTS)
_WEIGHTS = Signature(
    (("q", "T"), ("k", "T")),
    (("weights", "T"),),
    (*_HEADS, *_STARTS[:2]),
)
_SIZED_WEIGHTS = Signature(
    (*_WEIGHTS.inputs, ("log_size", "T")), _WEIGHTS.outputs, _WEIGHTS.attributes
)
_WEIGHTS_BY_SIZE = Signature(
    (*_WEIGHTS.inputs, ("size", "T")), _WEIGHTS.outputs, _WEIGHTS.attributes
)
_SETS = (("a_start", "ints"), ("b_start", "ints"), ("step", "ints"))
_COSINE = Signature(
    (("rows", "T"),),
    (("kept", "I"), ("src", "I"), ("dst", "I")),
    (("heads", "ints"), ("depth", "ints"), ("start", "ints"), *_SETS, ("blocked", "ints"))
    + (("r", "ints"),),
)
_BY_SIZE = Signature(
    (("x", "T"), ("size", "T"), ("kept", "I"), ("src", "I"), ("dst", "I")),
    (("y", "T"), ("y_size", "T")),
    (("protected", "ints"), *_SETS),
)

_COSINE_MERGE_NORM = Signature(
    (("rows", "T"), ("x", "T"), ("size", "T"), ("weight", "T"), ("bias", "T")),
    (("y", "T"), ("y_size", "T"), ("normed", "T")),
    (*_COSINE.attributes, _BY_SIZE.attributes[0], *_NORM.attributes),
)

# panels (P, K, 32) hold w (K, C) with zeros behind its last column.
_UNPACKED = """
  turned = Transpose <perm = [1, 0, 2]> (panels)
  flat = Constant <value_ints = [0, -1]> ()
  padded = Reshape (turned, flat)
  first_column = Constant <value_ints = [0]> ()
  columns = Shape (bias)
  column_axis = Constant <value_ints = [1]> ()
  weights = Slice (padded, first_column, columns, column_axis)
"""
_PRODUCT = _UNPACKED + "  product = MatMul (x, weights)\n"
# `kernel` is the shape (-1, Ch, h, w) of the weights of a convolution.
_PATCH_EMBED_BODY = (
    _UNPACKED
    + """
  weights_turned = Transpose <perm = [1, 0]> (weights)
  kernel_shape = Constant <value_ints: ints = @kernel> ()
  convolved = Reshape (weights_turned, kernel_shape)
  grid = Conv <strides: ints = @patch> (images, convolved, bias)
  flat_grid = Constant <value_ints = [0, 0, -1]> ()
  channels = Reshape (grid, flat_grid)
  patches = Transpose <perm = [0, 2, 1]> (channels)
  start = Constant <value_ints = [0]> ()
  first_count = Constant <value_ints: ints = @first> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  token_axis = Constant <value_ints = [1]> ()
  own_rows = Slice (rows, start, first_count, token_axis)
  added_rows = Slice (rows, first_count, end, token_axis)
  embedded = Add (patches, added_rows)
  batch = Shape <start = 0, end = 1> (images)
  once = Constant <value_ints = [1, 1]> ()
  repeats = Concat <axis = 0> (batch, once)
  in_front = Tile (own_rows, repeats)
  y = Concat <axis = 1> (in_front, embedded)
"""
)
# panels (P, G, 32, 4) hold w (K, C) with zeros behind its last row and column.
_INTEGER_PRODUCT = """
  turned = Transpose <perm = [1, 3, 0, 2]> (panels)
  padded = Flatten <axis = 2> (turned)
  depth = Shape <start = -1> (x)
  columns = Shape (bias)
  sizes = Concat <axis = 0> (depth, columns)
  first = Constant <value_ints = [0, 0]> ()
  weights = Slice (padded, first, sizes)
  integers, scale, zero = DynamicQuantizeLinear (x)
  sums = MatMulInteger (integers, weights, zero)
  numbers = Cast <to = 1> (sums)
  factor = Mul (scale, scales)
  product = Mul (numbers, factor)
"""
_WITH_BIAS = "  y = Add (product, bias)\n"
_WITH_GELU = "  sum = Add (product, bias)\n  y = Gelu (sum)\n"
_WITH_RESIDUAL = "  sum = Add (product, bias)\n  y = Add (residual, sum)\n"
_NORM_BODY = """
  y = LayerNormalization <axis = -1, epsilon: float = @epsilon> (x, weight, bias)
"""


def softmax_of(q: str, k: str, *, sized: bool = False) -> str:
    """Computes weights (B, H, Nq, N) of heads q and k; sized ones with the log_size of each key."""
    head = f"""
  factor_number = Constant <value_float: float = @scale> ()
  factor = CastLike (factor_number, {q})
  scaled = Mul ({q}, factor)
  k_turned = Transpose <perm = [0, 1, 3, 2]> ({k})
"""
    logits = "  logits = MatMul (scaled, k_turned)\n"
    if sized:
        logits = """
  product = MatMul (scaled, k_turned)
  axes = Constant <value_ints = [1, 2]> ()
  bias = Unsqueeze (log_size, axes)
  logits = Add (product, bias)
"""
    return head + logits + "  weights = Softmax <axis = -1> (logits)\n"


def heads_of(name: str) -> str:
    """Takes the heads (B, H, N, D) of q, k or v out of its rows."""
    return f"""
  {name}_first = Constant <value_ints: ints = @{name}_start> ()
  {name}_end = Add ({name}_first, width)
  {name}_part = Slice ({name}, {name}_first, {name}_end, last)
  {name}_split = Reshape ({name}_part, split)
  {name}_heads = Transpose <perm = [0, 2, 1, 3]> ({name}_split)
"""


HEADS_SPLIT = """
  head_count = Constant <value_ints: ints = @heads> ()
  head_depth = Constant <value_ints: ints = @depth> ()
  width = Mul (head_count, head_depth)
  last = Constant <value_ints = [2]> ()
  same = Constant <value_ints = [0, 0]> ()
  split = Concat <axis = 0> (same, head_count, head_depth)
"""
_ROWS_HEAD = HEADS_SPLIT + "".join(heads_of(name) for name in "qkv")
ROWS_JOINED = """
  turned = Transpose <perm = [0, 2, 1, 3]> (attended)
  joined = Constant <value_ints = [0, 0, -1]> ()
  y = Reshape (turned, joined)
"""
_ROWS_BODY = (
    _ROWS_HEAD
    + "  attended = tokexport.attention <scale: float = @scale> (q_heads, k_heads, v_heads)\n"
    + ROWS_JOINED
)
_SIZED_ROWS_BODY = (
    _ROWS_HEAD
    + "  attended = tokexport.sized_attention <scale: float = @scale>"
    + " (q_heads, k_heads, v_heads, log_size)\n"
    + ROWS_JOINED
)
# size (B, N, 1)
_LOG_SIZE = """
  logarithms = Log (size)
  size_axis = Constant <value_ints = [2]> ()
  log_size = Squeeze (logarithms, size_axis)
"""
_ROWS_BY_SIZE_BODY = _LOG_SIZE + _SIZED_ROWS_BODY

_WEIGHTS_HEAD = HEADS_SPLIT + heads_of("q") + heads_of("k")
_WEIGHTS_BODY = _WEIGHTS_HEAD + softmax_of("q_heads", "k_heads")
_SIZED_WEIGHTS_BODY = _WEIGHTS_HEAD + softmax_of("q_heads", "k_heads", sized=True)
_WEIGHTS_BY_SIZE_BODY = _LOG_SIZE + _SIZED_WEIGHTS_BODY
SET_BOUNDS = """
  a_first = Constant <value_ints: ints = @a_start> ()
  b_first = Constant <value_ints: ints = @b_start> ()
  apart = Constant <value_ints: ints = @step> ()
  token_axis = Constant <value_ints = [1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
"""


def sets_of(name: str) -> str:
    """Takes the sets a and b out of tokens."""
    return f"""
  {name}_a = Slice ({name}, a_first, end, token_axis, apart)
  {name}_b = Slice ({name}, b_first, end, token_axis, apart)
"""


# The first `blocked` rows of a find no partner: class tokens stay.
_COSINE_BODY = (
    HEADS_SPLIT
    + SET_BOUNDS
    + """
  from = Constant <value_ints: ints = @start> ()
  to = Add (from, width)
  part = Slice (rows, from, to, last)
  heads_apart = Reshape (part, split)
  metric = ReduceMean <keepdims = 0> (heads_apart, last)
  norm = ReduceL2 <keepdims = 1> (metric, last)
  unit = Div (metric, norm)
"""
    + sets_of("unit")
    + """
  unit_b_turned = Transpose <perm = [0, 2, 1]> (unit_b)
  cosines = MatMul (unit_a, unit_b_turned)
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  rows_of_a = Shape <start = 1, end = 2> (cosines)
  count = Squeeze (rows_of_a)
  ids = Range (zero, count, one)
  column = Unsqueeze (ids, token_axis)
  blocked_count = Constant <value_ints: ints = @blocked> ()
  is_blocked = Less (column, blocked_count)
  never_number = Constant <value_float = -inf> ()
  never = CastLike (never_number, cosines)
  scores = Where (is_blocked, never, cosines)
  kept, src, dst = tokexport.bipartite_match <r: ints = @r> (scores)
"""
)


def by_size_body(merge: str) -> str:
    """Returns the body of ``merge_by_size`` that sums rows with this function of the domain."""
    return (
        SET_BOUNDS
        + """
  weighted = Mul (x, size)
  first = Constant <value_ints = [0]> ()
  protected_count = Constant <value_ints: ints = @protected> ()
  weighted_stay = Slice (weighted, first, protected_count, token_axis)
  size_stay = Slice (size, first, protected_count, token_axis)
"""
        + sets_of("weighted")
        + sets_of("size")
        + f"""
  weighted_merged = tokexport.{merge} (weighted_a, weighted_b, kept, src, dst)
  size_merged = tokexport.{merge} (size_a, size_b, kept, src, dst)
  total = Concat <axis = 1> (weighted_stay, weighted_merged)
  y_size = Concat <axis = 1> (size_stay, size_merged)
  y = Div (total, y_size)
"""
    )


_COSINE_MERGE_NORM_BODY = """
  kept, src, dst = tokexport.cosine_match <heads: ints = @heads, depth: ints = @depth,
    start: ints = @start, a_start: ints = @a_start, b_start: ints = @b_start, step: ints = @step,
    blocked: ints = @blocked, r: ints = @r> (rows)
  y, y_size = tokexport.merge_by_size <protected: ints = @protected, a_start: ints = @a_start,
    b_start: ints = @b_start, step: ints = @step> (x, size, kept, src, dst)
  normed = tokexport.layer_norm <epsilon: float = @epsilon> (y, weight, bias)
"""

#: The functions that compute the softmax of attention alone.
SOFTMAXES: Final = ("attention_weights", "sized_attention_weights", "attention_weights_by_size")

#: Signature and body of each function, by name.
FUSED: Final[dict[str, tuple[Signature, str]]] = {
    "linear": (_LINEAR, _PRODUCT + _WITH_BIAS),
    "linear_gelu": (_LINEAR, _PRODUCT + _WITH_GELU),
    "linear_add": (_LINEAR_ADD, _PRODUCT + _WITH_RESIDUAL),
    "patch_embed": (_PATCH_EMBED, _PATCH_EMBED_BODY),
    "integer_linear": (_INTEGER_LINEAR, _INTEGER_PRODUCT + _WITH_BIAS),
    "integer_linear_gelu": (_INTEGER_LINEAR, _INTEGER_PRODUCT + _WITH_GELU),
    "integer_linear_add": (_INTEGER_LINEAR_ADD, _INTEGER_PRODUCT + _WITH_RESIDUAL),
    "layer_norm": (_NORM, _NORM_BODY),
    "rows_attention": (_ROWS, _ROWS_BODY),
    "rows_sized_attention": (_SIZED_ROWS, _SIZED_ROWS_BODY),
    "rows_attention_by_size": (_ROWS_BY_SIZE, _ROWS_BY_SIZE_BODY),
    "attention_weights": (_WEIGHTS, _WEIGHTS_BODY),
    "sized_attention_weights": (_SIZED_WEIGHTS, _SIZED_WEIGHTS_BODY),
    "attention_weights_by_size": (_WEIGHTS_BY_SIZE, _WEIGHTS_BY_SIZE_BODY),
    "cosine_match": (_COSINE, _COSINE_BODY),
    "merge_by_size": (_BY_SIZE, by_size_body("merge_tokens_sum")),
    "cosine_merge_norm": (_COSINE_MERGE_NORM, _COSINE_MERGE_NORM_BODY),
}
