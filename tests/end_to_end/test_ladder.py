"""Bundles with an artifact for each of several batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.thorough import thorough_but
from models.tiny_vit import image, tiny_tome
from torch import Tensor, nn

import tokexport
from tokexport.exporter.errors import GateError, ModelNotSupportedError, UsageError
from tokexport.runtimes import load
from tokexport.runtimes.bundle.manifest import BUILT_NOT_RUN
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.errors import BundleError, InputMismatchError
from tokexport.runtimes.tolerances.neighbourhoods import within_local_floor
from tokexport.runtimes.verification import verify_bundle


class Linear(nn.Module):
    """A linear layer, on which subclasses build what is wrong with batches."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x)
        return found


class Counts(Linear):
    """Answers by how many samples it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.shape[0]


class Mixes(Linear):
    """Adds the mean of the batch to each sample."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found + found.mean(dim=0, keepdim=True)


class OnlyFew(Linear):
    """Gives another number of classes for many samples."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found if x.shape[0] < 4 else found[:, :3]


class Grows(Linear):
    """Answers in numbers that no absolute tolerance fits where there are several samples."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1e7 if x.shape[0] > 1 else 1.0)


def linear(kind: type[Linear], batch: int = 1) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind(), torch.randn(batch, 8)


@pytest.mark.parametrize(
    ("target", "precision"),
    thorough_but(
        [("openvino", "bf16"), ("ort", "int8")],
        [("ort", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("ort", "int8")],
    ),
)
def test_a_bundle_answers_any_number_of_samples_as_the_model_does(
    target: str, precision: str, tmp_path: Path
) -> None:
    model = tiny_tome()
    result = tokexport.compile(
        *(model, image(), target),
        output=tmp_path / "bundle",
        batch=(1, 3),
        precision=precision,
        page=False,
    )
    manifest = read_manifest(result.bundle)
    assert [one.batch for one in manifest.ladder] == [1, 3]
    assert [one.batch for one in result.report.ladder] == [1, 3]
    assert manifest.samples_independent
    assert all(one.latency_ms is not None and one.latency_ms > 0 for one in manifest.ladder)
    for report in (rung.report for rung in result.report.ladder):
        assert json.loads((result.bundle / report).read_text())["status"] == "PASSED"
    verified = verify_bundle(result.bundle)
    assert verified.passed
    assert [one.batch for one in verified.ladder] == [1, 3]

    images = torch.randn(7, 3, 48, 48, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = model.eval()(images).numpy()
    with load(result.bundle, threads=1) as runner:
        found = runner.run({"x": images.numpy()})["output"]
        alone = np.concatenate([runner.run({"x": one[None]})["output"] for one in images.numpy()])
    assert found.shape == wanted.shape
    if precision == "fp32":
        assert within_local_floor(wanted, found)
        assert within_local_floor(wanted, alone)
    assert np.argmax(found, 1).tolist() == np.argmax(alone, 1).tolist()


@pytest.mark.parametrize(
    ("target", "weights"), [("ort", "model.onnx.data"), ("openvino", "model.bin")]
)
def test_the_artifacts_share_their_weights(target: str, weights: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 64))
    bundle = tokexport.compile(
        *(model, torch.randn(1, 64), target),
        output=tmp_path / "bundle",
        batch=(1, 2, 4),
        timed=False,
        page=False,
    ).bundle
    whole = 4 * sum(one.numel() for one in model.parameters())
    assert whole - 8192 < (bundle / weights).stat().st_size < 1.1 * whole
    manifest = read_manifest(bundle)
    assert {path.name for path in bundle.iterdir()} == {*manifest.files, "manifest.json"}
    assert sum((bundle / one.artifact).stat().st_size for one in manifest.ladder) < whole
    assert weights in manifest.files
    (bundle / weights).write_bytes(bytes((bundle / weights).stat().st_size))
    with pytest.raises(BundleError, match="truncated or altered"):
        load(bundle)


def test_a_model_that_counts_its_samples_gets_no_ladder(tmp_path: Path) -> None:
    model, example = linear(Counts)
    with pytest.raises(GateError, match="answers otherwise than eager did"):
        tokexport.compile(
            model, example, output=tmp_path / "bundle", batch=(1, 2), timed=False, page=False
        )
    assert not list(tmp_path.iterdir())


def test_samples_of_a_model_that_mixes_them_are_not_split(tmp_path: Path) -> None:
    model, example = linear(Mixes, 4)
    bundle = tokexport.compile(
        model, example, output=tmp_path / "bundle", batch=(4, 2), timed=False, page=False
    ).bundle
    assert read_manifest(bundle).samples_independent is False
    x = example.numpy()
    with load(bundle, threads=1) as runner, torch.no_grad():
        for count in (4, 2):
            wanted = model(example[:count]).numpy()
            np.testing.assert_allclose(runner.run({"x": x[:count]})["output"], wanted, atol=1e-5)
        with pytest.raises(InputMismatchError, match="takes 4 or 2 at once"):
            runner.run({"x": x[:3]})


def test_outputs_that_differ_by_more_than_the_batch_are_refused(tmp_path: Path) -> None:
    model, example = linear(OnlyFew)
    with pytest.raises(ModelNotSupportedError, match="outputs of the model for 4 samples"):
        tokexport.compile(
            model, example, output=tmp_path / "bundle", batch=(1, 4), timed=False, page=False
        )
    assert not list(tmp_path.iterdir())


def test_a_further_artifact_that_fails_leaves_its_own_report(tmp_path: Path) -> None:
    model, example = linear(Grows)
    with pytest.raises(GateError, match="Parity failed") as caught:
        tokexport.compile(
            model, example, output=tmp_path / "bundle", batch=(1, 2), atol=1e-6, timed=False
        )
    assert caught.value.batch == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.failed"]
    report = json.loads((tmp_path / "bundle.failed" / "report.json").read_text())
    assert report["status"] == "FAILED"
    assert report["gates"] or report["stages"]


@pytest.mark.usefixtures("without_gpu")
def test_engines_of_a_ladder_are_built_without_a_device(tmp_path: Path) -> None:
    model, example = linear(Linear)
    result = tokexport.compile(
        model, example, "trt", output=tmp_path / "bundle", batch=(1, 2), timed=False, page=False
    )
    assert result.status == BUILT_NOT_RUN
    manifest = read_manifest(result.bundle)
    assert [one.artifact for one in manifest.ladder] == ["model.engine", "model.batch2.engine"]
    assert all(one.artifact in manifest.files for one in manifest.ladder)


@pytest.mark.parametrize("batch", [(), (0, 1), (1, 1), "1,2", (1.5, 2), (True, 2)])
def test_batches_that_are_no_numbers_are_refused(batch: object, tmp_path: Path) -> None:
    model, example = linear(Linear)
    with pytest.raises(UsageError, match="batch"):
        tokexport.compile(model, example, output=tmp_path / "bundle", batch=batch)  # type: ignore[arg-type]
