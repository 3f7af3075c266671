"""A method that the guide shows is added as it says: one file, one line."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from models.plain_vits import DEEPER, build, image

import tokexport
from tokexport.exporter import recipe
from tokexport.graph_passes.reduction.method import Method
from tokexport.graph_passes.reduction.methods import known as methods
from tokexport.runtimes.bundle.manifest import PASSED

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "contributing" / "adding-a-method.md").read_text(encoding="utf-8")


@pytest.fixture
def every_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    """The class of the example, in a file of its own."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    body = code[code.index("@dataclass") :].strip().splitlines()
    assert len([line for line in body if line.strip()]) <= 10
    (tmp_path / "every_other.py").write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("every_other", tmp_path / "every_other.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "every_other", module)
    spec.loader.exec_module(module)
    kind: type[Method] = module.EveryOther
    return kind


def test_one_line_makes_it_a_method_like_the_others(
    every_other: type[Method], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extended = (*methods.METHODS, every_other)
    monkeypatch.setattr(recipe, "METHODS", extended)
    model, x = build("transformers DINOv2", depth=DEEPER), image()
    with torch.no_grad():
        assert tokexport.reduce(model, "every-other:step=2", x)(x)[0].shape[1] == 1 + 3
        whole = tokexport.reduce(model, "every-other:step=3,restore=true", x)
        assert whole(x)[0].shape[1] == 37
    rotary = tokexport.reduce(build("timm EVA-02", depth=3), "every-other:layers=[1]", x)
    result = tokexport.compile(rotary, x, "ort", output=tmp_path / "bundle")
    assert result.status == PASSED
    assert result.report.token_schedule == (37, 37, 19)


def test_it_can_be_tried_without_the_line(every_other: type[Method]) -> None:
    model, x = build("timm DeiT"), image()
    reduced = tokexport.reduce(model, every_other(step=3), x)  # type: ignore[call-arg]
    with torch.no_grad():
        assert reduced(x).shape == (2, 10)
