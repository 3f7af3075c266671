"""A real Triton serves the packages with batching: it joins requests, and answers as the bundle."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.small_bundles import LARGEST, WEIGHT, product_bundle
from helpers.triton_server import triton

from tokexport.exporter.package.options import PackageOptions
from tokexport.exporter.package.package import package_bundle
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.bundle.reference import read_reference

REQUESTS = 64


@pytest.mark.thorough
def test_triton_joins_requests_over_the_artifacts(
    ort_bundle: Path, openvino_bundle: Path, tmp_path: Path
) -> None:
    options = PackageOptions(batching=True, delay_us=20_000, threads=1)
    ladder = product_bundle(tmp_path / "ladder", 8, 1, 2)
    (tmp_path / "models").mkdir()
    for bundle in (ort_bundle, openvino_bundle, ladder):
        package_bundle(bundle, "triton", tmp_path / "one", options, force=True)
        shutil.move(tmp_path / "one" / bundle.name, tmp_path / "models")
    with triton(tmp_path / "models", tmp_path / "triton.log") as server:
        for bundle in (ort_bundle, openvino_bundle):
            reference = read_reference(bundle, read_manifest(bundle))
            images = reference.inputs["image"].reshape(-1, 1, 8, 8)
            wanted = reference.outputs["output"].reshape(-1, 10)

            def ask(index: int, name: str = bundle.name, images: np.ndarray = images) -> np.ndarray:
                at = index % len(images)
                return server.infer(name, {"image": images[at : at + 1]})["output"]

            with ThreadPoolExecutor(16) as pool:
                for index, found in enumerate(pool.map(ask, range(REQUESTS))):
                    at = index % len(images)
                    np.testing.assert_allclose(found, wanted[at : at + 1], atol=1e-4)
            ran = server.batches_run(bundle.name)
            assert max(ran) == 4  # requests of one sample each were joined
            assert sum(size * count for size, count in ran.items()) >= REQUESTS
        inputs = {
            "x": np.random.default_rng(0).random((7, 3), np.float32),
            "shift": np.arange(7)[:, None],
        }
        found = server.infer("ladder", inputs)["y"]
        np.testing.assert_allclose(found, inputs["x"] @ WEIGHT + inputs["shift"], rtol=1e-5)
        for name, value, said in (
            ("shift", 10, "outside 0 to 9"),
            ("x", LARGEST + 1, "x is too large"),
        ):
            wrong = {key: array.copy() for key, array in inputs.items()}
            wrong[name][0] = value
            with pytest.raises(ValueError, match=said):
                server.infer("ladder", wrong)
