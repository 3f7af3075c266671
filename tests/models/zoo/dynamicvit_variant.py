"""DynamicViT once more: the class token is kept aside, topk picks, and gathers take.

On the weights of ``models.zoo.dynamicvit`` it answers the same.
"""

from __future__ import annotations

import torch
from models.zoo import dynamicvit
from models.zoo.dynamicvit import DynamicVit, PredictorLG
from models.zoo.vit import images
from torch import Tensor, nn


def rate(predictor: PredictorLG, patches: Tensor, alive: Tensor) -> Tensor:
    """Log probabilities of keeping patches (B, N, C) of which alive (B, N) still count: (B, N)."""
    own, shared = predictor.in_conv(patches).chunk(2, dim=2)
    mean = torch.bmm(alive.unsqueeze(1), shared) / alive.sum(1).view(-1, 1, 1)
    both = torch.cat((own, mean.repeat(1, own.size(1), 1)), dim=2)
    result: Tensor = predictor.out_conv(both).select(2, 0)
    return result


class Pruned(nn.Module):
    """Runs the parts of a DynamicViT as they are used at inference."""

    def __init__(self, vit: DynamicVit) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        net = self.vit
        counts = {
            number: int(share * net.num_patches)
            for number, share in zip(net.pruning_loc, net.token_ratio, strict=True)
        }
        predictors = iter(net.score_predictor)
        h = net.embed(pixels)
        alive = h.new_ones(h.size(0), net.num_patches)
        for number, layer in enumerate(net.blocks):
            if number in counts:
                predictor = next(predictors)
                assert isinstance(predictor, PredictorLG)
                cls, patches = h.tensor_split([1], dim=1)
                _, best = torch.topk(rate(predictor, patches, alive), counts[number], dim=-1)
                patches = torch.gather(patches, 1, best.unsqueeze(2).repeat(1, 1, h.size(2)))
                h = torch.cat((cls, patches), dim=1)
                alive = torch.gather(alive, 1, best)
            h = layer(h)
        result: Tensor = net.head(net.norm(h)[:, 0])
        return result


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Keeps 0.7, then 0.49 of the 36 patches."""
    vit, _ = dynamicvit.build(seed)
    assert isinstance(vit, DynamicVit)
    return Pruned(vit).eval(), images()
