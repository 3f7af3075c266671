"""A fault that is planted in a stage is found: the stage, the node, the pass and the line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.near_ties import CHANNELS, TOKENS, KeepsTheBest, Nudge, samples
from helpers.thorough import thorough_but
from models.cli_models import PLAIN_WIDTH, PlainVit
from torch import Tensor, nn

import tokexport
from tokexport.exporter.bisection.artifact_search import ArtifactSearch
from tokexport.exporter.bisection.bisect import bisect_bundle, bisect_compile
from tokexport.exporter.bisection.result import Bisection, Fault
from tokexport.exporter.build.emit import emit
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.graph_values.run_model import exposed_values
from tokexport.exporter.graph_values.shown_values import Artifact, OnnxArtifact
from tokexport.exporter.graph_values.suspect import Suspect
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.exporter.stages import artifact_stages
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.onnx_passes.graph.node_pass import OnnxPass
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.runtimes.bundle.manifest import TensorSpec

Change = Callable[[ir.Model], None]


class TwoHeads(PlainVit):
    """x (1, 3, 24, 24) → first and second (1, 5) each."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(PLAIN_WIDTH, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns what two heads make of the class token."""
        token = super().forward(x)["tokens"][:, 0]
        return {"first": self.head(token), "second": self.other(token)}


def model() -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads().eval()


EXAMPLE = torch.zeros(1, 3, 24, 24)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of one model, by target, and samples."""
    folder = tmp_path_factory.mktemp("made")
    x = np.random.default_rng(0).standard_normal((3, 3, 24, 24)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    for target in ("ort", "openvino"):
        options = {"reduce": "tome:r=4", "inputs": folder / "x.npz", "timed": False}
        tokexport.compile(model(), EXAMPLE, target, output=folder / target, **options)
    return folder


def of_bundle(made: Path, tmp_path: Path, target: str, change: Callable[[Path], None]) -> Bisection:
    """Bisects a copy of a bundle with a change in it."""
    shutil.copytree(made / target, tmp_path / "copy")
    change(tmp_path / "copy")
    source = source_in_memory(model(), EXAMPLE)
    return bisect_bundle(source, tmp_path / "copy", tmp_path / "found")


def of_compile(
    made: Path, tmp_path: Path, target: str = "ort", one: nn.Module | None = None
) -> Bisection:
    """Bisects the stages of a compile."""
    config = CompileConfig(
        target=target,
        output=tmp_path / "out",
        inputs=made / "x.npz",
        reduce="tome:r=4" if one is None else None,
    )
    source = source_in_memory(model() if one is None else one, EXAMPLE)
    return bisect_compile(source, config, tmp_path / "found")


def in_onnx(change: Change) -> Callable[[Path], None]:
    """Returns what makes a change in the ONNX of a bundle."""

    def changed(bundle: Path) -> None:
        graph = ir.load(bundle / "model.onnx")
        change(graph)
        save_onnx(graph, bundle / "model.onnx")

    return changed


def fault_of(found: Bisection) -> Fault:
    assert found.fault is not None
    return found.fault


def maker(graph: ir.Model, name: str) -> ir.Node:
    (node,) = (one for one in graph.graph for value in one.outputs if value.name == name)
    return node


def weight_of(value: str, place: int, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Returns a change of the weight that a node reads at a place."""

    def changed(graph: ir.Model) -> None:
        weight = maker(graph, value).inputs[place]
        assert weight is not None
        assert weight.const_value is not None
        array = change(weight.const_value.numpy().copy())
        weight.const_value = ir.tensor(array, name=weight.name)

    return changed


def swapped(value: str, one: int, other: int) -> Change:
    """Returns a change of the order of two operands."""

    def changed(graph: ir.Model) -> None:
        node = maker(graph, value)
        first, second = node.inputs[one], node.inputs[other]
        node.replace_input_with(one, second)
        node.replace_input_with(other, first)

    return changed


