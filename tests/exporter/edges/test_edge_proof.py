"""An artifact is held to inputs that neither the trace nor the samples show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.near_ties import Nudge
from helpers.thorough import thorough_but
from models.hard_to_prove import WholeNumbers
from torch import Tensor, nn
from torch.fx import Node

import tokexport
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.edges.edge_inputs import between, edge_inputs
from tokexport.exporter.edges.edge_int8 import int8_figures
from tokexport.exporter.edges.edge_report import EdgeReport
from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.exporter.parity.proof import ParityError
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.runtimes.bundle.manifest import TensorSpec
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.errors import InputMismatchError


class Masked(nn.Module):
    """Fills what a mask leaves out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x).masked_fill(mask == 0, 0.25)


class Divides(nn.Module):
    """Divides by a norm, which is 0 for an image of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)


class Bytes(nn.Module):
    """Takes pixels as they are stored."""

    def forward(self, image: Tensor) -> Tensor:
        return image.float().mean(dim=(2, 3)) / 255


class ForgetsTheMask(TorchPass):
    """A wrong pass: nothing is filled."""

    name = "forgets the mask"

    def call(self, edit: Editor) -> int:
        """Takes out what fills."""
        found = [node for node in edit.graph.nodes if node.target is aten.masked_fill.Scalar]
        for node in found:
            assert isinstance(node.args[0], Node)
            edit.replace(node, node.args[0])
        return len(found)


class Saturates(nn.Module):
    """Keeps the three tokens whose first channel is largest, up to 1; (B, 6, 4) → (B, 3, 4)."""

    def forward(self, x: Tensor) -> Tensor:
        index = x[..., 0].tanh().topk(3, dim=1).indices
        return x.gather(1, index[..., None].expand(-1, -1, 4)) * 2


class Waves(nn.Module):
    """Turns by an angle of many turns, which rounding moves; and gives what is not turned too."""

    def __init__(self, turns: float, alone: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 5)
        self.turns, self.alone = turns, alone

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layer(x)
        waves = (y * self.turns).sin()
        return {"waves": waves} if self.alone else {"waves": waves, "line": y}


class Counts(nn.Module):
    """Has an answer for numbers below 200, and for every age."""

    def forward(self, x: Tensor, ids: Tensor, age: Tensor) -> Tensor:
        return torch.where(ids < 200, x, torch.nan) + (age % 7)


class SaysMore(nn.Module):
    """Returns a number beside its tensor, which zeros change."""

    def forward(self, x: Tensor) -> dict[str, object]:
        is_blank = not torch.compiler.is_compiling() and bool((x == 0).all())
        return {"y": x * 2, "blank": int(is_blank)}


class Mlp(nn.Module):
    """Two linear layers around a residual, as int8 takes them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 64)
        self.embed, self.head = nn.Linear(16, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        y = y + self.second(nn.functional.gelu(self.first(nn.functional.layer_norm(y, (64,)))))
        return self.head(y.mean(1))


class NaNOfZeros(ir.passes.InPlacePass):
    """A wrong pass: adds |x| / |x| - 1 of the first input to the first output."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Plants in place."""
        graph = model.graph
        (x, *_), (output, *_) = graph.inputs, graph.outputs
        made = output.producer()
        assert made is not None
        size = ir.node("ReduceL1", [x], {"keepdims": 0})
        same = ir.node("Div", [size.outputs[0], size.outputs[0]])
        none = ir.node("Log", [same.outputs[0]])
        added = ir.node("Add", [output, none.outputs[0]])
        for position, node in enumerate((size, same, none)):
            node.outputs[0].name = f"planted_{position}"
        added.outputs[0].name, output.name = output.name, "before"
        added.outputs[0].shape, added.outputs[0].type = output.shape, output.type
        graph.insert_after(made, [size, same, none, added])
        graph.outputs[0] = added.outputs[0]
        return ir.passes.PassResult(model, modified=True)


def compiled(
    model: nn.Module, inputs: dict[str, Tensor], folder: Path, target: str = "ort", **options: Any
) -> CompileResult:
    return tokexport.compile(
        model.eval(), inputs, target, output=folder / "bundle", timed=False, **options
    )


def plant(monkeypatch: pytest.MonkeyPatch, target: str, planted: Any) -> None:
    lower = {**pipelines.LOWER, target: (*pipelines.LOWER[target], planted)}
    monkeypatch.setattr(pipelines, "LOWER", lower)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_a_mask_that_no_sample_uses_is_tried(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"x": torch.randn(2, 6), "mask": torch.ones(2, 5, dtype=dtype)}
    edges = compiled(Masked(), inputs, tmp_path).report.edges
    assert edges is not None
    assert {"every other of a mask", "masks turned over", "empty masks"} <= {*edges.held}
    (tmp_path / "wrong").mkdir()
    monkeypatch.setattr(pipelines, "REWRITE", (*pipelines.REWRITE, ForgetsTheMask()))
    with pytest.raises(ParityError, match=r"Parity failed at 'rewritten'.*mask"):
        compiled(Masked(), inputs, tmp_path / "wrong")


def test_where_eager_itself_is_not_finite_is_said(tmp_path: Path) -> None:
    edges = compiled(Divides(), {"x": torch.randn(2, 6)}, tmp_path).report.edges
    assert edges is not None
    assert "NaN" in edges.not_finite["zeros"]
    assert "large values" in edges.held
    assert any(line.startswith("not to zeros: ") for line in edges.lines())


def test_pixels_in_bytes_are_drawn_anew(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    edges = compiled(Bytes(), {"image": image}, tmp_path).report.edges
    assert edges is not None
    assert edges.held == ("darkest and brightest bytes", "another seed")


def test_both_ends_of_a_range_are_among_its_values() -> None:
    for shape in ((), (1,), (2,), (3, 4)):
        values = between(np.zeros(shape, np.int64), -5, 2**40)
        assert values.shape == shape
        assert values.max() == 2**40
        assert values.size < 2 or values.min() == -5


def test_a_kind_that_changes_nothing_is_not_said_to_be_tried() -> None:
    specs = (TensorSpec("x", (2, 5), "float32"),)
    found = edge_inputs(specs, {"x": np.ones((2, 5), np.float32)}, {}, 1)
    assert "duplicates" not in found
    assert "zeros" in found


def test_kinds_that_ties_excuse_are_named_with_their_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "ort", Nudge(-1e-7))
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(3))
    edges = compiled(Saturates(), {"x": x}, tmp_path).report.edges
    assert edges is not None
    assert {*edges.tied} == {"large values"}
    assert 1 <= edges.tied["large values"] <= 2
    (line,) = (line for line in edges.lines() if "near-ties" in line)
    assert f"on large values ({edges.tied['large values']} sample" in line


