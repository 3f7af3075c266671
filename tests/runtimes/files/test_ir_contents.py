"""What an OpenVINO IR may hold before OpenVINO sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokexport.runtimes.files.ir_contents import check_ir
from tokexport.runtimes.files.onnx_contents import ContentsError

LAYER = '<net><layers><layer id="0" type="{}">{}</layer></layers></net>'
REFUSED = {
    "no XML": ("<net><layers></net>", "no XML"),
    "nothing": ("", "no XML"),
    "entities": ('<!DOCTYPE net [<!ENTITY a "b">]><net>&a;</net>', "declares entities"),
    "levels without end": ("<a>" * 100_000 + "</a>" * 100_000, "nests them deeper"),
    "a loop": (LAYER.format("TensorIterator", ""), "a graph of its own"),
    "a loop in a layer": (
        LAYER.format("Other", f"<body>{LAYER.format('Loop', '')}</body>"),
        "a graph of its own: Loop",
    ),
    "what is kept": (LAYER.format("ReadValue", ""), "keeps something from run to run: ReadValue"),
    "what is kept anew": (LAYER.format("Assign", ""), "keeps something from run to run"),
    "too few inputs": (
        '<net><layer id="0" type="Slice"><input><port id="0"/></input></layer>'
        '<edge to-layer="0" to-port="0"/></net>',
        "too few inputs: Slice",
    ),
    "axes that are computed": (
        '<net><layer id="0" type="Parameter"/><layer id="1" type="Squeeze"><input>'
        '<port id="0"/><port id="1"/></input></layer>'
        '<edge from-layer="0" to-layer="1" to-port="0"/>'
        '<edge from-layer="0" to-layer="1" to-port="1"/></net>',
        "axes of a layer are no constant: Squeeze",
    ),
    "a constant outside": (LAYER.format("Const", '<data offset="8" size="17"/>'), "outside"),
    "one that wraps": (LAYER.format("Const", f'<data offset="{2**64 - 1}" size="2"/>'), "outside"),
    "one before": (LAYER.format("Const", '<data offset="-8" size="8"/>'), "outside"),
    "two layers of one number": (
        '<net><layer id="0" type="Const"/><layer id="0" type="Const"/></net>',
        "two layers have the number 0",
    ),
    "two ports of one number": (
        LAYER.format("Relu", '<input><port id="0"/><port id="0"/></input>'),
        "port 0 of layer 0 stands twice",
    ),
    "a layer that reads nothing": (LAYER.format("MaxPool", ""), "do not match its edges"),
    "an input that nothing feeds": (
        LAYER.format("Relu", '<input><port id="0"/></input>'),
        "do not match its edges",
    ),
    "an edge to nowhere": (
        '<net><layer id="0" type="Const"/><edge to-layer="0" to-port="0"/></net>',
        "do not match its edges",
    ),
    "no place": (LAYER.format("Const", '<data offset="x" size="8"/>'), "no number"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_artifact_holds_is_refused(kind: str, tmp_path: Path) -> None:
    content, said = REFUSED[kind]
    (tmp_path / "model.xml").write_text(content)
    (tmp_path / "model.bin").write_bytes(bytes(24))
    with pytest.raises(ContentsError, match=said):
        check_ir(tmp_path / "model.xml")


def test_what_lies_within_the_weights_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text(LAYER.format("Const", '<data offset="8" size="16"/>'))
    (tmp_path / "model.bin").write_bytes(bytes(24))
    check_ir(tmp_path / "model.xml")
