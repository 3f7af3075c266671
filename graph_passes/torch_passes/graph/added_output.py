"""Adds an output to a program, and removes parts of it."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.fx import Node
from torch.utils import _pytree as pytree

from tokexport.graph_passes.torch_passes.graph.editor import Editor


def add_output(program: ExportedProgram, output: Node, value: Node) -> None:
    """Adds a value behind the outputs of a program that gives a flat tuple.

    Args:
        program: The program.
        output: The output node of its graph.
        value: A node of it.
    """
    output.args = ((*output.args[0], value),)  # type: ignore[misc]
    argument = TensorArgument(value.name)
    spec = OutputSpec(OutputKind.USER_OUTPUT, argument, None)
    program.graph_signature.output_specs.append(spec)
    call = program.module_call_graph[0]
    assert call.signature is not None
    call.signature.outputs.append(argument)
    count = call.signature.out_spec.num_leaves + 1
    call.signature.out_spec = pytree.tree_structure((0,) * count)


def drop_writes(program: ExportedProgram) -> None:
    """Drops a program's writes into its weights and inputs; its reads of them stay."""
    signature = program.graph_signature
    kinds = (
        *(OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION),
        OutputKind.USER_INPUT_MUTATION,
    )
    (output,) = program.graph.find_nodes(op="output")
    kept = [at for at, spec in enumerate(signature.output_specs) if spec.kind not in kinds]
    if len(kept) < len(signature.output_specs):
        output.args = (tuple(output.args[0][at] for at in kept),)
        signature.output_specs[:] = [signature.output_specs[at] for at in kept]
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()


def keep_checks(program: ExportedProgram, kept: list[int]) -> None:
    """Keeps some of the truth values in the last output of a program; none, and it goes.

    Args:
        program: The program; its last output is a join of parts (1,), or one of them.
        kept: Which.
    """
    graph = program.graph_module.graph
    (output,) = graph.find_nodes(op="output")
    *outputs, held = output.args[0]
    parts = list(held.args[0]) if held.target is torch.ops.aten.cat.default else [held]
    if len(kept) == len(parts):
        return
    output.args = (tuple(outputs),)
    program.graph_signature.output_specs.pop()
    call = program.module_call_graph[0]
    assert call.signature is not None
    call.signature.outputs.pop()
    call.signature.out_spec = pytree.tree_structure((0,) * len(outputs))
    if kept:
        left = [parts[at] for at in kept]
        edit = Editor(graph)
        with edit.before(output):
            joined = edit.call(torch.ops.aten.cat.default, left, 0) if len(left) > 1 else left[0]
        add_output(program, output, joined)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
