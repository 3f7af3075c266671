"""Finds the repeated blocks of a model in its traced graph, and counts the tokens of each.

A block is an element of a numbered container (``blocks.3`` of a ModuleList or Sequential) of which
at least two elements hold attention; of nested containers the innermost of these counts
(``layers.1.blocks.0`` in a hierarchical model). No name is known beforehand. Where a node's module
is not recorded, as in a program that was exported before, it is found from the weights that the
node reads.

What runs between two blocks, a pruning step in the model's own forward for example, counts with the
block before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from torch.export import ExportedProgram
from torch.fx import Node

from tokexport.graph_passes.analysis.macs import NodeMacs, module_path
from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, is_tensor, shape_of
from tokexport.graph_passes.torch_passes.kinds.product_kinds import Kind, ProductKinds


@dataclass(frozen=True)
class Tokens:
    """The tokens that pass through a block.

    Attributes:
        entering: Tokens of an image that enter it.
        leaving: Tokens that leave it.
        width: Channels of a token as it enters.
        width_out: Channels of a token as it leaves.
    """

    entering: int
    leaving: int
    width: int
    width_out: int


class Blocks:
    """Maps the nodes of a program to its blocks.

    Args:
        program: A captured or rewritten program.
        paths: The blocks, in the order in which they run.
    """

    def __init__(self, program: ExportedProgram, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        where = _module_paths(program)
        own = [position_of(where[node], self.paths) for node in calls]
        last = max((i for i, block in enumerate(own) if block is not None), default=-1)
        self._block_of: dict[Node, int] = {}
        current = None
        for i, node in enumerate(calls[: last + 1]):
            current = own[i] if own[i] is not None else current
            if current is not None:
                self._block_of[node] = current

    def block_of(self, node: Node) -> int | None:
        """Returns the position of the block in ``paths``; None before, after and outside all."""
        return self._block_of.get(node)

    def members(self, position: int) -> set[Node]:
        """Returns the nodes of a block."""
        return {node for node, block in self._block_of.items() if block == position}


def attention_blocks(program: ExportedProgram, counted: Iterable[NodeMacs]) -> tuple[str, ...]:
    """Returns the paths of the blocks that hold attention, in the order in which they run.

    Args:
        program: A captured program.
        counted: Its nodes that cost something.
    """
    where = _module_paths(program)
    attention = {one.node for one in counted if one.kind is Kind.ATTENTION}
    paths: list[str] = []
    numbered = ""
    for node in program.graph.nodes:
        if node.op == "call_function":
            if _elements(where[node]):
                numbered = where[node]
            if node in attention:
                paths.append(where[node] if _elements(where[node]) else numbered)
    children: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        for element in _elements(path):
            children[element.rpartition(".")[0]].add(element)
    found: dict[str, None] = {}
    for path in paths:
        elements = _elements(path)
        repeated = [e for e in elements if len(children[e.rpartition(".")[0]]) > 1]
        for element in (repeated or elements[::-1])[-1:]:
            found[element] = None
    return tuple(found)


def tokens_through(
    members: set[Node], counted: Iterable[NodeMacs], kinds: ProductKinds, batch: int
) -> Tokens | None:
    """Returns how many tokens enter and leave a block; None where no value looks like tokens.

    Of the floating-point values that cross its border, the largest whose channels a layer inside
    reads or writes is the one that carries the tokens, (B, N, C), (B, H, W, C) or (B, C, H, W).

    Args:
        members: The nodes of the block.
        counted: The nodes of the program that cost something.
        kinds: What depends on the inputs.
        batch: Images in a run.
    """
    layers = (Kind.LINEAR, Kind.CONVOLUTION, Kind.NORMALISATION)
    inside = [one for one in counted if one.node in members and one.kind in layers]
    widths = {one.sizes[axis] for one in inside if len(one.sizes) > 1 for axis in (1, -1)}
    entering = {
        part
        for node in members
        for part in node.all_input_nodes
        if part not in members and kinds.varies(part)
    }
    leaving = {node for node in members if any(user not in members for user in node.users)}
    before, after = _tokens_of(entering, widths, batch), _tokens_of(leaving, widths, batch)
    if before is None or after is None:
        return None
    return Tokens(before[0], after[0], before[1], after[1])


def _tokens_of(values: set[Node], widths: set[int], batch: int) -> tuple[int, int] | None:
    """Returns (tokens, channels) of the largest value that has one of the widths."""
    best: tuple[int, int, int] | None = None
    for node in values:
        if not is_tensor(node) or not dtype_of(node).is_floating_point:
            continue
        shape = shape_of(node)
        if len(shape) < 2:
            continue
        channels = shape[-1] if shape[-1] in widths or len(shape) < 4 else shape[1]
        if channels in widths and prod(shape) % (batch * channels) == 0:
            size = (prod(shape), prod(shape) // (batch * channels), channels)
            best = size if best is None else max(best, size)
    return best[1:] if best else None


def _module_paths(program: ExportedProgram) -> dict[Node, str]:
    """Returns the module of each call, from its own record or from the weights it reads."""
    names = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    found = {}
    for node in program.graph.nodes:
        recorded = module_path(node)
        read = [names[part.name] for part in node.all_input_nodes if part.name in names]
        owner = read[0].rpartition(".")[0] if read else ""
        found[node] = owner if _elements(owner) and not _elements(recorded) else recorded
    return found


def _elements(path: str) -> list[str]:
    """Returns the numbered elements along a path: layers.1.blocks.0.attn → layers.1, and …0."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i, part in enumerate(parts) if i and part.isdigit()]


def position_of(path: str, blocks: Sequence[str]) -> int | None:
    """Returns the position of the block that a module lies in; None where it lies in none.

    Args:
        path: The module: ``layers.1.blocks.0.attn``.
        blocks: The paths of the blocks.
    """
    for i, block in enumerate(blocks):
        if path == block or path.startswith(f"{block}."):
            return i
    return None
