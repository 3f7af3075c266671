"""Along which axes a value varies, and how it is read without the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from helpers.graphs import assert_close, run_rewritten, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.editor import Editor
from tokexport.graph_passes.torch_passes.graph.pass_runner import run_passes
from tokexport.graph_passes.torch_passes.match.broadcast import collapse, varying_axes

#: From rows (2, 3) to a value that varies along these axes only.
CHAINS: dict[str, tuple[Callable[[Tensor], Tensor], set[int]]] = {
    "the rows": (lambda r: r + 0, {0, 1}),
    "unsqueeze, expand": (lambda r: r.unsqueeze(2).expand(2, 3, 4), {0, 1}),
    "repeat": (lambda r: r[:, :, None].repeat(1, 1, 4), {0, 1}),
    "repeat in front": (lambda r: r.repeat(5, 1, 1), {1, 2}),
    "repeat of a wide axis": (lambda r: r.repeat(1, 2), {0, 1}),
    "view": (lambda r: r.view(2, 1, 3, 1).expand(2, 4, 3, 4), {0, 2}),
    "view that joins axes": (lambda r: r.view(6, 1).expand(6, 4), {0}),
    "view that splits axes": (
        lambda r: r[..., None].expand(2, 3, 4).reshape(2, 3, 2, 2),
        {0, 1, 2, 3},
    ),
    "view that joins what varies with what does not": (
        lambda r: r[..., None].expand(2, 3, 4).reshape(2, 12),
        {0, 1},
    ),
    "transpose": (lambda r: r[..., None].expand(2, 3, 4).transpose(0, 2), {1, 2}),
    "permute": (lambda r: r[..., None].expand(2, 3, 4).permute(-1, 0, 1), {1, 2}),
    "squeeze": (lambda r: r[None, :, :, None].squeeze(0).expand(2, 3, 4), {0, 1}),
    "one row": (lambda r: r[:, :1, None].expand(2, 1, 4), {0}),
    "one row for all": (lambda r: r[:, :1].expand(2, 3), {0}),
    "slice of what does not vary": (lambda r: r[..., None].expand(2, 3, 4)[..., 1:3], {0, 1}),
    "select of an axis of one": (lambda r: r[..., None].log()[:, None, None, :, 0], {0, 3}),
    "sum": (lambda r: r[:, :, None] + torch.arange(4), {0, 1, 2}),
    "sum with zeros": (lambda r: r[:, :, None] + torch.zeros(4), {0, 1}),
    "sum of two": (lambda r: r[:, :1, None] * 2 + r[:1, None, :], {0, 2}),
    "gather": (
        lambda r: (
            r[..., None].expand(2, 3, 4).gather(1, r.argsort(1)[:, :2, None].expand(-1, -1, 4))
        ),
        {0, 1},
    ),
    "gather by an index that varies": (
        lambda r: (
            r[..., None].expand(2, 3, 4).gather(1, r.argsort(1)[..., None] * (torch.arange(4) > 9))
        ),
        {0, 1, 2},
    ),
    "cumulative sum": (lambda r: r[..., None].expand(2, 3, 4).cumsum(2), {0, 1, 2}),
}


ROWS = torch.arange(1.0, 7.0).reshape(2, 3)


def every_chain() -> tuple[ExportedProgram, Editor, dict[str, Node]]:
    """Traces all chains as one graph; returns it and the node that each ends with."""
    program = trace(lambda r: tuple(chain(r) * 1.5 for chain, _ in CHAINS.values()), ROWS)
    edit = Editor(program.graph_module.graph)
    (output,) = (node for node in edit.graph.nodes if node.op == "output")
    products = zip(CHAINS, output.args[0], strict=True)
    return program, edit, {name: product.args[0] for name, product in products}


def test_axes_that_vary() -> None:
    _, _, nodes = every_chain()
    found = {name: set(varying_axes(node)) for name, node in nodes.items()}
    assert found == {name: varies for name, (_, varies) in CHAINS.items()}


def test_collapsing_keeps_the_values() -> None:
    program, edit, nodes = every_chain()
    for (_, varies), node in zip(CHAINS.values(), nodes.values(), strict=True):
        (product,) = (user for user in node.users if user.target is torch.ops.aten.mul.Tensor)
        with edit.before(product):
            collapsed = collapse(edit, node, sorted(varies))
            sizes = [s if a in varies else 1 for a, s in enumerate(node.meta["val"].shape)]
            spread = edit.expand(edit.view(collapsed, sizes), node.meta["val"].shape)
            product.replace_input_with(node, spread)
    rewritten = run_passes(program, ())
    found = run_rewritten(rewritten, ROWS)
    assert_close(found, [chain(ROWS) * 1.5 for chain, _ in CHAINS.values()])


SPREADS = {
    "unsqueeze, expand": (0, 1),
    "repeat": (0, 1),
    "repeat in front": (1, 2),
    "view": (0, 2),
    "transpose": (2, 1),
    "permute": (1, 2),
    "squeeze": (0, 1),
    "slice of what does not vary": (0, 1),
}


def test_a_chain_that_can_be_walked_back_inserts_nothing() -> None:
    _, edit, nodes = every_chain()
    before = len(edit.graph.nodes)
    for name, order in SPREADS.items():
        with edit.before(nodes[name].next):
            assert collapse(edit, nodes[name], order).op == "placeholder", name
    assert len(edit.graph.nodes) == before


@given(data=st.data())
@settings(max_examples=10)
def test_random_chains(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3), label="sizes")
    steps = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5), label="steps")
    seed = data.draw(st.integers(0, 9), label="seed")

    def function(x: Tensor) -> Tensor:
        for position, step in enumerate(steps):
            axis = (seed + position) % x.dim()
            if step == 0 and x.dim() < 5:
                x = x.unsqueeze(axis)
            elif step == 1:
                x = x.expand([4 if s == 1 and a == axis else s for a, s in enumerate(x.shape)])
            elif step == 2 and x.dim() < 5:
                x = x[..., None].repeat(*(1 for _ in x.shape), 2)
            elif step == 3:
                x = x.transpose(0, axis)
            elif step == 4 and x.shape[axis] == 1 and x.dim() > 1:
                x = x.squeeze(axis)
            else:
                x = x.permute(*reversed(range(x.dim())))
        return x

    x = torch.randn(sizes, generator=torch.Generator().manual_seed(seed))
    program = trace(lambda x: function(x) * 1.5, x)
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    node = output.args[0][0].args[0]
    whole = function(x)
    varies = varying_axes(node)
    for axis in range(whole.dim()):
        if axis not in varies:
            assert torch.equal(whole, whole.narrow(axis, 0, 1).expand(whole.shape))


def test_an_input_varies_along_its_wide_axes() -> None:
    program = trace(lambda x: x * 2, torch.randn(1, 3, 4, 1))
    assert varying_axes(next(iter(program.graph.nodes))) == {1, 2}


def test_long_and_doubled_ways_are_walked_once() -> None:
    """Five hundred steps in a row, each of which reads the one before it twice."""

    def doubled(x: Tensor) -> Tensor:
        for _ in range(500):
            x = x + x
        return x

    program = trace(doubled, torch.zeros(2, 1, 3))
    (output,) = program.graph.find_nodes(op="output")
    assert varying_axes(output.args[0][0]) == {0, 2}
