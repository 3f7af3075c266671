"""The names that a model's configuration has for its classes."""

from __future__ import annotations

import timm
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from tokexport.exporter.source.class_names import class_names

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16}


def test_transformers_has_them_in_its_configuration() -> None:
    names = {0: "tench, Tinca tinca", 1: "gold fish"}
    config = ViTConfig(**SMALL, intermediate_size=8, id2label=names)
    found = class_names(ViTForImageClassification(config))
    assert found is not None
    assert found.numbers == {"tench, tinca tinca": 0, "tench": 0, "tinca tinca": 0, "gold fish": 1}
    assert found.labels == ("tench, Tinca tinca", "gold fish")
    assert not found.asked
    assert class_names(ViTForImageClassification(ViTConfig(**SMALL, intermediate_size=8))) is None


def test_timm_has_those_of_imagenet() -> None:
    found = class_names(timm.create_model("test_vit"))
    assert found is not None
    assert found.numbers["n01440764"] == found.numbers["tench"] == 0
    assert found.numbers["n03982430"] == 736
    assert "crane" not in found.numbers  # the bird, and the machine
    assert len(set(found.numbers.values())) == 1000
    assert len(found.labels) == 1000
    assert (found.labels[134], found.labels[517]) == ("crane", "crane")
    assert found.labels[0] == "tench, Tinca tinca"


def test_timm_has_those_of_its_configuration() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["crane", "ibis", "crane"]}
    found = class_names(model)
    assert found is not None
    assert (found.numbers, found.labels) == ({"ibis": 1}, ("crane", "ibis", "crane"))


def test_other_models_have_none() -> None:
    assert class_names(timm.create_model("test_vit", num_classes=10)) is None
    assert class_names(nn.Linear(2, 2)) is None
