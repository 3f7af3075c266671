"""The reduction methods: the only list of them."""

from __future__ import annotations

from typing import Final

from tokexport.graph_passes.reduction.aim_merge import AimMerge
from tokexport.graph_passes.reduction.crossget import CrossGET
from tokexport.graph_passes.reduction.dct import DCT
from tokexport.graph_passes.reduction.diffrate import DiffRate
from tokexport.graph_passes.reduction.divprune import DivPrune
from tokexport.graph_passes.reduction.dpcknn import DPCKNN
from tokexport.graph_passes.reduction.dynamicvit import DynamicViT
from tokexport.graph_passes.reduction.evit import EViT
from tokexport.graph_passes.reduction.mctf import MCTF
from tokexport.graph_passes.reduction.method import Method
from tokexport.graph_passes.reduction.pitome import PiToMe
from tokexport.graph_passes.reduction.pyra import PYRA
from tokexport.graph_passes.reduction.random_keep import RandomKeep
from tokexport.graph_passes.reduction.tofu import ToFu
from tokexport.graph_passes.reduction.tome import ToMe
from tokexport.graph_passes.reduction.topk import TopK
from tokexport.graph_passes.reduction.vtc_cls import VtcCls

METHODS: Final[tuple[type[Method], ...]] = (
    ToMe,
    MCTF,
    PiToMe,
    ToFu,
    DCT,
    DiffRate,
    EViT,
    TopK,
    RandomKeep,
    DPCKNN,
    DivPrune,
    VtcCls,
    AimMerge,
    DynamicViT,
    PYRA,
    CrossGET,
)
