"""Defines functions for layers that merge tokens in both directions before attention: MCTF.

The first P tokens stay. Of the others, in the sets a and b, r of a merge into b and then s of b
into what is left of a; the new order is what stays, what is left of a, what is left of b. B images,
N tokens before and M after, C channels, H heads of depth D.

=============================  ==================================================================
``fusion_criteria``            how rare each token is, and its share in what it merges into
``scored_match``               the match forth, by cosine and a term of each token, and its scores
``match_back``                 the match back, by the same scores, of what is left
``places_both_ways``           where each token goes, (B, N)
``merge_both_ways``            the sums of what becomes one token
``merge_both_ways_by_weight``  the means by weight, and the sums of the weights
``ahead_attention``            weights from before the merge on values from behind it
=============================  ==================================================================

A token that nothing merges into is copied by the kernels, and by the bodies multiplied with its
weight and divided by it again: they differ where that is 0 or infinite.

Source: MCTF (Lee et al. 2024), section 3.
"""

from __future__ import annotations

from typing import Final

from tokexport.graph_passes.ops.fused_functions import (
    HEADS_SPLIT,
    ROWS_JOINED,
    SET_BOUNDS,
    Signature,
    sets_of,
)

_SETS = (("protected", "ints"), ("a_start", "ints"), ("b_start", "ints"), ("step", "ints"))
_MATCHES = tuple((name + way, "I") for way in ("", "_back") for name in ("kept", "src", "dst"))
_INDICES = ", ".join(name for name, _ in _MATCHES)
_SETS_GIVEN = ", ".join(f"{name}: ints = @{name}" for name, _ in _SETS)
_SCORED = Signature(
    (("tokens", "T"), ("rare", "T")),
    (*_MATCHES[:3], ("scores", "T")),
    (*_SETS[1:], ("r", "ints")),
)
_BACK = Signature((("scores", "T"), ("kept", "I")), _MATCHES[3:], (("r", "ints"),))
_PLACES = Signature(_MATCHES, (("places", "I"),), _SETS)
_MERGE = Signature((("x", "T"), *_MATCHES), (("y", "T"),), _SETS)
_BY_WEIGHT = Signature(
    (("x", "T"), ("weight", "T"), *_MATCHES), (("y", "T"), ("y_weight", "T")), _SETS
)
_AHEAD = Signature(
    (("weights", "T"), ("v", "T"), ("place", "I"), ("share", "T"), *_MATCHES),
    (("y", "T"),),
    (("heads", "ints"), ("depth", "ints"), ("v_start", "ints"), *_SETS),
)

_CRITERIA = Signature(
    (("weights", "T"), ("size", "T")),
    (("rare", "T"), ("share", "T")),
    (("info_power", "float"), ("size_power", "float")),
)

