"""Passes hold their promises and their order, and the signature follows the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from helpers.graphs import Function, checked, rewrite, trace
from torch import Tensor, nn
from torch.fx import Node

from tokexport.graph_passes import pipelines
from tokexport.graph_passes.errors import PassError
from tokexport.graph_passes.pass_report import Reason, check_order
from tokexport.graph_passes.stack_traces import innermost_line, source_line
from tokexport.graph_passes.torch_passes.graph.calls import argument, is_call, operand, operands
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.graph.pass_runner import (
    TorchPass,
    run_passes,
)


class DoubleBySum(TorchPass):
    """Writes x * 2 as x + x."""

    name: ClassVar[str] = "double by sum"
    comes_before: ClassVar[tuple[str, ...]] = ("after it",)

    def call(self, edit: Editor) -> int:
        """Replaces every product."""
        found = [node for node in edit.graph.nodes if is_call(node, aten.mul.Tensor)]
        for node in found:
            with edit.before(node):
                edit.replace(node, edit.call(aten.add.Tensor, operand(node), operand(node)))
        return len(found)


class AfterIt(TorchPass):
    """Changes nothing, and comes second."""

    name: ClassVar[str] = "after it"

    def call(self, edit: Editor) -> int:
        """Changes nothing."""
        return 0


class Promise(AfterIt):
    """Promises what it does not do."""

    name: ClassVar[str] = "promise"
    forbidden: ClassVar[frozenset[object]] = frozenset({aten.mul.Tensor})


class Breaks(TorchPass):
    """Puts a value of another shape into the place of one."""

    name: ClassVar[str] = "break"

    def call(self, edit: Editor) -> int:
        """Replaces a product by a sum over all its elements."""
        node = next(node for node in edit.graph.nodes if is_call(node, aten.mul.Tensor))
        with edit.before(node):
            edit.replace(node, edit.call(aten.sum.default, operand(node)))
        return 1


def test_a_broken_promise_is_an_error_that_names_pass_and_operator() -> None:
    with pytest.raises(PassError, match=r"'promise' left.*\n.*aten\.mul\.Tensor at mul"):
        run_passes(trace(lambda x: x * 2, torch.randn(3)), (Promise(),))


def test_a_kept_promise_is_none() -> None:
    run_passes(trace(lambda x: x + 2, torch.randn(3)), (Promise(),))


def in_order(passes: Sequence[TorchPass]) -> None:
    check_order((one.name, one.comes_before) for one in passes)


def test_a_pass_behind_one_that_needs_it_is_an_error() -> None:
    in_order((DoubleBySum(), AfterIt()))
    with pytest.raises(PassError, match="'double by sum' must come before 'after it'"):
        run_passes(trace(lambda x: x * 2, torch.randn(3)), (AfterIt(), DoubleBySum()))


def test_the_pipeline_is_in_order_and_reversed_it_is_not() -> None:
    in_order((*pipelines.REWRITE, *pipelines.TRIM))
    with pytest.raises(PassError):
        in_order(pipelines.REWRITE[::-1])
    with pytest.raises(PassError):
        in_order(pipelines.TRIM[::-1])


def test_every_pass_has_a_name_that_others_can_order_by() -> None:
    passes = (*pipelines.REWRITE, *pipelines.TRIM)
    names = {torch_pass.name for torch_pass in passes}
    for torch_pass in passes:
        assert set(torch_pass.comes_before) <= names


def test_a_pass_that_fails_is_named_with_its_node_its_line_and_those_before_it() -> None:
    said = "^The pass 'break' failed: AssertionError: .* cannot become"
    with pytest.raises(PassError, match=said) as caught:
        run_passes(trace(lambda x: x * 2, torch.randn(3)), (AfterIt(), Breaks()))
    error = caught.value
    assert f"At {__file__}:" in error.where
    assert "in <lambda>: run_passes(trace(lambda x: x * 2" in error.where
    assert "stage 'rewrite' that ran before it: after it." in error.where
    assert "--keep-stages" in error.fix


class Halves(NodePass):
    """Writes x / 2 as x * 0.5, of floats alone; of quotients by three it fails."""

    name: ClassVar[str] = "halve"
    targets = (aten.div.Tensor,)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches halves."""
        divisor = argument(node, "other")
        if divisor == 3:
            raise ValueError("no thirds")
        return _halved if divisor == 2 else Reason(f"it is divided by {divisor}")


def _halved(edit: Editor, node: Node) -> Node:
    return edit.call(aten.mul.Tensor, operand(node), 0.5)


