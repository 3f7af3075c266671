"""One model has one hash by whatever route it came, and another model another one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import MODELS, TESTS
from models.cli_models import plain_vit
from torch import Tensor, nn

import tokexport
from tokexport.exporter.capture.fingerprint import Fingerprint, fingerprint
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.config import InputConfig
from tokexport.exporter.eager.example_inputs import prepare
from tokexport.exporter.source import SourceOptions, load_source
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.runtimes.bundle.manifest_reader import read_manifest

SOURCE = f"{MODELS}:plain_vit"
SHAPE = InputConfig(input_shape=(1, 3, 24, 24))


def of(model: nn.Module, example: Any) -> Fingerprint:
    flat, _, _ = prepare(source_in_memory(model, example), InputConfig())
    return fingerprint(capture(flat, flat.spec.examples))


def of_source(options: SourceOptions) -> Fingerprint:
    flat, _, _ = prepare(load_source(options), SHAPE)
    return fingerprint(capture(flat, flat.spec.examples))


@pytest.fixture(scope="module")
def wanted() -> Fingerprint:
    return of(*plain_vit())


def test_every_route_brings_the_same_hashes(wanted: Fingerprint, tmp_path: Path) -> None:
    model, example = plain_vit()
    torch.save(model, tmp_path / "model.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch.export.save(torch.export.export(model, (example,)), tmp_path / "model.pt2")
    code = (TESTS,)
    routes = {
        "a factory": SourceOptions(SOURCE, code),
        "a whole module": SourceOptions(str(tmp_path / "model.pt"), code, trust_pickle=True),
        "a checkpoint": SourceOptions(str(tmp_path / "weights.pt"), code, builder=SOURCE),
        "a factory and a checkpoint": SourceOptions(SOURCE, code, tmp_path / "weights.pt"),
    }
    assert {name: of_source(options) for name, options in routes.items()} == dict.fromkeys(
        routes, wanted
    )
    exported = of_source(SourceOptions(str(tmp_path / "model.pt2")))
    assert exported.weights_sha256 == wanted.weights_sha256


class Named(nn.Module):
    """Computes the same whatever its parts are called, and in which order they were made."""

    def __init__(self, *used: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        made = {name: nn.Linear(4, 4) for name in used}
        self.used = used
        for name in sorted(made):
            self.add_module(name, made[name])

    def forward(self, x: Tensor) -> Tensor:
        for name in self.used:
            x = self.get_submodule(name)(x)
        return x


def test_names_and_the_order_of_parts_are_no_part_of_it() -> None:
    x = torch.zeros(2, 4)
    assert of(Named("a", "b"), x) == of(Named("z", "c"), x)


def test_another_weight_is_another_model(wanted: Fingerprint) -> None:
    def moved(change: Any) -> Fingerprint:
        model, example = plain_vit()
        with torch.no_grad():
            change(dict(model.named_parameters()))
        return of(model, example)

    def by_a_thousandth(weights: dict[str, Tensor]) -> None:
        weights[next(iter(weights))].view(-1)[0] += 1e-3

    def classes_swapped(weights: dict[str, Tensor]) -> None:
        head = weights["head.weight"]
        head[[0, 1]] = head[[1, 0]].clone()

    for change in (by_a_thousandth, classes_swapped):
        found = moved(change)
        assert found.weights_sha256 != wanted.weights_sha256
        assert found.structure_sha256 == wanted.structure_sha256


class Activated(nn.Module):
    def __init__(self, slope: float, cut: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.slope, self.cut = nn.Linear(4, 4), slope, cut

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.layer(x), self.slope)[:, : self.cut]


def test_another_number_in_the_code_is_another_structure() -> None:
    x = torch.zeros(2, 4)
    one = of(Activated(0.1), x)
    for other in (of(Activated(0.2), x), of(Activated(0.1, 2), x), of(Activated(0.1), x[:1])):
        assert other.weights_sha256 == one.weights_sha256
        assert other.structure_sha256 != one.structure_sha256


def test_a_weight_may_be_conjugated() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("f", torch.polar(torch.ones(3), torch.arange(3.0)).conj())

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.f, Tensor)
            return torch.view_as_real(x * self.f)

    assert of(Turned(), torch.zeros(2, 3)) == of(Turned(), torch.zeros(2, 3))


def test_a_constant_of_the_code_is_of_its_structure() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: list[float]) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor(self.scale)

    x = torch.zeros(2, 3)
    one, other = of(Scaled([1.0, 2.0, 3.0]), x), of(Scaled([1.0, 2.0, 4.0]), x)
    assert one.weights_sha256 == other.weights_sha256
    assert one.structure_sha256 != other.structure_sha256


def test_nothing_is_changed(wanted: Fingerprint) -> None:
    model, example = plain_vit()
    before = copy.deepcopy(model.state_dict())
    assert of(model, example) == of(model, example) == wanted
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_bundle_and_report_hold_it(tmp_path: Path) -> None:
    model, example = plain_vit()
    made = {
        recipe: tokexport.compile(
            model, example, output=tmp_path / str(place), reduce=recipe, timed=False
        )
        for place, recipe in enumerate((None, "tome:r=3", "tome:r=4"))
    }
    found = {}
    for recipe, result in made.items():
        manifest = read_manifest(result.bundle)
        assert manifest.fingerprint is not None
        assert result.report.fingerprint == Fingerprint(**manifest.fingerprint)
        report = json.loads((result.bundle / "report.json").read_text())
        assert report["fingerprint"] == manifest.fingerprint
        found[recipe] = result.report.fingerprint
    assert found[None] == of(model, example)
    assert len({one.structure_sha256 for one in found.values()}) == 3