@pytest.mark.parametrize(
    ("target", "precision", "turns"), [("ort", "fp32", 3e3), ("openvino", "bf16", 1.0)]
)
def test_where_rounding_moves_an_output_so_far_that_nothing_is_proven(
    target: str, precision: str, turns: float, tmp_path: Path
) -> None:
    x = {"x": torch.randn(3, 6, generator=torch.Generator().manual_seed(3))}
    for alone in (True, False):
        (tmp_path / str(alone)).mkdir()
        model, folder = Waves(turns, alone), tmp_path / str(alone)
        edges = compiled(model, x, folder, target, precision=precision).report.edges
        assert edges is not None
        assert ("large values" in edges.held) is not alone
        said = (edges.unstable if alone else edges.weak)["large values"]
        assert "rounding alone moves" in said
        assert ("'waves'" in said, "'line'" in said) == (not alone, False)
        wanted = "nothing is proven on" if alone else "little is proven on"
        assert any(line.startswith(f"{wanted} large values") for line in edges.lines())


def test_what_rounding_moves_far_at_the_edges_is_said_in_a_line_a_reason(tmp_path: Path) -> None:
    x = {"x": torch.randn(3, 6, generator=torch.Generator().manual_seed(3))}
    edges = compiled(Waves(30.0), x, tmp_path).report.edges
    assert edges is not None
    assert "of their own scale" in edges.weak["large values"]
    edges = compiled(Bytes(), {"image": torch.zeros(1, 3, 8, 8)}, tmp_path, force=True).report.edges
    assert edges is not None
    assert list(edges.lines())[1:] == ["little is proven on zeros: 'output' is zero"]


