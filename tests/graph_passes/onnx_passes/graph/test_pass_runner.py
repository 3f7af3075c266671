"""A pass over an ONNX graph says what it changed and left; one that breaks the graph is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import pytest
from onnx import parser

from tokexport.graph_passes import pipelines
from tokexport.graph_passes.errors import OperatorRefusedError, PassError
from tokexport.graph_passes.onnx_passes.fuse.norms_on_rows import NormsOnRows
from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, OnnxPass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.pass_runner import pass_name, run_onnx_passes
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.source_lines import STACK_TRACE
from tokexport.graph_passes.onnx_passes.targets.refuse_for_tensorrt import RefuseForTensorRt
from tokexport.graph_passes.onnx_passes.targets.widen_vectors import WidenVectors
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import NonMatch, PassReport, Reason, check_order

TRACE = 'File "/home/me/model.py", line 7, in forward\n    return x.thing()'
LINE = "/home/me/model.py:7, in forward: return x.thing()"
X = "float[2,3] x"
CHAIN = "a = Exp (x) b = Neg (a) y = Abs (b)"


def graph(inputs: str = X, body: str = CHAIN, output: str = "float[2,3] y") -> ir.Model:
    """Returns the model of one graph; its nodes know the line they came from."""
    text = f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({output}) {{ {body} }}'
    model = ir.from_proto(parser.parse_model(text))
    for position, node in enumerate(model.graph):
        node.name = f"node_{position}"
        node.metadata_props[STACK_TRACE] = TRACE
    return model


def node(model: ir.Model, op_type: str) -> ir.Node:
    return next(one for one in model.graph if one.op_type == op_type)


class Breaks(OnnxPass):
    """Does to a graph what it is given."""

    name = "break"

    def __init__(self, damage: Callable[[ir.Model], object]) -> None:
        super().__init__()
        self._damage = damage

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Damages it."""
        self._damage(model)
        return ir.passes.PassResult(model, modified=False)


def move_reader_ahead(model: ir.Model) -> None:
    reader = node(model, "Neg")
    model.graph.remove(reader)
    model.graph.insert_before(node(model, "Exp"), reader)


def read_what_nothing_makes(model: ir.Model) -> None:
    node(model, "Neg").replace_input_with(0, ir.Value(name="lost"))


def read_what_is_taken_out(model: ir.Model) -> None:
    model.graph.remove(node(model, "Exp"))


def give_a_name_twice(model: ir.Model) -> None:
    node(model, "Neg").outputs[0].name = "a"


def call_a_strange_domain(model: ir.Model) -> None:
    new = Replacement(node(model, "Neg"))
    new.put(new.call("Neg", node(model, "Exp").outputs[0], domain="com.strange"))


def give_another_type(model: ir.Model) -> None:
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)


def give_another_shape(model: ir.Model) -> None:
    model.graph.outputs[0].shape = ir.Shape((3, 2))


def give_an_output_that_nothing_makes(model: ir.Model) -> None:
    lost = ir.Value(name="lost", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((2, 3)))
    model.graph.outputs[0] = lost


def give_one_output_more(model: ir.Model) -> None:
    model.graph.outputs.append(node(model, "Exp").outputs[0])


