"""Top-k: the patches that the class token attends to most stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokexport.graph_passes.reduction.method import option
from tokexport.graph_passes.reduction.methods.evit import EViT


@dataclass(frozen=True, kw_only=True)
class TopK(EViT):
    """EViT without its fused token."""

    name: ClassVar[str] = "topk"
    summary: ClassVar[str] = "keep the patches the class token attends to, drop the rest"

    fuse: bool = option(False, "make one token of the rest")
