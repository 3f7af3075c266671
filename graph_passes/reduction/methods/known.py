"""Lists the reduction methods; the only list of them."""

from __future__ import annotations

from typing import Final

from tokexport.graph_passes.reduction.method import Method
from tokexport.graph_passes.reduction.methods.aim_merge import AimMerge
from tokexport.graph_passes.reduction.methods.crossget import CrossGET
from tokexport.graph_passes.reduction.methods.dct import DCT
from tokexport.graph_passes.reduction.methods.diffrate import DiffRate
from tokexport.graph_passes.reduction.methods.divprune import DivPrune
from tokexport.graph_passes.reduction.methods.dpcknn import DPCKNN
from tokexport.graph_passes.reduction.methods.dynamicvit import DynamicViT
from tokexport.graph_passes.reduction.methods.evit import EViT
from tokexport.graph_passes.reduction.methods.mctf import MCTF
from tokexport.graph_passes.reduction.methods.pitome import PiToMe
from tokexport.graph_passes.reduction.methods.pyra import PYRA
from tokexport.graph_passes.reduction.methods.random_keep import RandomKeep
from tokexport.graph_passes.reduction.methods.tofu import ToFu
from tokexport.graph_passes.reduction.methods.tome import ToMe
from tokexport.graph_passes.reduction.methods.topk import TopK
from tokexport.graph_passes.reduction.methods.vtc_cls import VtcCls

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
