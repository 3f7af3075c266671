"""Image processors that do more than their configuration says are named, others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokexport.exporter.source.preprocessing import transformers_preprocessing
from tokexport.exporter.source.processor_check import held_to_processor

FILE = Path("preprocessor_config.json")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViTImageProcessor", {"resample": 3}),
        ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 41}, "crop_size": 64}),
        ("BitImageProcessor", {"size": {"shortest_edge": 32}, "do_center_crop": False}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
        ("LevitImageProcessor", {}),
        # not compared: it has another step already, is too large, or has no colours
        ("BridgeTowerImageProcessor", {}),
        ("ViTImageProcessor", {"size": {"height": 9000, "width": 9000}}),
        ("ViTImageProcessor", {"image_mean": [0.5], "image_std": [0.5]}),
    ],
)
def test_steps_that_say_all_stay_as_they_are(kind: str, options: dict[str, Any]) -> None:
    import transformers

    processor = getattr(transformers, kind)(**options)
    steps = transformers_preprocessing(processor.to_dict(), FILE)
    assert held_to_processor(processor, steps) is steps


@pytest.mark.parametrize(
    "kind",
    [
        "PoolFormerImageProcessor",  # resizes by its own crop_pct
        "PerceiverImageProcessor",  # crops before it resizes
        "PPLCNetImageProcessor",  # exchanges the channels
        "IdeficsImageProcessor",  # does not take one picture alone
    ],
)
def test_a_processor_that_does_otherwise_is_named(kind: str) -> None:
    import transformers

    processor = getattr(transformers, kind)()
    steps = transformers_preprocessing(processor.to_dict(), FILE)
    assert steps.other_steps == ()
    (said,) = held_to_processor(processor, steps).other_steps
    assert kind in said
