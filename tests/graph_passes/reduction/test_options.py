"""Options that make no sense are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.reduction.cases import WIDTH, Case
from helpers.reduction.projections import projections

from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Layer, Method
from tokexport.graph_passes.reduction.methods.known import METHODS

KINDS = {kind.name: kind for kind in METHODS}
NAN, INFINITE = float("nan"), float("inf")
NO_SHARES = [0.0, -0.1, 1.1, NAN, INFINITE]
BY_SHARE = [name for name, kind in KINDS.items() if kind.strength == "keep"]
BY_LIST = ["pitome", "tofu", "dct", "evit", "topk", "random", "dpcknn"]


@pytest.mark.parametrize("name", BY_SHARE)
@pytest.mark.parametrize("keep", NO_SHARES)
def test_a_share_is_above_0_and_at_most_1(name: str, keep: float) -> None:
    with pytest.raises(SurgeryError, match=r"^keep is "):
        KINDS[name](keep=keep)
    KINDS[name](keep=1.0)


@pytest.mark.parametrize("name", BY_LIST)
@pytest.mark.parametrize("keep", NO_SHARES)
def test_so_are_all_shares_of_a_list(name: str, keep: float) -> None:
    with pytest.raises(SurgeryError, match=r"^keep is "):
        KINDS[name](keep=(0.5, keep))


NONSENSE: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"r": -1}, "r is -1") for name in ("tome", "pyra", "mctf", "crossget")),
    *((name, {"r": (4, -2)}, "r is -2") for name in ("tome", "pyra", "mctf", "crossget")),
    ("mctf", {"r": -0.1}, "r is -0.1"),
    ("mctf", {"r": NAN}, "r is nan"),
    ("mctf", {"r": INFINITE}, "r is inf"),
    *((name, {"inflection": 1.5}, "inflection is 1.5") for name in ("tome", "pyra")),
    *((name, {"inflection": NAN}, "inflection is nan") for name in ("tome", "pyra")),
    *((name, {"r": (1, 2), "inflection": 0.5}, "inflection bends") for name in ("tome", "pyra")),
    *(
        ("mctf", {option: value}, f"{option} is {value}")
        for option in ("tau_sim", "tau_info", "tau_size")
        for value in (0.0, -1.0, NAN)
    ),
    ("mctf", {"one_step_ahead": 3}, "one_step_ahead is 3"),
    ("mctf", {"one_step_ahead": -1}, "one_step_ahead is -1"),
    ("mctf", {"pooling": 4}, "pooling is 4"),
    ("mctf", {"pooling": -1}, "pooling is -1"),
    ("mctf", {"least": 0}, "least is 0"),
    ("pitome", {"margin": 1.1}, "margin is 1.1"),
    ("pitome", {"margin": NAN}, "margin is nan"),
    ("pitome", {"alpha": -1.0}, "alpha is -1.0"),
    ("tofu", {"norm": "mean"}, "norm is 'mean'"),
    ("diffrate", {}, "schedule"),
    ("diffrate", {"prune": (5, 0)}, "prune goes below one"),
    ("diffrate", {"merge": (-1, 5)}, "merge goes below one"),
    ("diffrate", {"merge": (5,), "schedule": "a.json"}, "schedule"),
    ("dpcknn", {"neighbours": 0}, "neighbours is 0"),
    ("vtc-cls", {"tokens": 0}, "tokens is 0"),
    ("vtc-cls", {"start": -1}, "start is -1"),
    ("vtc-cls", {"layers": (3,)}, "layers"),
    ("aim-merge", {"rounds": 0}, "rounds is 0"),
]


@pytest.mark.parametrize(("name", "options", "message"), NONSENSE)
def test_nonsense_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError) as caught:
        KINDS[name](**options)
    assert message in str(caught.value)
    assert caught.value.fix


WRONG_LISTS: list[tuple[str, dict[str, Any]]] = [
    *(
        (name, {"r": amounts})
        for name in ("tome", "pyra", "mctf", "crossget")
        for amounts in ((), (1,))
    ),
    *((name, {"keep": shares}) for name in BY_LIST for shares in ((), (0.5, 0.5, 0.5))),
    ("diffrate", {"prune": ()}),
    ("diffrate", {"merge": (5, 5, 5)}),
]


@pytest.mark.parametrize(("name", "options"), WRONG_LISTS)
def test_a_list_of_another_length_than_the_model_is_refused(
    name: str, options: dict[str, Any]
) -> None:
    method = KINDS[name](**options)
    with pytest.raises(SurgeryError, match=r"holds \d numbers, and the model has 2 blocks"):
        _run(method, Layer(1, 2), Case(0, 1, 1, 20))


def _run(method: Method, layer: Layer, case: Case) -> int:
    """Runs all three places of a method on untrained parameters; returns how many tokens stay."""
    tokens, attention = case.tokens(), case.attention()
    trained = method.trained(layer, WIDTH)
    layer = Layer(layer.index, layer.depth, None if trained is None else trained.double())
    if method.name == "dct":
        tokens = tokens.__class__(tokens.x, tokens.special, tokens.began)
    with torch.no_grad():
        found, _ = method.before_attention(layer, tokens, projections(0))
        if found.count == tokens.count:
            found = method.after_attention(layer, found, attention)
        if found.count == tokens.count:
            found = method.after_mlp(layer, found, attention)
    return found.count


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("special", [1, 2, 5])
@pytest.mark.parametrize("patches", [1, 2, 3])
def test_few_patches_are_never_reduced_to_none(name: str, special: int, patches: int) -> None:
    strongest: dict[str, Any] = {
        "r": {"r": patches // 2} if name == "pyra" else {"r": 99},
        "keep": {"keep": 0.001},
        "merge": {"prune": (1,) * 12, "merge": (1,) * 12},
        "tokens": {"tokens": 1},
        "rounds": {"rounds": 9},
    }[KINDS[name].strength]
    if name == "mctf":
        strongest["least"] = 1
    left = _run(KINDS[name](**strongest), Layer(10, 12), Case(0, 2, special, patches))
    assert special + 1 <= left <= special + patches
