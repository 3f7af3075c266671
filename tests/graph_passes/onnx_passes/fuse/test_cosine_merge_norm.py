"""ToMe's match, merge and norm become one call, where they belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from helpers.graphs import checked, emitted, lowered
from torch import Tensor, nn

from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.ops.onnx_functions import DOMAIN

ops.register()
Match = tuple[Tensor, Tensor, Tensor]
Outputs = Tensor | tuple[Tensor, ...]
Told = Callable[["Step", Tensor, Tensor, Match], Outputs]


class Step(nn.Module):
    """Merges tokens as ToMe does, and computes of them what it is told."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.norm, self.of_sizes = nn.Linear(24, 72), nn.LayerNorm(24), nn.LayerNorm(1)
        self.other = nn.LayerNorm(24)
        self.told = told

    def forward(self, x: Tensor, size: Tensor) -> Outputs:
        batch, count, _ = x.shape
        keys = self.qkv(x).reshape(batch, count, 3, 3, 8).permute(2, 0, 3, 1, 4)[1].mean(1)
        unit = keys / keys.norm(dim=-1, keepdim=True)
        scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
        match = torch.ops.tokexport.bipartite_match(scores, 2, "index")

        def merged(values: Tensor) -> Tensor:
            parts = values[:, ::2], values[:, 1::2]
            return torch.ops.tokexport.merge_tokens(*parts, *match, "sum")  # type: ignore[no-any-return]

        total = merged(size)
        return self.told(self, merged(x * size) / total, total, match)


def found(told: Told) -> Counter[str]:
    """Holds what is computed to eager, and counts the calls of the domain."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 11, 24, generator=generator)
    size = 1 + torch.randint(0, 3, (2, 11, 1), generator=generator).float()
    rewritten = checked(Step(told), x, size, targets=("ort",), tolerance=1e-5)
    nodes = lowered(emitted(rewritten), "ort").graph
    return Counter(node.op_type for node in nodes if node.domain == DOMAIN)


JOINED: dict[str, Told] = {
    "the norm": lambda step, y, size, match: step.norm(y),
    "with a residual and the sizes": lambda step, y, size, match: (y * 2 + step.norm(y), size * 2),
    "one of two norms": lambda step, y, size, match: step.norm(y) + step.other(y),
}
APART: dict[str, Told] = {
    "the norm of the sizes": lambda step, y, size, match: y * 2 + step.of_sizes(size),
    "the match is read as well": lambda step, y, size, match: (step.norm(y), match[1] + 1),
    "what is merged is a result": lambda step, y, size, match: (step.norm(y), y),
    "the sizes are a result": lambda step, y, size, match: (step.norm(y), size),
    "the norm is of something else": lambda step, y, size, match: step.norm(y * 2),
}


@pytest.mark.parametrize("name", JOINED)
def test_the_three_are_one_call(name: str) -> None:
    calls = found(JOINED[name])
    assert calls["cosine_merge_norm"] == 1
    assert calls["cosine_match"] == calls["merge_by_size"] == 0


@pytest.mark.parametrize("name", APART)
def test_what_does_not_belong_together_stays_apart(name: str) -> None:
    calls = found(APART[name])
    assert calls["cosine_merge_norm"] == 0
    assert calls["cosine_match"] == 1
