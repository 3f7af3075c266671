from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTForImageClassification

from tokexport.exporter.errors import PackageMissingError, SourceError, UntrustedPickleError
from tokexport.exporter.source import Source, SourceOptions, load_source

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
}
X = torch.ones(1, 3, 16, 16)


@pytest.fixture
def model() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(num_labels=4, **SIZES)).eval()


@pytest.fixture
def folder(tmp_path: Path, model: ViTForImageClassification) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(folder: Path, trust: bool = False) -> Source:
    return load_source(SourceOptions(str(folder), trust_pickle=trust))


def refusal(folder: Path, trust: bool = False) -> str:
    with pytest.raises(SourceError) as caught:
        load(folder, trust)
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content = {key: value for key, value in (content | changes).items() if value is not None}
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_folder(
    folder: Path, model: ViTForImageClassification, capfd: pytest.CaptureFixture[str]
) -> None:
    source = load(folder)
    assert source.kind == "transformers"
    assert source.input_shapes == {"pixel_values": (1, 3, 16, 16)}
    assert not source.model.training
    assert source.model(pixel_values=X).logits.equal(model(pixel_values=X).logits)
    assert source.preprocessing is None
    assert source.notes == ()
    assert capfd.readouterr() == ("", "")


def test_a_folder_in_parts(folder: Path, model: ViTForImageClassification) -> None:
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    source = load(folder)
    assert source.model(pixel_values=X).logits.equal(model(pixel_values=X).logits)
    before = source.sha256
    assert load(folder).sha256 == before
    part = sorted(folder.glob("model-*.safetensors"))[0]
    part.unlink()
    message = refusal(folder)
    assert f"Files of the weights are missing: {part.name}" in message
    assert "model.safetensors.index.json names them" in message


def test_the_architecture_decides_the_class(tmp_path: Path) -> None:
    CLIPVisionModel(CLIPVisionConfig(**SIZES)).save_pretrained(tmp_path)
    source = load(tmp_path)
    assert type(source.model) is CLIPVisionModel
    assert source.input_shapes == {"pixel_values": (1, 3, 16, 16)}


def test_without_an_architecture_it_classifies_images(folder: Path) -> None:
    edit(folder / "config.json", architectures=None)
    assert type(load(folder).model) is ViTForImageClassification


def test_the_hash_follows_the_files(folder: Path) -> None:
    before = load(folder).sha256
    edit(folder / "config.json", id2label={"0": "a", "1": "b", "2": "c", "3": "d"})
    assert load(folder).sha256 != before


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {
                "do_resize": True,
                "size": {"shortest_edge": 20},
                "do_center_crop": True,
                "crop_size": {"height": 16, "width": 16},
                "do_normalize": True,
                "image_mean": [0.4, 0.5, 0.6],
                "image_std": [0.2, 0.2, 0.2],
                "resample": 3,
                "do_rescale": True,
                "rescale_factor": 0.5,
            },
            {
                "size": [16, 16],
                "resize": 20,
                "crop": [16, 16],
                "interpolation": "bicubic",
                "rescale_factor": 0.5,
                "mean": [0.4, 0.5, 0.6],
                "std": [0.2, 0.2, 0.2],
            },
        ),
        (
            {"size": 16, "do_normalize": False, "do_rescale": False, "resample": 2},
            {
                "size": [16, 16],
                "resize": [16, 16],
                "crop": None,
                "interpolation": "bilinear",
                "rescale_factor": None,
                "mean": None,
                "std": None,
            },
        ),
        (  # what a file leaves out has the defaults of its class
            {"image_processor_type": "CLIPImageProcessor", "size": 20, "crop_size": 16},
            {
                "size": [16, 16],
                "resize": 20,
                "crop": [16, 16],
                "interpolation": "bicubic",
                "mean": [0.48145466, 0.4578275, 0.40821073],
            },
        ),
        (
            {"image_processor_type": "DeiTImageProcessor", "size": 20, "crop_size": 16},
            {"size": [16, 16], "resize": [20, 20], "crop": [16, 16], "interpolation": "bicubic"},
        ),
    ],
)
def test_preprocessing(folder: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    source = load(folder)
    assert source.preprocessing is not None
    found = source.preprocessing.to_json()
    assert found | expected == found
    assert found["origin"] == "preprocessor_config.json"


def test_preprocessing_as_transformers_writes_it(folder: Path) -> None:
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 16, "width": 16}, resample=2)
    processor.save_pretrained(folder)
    found = load(folder).preprocessing
    assert found is not None
    assert (found.size, found.crop, found.interpolation) == ((16, 16), None, "bilinear")
    assert found.mean == tuple(processor.image_mean)
    assert found.rescale_factor == pytest.approx(1 / 255)


