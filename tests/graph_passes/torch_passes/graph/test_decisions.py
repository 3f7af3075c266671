"""Graphs that are told how to decide: what is found, and what telling them changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from helpers.graphs import trace
from models.tome_patched import match, weighted_mean
from torch import Tensor, nn

from tokexport.graph_passes import pipelines
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.graph.decision_kinds import DecisionKind
from tokexport.graph_passes.torch_passes.graph.decisions import (
    ReplayGraph,
    as_graph_module,
    expose_values,
    make_replay_graph,
)


class Merges(nn.Module):
    """One merge of tokens (2, 13, 8)."""

    def forward(self, x: Tensor) -> Tensor:
        merged, size = weighted_mean(match(x, 4, True, False), x, None)
        return merged + size


class Ranks(nn.Module):
    """Keeps the best five of (2, 13, 8), scaled by their scores, and marks the positive ones."""

    def forward(self, x: Tensor) -> Tensor:
        best, index = x.norm(dim=-1).topk(5, dim=1)
        kept = x.gather(1, index[..., None].expand(-1, -1, 8)) * best[..., None]
        return torch.where(kept > 0, kept, kept * 2)


class Nearest(nn.Module):
    """Adds to each token the one most like it, by an arg-max that drops its axis, and its score."""

    def forward(self, x: Tensor) -> Tensor:
        value, nearest = (x @ x.transpose(1, 2) - 100 * torch.eye(13)).max(dim=-1)
        return x + x.gather(1, nearest[..., None].expand(-1, -1, 8)) * value[..., None]


class MergesAll(nn.Module):
    """Merges every even token of (2, 13, 8) into its best odd one."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        partner = (a @ b.mT).argmax(dim=-1)
        merged = b.scatter_add(1, partner[..., None].expand_as(a), a)
        return torch.cat([x[:, :1], merged], dim=1)


class MergesByColumns(nn.Module):
    """Merges the nearest pairs of (2, 13, 8), whose distances are (B, odd, even)."""

    def __init__(self, r: int = 4) -> None:
        super().__init__()
        self.r = r

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        nearest, partner = (b[:, :, None] - a[:, None]).square().sum(-1).min(dim=1)
        order = nearest.argsort(dim=1)
        kept, src = order[:, self.r :], order[:, : self.r]
        dst = partner.gather(1, src)[..., None].expand(-1, -1, 8)
        merged = b.scatter_add(1, dst, a.gather(1, src[..., None].expand(-1, -1, 8)))
        return torch.cat([a.gather(1, kept[..., None].expand(-1, -1, 8)), merged], dim=1)


class TakesSteps(nn.Module):
    """Rounds (2, 13, 8), cuts off what is behind the point of that, and marks what is not zero."""

    def forward(self, x: Tensor) -> Tensor:
        whole = (x * 3 + 0.5).floor().int()
        return x * whole + (x - 0.5).relu().bool()


class ReadsOneRow(nn.Module):
    """Scales the positive numbers of (2, 13, 8), merges beside the first token and returns that."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(x > 0.1, x, x * 2)
        first = x[:, :1] + weighted_mean(match(x[:, 1:], 4, False, False), x[:, 1:], None)[0].amax(
            1, keepdim=True
        )
        rest, size = weighted_mean(match(x[:, 1:], 3, False, False), x[:, 1:], None)
        read = torch.cat([first, rest * size], dim=1).sin()[:, 0]
        return torch.where(read[:, :4] > 0, read[:, :4], read[:, 4:])


class GatesOneRow(nn.Module):
    """Scales the positive numbers of (2, 13, 8) and returns two rows of them."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.sin()
        gated = torch.where(y > 0.1, y, y * 2)
        return gated[:, 0] * gated[:, 2]


