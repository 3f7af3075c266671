"""Lists the passes of every stage, in order; the only list of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, TypeAlias

import onnx_ir as ir
from onnx_ir.passes import PassBase
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass
from torch.export import ExportedProgram

from tokexport.graph_passes.onnx_passes.every_target.add_functions import AddFunctions
from tokexport.graph_passes.onnx_passes.every_target.annotate_kernel_calls import (
    AnnotateKernelCalls,
)
from tokexport.graph_passes.onnx_passes.every_target.choose_forms import (
    ChooseForms,
    Forms,
    TokenCall,
    token_calls,
)
from tokexport.graph_passes.onnx_passes.every_target.fold_constants import FoldConstants
from tokexport.graph_passes.onnx_passes.every_target.simplify import Simplify
from tokexport.graph_passes.onnx_passes.every_target.strip_metadata import StripMetadata
from tokexport.graph_passes.onnx_passes.fuse.ahead_attention import AheadAttention
from tokexport.graph_passes.onnx_passes.fuse.attention_by_size import AttentionBySize
from tokexport.graph_passes.onnx_passes.fuse.attention_on_rows import AttentionOnRows
from tokexport.graph_passes.onnx_passes.fuse.attention_weights import AttentionWeights
from tokexport.graph_passes.onnx_passes.fuse.cosine_merge_norm import CosineMergeNorm
from tokexport.graph_passes.onnx_passes.fuse.fusion_criteria import FusionCriteria
from tokexport.graph_passes.onnx_passes.fuse.match_back import MatchBack
from tokexport.graph_passes.onnx_passes.fuse.match_by_cosine import MatchByCosine
from tokexport.graph_passes.onnx_passes.fuse.merge_bidirectional import MergeBidirectional
from tokexport.graph_passes.onnx_passes.fuse.merge_bidirectional_by_weight import (
    MergeBidirectionalByWeight,
)
from tokexport.graph_passes.onnx_passes.fuse.merge_by_size import MergeBySize
from tokexport.graph_passes.onnx_passes.fuse.norms_on_rows import NormsOnRows
from tokexport.graph_passes.onnx_passes.fuse.pack_integer_linears import PackIntegerLinears
from tokexport.graph_passes.onnx_passes.fuse.pack_linears import PackLinears
from tokexport.graph_passes.onnx_passes.fuse.patch_embeddings import PatchEmbeddings
from tokexport.graph_passes.onnx_passes.fuse.scored_match import ScoredMatch
from tokexport.graph_passes.onnx_passes.fuse.token_destinations import TokenDestinations
from tokexport.graph_passes.onnx_passes.graph.pass_runner import OnnxResult, run_onnx_passes
from tokexport.graph_passes.onnx_passes.precision.cast_to_half import CastToHalf
from tokexport.graph_passes.onnx_passes.precision.quantise_dynamically import QuantiseDynamically
from tokexport.graph_passes.onnx_passes.precision.quantise_statically import QuantiseStatically
from tokexport.graph_passes.onnx_passes.targets.correct_integer_division import (
    CorrectIntegerDivision,
)
from tokexport.graph_passes.onnx_passes.targets.fold_by_deconvolution import FoldByDeconvolution
from tokexport.graph_passes.onnx_passes.targets.guard_square_transposes import GuardSquareTransposes
from tokexport.graph_passes.onnx_passes.targets.refuse_for_tensorrt import RefuseForTensorRt
from tokexport.graph_passes.onnx_passes.targets.widen_vectors import WidenVectors
from tokexport.graph_passes.torch_passes.canonicalize.attention_to_rank4 import AttentionToRank4
from tokexport.graph_passes.torch_passes.canonicalize.divide_integers import DivideIntegers
from tokexport.graph_passes.torch_passes.canonicalize.drop_empty import DropEmpty
from tokexport.graph_passes.torch_passes.canonicalize.drop_full_masks import DropFullMasks
from tokexport.graph_passes.torch_passes.canonicalize.drop_identities import DropIdentities
from tokexport.graph_passes.torch_passes.canonicalize.expand_cdist import ExpandCdist
from tokexport.graph_passes.torch_passes.canonicalize.expand_searchsorted import ExpandSearchsorted
from tokexport.graph_passes.torch_passes.canonicalize.fold_fourier import FoldFourier
from tokexport.graph_passes.torch_passes.canonicalize.masked_assign_to_where import (
    MaskedAssignToWhere,
)
from tokexport.graph_passes.torch_passes.canonicalize.one_hot_to_gather import OneHotToGather
from tokexport.graph_passes.torch_passes.canonicalize.products_as_matmul import ProductsAsMatmul
from tokexport.graph_passes.torch_passes.canonicalize.promote_types import PromoteTypes
from tokexport.graph_passes.torch_passes.canonicalize.recognise_means import RecogniseMeans
from tokexport.graph_passes.torch_passes.canonicalize.scale_before_norm import ScaleBeforeNorm
from tokexport.graph_passes.torch_passes.canonicalize.share_common_subexpressions import (
    ShareCommonSubexpressions,
)
from tokexport.graph_passes.torch_passes.canonicalize.sort_stably import SortStably
from tokexport.graph_passes.torch_passes.canonicalize.split_complex import SplitComplex
from tokexport.graph_passes.torch_passes.canonicalize.strided_assign_to_where import (
    StridedAssignToWhere,
)
from tokexport.graph_passes.torch_passes.canonicalize.widen_half import WidenHalf
from tokexport.graph_passes.torch_passes.canonicalize.widen_narrow import WidenNarrow
from tokexport.graph_passes.torch_passes.canonicalize.zero_fully_masked_queries import (
    ZeroFullyMaskedQueries,
)
from tokexport.graph_passes.torch_passes.graph.pass_runner import (
    PassResult,
    TorchPass,
    run_passes,
)
from tokexport.graph_passes.torch_passes.kinds.token_schedule import token_schedule
from tokexport.graph_passes.torch_passes.recognise.gather_rows import GatherRows
from tokexport.graph_passes.torch_passes.recognise.match_every_row import MatchEveryRow
from tokexport.graph_passes.torch_passes.recognise.recognise_attention import RecogniseAttention
from tokexport.graph_passes.torch_passes.recognise.recognise_matches import RecogniseMatches
from tokexport.graph_passes.torch_passes.recognise.recognise_merges import RecogniseMerges
from tokexport.graph_passes.torch_passes.recognise.scatter_rows import ScatterRows
from tokexport.graph_passes.torch_passes.spell_out.atan2 import SpellOutAtan2
from tokexport.graph_passes.torch_passes.spell_out.bags import SpellOutBags
from tokexport.graph_passes.torch_passes.spell_out.differences import SpellOutDifferences
from tokexport.graph_passes.torch_passes.spell_out.erfinv import SpellOutErfinv
from tokexport.graph_passes.torch_passes.spell_out.fills import SpellOutFills
from tokexport.graph_passes.torch_passes.spell_out.hypot import SpellOutHypot
from tokexport.graph_passes.torch_passes.spell_out.istft import SpellOutIstft
from tokexport.graph_passes.torch_passes.spell_out.join_in_pairs import JoinInPairs
from tokexport.graph_passes.torch_passes.spell_out.joins import SpellOutJoins
from tokexport.graph_passes.torch_passes.spell_out.logs import SpellOutLogs
from tokexport.graph_passes.torch_passes.spell_out.modes import SpellOutModes
from tokexport.graph_passes.torch_passes.spell_out.pools import SpellOutPools
from tokexport.graph_passes.torch_passes.spell_out.ranks import SpellOutRanks
from tokexport.graph_passes.torch_passes.spell_out.resizes import SpellOutResizes
from tokexport.graph_passes.torch_passes.spell_out.running import SpellOutRunning
from tokexport.graph_passes.torch_passes.spell_out.shifts import SpellOutShifts
from tokexport.graph_passes.torch_passes.spell_out.signs import SpellOutSigns
from tokexport.graph_passes.torch_passes.spell_out.slopes import SpellOutSlopes
from tokexport.graph_passes.torch_passes.trim.drop_unread_columns import DropUnreadColumns
from tokexport.graph_passes.torch_passes.trim.drop_unread_rows import DropUnreadRows

#: From the functional traced graph to one that moves tokens with operators of the domain.
REWRITE: Final[tuple[TorchPass, ...]] = (
    WidenHalf(),
    SpellOutPools(),
    SpellOutModes(),
    SpellOutRanks(),
    SpellOutDifferences(),
    SpellOutRunning(),
    SpellOutLogs(),
    SpellOutSigns(),
    SpellOutHypot(),
    SpellOutErfinv(),
    SpellOutShifts(),
    SpellOutFills(),
    SpellOutBags(),
    SpellOutSlopes(),
    SpellOutIstft(),
    SpellOutJoins(),
    SpellOutResizes(),
    StridedAssignToWhere(),
    WidenNarrow(),
    PromoteTypes(),
    ScaleBeforeNorm(),
    DropIdentities(),
    DropEmpty(),
    ShareCommonSubexpressions(),
    FoldFourier(),
    SplitComplex(),
    SpellOutAtan2(),
    ProductsAsMatmul(),
    ExpandCdist(),
    ExpandSearchsorted(),
    DivideIntegers(),
    MaskedAssignToWhere(),
    RecogniseMatches(),
    GatherRows(),
    ScatterRows(),
    OneHotToGather(),
    DropIdentities(),
    ShareCommonSubexpressions(),
    RecogniseMeans(),
    DropIdentities(),
    RecogniseMerges(),
    MatchEveryRow(),
    ShareCommonSubexpressions(),
    SortStably(),
    JoinInPairs(),
    DropFullMasks(),
    ZeroFullyMaskedQueries(),
    AttentionToRank4(),
    RecogniseAttention(),
)

#: Behind it, for every target: what nothing reads is not computed.
TRIM: Final[tuple[TorchPass, ...]] = (DropUnreadRows(), DropUnreadColumns(), DropEmpty())

#: What the exporter wrote, before there is a target: ``simplify_exported`` runs it.
EMIT: Final[tuple[PassBase, ...]] = (Simplify(), AddFunctions())

#: ONNX Runtime inlines the functions itself, where it has no kernel for them.
LOWER_FOR_ORT: Final[tuple[PassBase, ...]] = (
    MatchByCosine(),
    MergeBySize(),
    MatchBack(),
    ScoredMatch(),
    MergeBidirectional(),
    MergeBidirectionalByWeight(),
    TokenDestinations(),
    AttentionOnRows(),
    AttentionWeights(),
    AttentionBySize(),
    FusionCriteria(),
    AheadAttention(),
    PatchEmbeddings(),
    PackLinears(),
    PackIntegerLinears(),
    NormsOnRows(),
    RemoveUnusedNodesPass(),
    ChooseForms(),
    CosineMergeNorm(),
    AddFunctions(),
    StripMetadata(),
)

#: OpenVINO's front end does not know model-local functions; where the model is loaded, kernels may
#: take over the calls that are named in its metadata.
LOWER_FOR_OPENVINO: Final[tuple[PassBase, ...]] = (
    MatchByCosine(),
    MergeBySize(),
    MatchBack(),
    ScoredMatch(),
    MergeBidirectional(),
    MergeBidirectionalByWeight(),
    TokenDestinations(),
    RemoveUnusedNodesPass(),
    ChooseForms(),
    AnnotateKernelCalls(),
    AddFunctions(),
    InlinePass(),
    FoldConstants(),
    CorrectIntegerDivision(),
    GuardSquareTransposes(),
    StripMetadata(),
)

#: TensorRT wants constant axes, and no operator that its parser refuses. What is refused is known
#: once every k of a top-k is a constant; inlined nodes keep the source line of their call.
LOWER_FOR_TRT: Final[tuple[PassBase, ...]] = (
    InlinePass(),
    FoldConstants(),
    FoldByDeconvolution(),
    WidenVectors(),
    RefuseForTensorRt(),
    StripMetadata(),
)

#: The lowering of each target, in order; ``lower`` runs it.
LOWER: Final[dict[str, tuple[PassBase, ...]]] = {
    "ort": LOWER_FOR_ORT,
    "openvino": LOWER_FOR_OPENVINO,
    "trt": LOWER_FOR_TRT,
}


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of a lowered graph.

    Attributes:
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        ranges: The range of every input of a block's linear, by its name, for static int8; None
            lets the runtime measure them anew for each input.
        weight_bits: Of int8 weights: 8, or 7 for a processor whose sums of products saturate.
    """

    precision: str = "fp32"
    ranges: Mapping[str, tuple[float, float]] | None = None
    weight_bits: int = 8


