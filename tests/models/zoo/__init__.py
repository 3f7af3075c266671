"""Published token-reduction methods as people write them, each on a small ViT.

``MODELS`` names every one; ``build(seed)`` returns the module and an example input. A method and
its variant take the same weights from the same seed and answer the same: ``VARIANTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from models.zoo import (
    dct,
    diffrate,
    diffrate_variant,
    dynamicvit,
    dynamicvit_variant,
    evit,
    evit_variant,
    mctf,
    mctf_variant,
    pitome,
    pitome_variant,
    projector,
    projector_variant,
    selection,
    selection_variant,
    tofu,
    tofu_variant,
    tome,
    tome_variant,
)
from torch import Tensor, nn

Build = Callable[[int], tuple[nn.Module, Tensor]]

MODELS: Final[dict[str, Build]] = {
    "tome": tome.build,
    "tome, sizes not in attention": tome.build_without_sizes_in_attention,
    "tome, distilled": tome.build_distilled,
    "tome, falling r": tome.build_falling,
    "tome, plain mean": tome.build_mean,
    "tome, variant": tome_variant.build,
    "mctf": mctf.build,
    "mctf, one way": mctf.build_one_way,
    "mctf, to the fewest": mctf.build_to_the_fewest,
    "mctf, variant": mctf_variant.build,
    "mctf, one way, variant": mctf_variant.build_one_way,
    "pitome": pitome.build,
    "pitome, variant": pitome_variant.build,
    "tofu": tofu.build,
    "tofu, variant": tofu_variant.build,
    "dct": dct.build,
    "dct, by fft": dct.build_by_fft,
    "diffrate": diffrate.build,
    "diffrate, variant": diffrate_variant.build,
    "evit": evit.build,
    "evit, fused token": evit.build_fused,
    "evit, fused token, distilled": evit.build_distilled,
    "evit, variant": evit_variant.build,
    "dynamicvit": dynamicvit.build,
    "dynamicvit, variant": dynamicvit_variant.build,
    "top-k class attention": selection.build_topk,
    "top-k class attention, variant": selection_variant.build_topk,
    "fixed positions": selection.build_fixed,
    "fixed positions, variant": selection_variant.build_fixed,
    "vtc-cls": projector.build_vtc_cls,
    "vtc-cls, variant": projector_variant.build_vtc_cls,
    "aim": projector.build_aim,
    "aim, odd": projector.build_aim_odd,
    "aim, variant": projector_variant.build_aim,
    "aim, odd, variant": projector_variant.build_aim_odd,
}

#: Two ways to write one thing.
VARIANTS: Final[dict[str, str]] = {
    "tome, variant": "tome",
    "pitome, variant": "pitome",
    "evit, variant": "evit, fused token",
    "diffrate, variant": "diffrate",
    "dct, by fft": "dct",
    "mctf, variant": "mctf",
    "mctf, one way, variant": "mctf, one way",
    "tofu, variant": "tofu",
    "dynamicvit, variant": "dynamicvit",
    "top-k class attention, variant": "top-k class attention",
    "fixed positions, variant": "fixed positions",
    "vtc-cls, variant": "vtc-cls",
    "aim, variant": "aim",
    "aim, odd, variant": "aim, odd",
}
