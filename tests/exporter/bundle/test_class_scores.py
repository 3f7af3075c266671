"""The output that scores the classes is found, and their names travel into the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from tokexport.exporter.bundle.class_scores import BundledClasses, bundled_classes
from tokexport.exporter.compile import compile
from tokexport.exporter.errors import InputError
from tokexport.exporter.inputs.batches import Batches
from tokexport.runtimes.bundle.class_scores import ClassScores
from tokexport.runtimes.bundle.manifest_reader import read_manifest

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16}
SMALL = {**SIZES, "intermediate_size": 8}


class Scores(nn.Module):
    """Returns what a function makes of five numbers an image."""

    def __init__(self, end: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.end = nn.Linear(48, 5), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.head(x.flatten(1)))


def found(
    model: nn.Module,
    side: int = 4,
    asked: Path | None = None,
    classes: dict[str, int] | None = None,
    by_place: int = 0,
) -> BundledClasses:
    """What is found of a model on two batches of three random images."""
    x = torch.randn(2, 3, 3, side, side, generator=torch.Generator().manual_seed(1))
    graph = torch.export.export(model.eval(), (x[0],)).module()
    with torch.no_grad():
        rows = [model(part) for part in x]
    rows = [dict(row) if hasattr(row, "keys") else row for row in rows]
    rows = [row if isinstance(row, dict) else {"output": row} for row in rows]
    if isinstance(next(iter(rows[0].values())), tuple):
        rows = [{f"output_{place}": one for place, one in enumerate(row["output"])} for row in rows]
    outputs = {name: np.stack([row[name].numpy() for row in rows]) for name in rows[0]}
    batches = Batches(
        *(("x",), {"x": x.numpy()}, 6, None, "drawn"),
        classes=classes or {},
        classes_by_place=by_place,
    )
    return bundled_classes(model, graph, outputs, batches, asked)


def test_what_the_numbers_are() -> None:
    ends = {
        "logits": lambda y: y,
        "probabilities": lambda y: y.softmax(-1),
        "independent": lambda y: y.sigmoid().view(-1, 5).clone(),
    }
    for form, end in ends.items():
        assert found(Scores(end)).scores == ClassScores("output", form)
    assert found(Scores(lambda y: y.log_softmax(-1))).scores == ClassScores("output", "logits")
    assert found(Scores(lambda y: y * 0)).scores == ClassScores("output", "logits")


@pytest.mark.parametrize(
    "end",
    [
        lambda y: y[0],
        lambda y: y.argmax(-1),
        lambda y: y.mean(-1, keepdim=True),
        lambda y: y[:2],
        lambda y: y[:, None, :],
        lambda y: (y[:, None], y, y[:, :3]),
    ],
)
def test_what_is_no_score_of_classes(end: Any) -> None:
    assert found(Scores(end)) == BundledClasses(None, None)


def test_which_of_several_outputs(tmp_path: Path) -> None:
    def both(y: Tensor) -> dict[str, Tensor]:
        return {"features": y.repeat(1, 2), "logits": y}

    assert found(Scores(both)).scores == ClassScores("logits", "logits")
    assert found(Scores(lambda y: (y, y[:, :3]))).scores == ClassScores("output_0", "logits")
    assert found(Scores(lambda y: (y[:, None], y))).scores == ClassScores("output_1", "logits")
    (tmp_path / "names").write_text("a\nb\nc\n")
    of_names = found(Scores(lambda y: (y, y[:, :3])), asked=tmp_path / "names")
    assert of_names == BundledClasses(ClassScores("output_1", "logits"), ("a", "b", "c"))


def test_models_of_transformers_and_timm() -> None:
    names = {0: "crane", 1: "ibis", 2: "crane"}
    config = ViTConfig(**SMALL, id2label=names, problem_type="multi_label_classification")
    wanted = BundledClasses(ClassScores("logits", "independent"), ("crane", "ibis", "crane"))
    assert found(ViTForImageClassification(config), 16) == wanted
    assert found(ViTModel(ViTConfig(**SMALL)), 16) == BundledClasses(None, None)
    model = timm.create_model("test_vit", img_size=32)
    of_timm = found(model, 32)
    assert of_timm.scores == ClassScores("output", "logits")
    assert of_timm.labels is not None
    assert of_timm.labels[134] == of_timm.labels[517] == "crane"
    features = timm.create_model("test_vit", img_size=32, num_classes=0)
    assert found(features, 32) == BundledClasses(None, None)


def test_names_of_a_file(tmp_path: Path) -> None:
    path, model = tmp_path / "names.json", Scores(lambda y: y)
    hostile = ["\x1b[2Jcrane", "a\nb  c", "\u202eibis", "é" * 300, "crane"]
    path.write_text(json.dumps(hostile))
    of_file = found(model, asked=path)
    wanted = (r"\x1b[2Jcrane", "a b c", r"\u202eibis", "é" * 199 + "…", "crane")
    assert (of_file.labels, of_file.warnings) == (wanted, ())
    path.write_text('{"4": "e", "0": "a"}')
    assert found(model, asked=path).labels == ("a", "", "", "", "e")
    path.write_text('["a", "b"]')
    fewer = found(model, asked=path)
    assert (fewer.scores, fewer.labels) == (ClassScores("output", "logits"), None)
    assert "names 2 classes, and the model has 5" in fewer.warnings[0]
    assert "no output scores them" in found(Scores(lambda y: y[0]), asked=path).warnings[0]
    path.write_text('{"-1": "a", "0": "b"}')
    with pytest.raises(InputError, match="cannot be read") as refused:
        found(model, asked=path)
    assert "-1 is the number of no class" in str(refused.value)


def test_names_of_folders() -> None:
    model, animals = Scores(lambda y: y), {name: place for place, name in enumerate("abcde")}
    assert found(model, classes=animals, by_place=5).labels == ("a", "b", "c", "d", "e")
    assert found(model, classes=animals).labels == ("a", "b", "c", "d", "e")
    assert found(model, classes={"a": 0, "b": 1}, by_place=2).labels is None
    assert found(model, classes={str(one): one for one in range(5)}).labels is None


def test_names_beyond_a_manifest_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokexport.exporter.bundle.class_scores.MOST_BYTES", 4)
    beyond = found(Scores(lambda y: y), classes={name: place for place, name in enumerate("abcde")})
    assert beyond.labels is None
    assert "too large for a manifest" in beyond.warnings[0]


def test_a_bundle_holds_them(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(["crane", "ibis", "crane", "heron", "stork"]))
    options: dict[str, Any] = {"labels": tmp_path / "names.txt", "timed": False, "page": False}
    compile(Scores(lambda y: y), torch.rand(1, 3, 4, 4), output=tmp_path / "out", **options)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.scores == ClassScores("output", "logits")
    assert manifest.labels == ("crane", "ibis", "crane", "heron", "stork")
