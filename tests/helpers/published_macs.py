"""The figures of the papers, and how they count.

Papers count patches·C·3p² + Σ (4·N·C² + 2·N²·C + 8·N'·C²) + C·classes, N tokens at the attention
and N' at the MLP; some add 5 operations for every element that a LayerNorm normalises, and some the
product by which tokens are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch.export import ExportedProgram

from tokexport.graph_passes.analysis.blocks import Blocks, attention_blocks, tokens_through
from tokexport.graph_passes.analysis.macs import NodeMacs
from tokexport.graph_passes.torch_passes.kinds.product_kinds import Kind, ProductKinds

#: Published figures are rounded or truncated.
WITHIN: Final = 0.005


@dataclass(frozen=True)
class Size:
    """A plain ViT: C channels, in patches of p × p pixels."""

    width: int
    heads: int
    depth: int = 12
    image: int = 224
    patch: int = 16

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the zoo's ViT."""
        return {
            "depth": self.depth,
            "dim": self.width,
            "num_heads": self.heads,
            "mlp_ratio": 4,
            "image": self.image,
            "patch": self.patch,
            "classes": 1000,
        }


TINY, SMALL, BASE = Size(192, 3), Size(384, 6), Size(768, 12)
LARGE, LARGE_384 = Size(1024, 16, 24), Size(1024, 16, 24, image=384)
HUGE = Size(1280, 16, 32, patch=14)


def formula(size: Size, attended: Sequence[int], at_mlp: Sequence[int]) -> int:
    """The papers' count for the tokens of every layer."""
    C = size.width
    layers = zip(attended, at_mlp, strict=True)
    embedding = size.patches * C * 3 * size.patch**2
    return embedding + sum(4 * n * C**2 + 2 * n**2 * C + 8 * m * C**2 for n, m in layers) + 1000 * C


def total(counted: Sequence[NodeMacs], *without: Kind) -> int:
    return sum(one.macs for one in counted if one.kind not in without)


def of_blocks_at_their_inputs(
    program: ExportedProgram, counted: Sequence[NodeMacs], depth: int
) -> int:
    """Counts as PiToMe's figures do: the blocks only, and the MLP at the tokens that enter."""
    blocks = Blocks(program, attention_blocks(program, counted))
    assert len(blocks.paths) == depth
    found = 0
    for position in range(depth):
        through = tokens_through(blocks.members(position), counted, ProductKinds(program), batch=1)
        assert through is not None
        for one in counted:
            if blocks.block_of(one.node) != position:
                continue
            if one.kind is Kind.LINEAR:
                rows, *others = one.sizes
                assert rows in (through.entering, through.leaving)
                assert (rows == through.leaving) or ".mlp" not in one.module
                found += through.entering * others[0] * others[1]
            elif one.kind is Kind.ATTENTION:
                found += one.macs
    return found


def falling(tokens: int, r: int, depth: int) -> list[int]:
    """Tokens at the first attention and behind every merge of at most half of the others."""
    found = [tokens]
    for _ in range(depth):
        found.append(found[-1] - min(r, (found[-1] - 1) // 2))
    return found


TOME: Final[dict[tuple[str, int], tuple[Size, float]]] = {
    ("deit_small_patch16_224", 8): (SMALL, 3.416),
    ("deit_small_patch16_224", 13): (SMALL, 2.703),
    ("deit_small_patch16_224", 16): (SMALL, 2.291),
    ("deit_tiny_patch16_224", 8): (TINY, 0.924),
    ("deit_tiny_patch16_224", 12): (TINY, 0.769),
    ("deit_tiny_patch16_224", 16): (TINY, 0.622),
    ("vit_base_patch16_224", 0): (BASE, 17.56),
    ("vit_base_patch16_224", 13): (BASE, 10.37),
    ("vit_large_patch16_224", 0): (LARGE, 61.55),
    ("vit_large_patch16_224", 7): (LARGE, 34.71),
    ("vit_large_patch16_224", 8): (LARGE, 30.96),
    ("vit_large_patch16_384", 0): (LARGE_384, 191.1),
    ("vit_large_patch16_384", 23): (LARGE_384, 96.2),
    ("vit_huge_patch14_224", 0): (HUGE, 167.3),
    ("vit_huge_patch14_224", 7): (HUGE, 92.8),
}


#: Every size and patch, no and every reduction, and one that comes to its limit of a half.
TOME_TRACED: Final = (
    ("deit_small_patch16_224", 13),
    ("deit_tiny_patch16_224", 16),
    ("vit_base_patch16_224", 0),
    ("vit_base_patch16_224", 13),
    ("vit_large_patch16_384", 23),
    ("vit_huge_patch14_224", 7),
)


#: With normalisation and with matching.
MCTF: Final[list[tuple[Size, dict[int, float], float]]] = [
    (TINY, dict.fromkeys(range(1, 12), 16), 0.709),
    (SMALL, dict.fromkeys(range(1, 12), 16), 2.602),
    (SMALL, dict.fromkeys(range(1, 12), 18), 2.377),
    (SMALL, dict.fromkeys(range(1, 12), 20), 2.194),
    (TINY, dict.fromkeys((3, 6, 9), 0.35), 0.748),
    (SMALL, dict.fromkeys((3, 6, 9), 0.35), 2.756),
]


EVIT: Final = {
    (0.9, True): 4.022,
    (0.8, True): 3.477,
    (0.7, True): 3.029,
    (0.6, True): 2.635,
    (0.5, True): 2.309,
    (0.9, False): 3.988,
    (0.8, False): 3.444,
    (0.7, False): 2.997,
    (0.6, False): 2.608,
    (0.5, False): 2.282,
}


#: With the predictors.
DYNAMIC_VIT: Final = {0.7: 2.981, 0.8: 3.463, 0.9: 4.041}

#: The schedules that the authors learned: prune to, then merge to.
DIFFRATE: Final[list[tuple[Size, list[int], list[int], float]]] = [
    (
        SMALL,
        [197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3],
        [197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3],
        2.905,
    ),
    (
        BASE,
        [197, 197, 197, 188, 170, 154, 139, 123, 107, 72, 43, 3],
        [197, 197, 192, 178, 158, 145, 127, 111, 94, 50, 35, 3],
        11.517,
    ),
    (
        LARGE,
        [197, 197, 197, 195, 194, 193, 191, 187, 182, 180, 173, 149]
        + [142, 134, 125, 121, 111, 106, 91, 87, 77, 39, 38, 32],
        [197, 197, 196, 194, 193, 192, 187, 183, 181, 173, 154, 146]
        + [137, 127, 123, 114, 105, 98, 87, 75, 43, 45, 32, 32],
        42.290,
    ),
]


PITOME: Final = {0.9: 2.70, 0.925: 3.07, 0.95: 3.48, 0.975: 4.00, 1.0: 4.54}
