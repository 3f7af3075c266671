"""The steps from a picture to an input agree with the transforms of timm and of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.torchvision_ops import define_torchvision_operators
from PIL import Image

from tokexport.exporter.source.preprocessing import transformers_preprocessing
from tokexport.runtimes.errors import PreprocessingError
from tokexport.runtimes.pictures import Preprocessing, decode, parse_preprocessing
from tokexport.runtimes.pictures import preprocessing as preprocessing_module

define_torchvision_operators()

#: How many of the pictures are photographs; the others are drawn.
PHOTOGRAPHS = 3
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Two photographs, and what is drawn: tiny, wide, tall, grey, 16 bits, turned, with alpha."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("pictures")
    noise = RANDOM.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = {
        "one": Image.fromarray(noise[:1, :1]),
        "wide": Image.fromarray(np.ascontiguousarray(noise[:3])).resize((900, 3)),
        "tall": Image.fromarray(np.ascontiguousarray(noise[:, :2])).resize((2, 301)),
        "grey": Image.fromarray(noise[..., 0]),
        "alpha": Image.fromarray(np.dstack([noise, noise[..., :1]])),
        "deep": Image.fromarray(noise[..., 0].astype(np.uint16) * 200),
    }
    for name, image in drawn.items():
        image.save(folder / f"{name}.png")
    Image.fromarray(noise).save(folder / "turned.png", exif=exif)
    found = [decode(path).pixels for path in sorted(folder.iterdir())]
    photographs = [np.ascontiguousarray(one) for one in load_sample_images().images]
    # an odd size, whose crop begins at half a pixel
    return [*photographs, np.ascontiguousarray(photographs[0][:301, :403]), *found]


def levels(steps: Preprocessing, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference in levels of 255, before the normalisation."""
    assert ours.shape == theirs.shape == (3, *steps.size)
    assert ours.dtype == np.float32
    std = np.array(steps.std or (1, 1, 1))[:, None, None]
    return float(np.abs((ours - theirs) * std).max() * 255)