FP32: Final = Arithmetic()
_Passes: TypeAlias = tuple[PassBase, ...]


@dataclass(frozen=True)
class Rewritten(PassResult):
    """A rewritten program, with its token counts and recognised operators.

    Attributes:
        token_schedule: The number of tokens that each attention sees.
    """

    token_schedule: tuple[int, ...]


def _quantised(arithmetic: Arithmetic) -> tuple[_Passes, _Passes]:
    if arithmetic.ranges is None:
        return (QuantiseDynamically(arithmetic.weight_bits),), ()
    return (QuantiseStatically(arithmetic.ranges, arithmetic.weight_bits),), ()


def _cast(dtype: ir.DataType) -> Callable[[Arithmetic], tuple[_Passes, _Passes]]:
    return lambda _: ((), (CastToHalf(dtype), RemoveUnusedNodesPass()))


#: What goes before and behind the passes of a target in a reduced precision. Integers go in before
#: those of ``ort``, which join what is left in float32; half precisions behind those of ``trt``,
#: once all is inlined and folded. OpenVINO takes a graph of float32: its builder narrows that.
AROUND: Final[dict[tuple[str, str], Callable[[Arithmetic], tuple[_Passes, _Passes]]]] = {
    ("ort", "int8"): _quantised,
    ("trt", "fp16"): _cast(ir.DataType.FLOAT16),
    ("trt", "bf16"): _cast(ir.DataType.BFLOAT16),
}


