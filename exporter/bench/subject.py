"""Prepares the model that is timed: its inputs, its outputs in eager, and facts of its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import onnx_ir as ir
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tokexport.exporter.bench.floor import Product, weight_products
from tokexport.exporter.build.emit import emit
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.config import InputConfig
from tokexport.exporter.eager.example_inputs import prepare
from tokexport.exporter.eager.reference import run_reference, tensors_of
from tokexport.exporter.errors import ExporterError
from tokexport.exporter.inputs.samples import Watch, unwatched
from tokexport.exporter.parity.gates import Gate
from tokexport.exporter.parity.measured_gates import measured_gates
from tokexport.exporter.parity.proof import StageResult, judge
from tokexport.exporter.source import Source
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.analysis.macs import count_macs
from tokexport.graph_passes.errors import GraphError, PassError
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.graph_passes.torch_passes.kinds.product_kinds import Kind
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.comparison import scale_of
from tokexport.runtimes.tolerances.neighbourhoods import as_samples, local_floor

#: The tolerance for a model that cannot be traced, as a share of the scale around a value.
WIDEST: Final = 1e-3


@dataclass(frozen=True)
class GraphFacts:
    """Facts that are read from the graph of a model.

    Attributes:
        macs: Multiply-accumulates of a run on one batch, normalisations left out; None where the
            model cannot be traced.
        products: The products with weights that are left when it is rewritten.
        heads: Attention heads; 0 where none were found.
        hidden: Channels of a token; 0 where no attention was found.
        why_not: Why there are no products, or no count; '' where there are.
    """

    macs: int | None = None
    products: tuple[Product, ...] = ()
    heads: int = 0
    hidden: int = 0
    why_not: str = ""


def widest_gate(expected: Array, samples: int, reason: str) -> Gate:
    """Returns the gate of an output of a model whose rounding is not known.

    Args:
        expected: What eager answers, (batches, …).
        samples: How many samples a batch has.
        reason: Why it is not known.
    """
    if expected.dtype.kind != "f":
        return Gate(WIDEST, None, 1.0, reason)
    allowed = local_floor(as_samples(expected, samples), WIDEST).reshape(expected.shape)
    return Gate(WIDEST, None, scale_of(expected), reason, allowed=allowed)


class Subject:
    """A model, and the reference that every candidate is compared with.

    Args:
        source: The model, as it was read.
        config: What it is prepared with; its ``batch`` is the one measured.
        watch: Is called for the pictures that are decoded, to show progress.

    Attributes:
        source: The model.
        config: What it was prepared with.
        flat: The model over flat tensors.
        specs: Its inputs.
        batches: What they hold.
        expected: The answers of eager, (batches, …) by name.

    Raises:
        UsageError: The options or inputs do not fit.
        ModelNotSupportedError: It fails in eager, or has no one answer to be held to.
    """

    def __init__(self, source: Source, config: InputConfig, watch: Watch = unwatched) -> None:
        self.source, self.config = source, config
        self.flat, self.specs, self.batches = prepare(source, config, watch)
        self.expected = run_reference(self.flat, self.batches).outputs
        self._gates: dict[str, Mapping[str, Gate]] = {}

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of ``forward`` on the first batch."""
        return self.flat.spec.arguments(tensors_of(next(iter(self.batches))))

    @property
    def names_as_called(self) -> tuple[str, ...]:
        """The names of the inputs in the order in which torch flattens the arguments."""
        tensors = tensors_of(next(iter(self.batches)))
        named = {id(one): name for name, one in zip(self.flat.spec.names, tensors, strict=True)}
        named |= {id(one): name for name, one in self.flat.spec.constants.items()}
        leaves = pytree.tree_leaves(self.flat.spec.arguments(tensors))
        return tuple(named[id(leaf)] for leaf in leaves if id(leaf) in named)

    @property
    def constants(self) -> dict[str, Array]:
        """The values of the inputs that are fixed, by name."""
        return {name: one.numpy() for name, one in self.flat.spec.constants.items()}

    def judged(self, found: Mapping[str, Array], precision: str) -> StageResult:
        """Compares the outputs (batches, …) of a candidate with eager."""
        if precision not in self._gates:
            self._gates[precision] = self._gates_of(precision)
        return judge("bench", self.expected, found, self._gates[precision])

    def _gates_of(self, precision: str) -> Mapping[str, Gate]:
        """Returns the gates of a compile; wider ones in fp32 where the model cannot be traced."""
        try:
            captured = as_graph_module(self._program)
        except ExporterError as error:
            reason = f"the model cannot be traced: {error.what}"
            outputs = self.expected.items()
            return {name: widest_gate(array, self._batch, reason) for name, array in outputs}
        found = measured_gates(captured, self.batches, self.expected, self._batch, precision)
        return found.narrowed

    @property
    def _batch(self) -> int:
        return self.specs[0].shape[0] if self.specs[0].shape else 1

    @cached_property
    def _program(self) -> ExportedProgram:
        return capture(self.flat, tensors_of(next(iter(self.batches))))

    def count(self) -> int | None:
        """Traces the model and counts it, as ``GraphFacts.macs``."""
        try:
            return _cost(self._program)
        except ExporterError:
            return None

    def read_graph(self) -> GraphFacts:
        """Traces the model, counts it, and rewrites it as ``compile`` does."""
        facts = GraphFacts()
        try:
            program = capture(self.flat, tensors_of(next(iter(self.batches))))
            facts = GraphFacts(_cost(program))
            program = pipelines.rewrite(program).program
            model = emit(program, self.flat.spec.names, tuple(self.expected))
        except PassError:
            raise
        except (ExporterError, GraphError) as error:
            return replace(facts, why_not=error.what)
        heads, hidden = _attention_sizes(model)
        products = weight_products(model)
        why_not = "" if products else "The graph has no product with a weight."
        return replace(facts, products=products, heads=heads, hidden=hidden, why_not=why_not)


def _cost(program: ExportedProgram) -> int:
    """Returns the multiply-accumulates of a captured program, normalisations left out."""
    return sum(n.macs for n in count_macs(program) if n.kind is not Kind.NORMALISATION)


def _attention_sizes(model: ir.Model) -> tuple[int, int]:
    """Returns heads and channels of the first attention of queries (B, heads, N, C)."""
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type in ("attention", "sized_attention"):
            query = node.inputs[0]
            if query is not None and query.shape is not None and len(query.shape) == 4:
                _, heads, _, channels = query.shape.numpy()
                return heads, heads * channels
    return 0, 0
