"""What a reduction would make of a model's outputs: refused where it changes what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from helpers.thorough import thorough_but
from models.zoo.vit import IMAGE, WIDTH, Block, Vit, seeded
from torch import Tensor, nn

import tokexport
from tokexport.exporter.recipe import parse_recipe, restoring
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Layer, Method
from tokexport.graph_passes.reduction.token_maps import Matching
from tokexport.graph_passes.reduction.tokens import Tokens

Head = Callable[[Any, list[Tensor]], Any]


class _Read(Vit):
    """Gives all that its layers return to a function, the embedding first."""

    def forward(self, x: Tensor) -> Any:
        layers = [self.embed(x)]
        for block in self.blocks:
            layers.append(block(layers[-1]))
        return self.read[0](self, layers)  # type: ignore[index,operator]


def images() -> Tensor:
    return torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(5))


def read_by(head: Head) -> Vit:
    model = seeded(3)
    model.__class__ = _Read
    model.read = (head,)  # type: ignore[assignment]
    return model


def _map(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], -1, 6, 6)


def _square(tokens: Tensor) -> Tensor:
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, 1 : 1 + side * side].unflatten(1, (side, side)).amax(dim=(1, 2))


def _square_map(tokens: Tensor) -> Tensor:
    side = math.isqrt(tokens.shape[1] - 1)
    whole = tokens[:, 1 : 1 + side * side].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return nn.functional.interpolate(whole, (12, 12), mode="bilinear")


STANDS = "depends on where its tokens stand"
COUNT = "depends on how many tokens there are"
FORM = r"is no \(batch, tokens, channels\)"
LAYERS = "are tokens of different layers"

#: By name: a head, and why its output is refused. Sixteen patches of 36 are left at the end.
REFUSED: dict[str, tuple[Head, str]] = {
    "a map": (lambda vit, layers: layers[-1][:, 1:].mT.reshape(2, -1, 4, 4), STANDS),
    "maps of two layers": (lambda vit, layers: [_square_map(layers[2]), layers[4][:, 0]], STANDS),
    "a map of a fixed size": (lambda vit, layers: _square_map(vit.norm(layers[-1])), STANDS),
    "a square of another size": (lambda vit, layers: _square(layers[-1][:, 3:]), STANDS),
    "images folded": (lambda vit, layers: layers[-1].reshape(1, -1, WIDTH), STANDS),
    "two tokens as one": (lambda vit, layers: layers[-1][:, 1:].reshape(2, -1, 2 * WIDTH), STANDS),
    "all in one row": (lambda vit, layers: layers[-1].flatten(1), STANDS),
    "all in rows": (lambda vit, layers: layers[-1].reshape(-1, WIDTH), STANDS),
    "a row by its number": (lambda vit, layers: layers[-1][:, 1 + 7], STANDS),
    "the last row": (lambda vit, layers: layers[-1][:, -1], STANDS),
    "some rows": (lambda vit, layers: layers[-1][:, 1:5], STANDS),
    "a mean of some rows": (lambda vit, layers: layers[-1][:, 1:13].mean(dim=1), STANDS),
    "neighbours": (lambda vit, layers: layers[-1] - layers[-1].roll(1, 1), STANDS),
    "which is best": (lambda vit, layers: layers[-1].mean(dim=2).argmax(dim=1), STANDS),
    "pairs": (lambda vit, layers: layers[-1] @ layers[-1].mT, STANDS),
    "scores": (lambda vit, layers: layers[-1].mean(dim=2), STANDS),
    "a mask": (lambda vit, layers: layers[-1].mean(dim=2) > 0, STANDS),
    "sorted scores": (lambda vit, layers: layers[-1].mean(dim=2).sort(dim=1).values, FORM),
    "a sum": (lambda vit, layers: layers[-1][:, 1:].sum(dim=1), COUNT),
    "a mean over a written N": (lambda vit, layers: layers[-1].sum(dim=1) / 37, COUNT),
    "tokens times their number": (lambda vit, layers: layers[-1] * layers[-1].shape[1], COUNT),
    "tokens of all layers": (lambda vit, layers: layers[1:], LAYERS),
    "embedding and tokens": (lambda vit, layers: (layers[0], layers[4]), LAYERS),
    "their number": (lambda vit, layers: (layers[4][:, 0], layers[4].shape[1]), "is 37, and 17"),
}

#: Each is much like another, and is refused for the same reason.
RELATIVES = {
    *("a map of a fixed size", "a square of another size", "images folded", "two tokens as one"),
    *("all in rows", "the last row", "some rows", "which is best", "scores"),
    *("tokens times their number", "embedding and tokens"),
}


def _shapes(outputs: Any) -> list[Any]:
    several = outputs if isinstance(outputs, list | tuple) else [outputs]
    return [one.shape if isinstance(one, Tensor) else one for one in several]


@pytest.mark.parametrize("name", thorough_but(REFUSED.keys() - RELATIVES, REFUSED))
def test_an_output_that_would_mean_something_else_is_refused(name: str) -> None:
    head, why = REFUSED[name]
    model = read_by(head)
    with pytest.raises(SurgeryError, match=why) as error:
        tokexport.reduce(model, "tome:r=5", images())
    assert "--restore" in error.value.fix
    with torch.no_grad():
        whole = tokexport.reduce(model, "tome:r=5,restore=true", images())(images())
        assert _shapes(whole) == _shapes(model(images()))


def _pooled(vit: Any, layers: list[Tensor]) -> Tensor:
    """Attention of one query to all tokens, as SigLIP pools."""
    tokens = layers[-1]
    query = vit.cls_token.expand(tokens.shape[0], -1, -1)
    return nn.functional.scaled_dot_product_attention(query, tokens, tokens)[:, 0]


#: By name: a head whose output stays what it is, and its shape with 17 of 37 tokens.
KEPT: dict[str, tuple[Head, list[tuple[int, ...]]]] = {
    "the class": (lambda vit, layers: vit.head(vit.norm(layers[-1])[:, 0]), [(2, 10)]),
    "the mean": (lambda vit, layers: layers[-1].mean(dim=1), [(2, WIDTH)]),
    "the mean of the patches": (lambda vit, layers: layers[-1][:, 1:].mean(dim=1), [(2, WIDTH)]),
    "the maximum": (lambda vit, layers: layers[-1].amax(dim=1), [(2, WIDTH)]),
    "attention": (_pooled, [(2, WIDTH)]),
    "the class of all layers": (
        lambda vit, layers: torch.stack([x[:, 0] for x in layers]),
        [(5, 2, WIDTH)],
    ),
    "the tokens": (lambda vit, layers: vit.norm(layers[-1]), [(2, 17, WIDTH)]),
    "the patches": (lambda vit, layers: layers[-1][:, 1:], [(2, 16, WIDTH)]),
    "both": (lambda vit, layers: (layers[-1][:, 1:], layers[-1]), [(2, 16, WIDTH), (2, 17, WIDTH)]),
    "tokens of a layer": (lambda vit, layers: layers[3] * 2.0, [(2, 22, WIDTH)]),
    "a map before": (
        lambda vit, layers: (_map(layers[0]), layers[4][:, 0]),
        [(2, 48, 6, 6), (2, 48)],
    ),
}
#: One that is of the image, one of the tokens, one of several layers, one of both.
OF_EACH_KIND = ("the class", "attention", "the tokens", "tokens of a layer", "a map before")


@pytest.mark.parametrize("name", thorough_but(OF_EACH_KIND, KEPT))
def test_an_output_of_the_image_or_of_its_tokens_passes(name: str) -> None:
    head, shapes = KEPT[name]
    with torch.no_grad():
        found = tokexport.reduce(read_by(head), "tome:r=5", images())(images())
    assert _shapes(found) == shapes


def test_a_map_of_a_layer_before_the_first_reduced_one_is_as_it_was() -> None:
    model = read_by(lambda vit, layers: (_map(layers[2]), layers[4][:, 0]))
    with torch.no_grad():
        wanted, _ = model(images())
        found, _ = tokexport.reduce(model, "tome:r=5,layers=[2,3]", images())(images())
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-5)
    with pytest.raises(SurgeryError, match=STANDS):
        tokexport.reduce(model, "tome:r=6,layers=[1]", images())


def test_a_head_that_needs_every_token_fails_with_the_way_out() -> None:
    model = read_by(lambda vit, layers: layers[-1][:, 1:].reshape(2, 6, 6, WIDTH))
    with pytest.raises(SurgeryError, match="With fewer tokens the model fails") as error:
        tokexport.reduce(model, "tome:r=5", images())
    assert "--restore" in error.value.fix


@dataclass(frozen=True, kw_only=True)
class Pairs(Method):
    """Merges each second patch into the one before it, by size."""

    name: ClassVar[str] = "pairs"
    proportional: ClassVar[bool] = False

    def after_attention(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        batch, special = tokens.x.shape[0], tokens.special
        go = slice(special + 1, tokens.count, 2)
        gone = torch.arange(len(range(tokens.count)[go])).expand(batch, -1)
        stay = slice(special, tokens.count, 2)
        return tokens.merged_by_size(
            Matching(tokens.count, batch, slice(0, special), go, stay, gone[:, :0], gone, gone)
        )


def by_hand(model: Vit, image: Tensor) -> list[Tensor]:
    """Returns what every one of the 37 tokens is behind each block: rows (37, C) of one image."""
    rows, sizes = model.embed(image[None])[0], [1] * 37
    at = list(range(37))  # in which row each token is
    restored = []
    for block in model.blocks:
        assert isinstance(block, Block)
        rows = rows + block.attn(block.norm1(rows[None]))[0]
        groups = [[0], *([n, n + 1] for n in range(1, len(rows) - 1, 2))]
        groups += [[len(rows) - 1]] if len(rows) % 2 == 0 else []
        shares = [torch.tensor([float(sizes[n]) for n in group]) for group in groups]
        rows = torch.stack(
            [
                sum((w * rows[n] for n, w in zip(group, share / share.sum(), strict=True)))
                for group, share in zip(groups, shares, strict=True)
            ]
        )
        sizes = [int(share.sum()) for share in shares]
        to = {n: position for position, group in enumerate(groups) for n in group}
        at = [to[n] for n in at]
        rows = rows + block.mlp(block.norm2(rows))
        restored.append(rows[at])
    return restored


def test_restored_maps_of_several_layers_hold_each_tokens_own_row() -> None:
    model = read_by(lambda vit, layers: [_map(layers[1]), _map(layers[3]), layers[4][:, 0]])
    recipe = restoring(parse_recipe(Pairs()))
    with torch.no_grad():
        first, third, last = tokexport.reduce(model, recipe, images())(images())
        hand = [by_hand(model, image) for image in images()]
    for found, layer in ((first, 0), (third, 2)):
        wanted = torch.stack([_map(rows[layer][None])[0] for rows in hand])
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=2e-5)
    torch.testing.assert_close(last, torch.stack([r[3][0] for r in hand]), rtol=0.0, atol=2e-5)
    assert (wanted - _map(torch.stack([rows[0] for rows in hand]))).abs().max() > 0.1


class _Between(_Read):
    """Normalises the tokens between two blocks."""

    def forward(self, x: Tensor) -> Any:
        layers = [self.embed(x)]
        for block in self.blocks:
            layers.append(block(self.norm(layers[-1])))
        return self.read[0](self, layers)  # type: ignore[index,operator]


def test_where_no_token_can_be_put_back_it_says_so() -> None:
    model = read_by(lambda vit, layers: [layers[2].sum(dim=1), layers[4][:, 0]])
    model.__class__ = _Between
    with pytest.raises(SurgeryError, match=COUNT) as error:
        tokexport.reduce(model, "tome:r=6,restore=true", images())
    assert "Behind blocks 0, 1, 2 no token can be put back" in error.value.fix
    model.read = (lambda vit, layers: [_map(layers[2]), layers[4][:, 0]],)  # type: ignore[assignment]
    with pytest.raises(SurgeryError, match="uses the indices of its tokens") as error:
        tokexport.reduce(model, "tome:r=6,restore=true", images())
    assert "let the next block take that output as it is" in error.value.fix


def test_a_list_of_blocks_that_leaves_one_out_is_told_which() -> None:
    model = read_by(lambda vit, layers: [_square_map(layers[2]), layers[4][:, 0]])
    with pytest.raises(SurgeryError, match=STANDS) as error:
        tokexport.reduce(model, "tome:r=5,restore=[0]", images())
    assert error.value.fix.startswith("Behind block 1 tokens are read")
