"""Defines further forms of the token operators: bodies that give the same result.

Which is fastest depends on shapes, batch, runtime and processor, so ``tokexport compile --tune``
measures. The form ``F`` of an operator ``O`` is the function ``O__F``; the standard bodies, in
``onnx_functions`` and ``fused_functions``, are forms too, and what there is without tuning.

=============  ===================================================================================
``one-hot``    rows are summed by a product with a one-hot matrix; sums and means only
``masked``     rows are reduced under a mask (B, N, K, C); products, largest and smallest
``scatter``    ``ScatterElements`` with a reduction; ``ScatterND`` where rows are overwritten
``gather``     whole rows are gathered, by ``GatherND``
``flat``       whole rows are gathered, by ``Gather`` from the rows of all images
``elements``   rows are gathered number by number, by ``GatherElements``
``native``     the kernel in ``runtimes/native``
=============  ===================================================================================

A merge gathers and reduces; ``scatter-flat`` says both, and without the second word it gathers by
``GatherND``. Finite rows come out equal up to the order of a sum. A row with an infinity or a NaN
makes a ``one-hot`` sum NaN in every destination of its image, and only in its own under
``scatter``, as in eager; what a NaN does to a largest or smallest is the runtime's. No form
gathers by a product, since that would change infinite rows.
"""

from __future__ import annotations

from typing import Final

from tokexport.graph_passes.ops.fused_functions import by_size_body
from tokexport.graph_passes.ops.ops import MODES, NAMESPACE

NATIVE: Final = "native"
#: What ``ScatterElements`` calls the reduction of each mode; a mean is a sum and a count.
_REDUCTIONS: Final = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}
#: What each reduction starts from where the row that was there takes no part.
_NEUTRAL: Final = {"sum": "0.0", "mean": "0.0", "prod": "1.0", "amax": "-inf", "amin": "inf"}

# The rows of all images lie below each other: image i begins at row i·N.
_GATHER_FLAT = """
  width = Shape <start = 2, end = 3> (x)
  any = Constant <value_ints = [-1]> ()
  flat_shape = Concat <axis = 0> (any, width)
  flat = Reshape (x, flat_shape)
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  batch = Shape <start = 0, end = 1> (x)
  batch_count = Squeeze (batch)
  images = Range (zero, batch_count, one)
  n_rows = Shape <start = 1, end = 2> (x)
  starts = Mul (images, n_rows)
  column_axis = Constant <value_ints = [1]> ()
  starts_column = Unsqueeze (starts, column_axis)
  places = Add (index, starts_column)
  y = Gather <axis = 0> (flat, places)
"""
# rows (B, K, 1) of the indices, rows_wide (B, K, C).
_WIDE = """
  last_axis = Constant <value_ints = [2]> ()
  rows = Unsqueeze (index, last_axis)
  width = Shape <start = 2, end = 3> ({rows_of})
  single = Constant <value_ints = [1, 1]> ()
  wide = Concat <axis = 0> (single, width)
  rows_wide = Expand (rows, wide)
"""
_GATHER_ELEMENTS = _WIDE.format(rows_of="x") + "  y = GatherElements <axis = 1> (x, rows_wide)\n"

# writers (B, N, 1): how many rows go to each destination.
_WRITERS = """
  nothing_number = Constant <value_float = 0.0> ()
  nothing = CastLike (nothing_number, src)
  unit_number = Constant <value_float = 1.0> ()
  unit = CastLike (unit_number, src)
  dst_rows = Shape <start = 0, end = 2> (dst)
  one_size = Constant <value_ints = [1]> ()
  column_shape = Concat <axis = 0> (dst_rows, one_size)
  nobody = Expand (nothing, column_shape)
  rows_shape = Shape (rows)
  units = Expand (unit, rows_shape)
  writers = ScatterElements <axis = 1, reduction = "add"> (nobody, rows, units)
"""
_REDUCED = """
  reduced = ScatterElements <axis = 1, reduction = "{reduction}"> ({onto}, rows_wide, src)
"""
_NEUTRAL_ROWS = """
  neutral_number = Constant <value_float = {neutral}> ()
  neutral_one = CastLike (neutral_number, src)
  dst_shape = Shape (dst)
  neutral = Expand (neutral_one, dst_shape)
"""

