"""What the exporter wrote is simplified as its own optimiser would."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from helpers.graphs import emitted, rewrite
from helpers.onnx_graphs import Arrays, answers, operators, parsed

from tokexport.exporter.torch_warnings import torch_warnings_silenced
from tokexport.graph_passes.onnx_passes.every_target.simplify import Simplify

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (
            "s = Constant <value_ints = [4, 6]> () a = Reshape (x, s)"
            "t = Constant <value_ints = [8, 3]> () y = Reshape (a, t)",
            {"Reshape": 1},
        ),
        (
            "a = Transpose <perm = [1, 0, 2]> (x) y = Transpose <perm = [2, 0, 1]> (a)",
            {"Transpose": 1},
        ),
        ("a = Transpose <perm = [0, 1, 2]> (x) y = Neg (a)", {"Neg": 1}),
        ("a = Cast <to = 1> (x) y = Neg (a)", {"Neg": 1}),
        ("z = Constant <value_float = 0.0> () a = Add (x, z) y = Neg (a)", {"Neg": 1}),
        ("z = Constant <value_float = 0.0> () a = Add (z, x) y = Neg (a)", {"Neg": 1}),
        ("z = Constant <value_float = 1.0> () a = Mul (z, x) y = Neg (a)", {"Neg": 1}),
        ("a = Neg (x) b = Neg (x) y = Mul (a, b)", {"Neg": 1, "Mul": 1}),
        ("s = Constant <value_ints = [2, 3, 4]> () a = Expand (x, s) y = Neg (a)", {"Neg": 1}),
    ],
)
def test_what_changes_nothing_goes(body: str, left: dict[str, int]) -> None:
    before = parsed("float[2, 3, 4] x", "float y", body)
    wanted = answers(before, {"x": X})[0]
    after = Simplify()(before).model
    assert operators(after) == left
    np.testing.assert_array_equal(answers(after, {"x": X})[0], wanted)


def test_constants_become_initializers_and_each_is_there_once() -> None:
    model = parsed(
        "float[2, 3, 4] x",
        "float[2, 3, 4] y",
        "a = Constant <value_float = 2.5> () b = Constant <value_float = 2.5> ()"
        "c = Mul (x, a) y = Add (c, b)",
    )
    model = Simplify()(model).model
    assert sorted(node.op_type for node in model.graph) == ["Add", "Mul"]
    assert len(model.graph.initializers) == 1


def test_two_slices_stay_two() -> None:
    """No rule looks at pairs of nodes: its time would grow with the square of their number."""
    model = parsed(
        "float[2, 3, 4] x",
        "float[2, 3, 2] y",
        "p = Constant <value_ints = [0]> () q = Constant <value_ints = [2]> ()"
        "r = Constant <value_ints = [4]> () c = Constant <value_ints = [2]> ()"
        "a = Slice (x, p, q, c) b = Slice (x, q, r, c) y = Mul (a, b)",
    )
    model = Simplify()(model).model
    assert operators(model) == {"Slice": 2, "Mul": 1}


class Mixed(torch.nn.Module):
    """Norms, a convolution, batch norm, views and broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.batch_norm = torch.nn.BatchNorm2d(8)
        self.norm = torch.nn.LayerNorm(8)
        self.mlp = torch.nn.Linear(8, 8)
        self.token = torch.nn.Parameter(torch.ones(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (B, 8) for x (B, 3, 16, 16)."""
        tokens = self.batch_norm(self.patch(x)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + torch.nn.functional.gelu(self.mlp(self.norm(tokens)))
        return tokens[:, 0] + tokens[:, 1:].clamp(min=0.0).mean(dim=1)


def test_a_model_comes_out_as_from_the_exporters_own_optimiser() -> None:
    model = Mixed().eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def exported(optimize: bool) -> ir.Model:
        with torch_warnings_silenced():
            program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, optimize=optimize)
        assert program is not None
        return program.model

    ours, theirs = Simplify()(exported(optimize=False)).model, exported(optimize=True)
    assert operators(ours) == operators(theirs)
    assert sum(operators(ours).values()) < sum(operators(exported(optimize=False)).values())
    arrays: Arrays = {ours.graph.inputs[0].name or "": x.numpy()}
    session = onnxruntime.InferenceSession(ir.to_proto(ours).SerializeToString())
    np.testing.assert_allclose(
        session.run(None, arrays)[0], model(x).detach().numpy(), rtol=1e-5, atol=1e-6
    )


def test_what_the_libraries_log_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Of an operator of constants with two results they warn that it is not folded."""
    scores = torch.tensor([0.3, 0.9, 0.1, 0.7])

    class Best(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scores", scores)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            best: torch.Tensor = torch.topk(self.scores, 2).indices
            return x.index_select(1, best)

    model = emitted(rewrite(Best(), torch.randn(2, 4, 3)))
    assert operators(model)["TopK"] == 1
    assert not [each.getMessage() for each in caplog.records if each.name.startswith("onnx")]