NEG, EXP = (f"Node node_{i} ({name}), from {LINE}" for i, name in ((1, "Neg"), (0, "Exp")))
DAMAGES: dict[Callable[[ir.Model], object], tuple[str, str]] = {
    move_reader_ahead: ("a node reads 'a' before 'node_0' makes it", NEG),
    read_what_nothing_makes: ("a node reads 'lost', which nothing makes", NEG),
    read_what_is_taken_out: ("a node reads 'a' of 'node_0', which is not in the graph", NEG),
    give_a_name_twice: ("two values are called 'a'", NEG),
    call_a_strange_domain: ("the domain 'com.strange' is not imported", "node_1/0 (Neg), from"),
    give_another_type: ("the output 'y' is of FLOAT16, and was of FLOAT", ""),
    give_another_shape: ("the output 'y' has the shape [3,2], and had [2,3]", ""),
    give_an_output_that_nothing_makes: ("nothing makes the output 'lost'", ""),
    give_one_output_more: ("it has 2 outputs in place of 1", ""),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_pass_that_breaks_the_graph_is_named_with_those_before_it(
    damage: Callable[[ir.Model], object],
) -> None:
    what, where = DAMAGES[damage]
    passes = (WidenVectors(), NormsOnRows(), Breaks(damage), WidenVectors())
    with pytest.raises(PassError) as caught:
        run_onnx_passes(graph(), passes, "lower")
    error = caught.value
    assert error.what == f"The pass 'break' left a broken graph: {what}."
    assert where in error.where
    assert error.before == ("widen vectors", "norms on rows")
    assert "ran before it: widen vectors, norms on rows." in error.where
    assert "--keep-stages" in error.fix


def test_a_branch_that_reads_what_nothing_makes_is_found() -> None:
    body = "y = If (c) <then_branch = t () => (float[2,3] p) { p = Exp (x) }, "
    body += "else_branch = e () => (float[2,3] p) { p = Neg (x) }>"
    model = graph(f"bool c, {X}", body)
    run_onnx_passes(model, (Breaks(lambda model: None),), "lower")

    def damage(model: ir.Model) -> None:
        inner = next(one for one in model.graph.all_nodes() if one.op_type == "Neg")
        inner.replace_input_with(0, ir.Value(name="lost"))

    with pytest.raises(PassError, match="reads 'lost', which nothing makes"):
        run_onnx_passes(model, (Breaks(damage),), "lower")


def test_a_graph_that_is_broken_from_the_start_is_said_to_be() -> None:
    model = graph()
    move_reader_ahead(model)
    with pytest.raises(PassError, match="^The graph is broken: a node reads 'a' before") as caught:
        run_onnx_passes(model, (WidenVectors(),), "emit")
    assert "stage 'emit' that ran before it: none" in caught.value.where


def test_a_pass_that_raises_is_named_and_no_refusal_is_taken_for_that() -> None:
    def fail(model: ir.Model) -> None:
        raise KeyError("a weight")

    said = "^The pass 'break' failed: KeyError: 'a weight'."
    with pytest.raises(PassError, match=said) as caught:
        run_onnx_passes(graph(), (WidenVectors(), Breaks(fail)), "lower")
    assert caught.value.before == ("widen vectors",)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(OperatorRefusedError):
        run_onnx_passes(
            graph(X, "y = NonZero (x)", "int64[2,m] y"), (RefuseForTensorRt(),), "lower"
        )


class Negates(NodePass):
    """Writes -x as 0 - x where x is what Exp makes; of the output of Abs it fails."""

    name = "negate"
    comes_before = ("norms on rows",)
    op_types = ("Neg",)
    forbidden = frozenset({("", "Sign")})

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches what Exp makes."""
        source = node.inputs[0]
        maker = source.producer() if source is not None else None
        if maker is None:
            return None
        if maker.op_type == "Abs":
            raise ValueError("no such thing")
        return Reason("it is no power") if maker.op_type != "Exp" else lambda: _negate(node)


def _negate(node: ir.Node) -> None:
    new = Replacement(node)
    new.put(new.call("Sub", new.call("Sub", node.inputs[0], node.inputs[0]), node.inputs[0]))


def test_a_pass_counts_what_it_rewrites_and_says_why_it_leaves_a_node() -> None:
    model = graph(body="a = Exp (x) b = Neg (a) c = Neg (b) y = Neg (x) ", output="float[2,3] y")
    result = run_onnx_passes(model, (Negates(), NormsOnRows()), "lower")
    left = NonMatch("node_2", "Neg", "it is no power", LINE)
    assert result.reports == (
        PassReport("lower", "negate", 1, (left,)),
        PassReport("lower", "norms on rows", 0),
    )
    assert [one.op_type for one in result.model.graph] == ["Exp", "Sub", "Sub", "Neg", "Neg"]


def test_what_another_pass_takes_is_not_left() -> None:
    class TakesTheRest(Negates):
        name = "take the rest"

        def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
            return lambda: _negate(node)

    model = graph(body="a = Exp (x) b = Neg (a) y = Neg (b)")
    first, second = run_onnx_passes(model, (Negates(), TakesTheRest()), "lower").reports
    assert (first.fired, first.non_matches, second.fired) == (1, (), 1)


class TakesNothing(Negates):
    name = "take nothing"

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        return None


def test_a_match_that_raises_names_its_node_and_line() -> None:
    model = graph(body="a = Abs (x) y = Neg (a)")
    with pytest.raises(PassError, match="'negate' failed: ValueError: no such thing.") as caught:
        run_onnx_passes(model, (Negates(),), "lower")
    assert f"Node node_1 (Neg), from {LINE}" in caught.value.where


@pytest.mark.parametrize("when", ["requires", "ensures"])
def test_what_a_pass_requires_and_ensures_is_said_in_its_own_words(when: str) -> None:
    class Holds(Negates):
        name = "hold"

    def refuse(self: Holds, model: ir.Model) -> None:
        raise PassError("The pass 'hold' needs a graph without functions.", where="node_0 (Exp)")

    setattr(Holds, when, refuse)
    model = graph(body="a = Exp (x) y = Neg (a)")
    with pytest.raises(PassError, match="needs a graph without functions") as caught:
        run_onnx_passes(model, (TakesNothing(), Holds()), "lower")
    assert caught.value.where.startswith("node_0 (Exp)")
    assert caught.value.before == ("take nothing",)


def test_an_operator_that_a_pass_promises_to_remove_is_found() -> None:
    model = graph(body="a = Exp (x) b = Neg (a) y = Sign (b)")
    with pytest.raises(PassError, match="'negate' left an operator .*, Sign") as caught:
        run_onnx_passes(model, (Negates(),), "lower")
    assert "node_2 (Sign)" in caught.value.where


def test_a_call_without_its_function_is_found_behind_the_pass_that_adds_them() -> None:
    (add,) = (one for one in pipelines.EMIT if one.__class__.__name__ == "AddFunctions")
    model = graph(body="a = Exp (x) y = Neg (a)")
    node(model, "Neg").domain = DOMAIN
    model.opset_imports[DOMAIN] = 1
    with pytest.raises(PassError, match="'add functions' (failed|left a call without)"):
        run_onnx_passes(model, (add,), "emit")


def in_order(passes: Sequence[ir.passes.PassBase]) -> None:
    check_order((pass_name(one), getattr(one, "comes_before", ())) for one in passes)


def test_the_lowerings_are_in_order_and_reversed_they_are_not() -> None:
    in_order(pipelines.EMIT)
    for target in pipelines.LOWER:
        for precision in ("fp32", "fp16", "bf16", "int8"):
            in_order(pipelines.lowering(target, pipelines.Arithmetic(precision)))
        with pytest.raises(PassError, match="must come before"):
            in_order(pipelines.LOWER[target][::-1])