# hits (B, N, K): hits[b, n, k] says whether row k goes to destination n.
HITS: Final = """
  one_axis = Constant <value_ints = [1]> ()
  last_axis = Constant <value_ints = [2]> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  n_rows = Shape <start = 1, end = 2> (dst)
  count = Squeeze (n_rows)
  ids = Range (zero, count, one)
  column = Unsqueeze (ids, one_axis)
  wanted = Unsqueeze (index, one_axis)
  hits = Equal (wanted, column)
"""
# The last row that goes to a destination stands in its place; nobody's stays.
_OVERWRITE_BY_GATHER = f"""{HITS}  k_rows = Shape <start = 1, end = 2> (index)
  k_count = Squeeze (k_rows)
  moved = Range (zero, k_count, one)
  places_moved = Add (moved, n_rows)
  nowhere = Constant <value_int = -1> ()
  writer_of = Where (hits, places_moved, nowhere)
  last_writer = ReduceMax <keepdims = 0> (writer_of, last_axis)
  stays = Less (last_writer, zero)
  places = Where (stays, ids, last_writer)
  joined = Concat <axis = 1> (dst, src)
  y = {NAMESPACE}.gather_tokens__gather (joined, places)
"""


def _scatter_body(mode: str, include_self: bool) -> str:
    reduced = _REDUCED.format(
        reduction=_REDUCTIONS[mode], onto="dst" if include_self else "neutral"
    )
    body = _WIDE.format(rows_of="src")
    if not include_self:
        body += _NEUTRAL_ROWS.format(neutral=_NEUTRAL[mode])
    body += reduced
    if include_self and mode != "mean":
        return body + "  y = Identity (reduced)\n"
    body += _WRITERS
    if include_self:
        return body + "  number = Add (writers, unit)\n  y = Div (reduced, number)\n"
    if mode == "mean":
        body += "  number = Max (writers, unit)\n  result = Div (reduced, number)\n"
    else:
        body += "  result = Identity (reduced)\n"
    return body + "  written = Greater (writers, nothing)\n  y = Where (written, result, dst)\n"


def _merge_body(gather: str, scatter: str | None) -> str:
    """Merges with one function that gathers and one that reduces; without that, it prunes."""
    body = f"  rest = {NAMESPACE}.{gather} (a, kept)\n"
    if scatter is None:
        return body + "  y = Concat <axis = 1> (rest, b)\n"
    return (
        body
        + f"  moved = {NAMESPACE}.{gather} (a, src)\n"
        + f"  merged = {NAMESPACE}.{scatter} (b, dst, moved)\n"
        + "  y = Concat <axis = 1> (rest, merged)\n"
    )


def form_name(operator: str, form: str) -> str:
    """Returns the function of a form of an operator."""
    return operator if form == NATIVE else f"{operator}__{form.replace('-', '_')}"


def _standard_scatter(mode: str) -> str:
    if mode == "none":
        return "scatter"
    return "one-hot" if mode in ("sum", "mean") else "masked"


def _bodies() -> dict[str, dict[str, str | None]]:
    found: dict[str, dict[str, str | None]] = {
        "gather_tokens": {"gather": None, "flat": _GATHER_FLAT, "elements": _GATHER_ELEMENTS},
        "scatter_tokens_none": {"scatter": None, "gather": _OVERWRITE_BY_GATHER},
        "merge_tokens_none": {
            form: _merge_body(form_name("gather_tokens", form), None)
            for form in ("gather", "flat", "elements")
        },
    }
    for mode in MODES[1:]:
        scatter, standard = f"scatter_tokens_{mode}", _standard_scatter(mode)
        found[scatter] = {standard: None, "scatter": _scatter_body(mode, True)}
        found[f"{scatter}_exclude_self"] = {
            standard: None,
            "scatter": _scatter_body(mode, False),
        }
        found[f"merge_tokens_{mode}"] = {
            form + suffix: _merge_body(form_name("gather_tokens", gather), form_name(scatter, form))
            for form in (standard, "scatter")
            for suffix, gather in (("", "gather"), ("-flat", "flat"))
        }
    found["merge_by_size"] = {
        form: by_size_body(form_name("merge_tokens_sum", form))
        for form in found["merge_tokens_sum"]
    }
    return found


#: The body of every form of each operator, the form of its standard body first. None is that body
#: itself; those of merges are spelled out, so that no part of them is a kernel.
FORMS: Final[dict[str, dict[str, str | None]]] = _bodies()


def candidates(operator: str, *, kernels: bool) -> tuple[str, ...]:
    """Returns the forms of an operator, the default first.

    Args:
        operator: A key of ``FORMS``.
        kernels: Whether native kernels run.
    """
    forms = tuple(FORMS[operator])
    return (NATIVE, *forms) if kernels else forms
