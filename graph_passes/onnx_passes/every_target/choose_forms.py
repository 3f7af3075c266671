"""Gives calls of token operators their chosen forms.

Before → after, where the choice for merges of these shapes is ``scatter``::

    merge_tokens_sum(a, b, kept, src, dst)   →   merge_tokens_sum__scatter(a, b, kept, src, dst)

``graph_passes/ops/token_forms.py`` holds the bodies; ``AddFunctions`` behind it adds those called.
The choice is by what a call looks like, its shapes and batch included. Calls on other numbers than
float32, which alone are timed, keep what they have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import Counted, OnnxPass
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.ops.token_forms import FORMS, form_name


@dataclass(frozen=True, order=True)
class TokenCall:
    """The properties of a call of a token operator that decide its time.

    Attributes:
        operator: The function, ``merge_tokens_sum``.
        shapes: The shape of each input.
        attributes: Name and numbers of each attribute.
        constant: The positions of inputs that are constants of the model.
    """

    operator: str
    shapes: tuple[tuple[int, ...], ...]
    attributes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    constant: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Returns it in one line: ``gather_tokens(8×197×384, 8×98 constant)``."""
        shapes = [
            "×".join(map(str, shape)) + (" constant" if position in self.constant else "")
            for position, shape in enumerate(self.shapes)
        ]
        numbers = [f"{name}={','.join(map(str, given))}" for name, given in self.attributes]
        return f"{self.operator}({', '.join(shapes + numbers)})"


#: The form of each call that does not keep what it has.
Forms = Mapping[TokenCall, str]


class ChooseForms(OnnxPass):
    """Makes calls of token operators call their chosen form.

    Args:
        forms: The form of each kind of call; the others stay.
    """

    name = "choose forms"
    comes_before = ("add functions",)

    def __init__(self, forms: Forms | None = None) -> None:
        super().__init__()
        self._forms = dict(forms or {})

    def call(self, model: ir.Model) -> Counted:
        """Renames in place."""
        changed = 0
        for node, call in _calls(model):
            form = self._forms.get(call)
            if form is not None:
                node.op_type = form_name(call.operator, form)
                changed |= node.op_type != call.operator
        return Counted(model, changed > 0, changed)


def token_calls(model: ir.Model) -> Counter[TokenCall]:
    """Counts the calls that have forms, by what they look like."""
    return Counter(call for _, call in _calls(model))


def _calls(model: ir.Model) -> Iterator[tuple[ir.Node, TokenCall]]:
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN and node.op_type in FORMS:
            call = _call_of(node)
            if call is not None:
                yield node, call


def _call_of(node: ir.Node) -> TokenCall | None:
    """Returns the kind of a call; None if it is unknown, not float32, or all constant."""
    values = [value for value in node.inputs if value is not None]
    shapes = [shape_of(value) for value in values]
    known = tuple(shape for shape in shapes if shape is not None)
    constant = tuple(
        position
        for position, value in enumerate(values)
        if ir.convenience.get_const_tensor(value) is not None
    )
    if len(known) < len(node.inputs) or len(constant) == len(values):
        return None
    if values[0].dtype != ir.DataType.FLOAT:
        return None
    attributes = sorted((name, tuple(given.as_ints())) for name, given in node.attributes.items())
    return TokenCall(node.op_type, known, tuple(attributes), constant)
