"""Gathers of whole rows, in every spelling, become ``gather_tokens``; others stay what they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, makers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

Gather = Callable[[Tensor, Tensor], Tensor]

SPREADS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "none and expand": lambda rows, c: rows[:, :, None].expand(-1, -1, c),
    "unsqueeze and repeat": lambda rows, c: rows.unsqueeze(-1).repeat(1, 1, c),
    "ellipsis and expand": lambda rows, c: rows[..., None].expand(*rows.shape, c),
    "view and expand_as": lambda rows, c: rows.view(*rows.shape, 1).expand(*rows.shape, c),
    "spread, then cut": lambda rows, c: rows[:, :, None].expand(-1, -1, c + 2)[:, :, :c],
    "turned twice": lambda rows, c: rows.mT[..., None].expand(-1, -1, c).transpose(0, 1),
    "repeated, cloned": lambda rows, c: rows[:, None].repeat(1, c, 1).clone().permute(0, 2, 1),
}
GATHERS: dict[str, Gather] = {
    **{
        f"gather, {name}": lambda x, rows, spread=spread: x.gather(1, spread(rows, x.shape[2]))
        for name, spread in SPREADS.items()
    },
    "negative axis": lambda x, rows: torch.gather(
        x, dim=-2, index=rows[:, :, None].expand(-1, -1, x.shape[2])
    ),
    "x[arange, rows]": lambda x, rows: x[torch.arange(len(x))[:, None], rows],
    "x[arange, rows, :]": lambda x, rows: x[torch.arange(len(x)).view(-1, 1), rows, :],
    "x[spread arange, rows]": lambda x, rows: x[
        torch.arange(len(x)).unsqueeze(1).expand(-1, rows.shape[1]), rows
    ],
    "take_along_dim": lambda x, rows: torch.take_along_dim(x, rows[..., None], dim=1),
    "take_along_dim, spread": lambda x, rows: x.take_along_dim(
        rows.unsqueeze(2).expand(-1, -1, x.shape[2]), dim=-2
    ),
}


def rows_of(x: Tensor, count: int) -> Tensor:
    """Row indices that the graph itself makes."""
    return x.sum(-1).argsort(1, descending=True)[:, :count]


@given(
    name=st.sampled_from(sorted(GATHERS)),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4)),
    count=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=10)
def test_any_shape_and_any_rows(
    name: str, sizes: tuple[int, int, int], count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sizes, generator=generator)
    rows = torch.randint(0, sizes[1], (sizes[0], count), generator=generator)
    rewritten = checked(GATHERS[name], x, rows)
    assert calls(rewritten)["tokexport.gather_tokens"] == 1


def test_rows_of_every_axis_and_rank() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        batch, heads, tokens, channels = x.shape
        best = x.sum(-1).argsort(-1)[..., :3]  # (B, H, 3)
        spread = best[..., None].expand(-1, -1, -1, channels)
        first = best[:, 0]
        return (
            x.gather(2, spread),
            x.transpose(0, 2).gather(0, spread.transpose(0, 2)),
            x[torch.arange(batch)[:, None, None], torch.arange(heads)[None, :, None], best],
            x[0].gather(1, best[0][:, :, None].expand(-1, -1, channels)),
            x[:, 0].gather(-2, first[:, :, None].expand(-1, -1, channels)),
            x[0, 0].gather(0, best[0, 0][:, None].expand(-1, channels)),
            x.mT.gather(3, first[:, None, None, :].expand(-1, heads, channels, -1)),
        )

    x = torch.randn(2, 3, 5, 4)
    rewritten = checked(function, x, targets=("ort",))
    assert calls(rewritten)["tokexport.gather_tokens"] == 6  # two say the same


def test_one_image_and_one_row() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        rows = rows_of(x, 1)
        return tuple(gather(x, rows) for gather in GATHERS.values())

    for sizes in ((1, 5, 4), (1, 1, 4), (2, 5, 1), (1, 5, 1)):
        assert set(makers(checked(function, torch.randn(sizes)))) == {"tokexport.gather_tokens"}


def test_an_index_varying_along_channels_stays_an_element_gather() -> None:
    def function(x: Tensor) -> Tensor:
        return x.gather(1, x.argsort(1)[:, :3])

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x)
    assert calls(rewritten)["aten.gather"] == 1
    assert "tokexport.gather_tokens" not in calls(rewritten)


def test_an_index_from_outside_varies_wherever_it_is_wide() -> None:
    def function(x: Tensor, index: Tensor) -> Tensor:
        return x.gather(1, index)

    x, index = torch.randn(2, 6, 4), torch.randint(0, 6, (2, 3, 4))
    rewritten = checked(function, x, index)
    assert calls(rewritten) == {"aten.gather": 1}


def test_an_index_that_a_sum_made_vary_is_no_row_index() -> None:
    def function(x: Tensor) -> Tensor:
        rows = rows_of(x, 3)[:, :, None].expand(-1, -1, 4)
        return x.gather(1, (rows + torch.arange(4)) % 6)

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x)
    assert "tokexport.gather_tokens" not in calls(rewritten)


def test_an_index_smaller_than_its_data_is_cut_out_first() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows_of(x, 3)
        return x.gather(1, rows[:1, :, None].expand(-1, -1, 2)), x.gather(
            1, x.argsort(1)[:1, :, :2]
        )

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, targets=TARGETS)
    assert calls(rewritten)["tokexport.gather_tokens"] == 2
    assert "aten.gather" not in calls(rewritten)


def test_positions_from_the_end_are_kept() -> None:
    def function(x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        return (
            x[torch.arange(2)[:, None], rows],
            x[:, rows[0]],
            torch.take_along_dim(x, rows[..., None], 1),
        )

    x, rows = torch.randn(2, 6, 4), torch.tensor([[-1, 0, -6], [5, -2, 3]])
    rewritten = checked(function, x, rows, targets=TARGETS)
    assert calls(rewritten)["tokexport.gather_tokens"] == 2


def test_rows_of_every_image_alike_become_index_select() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        rows = x[0].sum(-1).argsort(0)[:3]
        return x[:, rows], x.index_select(1, rows), x[:, rows[:, None]], x.mT[..., rows]

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, targets=("ort",))
    assert calls(rewritten)["aten.index_select"] == 3  # the first two are one
    assert "aten.index" not in calls(rewritten)


def test_other_advanced_indices_stay() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        rows = rows_of(x, 2)
        return (
            x[rows[0].clamp(max=1)],  # images, not rows
            x[torch.arange(2).flip(0)[:, None], rows],  # the rows of other images
            x[torch.zeros(2, 1, dtype=torch.int64), rows],
            x[torch.arange(1, 3)[:, None] - 1, rows],
            x[rows[:, :1].clamp(max=1), :, rows],
        )

    x = torch.randn(2, 6, 7)
    rewritten = checked(function, x)
    assert calls(rewritten)["aten.index"] == 5
    assert "tokexport.gather_tokens" not in calls(rewritten)


def test_a_mask_is_no_index() -> None:
    mask = torch.tensor([True, False, True, False, True, True])

    def function(x: Tensor) -> Tensor:
        return torch.where(mask[None, :, None], x, 0.0).gather(1, x.argsort(1)[:, :2])

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x)
    assert calls(rewritten)["aten.gather"] == 1


def test_rows_of_integers_are_rows() -> None:
    def function(x: Tensor) -> Tensor:
        labels = x.argsort(1)  # (B, N, C) int64
        return labels.gather(1, rows_of(x, 3)[:, :, None].expand(-1, -1, 4))

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, targets=("ort",))
    assert calls(rewritten)["tokexport.gather_tokens"] == 1


def test_all_spellings_say_the_same() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        rows = rows_of(x, 3)
        return tuple(gather(x, rows) for gather in GATHERS.values())

    rewritten = checked(function, torch.randn(2, 6, 4), targets=TARGETS)
    assert dict(zip(GATHERS, makers(rewritten), strict=True)) == dict.fromkeys(
        GATHERS, "tokexport.gather_tokens"
    )
    assert calls(rewritten) == {
        "aten.sum": 1,
        "aten.sort": 1,
        "aten.slice": 1,
        "tokexport.gather_tokens": 1,
    }


FLAT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index": lambda x, rows: x.flatten(0, 1)[(rows + 6 * torch.arange(2)[:, None]).flatten()],
    "index of two axes": lambda x, rows: x.reshape(12, 4)[torch.arange(0, 12, 6)[:, None] + rows],
    "index_select": lambda x, rows: x.reshape(-1, 4).index_select(
        0, (torch.arange(2).view(2, 1) * 6 + rows).view(-1)
    ),
}


@pytest.mark.parametrize("name", FLAT)
def test_rows_of_a_flattened_batch(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        return FLAT[name](x, rows_of(x, 3)).reshape(2, 3, 4)

    rewritten = checked(function, torch.randn(2, 6, 4), targets=TARGETS)
    assert calls(rewritten)["tokexport.gather_tokens"] == 1
    assert calls(rewritten)["aten.index"] + calls(rewritten)["aten.index_select"] == 0


NOT_FLAT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "no offset": lambda x, rows: x.flatten(0, 1)[rows.flatten()],
    "another offset": lambda x, rows: x.flatten(0, 1)[(rows + 3 * torch.arange(2)[:, None])],
    "over the edge": lambda x, rows: x.flatten(0, 1)[
        (rows + 1).clamp(max=6) + torch.tensor([[0], [5]])
    ],
    "rows times three": lambda x, rows: x.flatten(0, 1)[
        (rows * 3 + 6 * torch.arange(2)[:, None]).clamp(max=11)
    ],
    "rows that may be": lambda x, rows: x.flatten(0, 1)[
        rows // 2 * 3 + 6 * torch.arange(2)[:, None] - 6
    ],
}


@pytest.mark.parametrize("name", NOT_FLAT)
def test_what_may_reach_into_another_image_stays(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        return NOT_FLAT[name](x, rows_of(x, 3))

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, targets=("ort",))
    assert "tokexport.gather_tokens" not in calls(rewritten)


def test_one_row_of_each_image() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        row = x.sum(-1).argmax(1)
        heads = x.reshape(2, 2, 3, 4)
        best = heads.sum(-1).argmax(2)
        return x[torch.arange(2), row], heads[torch.arange(2)[:, None], torch.arange(2), best]

    rewritten = checked(function, torch.randn(2, 6, 4), targets=TARGETS)
    assert calls(rewritten)["tokexport.gather_tokens"] == 2
    assert calls(rewritten)["aten.index"] == 0


def test_one_number_of_each_token() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        size, rows = x.exp().sum(-1), rows_of(x, 3)
        return (
            size.gather(1, rows),
            torch.take_along_dim(size * 2, rows, dim=-1),
            size.mT.gather(0, rows.mT),  # along the first axis
            rows_of(x, 6).gather(1, rows),  # positions
        )

    rewritten = checked(function, torch.randn(2, 6, 4), targets=(*TARGETS, "trt"))
    assert makers(rewritten)[:2] == ["aten.reshape", "aten.reshape"]
    assert calls(rewritten)["tokexport.gather_tokens"] == 2
    assert calls(rewritten)["aten.gather"] == 2