class TakesTheLargest(nn.Module):
    """Adds the row of (2, 13, 8) that holds the largest number, by an arg-max of the whole."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.sin().reshape(26, 8)
        return x + rows.index_select(0, rows.argmax().reshape(1) // 8)


class DecidesNothing(nn.Module):
    """Sorts a constant, and integers."""

    def forward(self, x: Tensor) -> Tensor:
        fixed = torch.arange(13.0).flip(0).argsort()
        return x[:, fixed] * (torch.arange(13) > 3)[None, :, None]


def replay_and_captured(model: nn.Module, x: Tensor) -> tuple[ReplayGraph, nn.Module, nn.Module]:
    """Returns the told graph of the rewritten model, and both graphs as they are."""
    ops.register()
    program = trace(model, x)
    captured = as_graph_module(program)
    rewritten = as_graph_module(pipelines.rewrite(program).program)
    return make_replay_graph(rewritten, ("x",), ("y",)), captured, rewritten


def eager_choices(replay: ReplayGraph, captured: nn.Module, x: Tensor) -> list[Tensor]:
    """Returns what the captured graph decides, in the shapes of the told inputs."""
    names = {node.name for node in captured.graph.nodes}  # type: ignore[union-attr]
    sources = [
        next(one for one in replay.sources[name].names if one in names)
        for name in replay.decision_inputs
    ]
    values: Sequence[Tensor] = expose_values(captured, sources)(x)  # type: ignore[arg-type]
    chosen = []
    for value, name in zip(values, replay.decision_inputs, strict=True):
        while value.ndim > len(replay.sources[name].shape):
            value = value[..., 0]
        chosen.append(value)
    return chosen


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        (Merges(), [DecisionKind.MATCH]),
        (Ranks(), [DecisionKind.ORDER, DecisionKind.COMPARISON]),
        (Nearest(), [DecisionKind.ORDER]),
        (MergesByColumns(), [DecisionKind.MATCH]),
        (ReadsOneRow(), [DecisionKind.COMPARISON, DecisionKind.MATCH, DecisionKind.COMPARISON]),
        (GatesOneRow(), [DecisionKind.COMPARISON]),
        (TakesTheLargest(), [DecisionKind.ORDER]),
        (TakesSteps(), [DecisionKind.STAIRCASE, DecisionKind.STAIRCASE, DecisionKind.COMPARISON]),
        (DecidesNothing(), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_told_its_own_decisions_a_graph_answers_the_same(
    model: nn.Module, kinds: list[DecisionKind]
) -> None:
    x = torch.randn(2, 13, 8, generator=torch.Generator().manual_seed(0))
    replay, captured, rewritten = replay_and_captured(model, x)
    assert [decision.kind for decision in replay.decisions] == kinds
    choices = eager_choices(replay, captured, x)
    results = dict(zip((*replay.outputs, *replay.exposed), replay.module(x, *choices), strict=True))
    assert torch.equal(results["y"], model(x))
    assert torch.equal(rewritten(x)[0], model(x))
    for decision in replay.decisions:
        for position, name in decision.replayed.items():
            own = results[decision.own[position]]
            assert torch.equal(own, choices[replay.decision_inputs.index(name)])


@pytest.mark.parametrize(
    ("decide", "dim", "negative", "stable", "beside"),
    [
        (lambda y: y.argmax(), None, False, True, 0.0),
        (lambda y: y.argmin(dim=2), 2, True, True, 0.0),
        (lambda y: y.argsort(dim=1, stable=True), 1, True, True, 0.0),
        (lambda y: y.sort(dim=1, descending=True)[1], 1, False, True, 0.0),  # sorted stably now
        (lambda y: y.topk(3, dim=1, largest=False)[1], 1, True, False, 0.0),
        (lambda y: y.topk(3, dim=1)[1], 1, False, False, 0.0),
        (lambda y: y > 0.1, 0, False, False, float(np.float32(0.1))),
        (lambda y: y >= torch.full((8,), 0.1), 0, False, False, 0.0),
    ],
)
def test_what_is_better_is_read_from_the_call(
    decide: Callable[[Tensor], Tensor], dim: int | None, negative: bool, stable: bool, beside: float
) -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.sin()
            return y.sum() + decide(y).float()

    (decision,) = replay_and_captured(Decides(), torch.randn(2, 13, 8))[0].decisions
    found = (decision.dim, decision.negative, decision.stable, decision.beside)
    assert found == (dim, negative, stable, beside)


def test_a_match_of_every_row_decides_the_partners_that_eager_decides() -> None:
    x = torch.randn(2, 13, 8, generator=torch.Generator().manual_seed(0))
    replay, captured, rewritten = replay_and_captured(MergesAll(), x)
    assert "bipartite_match" in str(rewritten.graph)
    (decision,) = replay.decisions
    assert (decision.kind, decision.dim) == (DecisionKind.ORDER, 2)
    assert "argmax(dim=-1)" in decision.line
    (choice,) = eager_choices(replay, captured, x)
    y, *shown = replay.module(x, choice)
    results = dict(zip(replay.exposed, shown, strict=True))
    torch.testing.assert_close(y, MergesAll()(x), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(rewritten(x)[0], MergesAll()(x), rtol=0.0, atol=1e-6)
    assert torch.equal(results[decision.own[0]], choice)
    other = replay.module(x, (choice + 1) % 6)[0]
    assert (other - y).abs().max() > 0.1


def test_of_a_ranked_match_that_keeps_no_row_the_merged_ones_are_told() -> None:
    x = torch.randn(2, 13, 8, generator=torch.Generator().manual_seed(0))
    replay, captured, _ = replay_and_captured(MergesByColumns(7), x)
    (decision,) = replay.decisions
    assert decision.kind == DecisionKind.MATCH
    assert sorted(decision.replayed) == [1, 2]
    src, dst = eager_choices(replay, captured, x)
    torch.testing.assert_close(
        replay.module(x, src, dst)[0], MergesByColumns(7)(x), rtol=0.0, atol=1e-6
    )
    assert (replay.module(x, src, (dst + 1) % 6)[0] - MergesByColumns(7)(x)).abs().max() > 0.1


def test_scores_that_a_pass_turned_and_negated_are_shown_as_eager_has_them() -> None:
    x = torch.randn(2, 13, 8, generator=torch.Generator().manual_seed(0))
    replay, captured, _ = replay_and_captured(MergesByColumns(), x)
    (decision,) = replay.decisions
    assert (decision.negative, decision.turned) == (True, True)
    names = {node.name for node in captured.graph.nodes}  # type: ignore[union-attr]
    (source,) = (one for one in replay.sources[decision.scores[0]].names if one in names)
    results = replay.module(x, *eager_choices(replay, captured, x))
    shown = dict(zip((*replay.outputs, *replay.exposed), results, strict=True))
    (wanted,) = expose_values(captured, [source])(x)  # type: ignore[arg-type]
    assert wanted.shape == (2, 6, 7)
    assert torch.equal(shown[decision.scores[0]], wanted)


@pytest.mark.parametrize("model", [Merges(), Ranks(), Nearest()], ids=lambda m: type(m).__name__)
def test_told_other_decisions_it_follows_them_and_shows_its_own(model: nn.Module) -> None:
    x, other = torch.randn(2, 2, 13, 8, generator=torch.Generator().manual_seed(0))
    replay, captured, _ = replay_and_captured(model, x)
    choices = eager_choices(replay, captured, other)
    results = dict(zip((*replay.outputs, *replay.exposed), replay.module(x, *choices), strict=True))
    assert not torch.equal(results["y"], model(x))
    first = replay.decisions[0]
    own = dict(zip(replay.decision_inputs, eager_choices(replay, captured, x), strict=True))
    for position, name in first.replayed.items():
        assert torch.equal(results[first.own[position]], own[name])


def test_the_program_itself_stays_as_it_was() -> None:
    x = torch.randn(2, 13, 8)
    replay, captured, rewritten = replay_and_captured(Merges(), x)
    before = [str(node) for node in rewritten.graph.nodes]  # type: ignore[union-attr]
    make_replay_graph(rewritten, ("x",), ("y",))  # type: ignore[arg-type]
    expose_values(captured, [replay.sources[replay.decision_inputs[0]].names[-1]])  # type: ignore[arg-type]
    assert [str(node) for node in rewritten.graph.nodes] == before  # type: ignore[union-attr]


def test_a_decision_says_the_line_it_came_from() -> None:
    replay, _, _ = replay_and_captured(Ranks(), torch.randn(2, 13, 8))
    assert "x.norm(dim=-1).topk(5, dim=1)" in replay.decisions[0].line
    assert replay.decisions[0].operator == "aten.topk"
