"""Crafts transformers folders: configurations that fetch, run code, or describe endless models."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any, Final

from attacks.honest_sources import Craft, Crafted, Honest
from attacks.values import COUNTS, damaged, text, value

#: Options that ask for code or files outside the folder.
_REMOTE: Final[tuple[dict[str, Any], ...]] = (
    {"auto_map": {"AutoModelForImageClassification": "evil--modeling.Model"}},
    {"auto_map": {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}},
    {"trust_remote_code": True},
    {"custom_pipelines": {"x": {"impl": "modeling.P", "pt": ["AutoModel"]}}},
    {"backbone": "resnet18", "use_pretrained_backbone": True},
    {"backbone": "microsoft/resnet-18"},
    {"backbone": "hf-hub:a/b", "use_timm_backbone": True, "use_pretrained_backbone": False},
    {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf_hub:a/b"}},
    {"backbone_config": {"backbone": "a/b"}},
    {"attn_implementation": "kernels-community/flash-attn"},
    {"_attn_implementation": "../x/y"},
    {"_attn_implementation_internal": "a/b"},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    {"quantization_config": {"quant_method": "awq"}},
    {"_name_or_path": "evil/model", "_commit_hash": "main"},
    {"base_model_name_or_path": "evil/model"},
    {"adapter_path": "/etc", "peft_type": "LORA"},
    {"task_specific_params": {"x": {"a": "b"}}},
    {"pretrained_cfg": {"hf_hub_id": "evil/model", "url": "http://[::1]/x"}},
    {"architecture": "hf-hub:evil/model", "model_type": "timm_wrapper"},
)
_ARCHITECTURES: Final = (
    *("TimmWrapperModel", "TimmBackbone", "TimmWrapperForImageClassification", "RagModel"),
    *("AutoModel", "pipeline", "PreTrainedModel", "Trainer", "EncoderDecoderModel", "__import__"),
    *("DetrForObjectDetection", "VisionEncoderDecoderModel", "\x1b[2J", "utils.logging", ""),
    *("BeitForImageClassification", "SwinModel", "ViTMAEModel", "Dinov2Model", "CLIPModel"),
)
_SIZES: Final = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size"),
    *("patch_size", "num_channels", "encoder_stride", "pooler_output_size", "num_labels"),
)
_FILES: Final = ("config.json", "model.safetensors", "preprocessor_config.json")


def _copied(honest: Honest, place: Path) -> Path:
    return Path(shutil.copytree(honest.transformers, place / "vit"))


def _changed(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(found), encoding="utf-8")


def _remote(random: Random, place: Path, honest: Honest) -> Crafted:
    """Asks for code or files from elsewhere, at some depth, also with code beside it."""
    folder = _copied(honest, place)
    wanted = random.choice(_REMOTE)
    nested: dict[str, Any] = wanted
    names = ("text_config", "vision_config", "backbone_config", "encoder", "decoder", "sub_configs")
    depth = random.choice((0, 0, 1, 2, 5))
    for _ in range(depth):
        nested = {random.choice(names): random.choice((nested, [nested]))}
    _changed(folder, **nested)
    if random.random() < 0.4:
        _changed(folder, architectures=[random.choice(_ARCHITECTURES)])
    if random.random() < 0.3:
        _changed(folder, model_type=random.choice(("timm_wrapper", "timm_backbone", "detr", "rag")))
    for name in ("modeling.py", "configuration.py", "custom_generate/generate.py", "__init__.py"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(place / 'ran')!r}, 'w')\n", encoding="utf-8")
    return Crafted(f"{wanted!r:.80} at depth {depth}", str(folder))


def _architecture(random: Random, place: Path, honest: Honest) -> Crafted:
    """Names another class, or none."""
    folder = _copied(honest, place)
    name = random.choice((*_ARCHITECTURES, text(random)))
    wanted = random.choice(([name], [name], name, [name, name], [value(random)]))
    _changed(folder, architectures=wanted)
    return Crafted(f"architectures = {wanted!r:.60}", str(folder))


def _size(random: Random, place: Path, honest: Honest) -> Crafted:
    """Describes a model of other, and of endless, sizes."""
    folder = _copied(honest, place)
    key = random.choice(_SIZES)
    size = random.choice((*COUNTS, 10**6, 10**9, 5000, 10**30, 1e300, "16", None, [16, 16]))
    _changed(folder, **{key: size})
    return Crafted(f"{key} = {size!r:.40}", str(folder))


def _config(random: Random, place: Path, honest: Honest) -> Crafted:
    """Puts other values into a configuration."""
    folder = _copied(honest, place)
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    key = random.choice((*found, text(random), "id2label", "dtype", "torch_dtype", "return_dict"))
    changed = value(random)
    _changed(folder, **{key: changed})
    return Crafted(f"{key!r:.40} = {changed!r:.60}", str(folder))


def _bytes(random: Random, place: Path, honest: Honest) -> Crafted:
    """Damages bytes of a file, or writes JSON that never ends."""
    folder = _copied(honest, place)
    name = random.choice(("config.json", "model.safetensors", "model.safetensors"))
    content, done = damaged((folder / name).read_bytes(), random)
    if name == "config.json" and random.random() < 0.4:
        content, done = random.choice(
            (
                (b"[" * 200_000, "brackets"),
                (b'{"a":' * 900 + b"1" + b"}" * 900, "deep"),
                (b'{"x": ' + b"9" * 5000 + b"}", "digits"),
                (b"{" + b'"a": 1,' * 500_000 + b'"b": 2}', "a key without end"),
                (b"\xff\xfe{\x00}\x00", "other letters"),
                (b'{"architectures": NaN}', "no number"),
            )
        )
    (folder / name).write_bytes(content)
    return Crafted(f"{name}: {done}", str(folder))


def _files(random: Random, place: Path, honest: Honest) -> Crafted:
    """Puts a pipe, a device or a link in place of a file; or takes it away."""
    folder = _copied(honest, place)
    path = folder / random.choice(_FILES)
    path.unlink(missing_ok=True)
    way = random.choice(("pipe", "/dev/zero", "/dev/stdin", "loop", "gone", "folder", "pickle"))
    if way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif way == "pickle":
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    elif way != "gone":
        path.symlink_to({"loop": path}.get(way, Path(way)))
    return Crafted(f"{way} in place of {path.name}", str(folder))


def _index(random: Random, place: Path, honest: Honest) -> Crafted:
    """Writes an index of weights that leads elsewhere."""
    folder = _copied(honest, place)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    name = random.choice(
        (
            "../state.pt",
            "/dev/zero",
            "model-00001-of-00001.safetensors",
            "config.json",
            text(random),
        )
    )
    found: Any = random.choice(
        ({"weight_map": {"a": name}}, {"weight_map": [name]}, {"weight_map": {"a": 7}}, {}, [])
    )
    content = json.dumps(found).encode("utf-8", "surrogatepass")
    (folder / "model.safetensors.index.json").write_bytes(content)
    return Crafted(f"index {found!r:.80}", str(folder))


def _processor(random: Random, place: Path, honest: Honest) -> Crafted:
    """Writes an invalid configuration of preprocessing."""
    folder = _copied(honest, place)
    found = random.choice(
        (
            {"image_processor_type": random.choice(("ViTImageProcessor", "X", text(random)))},
            {"image_processor_type": "ViTImageProcessor", "size": value(random)},
            {"image_processor_type": "ViTImageProcessor", "image_mean": value(random)},
            {"image_processor_type": "ViTImageProcessor", "resample": value(random)},
            {"auto_map": {"AutoImageProcessor": "modeling.P"}, "image_processor_type": "P"},
            {"processor_class": "CLIPProcessor", "feature_extractor_type": "a/b"},
            value(random),
        )
    )
    content = json.dumps(found).encode("utf-8", "surrogatepass")
    (folder / "preprocessor_config.json").write_bytes(content)
    return Crafted(f"preprocessing {found!r:.80}", str(folder))


def _weights(random: Random, place: Path, honest: Honest) -> Crafted:
    """Writes weights that are not the model's."""
    folder = _copied(honest, place)
    header = random.choice(
        (
            b"{}",
            b'{"vit.embeddings.cls_token":{"dtype":"F32","shape":[1,1,16],"data_offsets":[0,64]}}',
            b'{"vit.embeddings.cls_token":{"dtype":"BF16","shape":[9],"data_offsets":[0,18]}}',
            b'{"__metadata__":{"format":"mlx"}}',
        )
    )
    content = struct.pack("<Q", len(header)) + header + bytes(random.choice((0, 18, 64)))
    (folder / "model.safetensors").write_bytes(content)
    return Crafted(f"weights {header!r:.60}", str(folder))


FOLDERS: Final[tuple[Craft, ...]] = (
    *(_remote, _remote, _remote, _architecture, _size, _size, _config, _bytes, _files, _index),
    *(_processor, _weights),
)
