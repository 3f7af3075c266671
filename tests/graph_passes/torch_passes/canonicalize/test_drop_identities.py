"""Calls that change nothing go, whatever reads them; all others stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from helpers.graphs import TARGETS, calls, checked, makers
from torch import Tensor

from tokexport.graph_passes.torch_passes.canonicalize.drop_identities import DropIdentities

PASSES = (DropIdentities(),)

IDENTITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "memory format": lambda x: x.clone(memory_format=torch.contiguous_format),
    "detach": lambda x: x.detach(),
    "dropout": lambda x: torch.nn.functional.dropout(x, 0.5, training=False),
    "view": lambda x: x.view(2, 6, 4),
    "reshape": lambda x: x.reshape(2, -1, 4),
    "flat and back": lambda x: x.flatten().view(12, 4).unflatten(0, (2, 6)),
    "expand": lambda x: x.expand(2, 6, 4),
    "expand -1": lambda x: x.expand(-1, 6, -1),
    "repeat": lambda x: x.repeat(1, 1, 1),
    "whole slice": lambda x: x[:, :6][:, -6:],
    "slice beyond the end": lambda x: x[..., :100],
    "permute": lambda x: x.permute(0, -2, -1),
    "squeeze of a wide axis": lambda x: x.squeeze(1),
    "squeeze of wide axes": lambda x: x.squeeze((0, 2)),
    "to the same type": lambda x: x.to(torch.float32),
    "float": lambda x: x.float(),
    "type_as": lambda x: x.type_as(x[:, :1]),
    "join of one": lambda x: torch.cat([x], dim=1),
    "join with nothing": lambda x: torch.cat([x[:, :0], x, x[:, 6:]], dim=1),
}


def test_an_identity_goes() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(identity(x) for identity in IDENTITIES.values())

    rewritten = checked(function, torch.randn(2, 6, 4), passes=PASSES)
    left = dict(zip(IDENTITIES, rewritten.program.graph_signature.user_outputs, strict=True))
    (x,) = rewritten.program.graph_signature.user_inputs
    assert left == dict.fromkeys(IDENTITIES, x)
    assert not calls(rewritten)


def test_a_cast_to_the_type_of_another_is_a_cast() -> None:
    def function(x: Tensor) -> Tensor:
        return (x > 0).type_as(x)

    rewritten = checked(function, torch.randn(2, 6, 4), passes=PASSES)
    assert calls(rewritten) == {"aten.gt": 1, "aten._to_copy": 1}


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "aten.reshape": lambda x: x.view(2, 24),
    "aten.expand": lambda x: x[:, :1].expand(2, 6, 4),
    "aten.repeat": lambda x: x.repeat(1, 2, 1),
    "aten.slice": lambda x: x[:, ::2],
    "aten.permute": lambda x: x.permute(1, 0, 2),
    "aten.squeeze": lambda x: x[:, :1].squeeze(1),
    "aten._to_copy": lambda x: x.to(torch.float64),
    "aten.cat": lambda x: torch.cat([x, x], dim=1),
    "aten.transpose": lambda x: x.reshape(2, 2, 12).transpose(0, 1),
}


def test_what_changes_something_stays() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(change(x) for change in KEPT.values())

    rewritten = checked(function, torch.randn(2, 6, 4), passes=PASSES)
    assert makers(rewritten) == list(KEPT)


def test_a_view_that_no_longer_fits_the_strides_is_a_reshape() -> None:
    def function(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().view(2, 24)

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, passes=PASSES)
    assert calls(rewritten) == {"aten.transpose": 1, "aten.reshape": 1}


def test_an_empty_part_that_decides_the_dtype_stays() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros(2, 0, 4, dtype=torch.float64)
        return torch.cat([nothing, x], dim=1), torch.cat([x, nothing, x], dim=1)

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, passes=PASSES)
    assert calls(rewritten)["aten.cat"] == 2


def test_a_join_of_nothing_but_empty_parts_stays() -> None:
    def function(x: Tensor) -> Tensor:
        return x + torch.cat([x[:, :0], x[:, 6:]], dim=1).sum()

    x = torch.randn(2, 6, 4)
    assert calls(checked(function, x, passes=PASSES))["aten.cat"] == 1


def test_one_pixel_tensors_keep_their_rank() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return x.squeeze(), x.squeeze(0)[0], x.reshape(1), x.expand(1, 1, 1), x.permute(2, 0, 1)

    x = torch.randn(1, 1, 1)
    checked(function, x, passes=PASSES)


def test_outputs_that_are_inputs_or_each_other() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        z = x + y
        return x.clone(), y.view(2, 6, 4), z.contiguous(), z, z.reshape(2, 6, 4), x

    given = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    rewritten = checked(function, *given, targets=TARGETS)
    assert calls(rewritten) == {"aten.add": 1}
    signature = rewritten.program.graph_signature
    x, y, add = (node.name for node in list(rewritten.program.graph.nodes)[:3])
    assert list(signature.user_outputs) == [x, y, add, add, add, x]
