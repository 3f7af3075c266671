"""Kernels take over the matches and merges of an OpenVINO model where it is loaded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_vit import DigitsViT
from helpers.openvino_models import MERGES, images, save_merging_vit
from torch import Tensor, nn

import tokexport
from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.build.artifact import build
from tokexport.runtimes import load
from tokexport.runtimes.errors import BuildError
from tokexport.runtimes.native_library import NO_KERNELS, VARIABLE
from tokexport.runtimes.openvino.kernels import put_kernels
from tokexport.runtimes.openvino.runner import (
    OpenVinoRunner,
    convert,
    import_openvino,
    kernels_here,
)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_merging_vit(tmp_path_factory.mktemp("lowered") / "model.onnx")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_kernels_match_and_merge_in_every_precision(
    precision: str, lowered: Path, tmp_path: Path
) -> None:
    (name,) = import_openvino().Core().read_model(lowered).inputs[0].get_names()
    build(BACKENDS["openvino"], lowered, tmp_path, precision, images(name))
    openvino = import_openvino()
    model = openvino.Core().read_model(tmp_path / "model.xml")
    library = kernels_here()
    assert library is not None
    assert put_kernels(openvino, model, library) == 2 * MERGES  # a match and a merge each
    left = Counter(operator.get_type_name() for operator in model.get_ordered_ops())
    assert left["TokenOperator"] == 2 * MERGES
    assert left["TopK"] == left["GatherND"] == 0
    sample = images(name).arrays[name][0]
    answers = []
    for native in (True, False):
        path = tmp_path / "model.xml"
        with OpenVinoRunner.from_file(path, precision=precision, native=native) as runner:
            answers += runner.run({name: sample}).values()
    scale = np.abs(answers[1]).max()
    tolerance = {"fp32": 1e-5, "int8": 1e-5, "bf16": 5e-2}[precision]
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=tolerance * scale)


def test_calls_whose_values_are_gone_keep_their_bodies(lowered: Path, tmp_path: Path) -> None:
    convert(lowered, tmp_path / "model.xml")
    openvino = import_openvino()
    model = openvino.Core().read_model(tmp_path / "model.xml")
    library = kernels_here()
    assert library is not None
    for port in (port for operator in model.get_ordered_ops() for port in operator.outputs()):
        if any(name.startswith("linear") for name in port.get_names()):
            port.get_tensor().set_names({"renamed"})
    assert put_kernels(openvino, model, library) == MERGES  # the merges alone


def test_both_ways_to_run_are_proved_and_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = DigitsViT(merge=(3, 3, 0)).eval(), torch.rand(1, 1, 8, 8)
    result = tokexport.compile(model, x, "openvino", output=tmp_path / "bundle", timed=False)
    names = [stage.name for stage in result.report.stages]
    assert names == ["captured", "rewritten", "onnx", "lowered", "without kernels", "artifact"]
    details = json.loads((result.bundle / "manifest.json").read_text())["runtime"]["details"]
    assert details["kernel_calls"] == 2 * MERGES
    assert details["kernels"] != NO_KERNELS


class PicksWholeNumbers(nn.Module):
    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        index = scores.topk(3, dim=1).indices
        return x.gather(1, index[..., None].expand(-1, -1, 4))


def test_rows_of_whole_numbers_have_no_kernel(tmp_path: Path) -> None:
    x, scores = torch.arange(40).reshape(1, 10, 4), torch.randn(1, 10)
    model = PicksWholeNumbers()
    result = tokexport.compile(
        model, (x, scores), "openvino", output=tmp_path / "bundle", timed=False
    )
    assert "without kernels" not in [stage.name for stage in result.report.stages]
    with load(result.bundle) as runner:
        (found,) = runner.run({"x": x.numpy(), "scores": scores.numpy()}).values()
    np.testing.assert_array_equal(found, model(x, scores).numpy())


def test_fp16_runs_without_kernels(lowered: Path, tmp_path: Path) -> None:
    convert(lowered, tmp_path / "model.xml")
    with OpenVinoRunner.from_file(tmp_path / "model.xml", precision="fp16") as runner:
        assert runner.runtime.details["kernels"] == NO_KERNELS
        assert runner.runtime.details["kernel_calls"] == 0


def test_a_library_that_does_not_load_is_left_out(
    lowered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = kernels_here()
    assert good is not None
    (tmp_path / good.name).write_text("no library")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tokexport_native.so"))
    assert kernels_here() is None
    convert(lowered, tmp_path / "model.xml")
    with OpenVinoRunner.from_file(tmp_path / "model.xml") as runner:
        assert runner.runtime.details["kernels"] == NO_KERNELS
    monkeypatch.setenv(VARIABLE, "")
    assert kernels_here() == good


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("cosine_match", "no_such_match"), "There is no kernel no_such_match"),
        (("&quot;heads&quot;", "&quot;tails&quot;"), "cosine_match: attribute heads is not given"),
        (("&quot;shape&quot;: [1,", "&quot;shape&quot;: [-9,"), "OpenVINO cannot load the model"),
        (("[{&quot;operator", "{&quot;operator"), "OpenVINO cannot load the model"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(
    given: tuple[str, str], said: str, lowered: Path, tmp_path: Path
) -> None:
    xml = tmp_path / "model.xml"
    convert(lowered, xml)
    text = xml.read_text(encoding="utf-8")
    assert given[0] in text
    xml.write_text(text.replace(*given), encoding="utf-8")
    with pytest.raises(BuildError, match=said):
        OpenVinoRunner.from_file(xml)
    OpenVinoRunner.from_file(xml, native=False).close()
