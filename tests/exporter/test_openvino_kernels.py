"""Kernels take over the matches and merges of an OpenVINO model where it is loaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.openvino_models import MERGES, images, save_merging_vit

from tokexport.exporter.build import build
from tokexport.runtimes.errors import BuildError
from tokexport.runtimes.openvino import OpenVinoRunner, convert, import_openvino, kernels_here
from tokexport.runtimes.openvino_kernels import put_kernels


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_merging_vit(tmp_path_factory.mktemp("lowered") / "model.onnx")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_kernels_match_and_merge_in_every_precision(
    precision: str, lowered: Path, tmp_path: Path
) -> None:
    (name,) = import_openvino().Core().read_model(lowered).inputs[0].get_names()
    build("openvino", lowered, tmp_path, precision, images(name))
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("cosine_match", "no_such_match"), "There is no kernel no_such_match"),
        (("&quot;heads&quot;", "&quot;tails&quot;"), "The attribute heads is not given"),
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
