"""Defines torch passes, and runs an ordered tuple of them over an exported program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Graph, Node

from tokexport.graph_passes.errors import GraphError, PassError
from tokexport.graph_passes.ops.ops import NAMESPACE
from tokexport.graph_passes.pass_report import PassReport, check_order, joined
from tokexport.graph_passes.stack_traces import origin
from tokexport.graph_passes.torch_passes.graph.calls import CONSTANT
from tokexport.graph_passes.torch_passes.graph.editor import Editor


class TorchPass(ABC):
    """One rewrite of the traced graph.

    Attributes:
        name: The verb phrase it is reported under.
        comes_before: Passes that rely on this one and so must come later in a pipeline.
        forbidden: Operators that must not be left after it.
    """

    name: ClassVar[str]
    comes_before: ClassVar[tuple[str, ...]] = ()
    forbidden: ClassVar[frozenset[object]] = frozenset()

    @abstractmethod
    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many places it changed."""


@dataclass(frozen=True)
class PassResult:
    """A program after passes, with counts of what they changed and recognised.

    Attributes:
        program: The program.
        reports: What each pass did.
        recognised: How many calls of each operator of the domain there are.
    """

    program: ExportedProgram
    reports: tuple[PassReport, ...]
    recognised: dict[str, int]

    @property
    def changes(self) -> dict[str, int]:
        """How many places each pass changed, by its name; in the last stage that it ran in."""
        return {one.name: one.fired for one in self.reports}


def run_passes(
    program: ExportedProgram, passes: Sequence[TorchPass], stage: str = "rewrite"
) -> PassResult:
    """Runs the passes in order over a functional program, in place.

    Dead nodes are removed, and the graph is checked, before the first pass, after each that changed
    something and behind the last. What a pass promises is checked after each.

    Args:
        program: The program.
        passes: The passes.
        stage: The stage that reports and errors name.

    Raises:
        PassError: A pass raised, or broke a promise; names the passes before it.
        GraphError: A pass refuses the program.
    """
    check_order((one.name, one.comes_before) for one in passes)
    graph = program.graph_module.graph
    _note_constants(program, graph)
    graph.eliminate_dead_code()
    edit = Editor(graph)
    reports: list[PassReport] = []
    for torch_pass in passes:
        try:
            reports.append(_run(torch_pass, edit, stage))
        except PassError as error:
            raise error.behind(stage, [one.name for one in reports]) from error.__cause__
        except (GraphError, MemoryError):
            raise
        except Exception as error:
            where = "" if edit.at is None else origin(edit.at)
            failed = PassError.of(torch_pass.name, error, where=where)
            raise failed.behind(stage, [one.name for one in reports]) from error
    _add_constants(program, edit)
    _name_outputs(program, graph)
    graph.lint()
    program.graph_module.recompile()
    left = {node.name for node in graph.nodes}
    taken = {one.node for report in reports for one in report.non_matches} - left
    reports = [one.without(taken) for one in joined(reports)]
    return PassResult(program, tuple(reports), _recognised(graph))


def _run(torch_pass: TorchPass, edit: Editor, stage: str) -> PassReport:
    """Runs one pass; where it changed the graph, takes dead nodes away and checks the rest."""
    edit.begin()
    nodes = len(edit.graph.nodes)
    fired = torch_pass.call(edit)
    if fired or len(edit.graph.nodes) != nodes:
        edit.graph.eliminate_dead_code()
        edit.graph.lint()
    for node in edit.graph.nodes if torch_pass.forbidden else ():
        if node.op == "call_function" and node.target in torch_pass.forbidden:
            raise PassError(
                f"'{torch_pass.name}' left an operator it promises to remove.",
                where=f"{node.target} at {node.name}",
            )
    return PassReport(stage, torch_pass.name, fired, edit.non_matches)


def _recognised(graph: Graph) -> dict[str, int]:
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    names = Counter(
        target.name().removeprefix(f"{NAMESPACE}::")
        for target in targets
        if isinstance(target, OpOverload) and target.namespace == NAMESPACE
    )
    return dict(sorted(names.items()))


def _note_constants(program: ExportedProgram, graph: Graph) -> None:
    """Records the tensors of buffers and constants at their input nodes.

    Weights are left out: a pass must not depend on what was trained.
    """
    signature = program.graph_signature
    written = set(signature.buffers_to_mutate.values())
    names = {
        node: name
        for node, name in (
            *signature.inputs_to_buffers.items(),
            *signature.inputs_to_lifted_tensor_constants.items(),
        )
        if name not in written
    }
    for node in graph.find_nodes(op="placeholder"):
        name = names.get(node.name, "")
        tensor = program.constants.get(name, program.state_dict.get(name))
        if isinstance(tensor, Tensor):
            node.meta[CONSTANT] = tensor


def _add_constants(program: ExportedProgram, edit: Editor) -> None:
    """Adds the constants that passes made to the program; each comes before other inputs."""
    for name, tensor in edit.constants.items():
        spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name), name)
        program.graph_signature.input_specs.insert(0, spec)
        program.constants[name] = tensor


def _name_outputs(program: ExportedProgram, graph: Graph) -> None:
    """Updates the signature to the nodes of the outputs."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    for spec, node in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        if isinstance(node, Node) and hasattr(spec.arg, "name"):
            spec.arg.name = node.name