def test_a_number_that_eager_has_no_answer_to_bounds_its_own_input(tmp_path: Path) -> None:
    inputs = {
        "x": torch.randn(2, 6),
        "ids": torch.ones(2, 6, dtype=torch.int64),
        "age": torch.ones(2, 1, dtype=torch.int64),
    }
    result = compiled(Counts(), inputs, tmp_path)
    edges = result.report.edges
    assert edges is not None
    assert {*edges.ranges} == {"ids"}
    assert edges.ranges["ids"][1] == 199
    assert edges.ranges["ids"][0] < -(2**53)
    assert edges.unbounded["age"] >= 2**53
    assert read_manifest(result.bundle).input_ranges == edges.ranges
    (said,) = (one for one in result.report.warnings if "'ids'" in one)
    assert "to 199 only" in said
    assert said.endswith("refuses others: above, the model itself gives NaN.")


def test_a_number_beside_the_tensors_that_the_edges_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupportedError, match="beside its tensors depend on the input"):
        compiled(SaysMore(), {"x": torch.randn(2, 6)}, tmp_path)


@pytest.mark.parametrize("target", thorough_but(["openvino"], ["ort", "openvino"]))
def test_int8_is_held_to_the_edges_by_what_it_can_be_held_to(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = {"x": torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(3))}
    edges = compiled(Mlp(), x, tmp_path, target, precision="int8").report.edges
    assert edges is not None
    assert edges.stage == {"ort": "onnx", "openvino": "lowered"}[target]
    assert {"another seed", "zeros", "large values", "duplicates"} <= {*edges.held}
    error = edges.int8["output"].error
    assert error is not None
    assert 0 < error < 0.3
    assert any("in int8 is held to be finite" in line for line in edges.lines())
    if target == "ort":
        plant(monkeypatch, target, NaNOfZeros())
        with pytest.raises(ParityError, match=r"'artifact'.* holds nan on zeros") as caught:
            compiled(Mlp(), x, tmp_path, precision="int8", force=True)
        assert "the reduced precision costs too much" in caught.value.where


def test_one_answer_for_all_inputs_is_no_int8_of_them() -> None:
    wanted = np.random.default_rng(0).standard_normal((4, 2, 16)).astype(np.float32)
    kinds = ("another seed", "duplicates", "large values", "empty masks")
    wanted[2] *= 1000
    rough = wanted * np.float32(1.1)
    rough[2] /= 4
    figures = int8_figures(wanted, rough, wanted[:2], kinds, 2)
    assert figures.failure == ""
    assert {*figures.outside} == {"large values"}
    blind = np.broadcast_to(wanted[0].mean(axis=0), wanted.shape)
    assert "one answer for all" in int8_figures(wanted, blind, wanted[:2], kinds, 2).failure
    few = wanted.copy()
    few[2] *= 1e6  # large values say nothing of how the others vary
    assert int8_figures(few, few, few[:2], kinds, 2).error == 0
    held = np.ones((4, 2, 16), np.float32)
    same = int8_figures(held, held * np.float32(1.01), held, kinds, 2)
    assert same.failure == ""
    (_, line, why) = EdgeReport(held=("zeros",), int8={"y": same}).lines()
    assert line.endswith("held to be finite there where eager is")
    assert why == (
        "in int8 'y' is not held to read its inputs: it does not vary between the samples or there"
    )
    whole = int8_figures(held.astype(int), held.astype(int) + 1, held.astype(int), kinds, 2)
    both = [*EdgeReport(held=("zeros",), int8={"y": figures, "n": whole}).lines()]
    assert both[1].endswith("and to read its inputs")
    assert any(
        one.endswith("'n' is not held to read its inputs: it is of whole numbers") for one in both
    )