def times(value: str, attribute: str, factor: float) -> Change:
    """Returns a change of an attribute."""

    def changed(graph: ir.Model) -> None:
        node = maker(graph, value)
        number = node.attributes[attribute].as_float() * factor
        node.attributes[attribute] = ir.AttrFloat32(attribute, number)

    return changed


def outputs_swapped(graph: ir.Model) -> None:
    """Gives each of two outputs the name of the other."""
    first, second = graph.graph.outputs
    first.name, second.name = "kept", first.name
    first.name = "second"
    graph.graph.outputs[:] = [second, first]


def another_row(graph: ir.Model) -> None:
    """Reads the third token where the class token is read."""
    node = maker(graph, "slice_tensor_10")
    for place, row in ((1, 3), (2, 4)):
        value = ir.val(f"row_{row}", ir.DataType.INT64, [1], const_value=ir.tensor([row]))
        graph.graph.initializers[value.name] = value
        node.replace_input_with(place, value)


#: What is done to the ONNX of a bundle, the node and the block that are to blame, and what made it.
PLANTED: dict[str, tuple[Change, str, str, str]] = {
    "a wrong weight": (
        *(weight_of("linear_4", 1, lambda w: np.roll(w, 1)), "linear_4", "blocks.1"),
        "pack linears",
    ),
    "a dropped bias": (
        *(weight_of("add_3", 2, np.zeros_like), "add_3", "blocks.1", "pack linears"),
    ),
    "another index": (*(another_row, "slice_tensor_10", "blocks.2", "the translation to ONNX"),),
    "swapped operands": (
        *(swapped("layer_norm_3", 3, 4), "layer_norm_3", "blocks.1", "cosine merge norm"),
    ),
    "a wrong attribute": (
        *(times("view_4", "scale", 1.1), "view_4", "blocks.1", "attention by size"),
    ),
    "outputs swapped": (outputs_swapped, "second", "", "the translation to ONNX"),
}


@pytest.mark.parametrize("name", thorough_but(["a wrong weight", "outputs swapped"], PLANTED))
def test_a_fault_in_the_file_of_a_bundle(name: str, made: Path, tmp_path: Path) -> None:
    change, value, block, made_by = PLANTED[name]
    found = of_bundle(made, tmp_path, "ort", in_onnx(change))
    fault = fault_of(found)
    assert (fault.stage, fault.value, fault.block) == ("artifact", value, block), fault
    assert fault.made_by == made_by
    assert found.altered
    assert found.reproduces
    assert reproduced(tmp_path / "found").returncode == 1