_CRITERIA_BODY = """
  averaged = Constant <value_ints = [1, 2]> ()
  received = ReduceMean <keepdims = 0> (weights, averaged)
  token_axis = Constant <value_ints = [1]> ()
  channel_axis = Constant <value_ints = [2]> ()
  info = Reciprocal (received)
  most_info = ReduceMax <keepdims = 1> (info, token_axis)
  info_share = Div (info, most_info)
  info_exponent_number = Constant <value_float: float = @info_power> ()
  info_exponent = CastLike (info_exponent_number, weights)
  info_term = Pow (info_share, info_exponent)
  size_of = Squeeze (size, channel_axis)
  smallness = Reciprocal (size_of)
  most_smallness = ReduceMax <keepdims = 1> (smallness, token_axis)
  smallness_share = Div (smallness, most_smallness)
  size_exponent_number = Constant <value_float: float = @size_power> ()
  size_exponent = CastLike (size_exponent_number, weights)
  size_term = Pow (smallness_share, size_exponent)
  rare = Mul (info_term, size_term)
  received_wide = Unsqueeze (received, channel_axis)
  received_by_size = Mul (received_wide, size)
  largest = ReduceMax <keepdims = 1> (size, token_axis)
  share = Div (received_by_size, largest)
"""
_SCORED_BODY = (
    SET_BOUNDS
    + """
  last = Constant <value_ints = [2]> ()
  norm = ReduceL2 <keepdims = 1> (tokens, last)
  unit = Div (tokens, norm)
"""
    + sets_of("unit")
    + sets_of("rare")
    + """
  unit_b_turned = Transpose <perm = [0, 2, 1]> (unit_b)
  cosines = MatMul (unit_a, unit_b_turned)
  one_number = Constant <value_float = 1.0> ()
  one = CastLike (one_number, cosines)
  two_number = Constant <value_float = 2.0> ()
  two = CastLike (two_number, cosines)
  raised = Add (cosines, one)
  similar = Div (raised, two)
  column = Unsqueeze (rare_a, last)
  row = Unsqueeze (rare_b, token_axis)
  partly = Mul (similar, column)
  scores = Mul (partly, row)
  kept, src, dst = tokexport.bipartite_match <r: ints = @r> (scores)
"""
)
_BACK_BODY = """
  left = tokexport.gather_tokens (scores, kept)
  turned = Transpose <perm = [0, 2, 1]> (left)
  kept_back, src_back, dst_back = tokexport.bipartite_match_by_score <r: ints = @r> (turned)
"""
# The tokens of the three parts behind the first match, and where each of them goes in the second.
_PLACES_BODY = (
    SET_BOUNDS
    + """
  zero = Constant <value_ints = [0]> ()
  zero_number = Constant <value_int = 0> ()
  one_number = Constant <value_int = 1> ()
  stay = Constant <value_ints: ints = @protected> ()
  left = Shape <start = 1> (kept)
  gone = Shape <start = 1> (src)
  left_back = Shape <start = 1> (kept_back)
  gone_back = Shape <start = 1> (src_back)
  a_count = Add (left, gone)
  b_count = Add (left_back, gone_back)
  seat_of_a = Identity (stay)
  seat_of_b = Add (stay, left)
  left_number = Squeeze (left)
  left_ids = Range (zero_number, left_number, one_number)
  left_seats = Add (left_ids, seat_of_a)
  left_back_number = Squeeze (left_back)
  left_back_ids = Range (zero_number, left_back_number, one_number)
  left_back_seats = Add (left_back_ids, seat_of_b)
  images = Shape <start = 0, end = 1> (kept)
  left_shape = Concat <axis = 0> (images, left)
  left_places = Expand (left_seats, left_shape)
  left_back_shape = Concat <axis = 0> (images, left_back)
  left_back_places = Expand (left_back_seats, left_back_shape)
  gone_back_places = Add (dst_back, seat_of_a)
  ranked_b = Concat <axis = 1> (kept_back, src_back)
  ranked_b_places = Concat <axis = 1> (left_back_places, gone_back_places)
  places_b = ScatterElements <axis = 1> (ranked_b, ranked_b, ranked_b_places)
  gone_places = GatherElements <axis = 1> (places_b, dst)
  ranked_a = Concat <axis = 1> (kept, src)
  ranked_a_places = Concat <axis = 1> (left_places, gone_places)
  places_a = ScatterElements <axis = 1> (ranked_a, ranked_a, ranked_a_places)
  stay_number = Squeeze (stay)
  stay_ids = Range (zero_number, stay_number, one_number)
  stay_shape = Concat <axis = 0> (images, stay)
  places_stay = Expand (stay_ids, stay_shape)
  a_number = Squeeze (a_count)
  a_ids = Range (zero_number, a_number, one_number)
  a_far = Mul (a_ids, apart)
  a_tokens = Add (a_far, a_first)
  b_number = Squeeze (b_count)
  b_ids = Range (zero_number, b_number, one_number)
  b_far = Mul (b_ids, apart)
  b_tokens = Add (b_far, b_first)
  tokens_in_sets = Concat <axis = 0> (stay_ids, a_tokens, b_tokens)
  places_in_sets = Concat <axis = 1> (places_stay, places_a, places_b)
  shape = Shape (places_in_sets)
  tokens = Expand (tokens_in_sets, shape)
  places = ScatterElements <axis = 1> (places_in_sets, tokens, places_in_sets)
"""
)
_MERGE_BODY = (
    SET_BOUNDS
    + """
  first = Constant <value_ints = [0]> ()
  protected_count = Constant <value_ints: ints = @protected> ()
  stay = Slice (x, first, protected_count, token_axis)
"""
    + sets_of("x")
    + """
  forth = tokexport.merge_tokens_sum (x_a, x_b, kept, src, dst)
  left = Shape <start = 1> (kept)
  of_a = Slice (forth, first, left, token_axis)
  of_b = Slice (forth, left, end, token_axis)
  both = tokexport.merge_tokens_sum (of_b, of_a, kept_back, src_back, dst_back)
  left_back = Shape <start = 1> (kept_back)
  merged_a = Slice (both, left_back, end, token_axis)
  merged_b = Slice (both, first, left_back, token_axis)
  y = Concat <axis = 1> (stay, merged_a, merged_b)
"""
)
_BY_WEIGHT_BODY = f"""
  weighted = Mul (x, weight)
  total = tokexport.merge_both_ways <{_SETS_GIVEN}> (weighted, {_INDICES})
  y_weight = tokexport.merge_both_ways <{_SETS_GIVEN}> (weight, {_INDICES})
  y = Div (total, y_weight)
"""
_AHEAD_BODY = (
    HEADS_SPLIT
    + """
  v_first = Constant <value_ints: ints = @v_start> ()
  v_end = Add (v_first, width)
  v_part = Slice (v, v_first, v_end, last)
  v_rows = tokexport.gather_tokens (v_part, place)
  v_split = Reshape (v_rows, split)
  v_heads = Transpose <perm = [0, 2, 1, 3]> (v_split)
  attended = MatMul (weights, v_heads)
"""
    + ROWS_JOINED.replace(" y = ", " rows = ")
    + f"""
  y, y_share = tokexport.merge_both_ways_by_weight <{_SETS_GIVEN}> (rows, share, {_INDICES})
"""
)

#: Signature and body of each function, by name.
BOTH_WAYS: Final[dict[str, tuple[Signature, str]]] = {
    "fusion_criteria": (_CRITERIA, _CRITERIA_BODY),
    "scored_match": (_SCORED, _SCORED_BODY),
    "match_back": (_BACK, _BACK_BODY),
    "places_both_ways": (_PLACES, _PLACES_BODY),
    "merge_both_ways": (_MERGE, _MERGE_BODY),
    "merge_both_ways_by_weight": (_BY_WEIGHT, _BY_WEIGHT_BODY),
    "ahead_attention": (_AHEAD, _AHEAD_BODY),
}
