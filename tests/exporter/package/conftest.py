"""Bundles to package: two of a ViT that merges at batch 4, whose manifests name their classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

_BUNDLES = Path(__file__).parents[2] / "bundles"
#: In another order than their numbers.
CLASSES = {f"digit {number}": number for number in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)}


@pytest.fixture(scope="session")
def ort_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _named(tmp_path_factory.mktemp("package") / "vit-ort", "kernels_ort")


@pytest.fixture(scope="session")
def openvino_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _named(tmp_path_factory.mktemp("package") / "vit-openvino", "kernels_openvino")


def _named(bundle: Path, name: str) -> Path:
    """Copies a bundle and adds what newer ones have: classes, and that samples are independent."""
    shutil.copytree(_BUNDLES / name, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest |= {"classes": CLASSES, "samples_independent": True}
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return bundle