def lowering(
    target: str, arithmetic: Arithmetic = FP32, forms: Forms | None = None
) -> tuple[PassBase, ...]:
    """Returns the passes of a target for an arithmetic, in order.

    ``ChooseForms`` takes the forms that were measured; without any it changes nothing.
    """
    passes = tuple(
        ChooseForms(forms) if isinstance(each, ChooseForms) else each for each in LOWER[target]
    )
    around = AROUND.get((target, arithmetic.precision))
    if around is None:
        return passes
    before, behind = around(arithmetic)
    return *before, *passes, *behind


def rewrite(
    program: ExportedProgram, look: Callable[[ExportedProgram], object] | None = None
) -> Rewritten:
    """Runs ``REWRITE`` and then ``TRIM`` over a functional program, in place.

    Args:
        program: The captured program.
        look: Reads the program in between, before unread parts are dropped.

    Returns:
        The program after ``TRIM``, with the operators that were recognised before it.
    """
    recognised = run_passes(program, REWRITE, "rewrite")
    if look is not None:
        look(recognised.program)
    schedule = token_schedule(recognised.program)
    trimmed = run_passes(recognised.program, TRIM, "trim")
    reports = recognised.reports + trimmed.reports
    return Rewritten(trimmed.program, reports, recognised.recognised, schedule)


def simplify_exported(model: ir.Model) -> ir.Model:
    """Runs ``EMIT`` over a model as ``torch.onnx.export`` leaves it without its optimiser."""
    return run_onnx_passes(model, EMIT, "emit").model


def lower(
    model: ir.Model,
    passes: Sequence[PassBase],
    look: Callable[[ir.Model], object] | None = None,
) -> OnnxResult:
    """Runs the passes of a lowering over an ONNX model in order, in place where a pass can.

    Args:
        model: The emitted model.
        passes: What ``lowering`` gives, or its beginning.
        look: Reads the model before each pass.

    Raises:
        PassError: A pass raised, or left a graph that breaks a condition.
        OperatorRefusedError: The target takes no operator of this kind.
    """
    return run_onnx_passes(model, passes, "lower", look)


def calls_to_choose(model: ir.Model, passes: Sequence[PassBase]) -> Counter[TokenCall]:
    """Counts what ``ChooseForms`` meets among the passes of a target, which change the model."""
    before = [*takewhile(lambda one: not isinstance(one, ChooseForms), passes)]
    return token_calls(lower(model, before).model)