TIMM: dict[str, dict[str, Any]] = {
    "vit": {"crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    "deit": {"crop_pct": 0.9, "interpolation": "bicubic"},
    "odd": {"crop_pct": 0.875, "interpolation": "bilinear", "input_size": (3, 227, 227)},
    "clip": {
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
    },
    "squash": {"crop_pct": 0.95, "crop_mode": "squash", "interpolation": "bilinear"},
    "border": {"crop_pct": 0.95, "crop_mode": "border", "interpolation": "bicubic"},
    "oblong": {"crop_pct": 0.9, "input_size": (3, 160, 224), "interpolation": "bicubic"},
    "oblong squash": {"crop_pct": 1.0, "input_size": (3, 64, 96), "crop_mode": "squash"},
    "defaults": {"interpolation": None, "crop_pct": None, "mean": None, "std": None},
    "unknown mode": {"crop_pct": 0.9, "crop_mode": "letterbox"},
}


@pytest.mark.parametrize("name", TIMM)
def test_steps_of_timm(name: str, pictures: list[np.ndarray]) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    from tokexport.exporter.source.preprocessing import timm_preprocessing

    model = timm.create_model("test_vit")
    config = {"input_size": (3, 160, 160), **TIMM[name]}
    model.pretrained_cfg = {**model.pretrained_cfg, **config}
    model.patch_embed.img_size = config["input_size"][1:]
    found = timm_preprocessing(model)
    assert found is not None
    steps = Preprocessing.from_json(found.to_json())
    assert steps == found
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    for picture in pictures:
        wanted = transform(Image.fromarray(picture)).numpy()
        assert levels(steps, steps.apply(picture), wanted) < 1e-3


def test_files_as_the_loaders_of_timm_and_transformers_read_them(tmp_path: Path) -> None:
    """Photographs as JPEG, and what is drawn: tiny, grey, with alpha, of a palette, turned."""
    from sklearn.datasets import load_sample_images
    from timm.data import create_transform
    from transformers.image_utils import load_image

    photographs = [Image.fromarray(one) for one in load_sample_images().images]
    exif = Image.Exif()
    exif[0x0112] = 8
    alpha = photographs[0].resize((90, 60))
    alpha.putalpha(photographs[1].resize((90, 60)).convert("L"))
    drawn = {
        "temple.jpg": photographs[0],
        "flower.png": photographs[1],
        "one.png": Image.new("RGB", (1, 1), (9, 99, 199)),
        "grey.jpg": photographs[0].convert("L"),
        "alpha.png": alpha,
        "palette.png": photographs[1].convert("P", palette=Image.Palette.ADAPTIVE),
    }
    for name, image in drawn.items():
        image.save(tmp_path / name)
    photographs[0].save(tmp_path / "turned.jpg", exif=exif)
    steps = parse_preprocessing("size=224,crop=0.9,mean=imagenet,interpolation=bicubic")
    options = {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bicubic"}
    transform = create_transform(is_training=False, **options)
    for path in sorted(tmp_path.iterdir()):
        ours = steps.apply(decode(path).pixels)
        images = [load_image(str(path))]
        images += [Image.open(path).convert("RGB")] * (path.name != "turned.jpg")
        for image in images:
            assert levels(steps, ours, transform(image).numpy()) < 1e-3, path


PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTImageProcessor", {}),
    "vit, bicubic": ("ViTImageProcessor", {"size": {"height": 96, "width": 128}, "resample": 3}),
    "deit": ("DeiTImageProcessor", {}),
    "clip": ("CLIPImageProcessor", {}),
    "dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 256}, "do_rescale": True}),
    "odd": ("BitImageProcessor", {"size": {"shortest_edge": 255}}),
    "padded": ("CLIPImageProcessor", {"size": {"shortest_edge": 41}, "crop_size": 64}),
    "siglip": ("SiglipImageProcessor", {"size": {"height": 256, "width": 256}}),
    "beit": ("BeitImageProcessor", {}),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    "convnext, large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "levit": ("LevitImageProcessor", {}),
    "as bytes": ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_steps_of_transformers(name: str, pictures: list[np.ndarray]) -> None:
    """Its transforms in Pillow agree to the last bit, and those of torchvision nearly.

    The latter resize in another way: on photographs they are one level of 255 off Pillow, and two
    at a few values, whoever calls Pillow.
    """
    import transformers

    kind, options = PROCESSORS[name]
    processor = getattr(transformers, kind)(**options)
    found = transformers_preprocessing(processor.to_dict(), Path("preprocessor_config.json"))
    steps = Preprocessing.from_json(found.to_json())
    assert steps == found
    assert steps.crop_mode is None
    in_pillow = getattr(transformers, f"{kind}Pil")(**options)
    scale = 1 if steps.rescale_factor else 1 / 255
    for place, picture in enumerate(pictures):
        ours, image = steps.apply(picture), Image.fromarray(picture)
        if name != "padded":  # where a picture is smaller than the crop the two round otherwise
            wanted = in_pillow(image, return_tensors="np")["pixel_values"][0]
            assert levels(steps, ours, wanted) * scale < 1e-3
        if place < PHOTOGRAPHS or name == "padded":
            wanted = processor(image, return_tensors="np")["pixel_values"][0]
            assert levels(steps, ours, wanted) * scale < 2.001
            std = np.array(steps.std or (1 / 255,) * 3)[:, None, None]
            off = np.abs(ours - wanted) * std * 255 * scale
            assert np.mean(off > 1.001) < 1e-3, name


@pytest.mark.parametrize(
    ("kind", "options", "step"),
    [
        ("EfficientNetImageProcessor", {}, "include_top"),
        ("BridgeTowerImageProcessor", {}, "do_pad"),
        ("MobileViTImageProcessor", {}, "do_flip_channel_order"),
        ("DPTImageProcessor", {"keep_aspect_ratio": True}, "keep_aspect_ratio"),
        ("ConditionalDetrImageProcessor", {}, "size.longest_edge"),
    ],
)
def test_further_steps_of_transformers_are_named(
    kind: str, options: dict[str, Any], step: str, pictures: list[np.ndarray]
) -> None:
    import transformers

    processor = getattr(transformers, kind)(**options)
    steps = transformers_preprocessing(processor.to_dict(), Path("preprocessor_config.json"))
    assert step in steps.other_steps
    assert Preprocessing.from_json(steps.to_json()) == steps
    with pytest.raises(PreprocessingError, match=step):
        steps.apply(pictures[0])


TEXT = "size=160x224,crop=0.9,mean=imagenet,interpolation=bilinear"


def test_a_text_gives_the_steps_of_timm(pictures: list[np.ndarray]) -> None:
    from timm.data import create_transform

    for text, options in {
        TEXT: {"input_size": (3, 160, 224), "crop_pct": 0.9, "interpolation": "bilinear"},
        "size=64,mode=squash,mean=0.1/0.2/0.3,std=half": {
            **{"input_size": (3, 64, 64), "crop_pct": 1.0, "crop_mode": "squash"},
            **{"mean": (0.1, 0.2, 0.3), "std": (0.5,) * 3, "interpolation": "bicubic"},
        },
        "mode=border,crop=0.8,mean=clip": {
            **{"input_size": (3, 32, 32), "crop_pct": 0.8, "crop_mode": "border"},
            **{"mean": (0.48145466, 0.4578275, 0.40821073), "interpolation": "bicubic"},
            "std": (0.26862954, 0.26130258, 0.27577711),
        },
    }.items():
        steps = parse_preprocessing(text, (32, 32))
        assert steps.origin == f"--preprocess {text}"
        assert Preprocessing.from_json(steps.to_json()) == steps
        transform = create_transform(is_training=False, **options)
        for picture in pictures[:PHOTOGRAPHS]:
            wanted = transform(Image.fromarray(picture)).numpy()
            assert levels(steps, steps.apply(picture), wanted) < 1e-3


def test_a_border_of_a_mean_that_is_no_colour_is_the_nearest_one() -> None:
    steps = replace(parse_preprocessing("size=4,mode=border,mean=half"), mean=(2.0, -1.0, 0.5))
    found = steps.resized(np.full((4, 2, 3), 7, np.uint8))
    assert found[0].tolist() == [[255, 0, 128], [7, 7, 7], [7, 7, 7], [255, 0, 128]]


def test_no_normalisation() -> None:
    steps = parse_preprocessing("size=1,mean=none")
    assert (steps.mean, steps.std) == (None, None)
    np.testing.assert_allclose(
        steps.apply(np.array([[[0, 51, 255]]], np.uint8)).ravel(), [0, 0.2, 1], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("size=224", "no mean"),
        ("mean=imagenet", "no size"),
        ("", "'' is no step"),
        ("size=224,mean", "'mean' is no step"),
        ("size=224,mean=imagenet,color=red", "'color=red' is no step"),
        ("size=224,size=225,mean=half", "says size twice"),
        ("size=0,mean=half", "size=0"),
        ("size=99999,mean=half", "size=99999"),
        ("size=1x2x3,mean=half", "size=1x2x3"),
        ("size=²,mean=half", "size=²"),
        (f"size={'9' * 5000},mean=half", "size=9"),
        ("size=224,mean=imagenette", "no standard deviation"),
        ("size=224,mean=1/2,std=half", "mean=1/2"),
        ("size=224,mean=nan/0/0,std=half", "mean=nan/0/0"),
        ("size=224,mean=half,std=0/1/1", "other than 0"),
        ("size=8,mean=124/116/104,std=58/57/57", "Divide mean and std by 255"),
        ("size=8,mean=imagenet,std=58/57/57", "Divide mean and std by 255"),
        ("size=8,mean=half,std=-1/1/1", "no deviation of a picture"),
        ("size=8,mean=half,std=1e-320/1/1", "no deviation of a picture"),
        ("size=224,mean=-0.1/0/0,std=half", "no mean of a picture"),
        ("size=224,mean=half,crop=1.5", "crop=1.5"),
        ("size=224,mean=half,crop=x", "crop=x"),
        ("size=224,mean=half,mode=stretch", "center, squash, border"),
        ("size=224,mean=half,interpolation=cubic", "bicubic"),
    ],
)
def test_a_text_that_says_no_steps(text: str, said: str) -> None:
    with pytest.raises(PreprocessingError) as caught:
        parse_preprocessing(text)
    assert said in str(caught.value)
    assert caught.value.fix


def test_of_a_very_wide_picture_only_the_crop_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = RANDOM.integers(0, 256, (3, 2000, 3), dtype=np.uint8)
    steps = parse_preprocessing("size=63,crop=0.9,mean=half")
    whole = steps.resized(picture)
    monkeypatch.setattr(preprocessing_module, "_MOST_RESIZED", 1)
    part = steps.resized(picture)
    assert np.abs(whole.astype(int) - part).max() <= 1
    monkeypatch.undo()
    line = np.repeat(picture[:1, :1], 1 << 20, axis=1)
    assert set(map(tuple, steps.resized(line).reshape(-1, 3))) == {tuple(picture[0, 0])}


def test_steps_that_cut_nothing_need_a_picture_of_the_shape() -> None:
    steps = replace(parse_preprocessing("size=8,mean=half"), crop=None, crop_mode=None)
    assert steps.apply(np.zeros((16, 16, 3), np.uint8)).shape == (3, 8, 8)
    with pytest.raises(PreprocessingError, match="becomes 8 × 16, and the input is 8 × 8"):
        steps.apply(np.zeros((10, 20, 3), np.uint8))
    huge = replace(steps, resize=(1 << 14, 1 << 14), crop=(1 << 14, 1 << 14))
    with pytest.raises(PreprocessingError, match="and the input is 8 × 8."):
        huge.apply(np.zeros((10, 20, 3), np.uint8))  # at once: its crop would take 0.8 GB
    with pytest.raises(PreprocessingError, match="3 channels"):
        replace(steps, mean=(0.5,)).apply(np.zeros((16, 16, 3), np.uint8))


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
)
def test_pixels_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(PreprocessingError):
        parse_preprocessing("size=8,mean=half").apply(pixels)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", None),
        ("size", [224]),
        ("size", [0, 224]),
        ("size", [1 << 20, 224]),
        ("size", "224"),
        ("resize", -1),
        ("resize", True),
        ("resize", [1, 2, 3]),
        ("crop", [1.5, 2]),
        ("crop_mode", "random"),
        ("interpolation", "cubic"),
        ("interpolation", ["bicubic"]),
        ("rescale_factor", 0),
        ("rescale_factor", "1/255"),
        ("mean", 0.5),
        ("mean", ["a"]),
        ("mean", [float("nan")] * 3),
        ("std", [1, 0, 1]),
        ("other_steps", 3),
    ],
)
def test_untrusted_steps_are_checked(key: str, value: object) -> None:
    data = parse_preprocessing("size=8,mean=half").to_json() | {key: value}
    with pytest.raises(PreprocessingError, match=key):
        Preprocessing.from_json(data)
