"""A model that decides once, inputs that make it a close decision, and passes that get it wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

TOKENS, CHANNELS, KEPT = 6, 4, 3


class KeepsTheBest(nn.Module):
    """Keeps the three tokens with the largest first channel; (1, 6, 4) → (1, 3, 4)."""

    def forward(self, x: Tensor) -> Tensor:
        index = (x[..., 0] * 1.0).topk(KEPT, dim=1).indices
        return x.gather(1, index[..., None].expand(-1, -1, CHANNELS)) * 2


class ReadsTheFirst(KeepsTheBest):
    """Decides once more, between equal scores, about tokens that nothing reads; → (1, 4)."""

    def forward(self, x: Tensor) -> Tensor:
        kept = super().forward(x)
        first, rest = kept[:, :1] + kept.mean(1, keepdim=True), kept[:, 1:]
        index = (rest[..., 1] * 0.0).topk(1, dim=1).indices
        rest = rest.gather(1, index[..., None].expand(-1, -1, CHANNELS))
        return torch.cat([first, rest], dim=1).tanh()[:, 0]


class Rounds(nn.Module):
    """Rounds the first channel of its tokens, as a quantised activation does; → (1, 6, 4)."""

    def __init__(self, how: str = "round") -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        scores = x[..., 0] * 1.0
        steps = {
            "round": lambda: scores.round(),
            "long": lambda: (scores + 0.5).long().float(),
            "floor": lambda: (scores + 0.5).floor(),
            "bool": lambda: (scores - 3.5).relu().bool() * 2.0,
        }[self.how]()
        return x * steps[..., None] * 2


def samples(*apart: float) -> np.ndarray:
    """Returns an image per number: that much lies between its third and its fourth score."""
    images = np.random.default_rng(0).standard_normal((len(apart), TOKENS, CHANNELS))
    for image, gap in zip(images, apart, strict=True):
        image[:, 0] = [5.0, 1.0, 3.0, 4.0, 3.0 + gap, 0.5]
    return images.astype(np.float32)


@dataclass
class Nudge(ir.passes.InPlacePass):
    """A pass that adds to the scores of a top-k; a little of it is what rounding does.

    Attributes:
        amount: How much it adds to the third score, and takes from the fifth.
        op_type: What it puts that in front of.
    """

    amount: float
    op_type: str = "TopK"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lifts the third token's score and lowers the fifth's."""
        (top_k,) = (node for node in model.graph if node.op_type == self.op_type)
        scores = top_k.inputs[0]
        assert scores is not None
        nudge = np.array([0, 0, 1, 0, -1, 0], dtype=np.float32) * np.float32(self.amount)
        constant = ir.node("Constant", [], attributes={"value": ir.tensor(nudge)})
        add = ir.node("Add", [scores, constant.outputs[0]])
        for value in (*constant.outputs, *add.outputs):
            value.name = f"nudge_{id(value)}"
        model.graph.insert_before(top_k, [constant, add])
        top_k.replace_input_with(0, add.outputs[0])
        # whoever else reads the scores reads them nudged: they are what is decided on
        outputs = model.graph.outputs
        for position, output in enumerate(outputs):
            if output is scores:
                add.outputs[0].dtype, add.outputs[0].shape = output.dtype, output.shape
                add.outputs[0].name, output.name = output.name, f"{output.name}_inner"
                outputs[position] = add.outputs[0]
        return ir.passes.PassResult(model, modified=True)


class SmallestFirst(ir.passes.InPlacePass):
    """A wrong pass: the smallest take the place of the largest."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Turns the top-k round."""
        (top_k,) = (node for node in model.graph if node.op_type == "TopK")
        top_k.attributes["largest"] = ir.AttrInt64("largest", 0)
        return ir.passes.PassResult(model, modified=True)


class HalfAgain(ir.passes.InPlacePass):
    """A wrong pass: what is multiplied by two at the end is multiplied by three."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Changes the factor of the last product."""
        last = [node for node in model.graph if node.op_type == "Mul"][-1]
        factor = ir.node("Constant", [], attributes={"value": ir.tensor(np.float32(3.0))})
        factor.outputs[0].name = "factor_of_three"
        model.graph.insert_before(last, factor)
        last.replace_input_with(1, factor.outputs[0])
        return ir.passes.PassResult(model, modified=True)


class WrongWhereItTies(ir.passes.InPlacePass):
    """A wrong pass that one image shows, and only where no decision is told: it is near a tie."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Adds to the tokens what their largest value is above 6, where the model has one input."""
        if len(model.graph.inputs) > 1:
            return ir.passes.PassResult(model, modified=False)
        last = [node for node in model.graph if node.op_type == "Mul"][-1]
        six = ir.node("Constant", [], attributes={"value": ir.tensor(np.float32(6.0))})
        most = ir.node("ReduceMax", [model.graph.inputs[0]])
        above = ir.node("Sub", [most.outputs[0], six.outputs[0]])
        error = ir.node("Relu", [above.outputs[0]])
        tokens = last.inputs[0]
        assert tokens is not None
        add = ir.node("Add", [tokens, error.outputs[0]])
        for node in (six, most, above, error, add):
            node.outputs[0].name = f"wrong_{id(node)}"
        model.graph.insert_before(last, [six, most, above, error, add])
        last.replace_input_with(0, add.outputs[0])
        return ir.passes.PassResult(model, modified=True)


class RightUnderReplay(ir.passes.InPlacePass):
    """A wrong pass that looks like a tie: the last product is wrong unless decisions are inputs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Changes the factor of the last product where the model has one input."""
        if len(model.graph.inputs) > 1:
            return ir.passes.PassResult(model, modified=False)
        return HalfAgain().call(model)
