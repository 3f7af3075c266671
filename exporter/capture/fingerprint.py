"""Hashes what a traced model computes with: its weights, and apart from them its structure.

Weights, which a state dict holds, are hashed by type, shape and values in the order in which the
graph first uses them, not by name: a model has the same hash whether a factory, a module in memory,
a checkpoint or a folder brought it. The structure is every operator with its arguments and the
shape of its result; another version of torch may trace the same model otherwise, so the version
stands beside the hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from tokexport.exporter.source.hashing import bytes_of


@dataclass(frozen=True)
class Fingerprint:
    """The hashes of a traced model.

    Attributes:
        weights_sha256: That of its weights in the order of their use, in hexadecimal.
        weights_set_sha256: That of the same weights in an order of their own.
        structure_sha256: That of its graph and of what the code computes once: constants, and
            buffers that no state dict holds.
        torch: The version of torch that traced it.
    """

    weights_sha256: str
    weights_set_sha256: str
    structure_sha256: str
    torch: str


def fingerprint(program: ExportedProgram) -> Fingerprint:
    """Hashes a traced program, before a pass rewrites it.

    Args:
        program: The program; its weights are read, and nothing is changed.
    """
    lifted, stored = _lifted(program), _stored(program)
    weights: list[str] = []
    structure = hashlib.sha256()
    for name, value in _in_order_of_use(program, lifted):
        if name in stored:
            weights.append(_digest(value))
        else:  # what code computes: its last bit may be another on another processor
            structure.update(f"{_digest(value)}\n".encode())
    for line in _lines(program.graph_module, lifted):
        structure.update(f"{line}\n".encode())
    version = torch.__version__.partition("+")[0]
    return Fingerprint(_of_all(weights), _of_all(sorted(weights)), structure.hexdigest(), version)


def _digest(value: Tensor) -> str:
    """Returns the hash of a tensor's type, shape and values."""
    whole = hashlib.sha256(f"{value.dtype}\0{tuple(value.shape)}\0".encode())
    whole.update(bytes_of(value))
    return whole.hexdigest()


def _of_all(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _lifted(program: ExportedProgram) -> dict[str, str]:
    """Returns the name of each weight and constant, by the name of its placeholder."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def _stored(program: ExportedProgram) -> set[str]:
    """Returns the names of what a state dict holds."""
    signature = program.graph_signature
    buffers = {*signature.inputs_to_buffers.values()} - {*signature.non_persistent_buffers}
    return {*signature.inputs_to_parameters.values()} | buffers


def _in_order_of_use(
    program: ExportedProgram, lifted: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """Yields each weight and constant once, with its name, when the graph first reads it."""
    held = {**program.constants, **program.state_dict}
    seen: set[str] = set()
    for node in program.graph.nodes:
        for read in node.all_input_nodes:
            name = lifted.get(read.name)
            if name is not None and name not in seen:
                seen.add(name)
                yield name, held[name]


def _lines(module: GraphModule, lifted: Collection[str] = ()) -> Iterator[str]:
    """Yields a line for every node of a graph, and of those inside it.

    Weights go by the order in which they are used, other nodes by their place behind them.
    """
    places: dict[fx.Node, str] = {}
    used = count()
    for node in module.graph.nodes:
        if node.op == "placeholder" and node.name in lifted:
            continue
        places[node] = f"%{len(places)}"
        if node.op == "placeholder":
            yield f"input {_result(node)}"
            continue
        if node.op == "get_attr":
            inner = getattr(module, str(node.target), None)
            if isinstance(inner, GraphModule):
                yield from (f"  {line}" for line in _lines(inner))
            continue
        for read in node.all_input_nodes:
            if read not in places:
                places[read] = f"weight {next(used)}"
        leaves, form = pytree.tree_flatten((node.args, node.kwargs))
        arguments = [_written(each, places) for each in leaves]
        yield f"{node.op} {node.target} {arguments} {form} {_result(node)}"


def _written(value: Any, places: dict[fx.Node, str]) -> str:
    return places[value] if isinstance(value, fx.Node) else repr(value)


def _result(node: fx.Node) -> list[str]:
    """Returns type and shape of every tensor that a node gives."""
    return [
        f"{one.dtype} {tuple(one.shape)}" if isinstance(one, Tensor) else repr(one)
        for one in pytree.tree_leaves(node.meta.get("val"))
    ]