@pytest.mark.parametrize(
    "config",
    [
        {"image_processor_type": "SamImageProcessor"},  # the longest side alone
        {"image_processor_type": "GLPNImageProcessor"},  # a multiple of some pixels
        {"image_processor_type": "ViTImageProcessor", "do_resize": False},
    ],
)
def test_a_processor_of_many_sizes_says_no_steps(folder: Path, config: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load(folder).preprocessing is None


def test_steps_that_its_configuration_does_not_say_are_named(folder: Path) -> None:
    config = {"image_processor_type": "PoolFormerImageProcessor", "crop_size": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    found = load(folder).preprocessing
    assert found is not None
    assert "PoolFormerImageProcessor" in found.other_steps[0]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"size": {}}', '{"size": 16, "resample": 99}', '{"size": 16, "resample": -1}'],
)
def test_preprocessing_that_cannot_be_read(folder: Path, text: str) -> None:
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    message = refusal(folder)
    assert "The preprocessing of the model cannot be read" in message
    assert "preprocessor_config.json" in message


def test_pickled_weights_need_trust(folder: Path, model: ViTForImageClassification) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UntrustedPickleError) as caught:
        load(folder)
    message = str(caught.value)
    assert "The folder's weights are a pickle" in message
    assert str(folder / "pytorch_model.bin") in message
    assert "save_pretrained" in message
    assert "--trust-pickle" in message
    source = load(folder, trust=True)
    assert source.model(pixel_values=X).logits.equal(model(pixel_values=X).logits)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert "The folder has a config.json and no weights" in message
    assert "model.safetensors" in message


def test_weights_that_are_missing_are_never_random(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["classifier.weight"]
    save_file(tensors | {"extra.weight": torch.ones(1)}, path, metadata={"format": "pt"})
    message = refusal(folder)
    assert "The weights are not those of ViTForImageClassification" in message
    assert "missing: classifier.weight" in message


def test_weights_of_another_shape(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=24)
    message = refusal(folder)
    assert "The weights are not those of ViTForImageClassification" in message
    assert "(16, 16) in the folder, (24, 16) in the model" in message
    assert str(folder) in message


def test_weights_that_are_not_used_are_mentioned(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(load_file(path) | {"extra.weight": torch.ones(1)}, path, metadata={"format": "pt"})
    notes = load(folder).notes
    assert notes == ("weights of the folder that the model does not use: extra.weight",)


def test_damaged_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for kept in (500, len(data) - 100):
        path.write_bytes(data[:kept])
        message = refusal(folder)
        assert "The file is cut short or damaged" in message
        assert str(folder) in message


def test_damaged_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no more")
    message = refusal(folder, trust=True)
    assert "cannot be loaded by transformers" in message


def test_code_in_the_folder_is_not_run(folder: Path, marker: Path) -> None:
    text = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
    (folder / "modeling_own.py").write_text(text, encoding="utf-8")
    auto_map = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForImageClassification": "modeling_own.OwnModel",
    }
    edit(folder / "config.json", architectures=["OwnModel"], auto_map=auto_map)
    message = refusal(folder, trust=True)
    assert "The model 'OwnModel' is code kept in the folder" in message
    assert "package.module:factory" in message
    assert not marker.exists()


def test_an_architecture_that_transformers_does_not_have(folder: Path) -> None:
    edit(folder / "config.json", architectures=["NoSuchModel"])
    message = refusal(folder)
    assert "There is no model 'NoSuchModel'" in message


def test_a_kernel_from_the_network_is_refused(folder: Path) -> None:
    edit(folder / "config.json", _attn_implementation="someone/attention")
    message = refusal(folder)
    assert "asks for a kernel from the network: 'someone/attention'" in message


HUB = {"backbone": "someone/resnet"}
TIMM = {"backbone": "resnet50", "use_timm_backbone": True, "use_pretrained_backbone": True}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (HUB, "the configuration of a backbone from the network: 'someone/resnet'"),
        (TIMM, "the weights of a backbone from the network: 'resnet50'"),
        ({"vision_config": {"deeper": [{"still": HUB}]}}, "the configuration of a backbone"),
        ({"backbone_config": TIMM}, "the weights of a backbone"),
    ],
)
def test_a_backbone_from_the_network_is_refused(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    edit(folder / "config.json", **changes)
    assert f"asks for {said}" in refusal(folder)


def test_the_hub_is_not_asked_for_anything(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model: ViTForImageClassification
) -> None:
    def asks(*_: object, **__: object) -> None:
        HfApi().model_info("someone/model")

    monkeypatch.setattr(ViTForImageClassification, "from_pretrained", asks)
    message = refusal(folder)
    assert "something that is not in it, and nothing is fetched: https://" in message
    assert "HF_HUB_OFFLINE" not in message
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_config_that_cannot_be_read(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert "config.json" in refusal(folder)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert "The folder is no transformers folder: it has no config.json" in message
    assert "save_pretrained" in message


def test_transformers_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PackageMissingError) as caught:
        load(folder)
    assert "needs 'transformers', which is not installed" in str(caught.value)
    assert "pip install 'tokexport[transformers]'" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**13}, "a model with more than 10,000 layers"),
        ({"encoder": {"depths": [2, 10**9]}}, "a model with more than 10,000 layers"),
        ({"intermediate_size": 2**24}, "a model of more numbers than its weights have"),
        ({"num_hidden_layers": 9999}, "a model of more numbers than its weights have"),
        ({"hidden_act": 1}, "cannot be loaded by transformers"),
    ],
)
def test_a_model_without_end_is_refused_before_it_is_built(
    changes: dict[str, Any], said: str, folder: Path
) -> None:
    edit(folder / "config.json", **changes)
    assert said in refusal(folder)
