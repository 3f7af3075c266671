"""Every draw becomes the mean of what is made of it; what chooses at random is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import calls, rewrite, run_rewritten, trace
from torch import Tensor
from torch.nn import functional as f

from tokexport.graph_passes.errors import OperatorRefusedError
from tokexport.graph_passes.torch_passes.canonicalize.drop_random import DropRandom
from tokexport.graph_passes.torch_passes.graph.random_draws import drop_unread_draws, find_draws

Noise = Callable[[Tensor], Tensor]
GAMMA = 0.57721566

#: What is drawn, and its mean.
MEANS: dict[str, tuple[Noise, float]] = {
    "rand": (lambda x: torch.rand(2, 5), 0.5),
    "rand_like": (torch.rand_like, 0.5),
    "scaled rand": (lambda x: torch.rand(2, 5) * 4 - 1, 1.0),
    "uniform": (lambda x: torch.empty_like(x).uniform_(-1, 4), 1.5),
    "randn": (lambda x: torch.randn(2, 5) + 3, 3.0),
    "randn_like": (torch.randn_like, 0.0),
    "normal_": (lambda x: torch.empty_like(x).normal_(2, 3), 2.0),
    "normal": (lambda x: torch.normal(0.25, 1.0, size=(2, 5)), 0.25),
    "normal of a spread": (lambda x: torch.normal(0.25, x.abs()), 0.25),
    "exponential": (lambda x: torch.empty_like(x).exponential_(4.0), 0.25),
    "half of a normal": (lambda x: torch.randn_like(x).abs(), (2 / torch.pi) ** 0.5),
    "log": (lambda x: torch.rand_like(x).log(), -1.0),
    "gumbel": (lambda x: -torch.empty_like(x).exponential_().log(), GAMMA),
    "gumbel of rand": (lambda x: -torch.log(-torch.log(torch.rand_like(x))), GAMMA),
    "square": (lambda x: torch.randn_like(x) ** 2, 1.0),
    "by itself": (lambda x: (lambda r: r * r)(torch.randn_like(x)), 1.0),
    "exponential of a normal": (lambda x: torch.randn_like(x).exp(), 1.6487213),
    "relu": (lambda x: torch.randn_like(x).relu(), (0.5 / torch.pi) ** 0.5),
    "root": (lambda x: torch.rand_like(x).sqrt(), 2 / 3),
    "cosine of an angle": (lambda x: (torch.rand_like(x) * torch.pi / 2).cos(), 2 / torch.pi),
    "moved gumbel": (lambda x: -torch.log(-torch.rand(10).view(2, 5).log()), GAMMA),
    "spread gumbel": (lambda x: -(-torch.rand(5).log()).unsqueeze(0).expand(2, 5).log(), GAMMA),
    "guarded gumbel": (lambda x: -(-(torch.rand(5) + 1e-20).log() + 1e-20).log(), GAMMA),
}
#: Factors with a mean of 1 that are left on, and what is left of them.
LEFT_ON: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: f.dropout(x, 0.5),
    "dropout of channels": lambda x: f.dropout1d(x[None], 0.5)[0],
    "native dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "stochastic depth": lambda x: x * x.new_empty(2, 1).bernoulli_(0.75).div_(0.75),
    "a coin of one": lambda x: x * torch.bernoulli(torch.full((2, 1), 0.5)) * 2,
    "attention with dropout": lambda x: f.scaled_dot_product_attention(
        x[None], x[None], x[None], dropout_p=0.4
    )[0],
}
CHOICES: dict[str, Noise] = {
    "a coin that selects": lambda x: torch.where(torch.bernoulli(x.sigmoid()) > 0, x, -x),
    "a coin as a mask": lambda x: x.masked_fill(torch.bernoulli(x.sigmoid()).bool(), 0.0),
    "whole numbers": lambda x: torch.randint(0, 9, (5,)),
    "a permutation": lambda x: torch.randperm(5),
    "rows": lambda x: torch.multinomial(x.abs(), 5),
    "a permutation by hand": lambda x: torch.rand(5).argsort(),
    "a coin by hand": lambda x: (torch.rand(5) < 0.3).float(),
    "stochastic depth": lambda x: (torch.rand(2, 1) + 0.7).floor(),
    "a permutation beside zeros": lambda x: (torch.zeros_like(x) + torch.rand(2, 5)).argsort(),
    "a permutation of some": lambda x: torch.rand(2, 5).masked_fill(x > 0, 2.0).argsort(1),
    "a permutation where": lambda x: torch.where(x > 0, torch.rand(2, 5), x).topk(3).indices[:, :1],
    "a permutation of masked": lambda x: (torch.rand(2, 5) * (x > 0).float() + 1).argsort(1),
    "a permutation behind the first": lambda x: torch.cat([x, torch.rand(2, 2)], 1).argsort()[
        :, 2:
    ],
    "a permutation of places": lambda x: torch.rand(2, 5).gather(1, x.argsort(1)).argsort(1),
    "rotations": lambda x: (x @ torch.randn(5, 3)).argmax(1, keepdim=True),
    "a direction": lambda x: (x * torch.randn(5) * 2).argsort(1),
    "a coin of a chance": lambda x: (torch.rand_like(x) < x.sigmoid()).float(),
    "rows by their sum": lambda x: torch.searchsorted(x.softmax(1).cumsum(1), torch.rand(2, 5)),
    "the inverse of a uniform": lambda x: 1 / torch.rand_like(x),
    "a distribution without mean": lambda x: torch.empty_like(x).cauchy_(),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_draw_becomes_its_mean(name: str) -> None:
    noise, mean = MEANS[name]
    x = torch.randn(2, 5)
    rewritten = rewrite(lambda x: 2 * x + noise(x), x, passes=(DropRandom(),))
    (found,) = run_rewritten(rewritten, x)
    assert rewritten.changes == {"drop random": 1}
    assert calls(rewritten)["aten.full"] == 1
    assert find_draws(rewritten.program.graph) == []
    torch.testing.assert_close(found, 2 * x + mean, rtol=0, atol=2e-5)


def test_a_mean_that_is_computed_stays_computed() -> None:
    x = torch.randn(2, 5)
    rewritten = rewrite(lambda x: torch.normal(x.sin(), 0.5), x, passes=(DropRandom(),))
    torch.testing.assert_close(run_rewritten(rewritten, x)[0], x.sin(), rtol=0, atol=0)


def test_what_two_read_keeps_the_mean_of_the_draw() -> None:
    def function(x: Tensor) -> Tensor:
        u = torch.rand_like(x)
        return x + u.log() + u

    x = torch.randn(2, 5)
    (found,) = run_rewritten(rewrite(function, x, passes=(DropRandom(),)), x)
    torch.testing.assert_close(found, x + torch.tensor(0.5).log() + 0.5)


@pytest.mark.parametrize("name", LEFT_ON)
def test_what_is_left_on_becomes_what_went_in(name: str) -> None:
    x = torch.randn(2, 5)
    wanted = x
    if name == "attention with dropout":
        wanted = f.scaled_dot_product_attention(x[None], x[None], x[None])[0]
    rewritten = rewrite(lambda x: LEFT_ON[name](x), x, passes=(DropRandom(),))
    assert find_draws(rewritten.program.graph) == []
    torch.testing.assert_close(run_rewritten(rewritten, x)[0], wanted)


@pytest.mark.parametrize("name", ["a permutation", "a permutation by hand"])
def test_a_permutation_is_said_to_have_no_mean(name: str) -> None:
    with pytest.raises(OperatorRefusedError, match="a permutation that is drawn has no mean"):
        rewrite(lambda x: x + CHOICES[name](x), torch.randn(2, 5), passes=(DropRandom(),))


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_has_no_mean(name: str) -> None:
    with pytest.raises(OperatorRefusedError, match=r"cannot replace aten\.\w+") as refused:
        rewrite(lambda x: x + CHOICES[name](x), torch.randn(2, 5), passes=(DropRandom(),))
    assert refused.value.where.startswith("At /")


#: Noise on scores that an input says.
ON_SCORES: dict[str, Noise] = {
    "a tie break": lambda x: x + torch.rand_like(x) * 1e-6,
    "a tie break of masked": lambda x: x.masked_fill(x > 9, -9.0) + torch.rand(2, 5) * 1e-6,
    "gumbel": lambda x: x - torch.log(-torch.log(torch.rand_like(x))),
    "weighted": lambda x: x * (torch.rand_like(x) + 0.5),
    "a dropout left on": lambda x: f.dropout(x, 0.5),
    "around the scores": lambda x: torch.normal(x, 0.1),
    "beside a class token": lambda x: torch.cat([x[:, :1], x[:, 1:] + torch.rand(2, 4) * 1e-6], 1),
}


@pytest.mark.parametrize("name", ON_SCORES)
def test_scores_with_noise_may_still_decide(name: str) -> None:
    x = torch.randn(2, 5)
    function = ON_SCORES[name]
    rewritten = rewrite(lambda x: x.gather(1, function(x).argsort()), x, passes=(DropRandom(),))
    torch.testing.assert_close(run_rewritten(rewritten, x)[0], x.sort().values, rtol=0, atol=0)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: f.dropout(x, 0.5, training=False),
        lambda x: f.dropout(x, 0.0, training=True),
        lambda x: f.rrelu(x, training=False),
        lambda x: f.scaled_dot_product_attention(x[None], x[None], x[None]),
        lambda x: x + 0 * torch.rand(3).sum().numel(),
    ],
)
def test_what_draws_nothing_or_for_nobody(function: Noise) -> None:
    graph = trace(function, torch.randn(2, 5)).graph
    drop_unread_draws(graph)
    assert find_draws(graph) == []
