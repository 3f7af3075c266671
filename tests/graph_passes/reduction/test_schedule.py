"""How much goes in which block, and in which blocks anything does."""

from __future__ import annotations

import pytest

from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Layer, Method
from tokexport.graph_passes.reduction.methods.known import METHODS
from tokexport.graph_passes.reduction.schedule import at_encoder_end, at_layer, at_quarters


@pytest.mark.parametrize(
    ("r", "depth", "inflection", "wanted"),
    [
        (8, 4, 0.0, [8, 8, 8, 8]),
        (0.7, 3, 0.0, [0.7, 0.7, 0.7]),
        (8, 5, 1.0, [0, 4, 8, 12, 16]),
        (8, 5, -1.0, [16, 12, 8, 4, 0]),
        (4, 4, -0.75, [7, 5, 3, 1]),
        (13, 12, 0.5, [6, 7, 8, 10, 11, 12, 13, 14, 15, 17, 18, 19]),
        (8, 1, 1.0, [0]),
        (0, 3, -1.0, [0, 0, 0]),
        ((3, 0, 5), 3, 0.0, [3, 0, 5]),
        ((0.5, 1.0), 2, 0.0, [0.5, 1.0]),
    ],
)
def test_each_block_has_its_amount(
    r: float | tuple[float, ...], depth: int, inflection: float, wanted: list[float]
) -> None:
    assert [at_layer(r, Layer(n, depth), inflection) for n in range(depth)] == wanted


@pytest.mark.parametrize("amounts", [(), (1,), (1, 2, 3)])
def test_a_list_has_one_number_for_each_block(amounts: tuple[int, ...]) -> None:
    with pytest.raises(SurgeryError, match=rf"holds {len(amounts)} numbers, .* has 2 blocks"):
        at_layer(amounts, Layer(0, 2))


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, [3, 6, 9]), (24, [6, 12, 18]), (4, [1, 2, 3]), (2, [0, 1]), (1, [0])]
)
def test_the_quarters(depth: int, blocks: list[int]) -> None:
    assert [n for n in range(depth) if at_quarters(None, Layer(n, depth))] == blocks
    assert [n for n in range(depth) if at_quarters((0,), Layer(n, depth))] == [0]


@pytest.mark.parametrize(("depth", "block"), [(24, 22), (12, 10), (2, 0), (1, 0)])
def test_the_end_of_an_encoder(depth: int, block: int) -> None:
    assert [n for n in range(depth) if at_encoder_end(None, Layer(n, depth))] == [block]
    assert [n for n in range(depth) if at_encoder_end((0,), Layer(n, depth))] == [0]


ALL, QUARTERS, END = list(range(12)), [3, 6, 9], [10]
#: The blocks of 12 that a method acts in, where nobody names others.
BLOCKS: dict[str, list[int]] = {
    "tome": ALL,
    "mctf": ALL[1:],
    "pitome": ALL,
    "tofu": ALL,
    "dct": ALL,
    "diffrate": ALL[1:],
    "evit": QUARTERS,
    "topk": QUARTERS,
    "random": QUARTERS,
    "dpcknn": QUARTERS,
    "divprune": END,
    "vtc-cls": [8, 9, 10],
    "aim-merge": END,
    "dynamicvit": QUARTERS,
    "pyra": ALL,
    "crossget": ALL,
}


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
def test_where_methods_act(kind: type[Method]) -> None:
    given = {"merge": (9,) * 12} if kind.name == "diffrate" else {}
    method = kind(**given)
    assert [n for n in range(12) if method.acts_in(Layer(n, 12))] == BLOCKS[kind.name]
    if kind.name != "vtc-cls":
        named = kind(layers=(0, 5), **given)
        assert [n for n in range(12) if named.acts_in(Layer(n, 12))] == [0, 5]
