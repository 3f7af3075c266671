"""A target is one object: another one needs a file and its name."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from models.tiny_vit import image, tiny_tome
from onnx_ir.passes import PassBase
from onnx_ir.passes.common import InlinePass

import tokexport
from tokexport.exporter.backends.known import BACKENDS, backend_of
from tokexport.exporter.backends.ort import OnnxRuntime
from tokexport.exporter.errors import UsageError
from tokexport.graph_passes.onnx_passes.every_target.choose_forms import Forms
from tokexport.graph_passes.onnx_passes.every_target.fold_constants import FoldConstants
from tokexport.graph_passes.pipelines import Arithmetic
from tokexport.runtimes.verification import verify_bundle


class StandardOnnx(OnnxRuntime):
    """ONNX of standard operators alone, which any runtime of ONNX takes."""

    name = "standard-onnx"
    precisions = ("fp32",)
    quantizations = ()
    tunes = False

    def lowering(self, arithmetic: Arithmetic, forms: Forms | None = None) -> tuple[PassBase, ...]:
        """Inlines every function, so that no operator of the project is left."""
        return InlinePass(), FoldConstants()


def test_another_backend_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, StandardOnnx.name, StandardOnnx())
    folder = tmp_path / "bundle"
    result = tokexport.compile(tiny_tome(), image(), StandardOnnx.name, output=folder, timed=False)
    assert [stage.name for stage in result.report.stages] == [
        "captured",
        "rewritten",
        "onnx",
        "artifact",
    ]
    assert {node.domain for node in onnx.load(folder / "model.onnx").graph.node} == {""}
    assert verify_bundle(folder).passed
    with pytest.raises(UsageError, match="has no precision 'int8'"):
        tokexport.compile(tiny_tome(), image(), StandardOnnx.name, output=folder, precision="int8")


@pytest.mark.parametrize("name", BACKENDS)
def test_an_artifact_tells_its_backend(name: str) -> None:
    assert backend_of(Path(BACKENDS[name].artifact)) is BACKENDS[name]
    assert BACKENDS[name].precisions[0] == "fp32"