def reproduced(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script of a reproduction, which finds neither this project nor torch."""
    command = [sys.executable, "-P", "reproduce.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env={})


def wrong_weight_in_ir(bundle: Path) -> None:
    """Changes the first layer of the MLP of the middle block in the weights of an IR."""
    path = bundle / "model.bin"
    weight = model().state_dict()["blocks.1.mlp.0.weight"].numpy()
    data = path.read_bytes()
    stored = next(one for one in (weight, np.ascontiguousarray(weight.T)) if one.tobytes() in data)
    path.write_bytes(data.replace(stored.tobytes(), np.roll(stored, 3).tobytes()))


def wrong_kernel(bundle: Path) -> None:
    """Makes the native kernel of the second match read other channels than the keys."""
    path, name = bundle / "model.xml", "&quot;start&quot;: 16"
    text = path.read_text()
    second = text.index(name, text.index(name) + 1)
    path.write_text(text[:second] + name.replace("16", "24") + text[second + len(name) :])


@pytest.mark.parametrize(
    ("change", "stage", "operator"),
    [
        (wrong_weight_in_ir, "without kernels", "MatMul"),
        (wrong_kernel, "artifact", "tokexport:cosine_match"),
    ],
    ids=["a wrong weight", "a wrong kernel"],
)
def test_a_fault_in_an_ir(
    change: Callable[[Path], None], stage: str, operator: str, made: Path, tmp_path: Path
) -> None:
    found = of_bundle(made, tmp_path, "openvino", change)
    fault = fault_of(found)
    assert (fault.stage, fault.operator, fault.block) == (stage, operator, "blocks.1"), fault
    assert found.reproduces


class AsTraced(TwoHeads):
    """Adds something to the tokens of the last block while it is traced."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns what two heads make of the class token."""
        found = super().forward(x)
        by = 0.5 if torch.compiler.is_compiling() else 1.0
        return {name: one * by for name, one in found.items()}


def test_a_fault_of_the_trace(made: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = of_compile(made, tmp_path, one=AsTraced().eval())
    fault = fault_of(found)
    assert found.reproduces
    assert reproduced(tmp_path / "found").returncode == 1
    assert (fault.stage, fault.operator) == ("captured", "aten.mul"), fault
    assert "* by for name" in fault.line
    assert "the trace has fixed 0.5 there, where eager has 1" in fault.why


class TurnsRows(TorchPass):
    """Reads the merged rows one further, wherever a match has chosen them."""

    name = "turn rows"

    def call(self, edit: Editor) -> int:
        """Rolls the sources of the second match."""
        target = torch.ops.tokexport.bipartite_match.default
        match = edit.graph.find_nodes(op="call_function", target=target)[1]
        src = next(one for one in match.users if one.args[1] == 1)
        users = [*src.users]
        with edit.after(src, origin=src):
            turned = edit.call(aten.flip.default, src, [1])
        for user in users:
            user.replace_input_with(src, turned)
        return 1


def test_a_wrong_torch_pass(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "REWRITE", (*pipelines.REWRITE, TurnsRows()))
    fault = fault_of(of_compile(made, tmp_path))
    assert (fault.stage, fault.made_by, fault.block) == ("rewritten", "turn rows", "blocks.1"), (
        fault
    )


def test_a_wrong_translation(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bias of a layer is lost where the graph is written as ONNX."""

    def losing(*given: object) -> ir.Model:
        emitted = emit(*given)  # type: ignore[arg-type]
        weight_of("linear_6", 1, np.zeros_like)(emitted)
        return emitted

    monkeypatch.setattr(artifact_stages, "onnx_of", losing)
    fault = fault_of(of_compile(made, tmp_path))
    assert (fault.stage, fault.value, fault.operator) == ("onnx", "linear_6", "Add"), fault
    assert (fault.block, fault.made_by) == ("blocks.1", "the translation to ONNX")
    assert "mlp" in fault.line


class ScalesLess(OnnxPass):
    """Changes the scale of one attention."""

    name = "scale less"

    def call(self, graph: ir.Model) -> ir.passes.PassResult:
        """Changes it in place."""
        node = next(one for one in graph.graph if one.op_type == "rows_attention_by_size")
        number = node.attributes["scale"].as_float()
        node.attributes["scale"] = ir.AttrFloat32("scale", number * 0.9)
        return ir.passes.PassResult(graph, modified=True)


def test_a_wrong_onnx_pass(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = pipelines.LOWER["ort"]
    wrong = {**pipelines.LOWER, "ort": (*passes[:10], ScalesLess(), *passes[10:])}
    monkeypatch.setattr(pipelines, "LOWER", wrong)
    fault = fault_of(of_compile(made, tmp_path))
    assert (fault.stage, fault.made_by, fault.block) == ("lowered", "scale less", "blocks.1"), fault


def test_a_near_tie_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nudged = {**pipelines.LOWER, "openvino": (*pipelines.LOWER["openvino"], Nudge(1e-6))}
    monkeypatch.setattr(pipelines, "LOWER", nudged)
    np.savez(tmp_path / "close.npz", x=samples(2e-7))
    config = CompileConfig("openvino", tmp_path / "out", inputs=tmp_path / "close.npz")
    zeros = torch.zeros(1, TOKENS, CHANNELS)
    found = bisect_compile(source_in_memory(KeepsTheBest(), zeros), config, tmp_path / "found")
    assert (found.fault, found.ties) == (None, 1)
    assert found.failed() is None
    assert not (tmp_path / "found").exists()


def test_what_agrees_has_no_fault(made: Path, tmp_path: Path) -> None:
    found = of_bundle(made, tmp_path, "ort", lambda bundle: None)
    assert (found.fault, found.altered) == (None, False)
    assert found.passed[:3] == ("captured", "rewritten", "onnx")
    json.dumps(found.to_json(), allow_nan=False)


class CutsWhatIsTraced(nn.Module):
    """Answers otherwise while it is traced, where its input is larger than any sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Takes x (B, 6)."""
        y: Tensor = self.layer(x)
        return y.clamp(-20, 20) if torch.compiler.is_compiling() else y


def test_a_fault_that_only_the_edges_show(tmp_path: Path) -> None:
    config = CompileConfig("ort", tmp_path / "out")
    source = source_in_memory(CutsWhatIsTraced(), torch.zeros(2, 6))
    fault = fault_of(bisect_compile(source, config, tmp_path / "found"))
    assert (fault.stage, fault.operator) == ("captured", "aten.clamp")
    assert "y.clamp(-20, 20)" in fault.line


def searched(made: Path, artifact: Artifact) -> tuple[Suspect, ArtifactSearch]:
    """Searches an artifact for what it does otherwise than the file of the bundle."""
    honest = made / "ort" / "model.onnx"
    inputs = [{"x": np.load(made / "x.npz")["x"][:1]}]
    search = ArtifactSearch(artifact, honest, inputs, exposed_values(honest, inputs))
    found = search.first()
    assert found is not None
    return found, search


def changed_file(made: Path, tmp_path: Path, change: Change) -> Path:
    graph = ir.load(made / "ort" / "model.onnx")
    change(graph)
    save_onnx(graph, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_an_artifact_is_searched_with_one_more_output_at_a_time(made: Path, tmp_path: Path) -> None:
    path = changed_file(made, tmp_path, weight_of("linear_4", 1, lambda w: np.roll(w, 1)))
    found, search = searched(made, OnnxArtifact(path, "fp32"))
    assert (found.value, found.operator, found.native) == ("linear_4", "tokexport:linear", True)
    assert found.difference.is_fault
    assert search.tried < 12  # of some thirty values


class FusesWrongly(OnnxArtifact):
    """Is off as long as one value is not read, as what a runtime fuses across it would be."""

    def write(
        self, folder: Path, shown: Sequence[str], given: Mapping[str, TensorSpec] | None = None
    ) -> Path:
        """Writes the right file where that value is shown."""
        if "gelu_1" not in shown:
            return super().write(folder, shown, given)
        right = OnnxArtifact(self.right, self.precision, native=self.native)
        return right.write(folder, shown, given)

    right: Path


def test_a_fusion_that_is_off_is_named_by_the_value_in_it(made: Path, tmp_path: Path) -> None:
    path = changed_file(made, tmp_path, weight_of("add_4", 1, lambda w: np.roll(w, 1)))
    artifact = FusesWrongly(path, "fp32")
    artifact.right = made / "ort" / "model.onnx"
    found, _ = searched(made, artifact)
    assert found.value in ("gelu_1", "add_4")
    assert "add_4" in (found.value, *found.nodes) or "'gelu_1' is read" in found.why


@pytest.mark.thorough
def test_no_near_tie_excuses_a_wrong_weight_in_bf16(made: Path, tmp_path: Path) -> None:
    """A replay of an artifact that is built anew would be right, and excuse the bundle's."""
    options = {"reduce": "tome:r=4", "inputs": made / "x.npz", "precision": "bf16"}
    tokexport.compile(
        model(), EXAMPLE, "openvino", output=tmp_path / "openvino", timed=False, **options
    )
    fault = fault_of(of_bundle(tmp_path, tmp_path, "openvino", wrong_weight_in_ir))
    assert (fault.stage, fault.operator, fault.block) == ("without kernels", "MatMul", "blocks.1")