class Asks(nn.Module):
    """Takes no input whose first number is above 100."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and bool(x.flatten()[0] > 100):
            raise ValueError("more than 100")
        return x * 2


def test_example_inputs_that_eager_refuses_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupportedError, match="ValueError: more than 100") as caught:
        compiled(Asks(), {"x": torch.full((2, 6), 200.0)}, tmp_path)
    assert "They are the example inputs." in caught.value.where
    report = compiled(Asks(), {"x": torch.full((2, 6), 20.0)}, tmp_path).report
    assert report.edges is not None
    assert "ValueError" in report.edges.not_finite["large values"]


def test_whole_numbers_that_are_the_example_are_counted_once(tmp_path: Path) -> None:
    report = compiled(WholeNumbers(), {"ids": torch.arange(33).reshape(3, 11)}, tmp_path).report
    assert (report.inputs, report.samples, report.batches) == ("the example inputs", 3, 1)
    assert report.edges is not None
    (line,) = report.edges.lines()
    assert line.startswith("whole numbers of ids agree up to ")


class Looks(nn.Module):
    """Looks rows up: by an embedding, from both ends of a table, and by parts of its numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(30, 4)
        self.register_buffer("rows", torch.randn(7, 4))

    def forward(self, ids: Tensor, turn: Tensor, both: Tensor) -> Tensor:
        found = self.embed(ids) + self.rows[turn.long()]
        return found + self.embed(both[:, :3]) + self.rows[both[:, 3:]]


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_a_number_that_is_no_index_is_refused_as_eager_refuses_it(
    target: str, tmp_path: Path
) -> None:
    names = ("ids", "turn")
    inputs = {name: torch.tensor([[0, 1, 2], [3, 4, 5]]) for name in names}
    inputs["turn"] = inputs["turn"].to(torch.int8)
    inputs["both"] = torch.tensor([[0, 1, 29, 6], [3, 4, 5, 2]])
    result = compiled(Looks(), inputs, tmp_path, target)
    ranges = {"ids": (0, 29), "turn": (-7, 6), "both": (-7, 29)}
    assert read_manifest(result.bundle).input_ranges == ranges
    assert result.report.edges is not None
    kinds = {"ids up to 29", "turn up to 6", "turn from -7", "both up to 29", "both from -7"}
    assert {*result.report.edges.held} == kinds
    lines = [*result.report.edges.lines()]
    assert "ids is an index from 0 to 29, and a runner refuses others" in lines
    said = "a part of both is an index from -7 to 6 or from 0 to 29, and no runner holds it to that"
    assert any(line.startswith(said) for line in lines)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    with tokexport.runtimes.load(result.bundle) as runner:
        runner.run(arrays | {"turn": arrays["turn"] - 7})
        for wrong in (arrays["ids"] + 30, arrays["ids"] - 3):
            with pytest.raises(InputMismatchError, match="Input ids holds"):
                runner.run(arrays | {"ids": wrong})


class Mixes(nn.Module):
    """Looks up what its first number says, and adds the others; (B, 3) → (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(16, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids[:, 0]) + ids[:, 1:].float()


@pytest.mark.parametrize(("target", "refused"), [("ort", False), ("openvino", True)])
def test_numbers_beside_an_index_are_tried_to_the_ends_of_their_type(
    target: str, refused: bool, tmp_path: Path
) -> None:
    ids = torch.tensor([[3, 900, 7], [15, 5, 2]])
    result = compiled(Mixes(), {"ids": ids}, tmp_path, target)
    edges, ranges = result.report.edges, read_manifest(result.bundle).input_ranges
    assert edges is not None
    assert edges.parts == {"ids": ((0, 15),)}
    assert ({*ranges}, {*edges.unbounded}) == (({"ids"}, set()) if refused else (set(), {"ids"}))
    far = ids.clone()
    far[0, 1] = 2**31
    with tokexport.runtimes.load(result.bundle) as runner:
        if refused:
            assert ranges["ids"][1] == 2**31 - 1
            with pytest.raises(InputMismatchError, match=r"ids holds 2147483648, .* takes -"):
                runner.run({"ids": far.numpy()})
        else:
            found = runner.run({"ids": far.numpy()})["output"]
            np.testing.assert_allclose(found, Mixes()(far).detach().numpy(), rtol=1e-6)
