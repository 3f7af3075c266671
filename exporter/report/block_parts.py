"""Counts what each block of a model costs, and what the rewriting recognised in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram

from tokexport.graph_passes.analysis.blocks import (
    Blocks,
    Tokens,
    attention_blocks,
    position_of,
    tokens_through,
)
from tokexport.graph_passes.analysis.macs import NodeMacs, count_macs
from tokexport.graph_passes.analysis.unrecognised import unrecognised
from tokexport.graph_passes.analysis.unreduced import unreduced_macs
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.graph.calls import operator_name
from tokexport.graph_passes.torch_passes.kinds.product_kinds import Kind, ProductKinds


@dataclass(frozen=True)
class Generic:
    """An operator that no pass recognised.

    Attributes:
        what: ``attention``, ``selection``, ``merge``, ``gather``, ``scatter`` or ``sort``.
        operator: The operator: ``aten.matmul``.
        why: Why it was not recognised, a clause.
        line: The line of the user's code, or ''.
    """

    what: str
    operator: str
    why: str
    line: str


@dataclass(frozen=True)
class Part:
    """One block, or everything outside the blocks.

    Attributes:
        path: The module: ``blocks.3``; '' for what lies outside.
        tokens_in: Tokens of an image that enter; None where nothing looks like tokens.
        tokens_out: Tokens that leave.
        macs: Multiply-accumulates by kind, of the whole batch.
        recognised: How many operators of the domain, by name.
        generic: What stayed generic.
    """

    path: str
    tokens_in: int | None
    tokens_out: int | None
    macs: Mapping[str, int]
    recognised: Mapping[str, int]
    generic: tuple[Generic, ...]


def cost(macs: Mapping[str, int]) -> int:
    """Returns the cost without normalisations, which papers mostly leave out."""
    return sum(macs.values()) - macs[Kind.NORMALISATION]


class BlockCounts:
    """The counts of a captured program; taken before its graph is rewritten in place.

    Args:
        program: The captured program.
        batch: Images in a run.

    Attributes:
        total: Multiply-accumulates of the whole, by kind.
        unreduced: Those without the reduction.
        paths: The blocks' modules in the captured program, in order.
        parts: A part per block, and last what lies outside all; there once ``look`` was called.
    """

    parts: tuple[Part, ...]

    def __init__(self, program: ExportedProgram, batch: int) -> None:
        nodes = count_macs(program)
        kinds = ProductKinds(program)
        self.paths = attention_blocks(program, nodes)
        blocks = Blocks(program, self.paths)
        self._tokens: tuple[Tokens | None, ...] = tuple(
            tokens_through(blocks.members(i), nodes, kinds, batch) for i in range(len(self.paths))
        )
        self._macs: dict[int | None, Counter[str]] = {}
        for node in nodes:
            self._macs.setdefault(blocks.block_of(node.node), Counter())[node.kind] += node.macs
        self.total = by_kind(nodes)
        self.unreduced = _kinds(unreduced_macs(nodes, blocks, self._tokens, batch))

    def look(self, rewritten: ExportedProgram) -> None:
        """Finds the parts in the rewritten program before what nothing reads is dropped."""
        blocks = Blocks(rewritten, self.paths)
        recognised: dict[int | None, Counter[str]] = {}
        for node in rewritten.graph.nodes:
            name = operator_name(node) if node.op == "call_function" else ""
            if name.startswith(f"{ops.NAMESPACE}."):
                found = recognised.setdefault(blocks.block_of(node), Counter())
                found[name.removeprefix(f"{ops.NAMESPACE}.")] += 1
        generic: dict[int | None, list[Generic]] = {}
        for left in unrecognised(rewritten):
            generic.setdefault(blocks.block_of(left.node), []).append(
                Generic(left.what, left.operator, left.why, left.line)
            )
        parts = []
        for position in (*range(len(self.paths)), None):
            tokens = None if position is None else self._tokens[position]
            parts.append(
                Part(
                    path="" if position is None else _shown(self.paths[position]),
                    tokens_in=tokens.entering if tokens else None,
                    tokens_out=tokens.leaving if tokens else None,
                    macs=_kinds(self._macs.get(position, {})),
                    recognised=dict(sorted(recognised.get(position, {}).items())),
                    generic=tuple(generic.get(position, ())),
                )
            )
        self.parts = tuple(parts)

    def position_of(self, path: str) -> int | None:
        """Returns the position of the block that a module of the captured program lies in."""
        return position_of(path, self.paths)


def by_kind(nodes: Sequence[NodeMacs]) -> dict[str, int]:
    """Returns the multiply-accumulates of some nodes for every kind, in their order."""
    total: Counter[str] = Counter()
    for node in nodes:
        total[node.kind] += node.macs
    return _kinds(total)


def _kinds(counts: Mapping[Any, int]) -> dict[str, int]:
    return {str(kind): counts.get(kind, 0) for kind in Kind}


def _shown(path: str) -> str:
    """Returns a module's path as the user's model has it, without the wrapper of the capture."""
    return path.removeprefix("model.")