def test_a_pass_counts_what_it_rewrites_and_says_why_it_leaves_a_call() -> None:
    (report,) = run_passes(trace(lambda x: x / 2 + x / 5, torch.randn(3)), (Halves(),)).reports
    assert (report.stage, report.name, report.fired) == ("rewrite", "halve", 1)
    (left,) = report.non_matches
    assert (left.operator, left.why) == ("aten.div", "it is divided by 5")
    assert left.line.startswith(f"{__file__}:")


def test_a_match_that_fails_names_the_line_of_its_call() -> None:
    def function(x: Tensor) -> Tensor:
        return x / 3  # a third

    with pytest.raises(PassError, match="'halve' failed: ValueError: no thirds") as caught:
        run_passes(trace(function, torch.randn(3)), (Halves(),))
    assert "in function: return x / 3  # a third" in caught.value.where


def test_what_is_gone_at_the_end_is_not_left() -> None:
    class DropsQuotients(DoubleBySum):
        name: ClassVar[str] = "drop quotients"

        def call(self, edit: Editor) -> int:
            found = [node for node in edit.graph.nodes if is_call(node, aten.div.Tensor)]
            for node in found:
                edit.replace(node, operand(node))
            return len(found)

    program = trace(lambda x: x / 5, torch.randn(3))
    reports = run_passes(program, (Halves(), DropsQuotients())).reports
    assert [(one.fired, one.non_matches) for one in reports] == [(0, ()), (1, ())]


def test_changes_are_counted_over_repeated_passes() -> None:
    rewritten = run_passes(
        trace(lambda x: x * 2 * 3, torch.randn(3)), (DoubleBySum(), DoubleBySum(), AfterIt())
    )
    assert rewritten.changes == {"double by sum": 2, "after it": 0}


def test_the_signature_names_the_new_outputs() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        double = x * 2
        return double, x, double, x + 1

    x = torch.randn(3)
    rewritten = checked(function, x, passes=(DoubleBySum(),))
    (output,) = (node for node in rewritten.program.graph.nodes if node.op == "output")
    names = [node.name for node in output.args[0]]
    assert list(rewritten.program.graph_signature.user_outputs) == names
    assert names[0] == names[2] != "mul"
    assert names[1] == next(iter(rewritten.program.graph.nodes)).name


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x * 2 * the number of calls."""
        self.calls.add_(1.0)
        return x * 2 * self.calls


def test_a_changed_buffer_is_read_as_it_is_written_and_left_as_it_was() -> None:
    x = torch.randn(3)
    rewritten = rewrite(Counting(), x)
    module = rewritten.program.module()
    assert torch.equal(module(x)[0], x * 2)
    assert torch.equal(module(x)[0], x * 2)


def test_what_replaces_a_call_keeps_its_source_line() -> None:
    rewritten = rewrite(Function(lambda x: x * 2), torch.randn(3), passes=(DoubleBySum(),))
    (add,) = (node for node in rewritten.program.graph.nodes if is_call(node, aten.add.Tensor))
    assert "in <lambda>: rewritten = rewrite(Function(lambda x: x * 2)" in source_line(add)


def test_the_innermost_line_of_a_trace() -> None:
    trace_text = '  File "a.py", line 1, in f\n    g(x)\n  File "b.py", line 22, in g\n    x * 2\n'
    assert innermost_line(trace_text) == "b.py:22, in g: x * 2"
    assert innermost_line('File "b.py", line 22, in g') == "b.py:22, in g"
    assert innermost_line("") == ""


def test_arguments_are_read_by_name_however_they_were_given() -> None:
    program = trace(
        lambda x: torch.cat([x.sort(stable=True, dim=1)[0], x.argsort().float()]), torch.randn(2, 3)
    )
    sort, argsort, cat = (
        next(node for node in program.graph.nodes if is_call(node, target))
        for target in (aten.sort.stable, aten.argsort.default, aten.cat.default)
    )
    assert [argument(sort, name) for name in ("stable", "dim", "descending")] == [True, 1, False]
    assert [argument(argsort, name) for name in ("dim", "descending")] == [-1, False]
    assert len(operands(cat, "tensors")) == 2
    with pytest.raises(AssertionError, match="no argument 'axis'"):
        argument(sort, "axis")
    with pytest.raises(AssertionError, match="no node but -1"):
        operand(argsort, "dim")
    with pytest.raises(AssertionError, match="no schema"):
        argument(next(iter(sort.users)), "self")
