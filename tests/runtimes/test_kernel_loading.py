"""Native kernels that are there and do not load: loud where a bundle is loaded, or an error."""

from __future__ import annotations

import _ctypes
from pathlib import Path

import pytest
import torch
from digits_vit import DigitsViT, merge_alike
from helpers.cli import tokexport as command
from torch import Tensor, nn

import tokexport
from tokexport.exporter.bench.config import BenchConfig
from tokexport.exporter.bench.run import _lost_kernels
from tokexport.runtimes import load
from tokexport.runtimes.errors import KernelsError
from tokexport.runtimes.native_library import (
    NO_KERNELS,
    PROBLEM,
    REQUIRING_VARIABLE,
    VARIABLE,
    KernelsWarning,
    openvino_kernels,
)
from tokexport.runtimes.openvino.runner import import_openvino

BUNDLES = Path(__file__).parents[1] / "bundles"
TARGETS = ("ort", "openvino")


@pytest.fixture(params=["corrupt", "of something else", "missing"])
def wrong(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lets the kernels for both runtimes be files that do not load; returns what is said."""
    version = str(import_openvino().__version__).split("-", maxsplit=1)[0]
    places = [tmp_path / "tokexport_native.so", tmp_path / f"tokexport_openvino-{version}.so"]
    for place in places:
        if request.param == "corrupt":
            place.write_bytes(b"\x7fELF and no more")
        elif request.param == "of something else":
            place.symlink_to(_ctypes.__file__)
    monkeypatch.setenv(VARIABLE, str(places[0]))
    return f"The native kernels in {tmp_path}/"


@pytest.mark.parametrize("target", TARGETS)
def test_a_library_that_does_not_load_is_loud(
    wrong: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = BUNDLES / f"kernels_{target}"
    with pytest.warns(KernelsWarning, match="cannot be loaded: .*runs without them"):
        runner = load(bundle)
    with runner:
        assert runner.runtime.details["kernels"] == NO_KERNELS
        assert str(runner.runtime.details[PROBLEM]).startswith(wrong)
    with pytest.raises(KernelsError, match="cannot be loaded"):
        load(bundle, require_kernels=True)
    monkeypatch.setenv(REQUIRING_VARIABLE, "1")
    with pytest.raises(KernelsError, match="cannot be loaded"):
        load(bundle)


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_that_load_or_are_switched_off_are_no_warning(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = BUNDLES / f"kernels_{target}"
    with load(bundle, require_kernels=True) as runner:
        assert runner.runtime.details["kernels"] != NO_KERNELS
        assert PROBLEM not in runner.runtime.details
    monkeypatch.setenv(VARIABLE, "off")
    with load(bundle) as runner:
        assert PROBLEM not in runner.runtime.details
    with pytest.raises(KernelsError, match="TOKEXPORT_NATIVE=off leaves them out"):
        load(bundle, require_kernels=True)


def test_kernels_for_another_openvino_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tokexport_native.so"))
    for name in ("tokexport_native", "tokexport_openvino-2000.1.0"):
        (tmp_path / f"{name}.so").touch()
    problem = openvino_kernels("2000.2.0").problem
    assert "2000.1.0.so cannot be loaded" in problem
    assert "2000.2.0 is installed" in problem
    (tmp_path / "tokexport_openvino-2000.1.0.so").unlink()
    assert openvino_kernels("2000.2.0").problem == ""


@pytest.mark.parametrize("wrong", ["corrupt"], indirect=True)
def test_commands_say_so_or_refuse(wrong: str) -> None:
    bundle = BUNDLES / "kernels_ort"
    verified = command("verify", bundle)
    assert verified.code == 0
    assert f"warning {wrong}" in verified.said
    refused = command("verify", bundle, "--require-kernels")
    assert refused.code == 6
    assert f"error: {wrong}" in refused.said
    found = {one["name"]: one for one in command("doctor", "--json").json["components"]}
    for target in TARGETS:
        assert wrong in found[f"kernels for {target}"]["missing"]
    config = BenchConfig(targets=TARGETS)
    assert [one.startswith(wrong) for one in _lost_kernels(config)] == [True, True]
    with pytest.raises(KernelsError):
        _lost_kernels(BenchConfig(targets=TARGETS, require_kernels=True))


@pytest.mark.parametrize("wrong", ["corrupt"], indirect=True)
def test_a_compile_warns_or_fails(wrong: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = DigitsViT(width=16, heads=2, merge=(3, 0)).eval(), torch.rand(1, 1, 8, 8)
    result = tokexport.compile(model, image, "ort", output=tmp_path / "bundle", timed=False)
    assert any(one.startswith(wrong) for one in result.report.warnings)
    with pytest.raises(KernelsError, match="cannot be loaded"):
        tokexport.compile(
            model, image, "ort", output=tmp_path / "none", timed=False, require_kernels=True
        )


class InDouble(nn.Module):
    """Merges tokens in float64, which the kernels do not compute in."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes (B, N, C)."""
        wide = x.double()
        merged, _ = merge_alike(wide, torch.ones_like(wide[..., :1]), wide, 3)
        return merged.float()


def test_a_model_that_the_kernels_do_not_take_runs_without_them_and_says_so(tmp_path: Path) -> None:
    x = torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0))
    result = tokexport.compile(InDouble(), x, "ort", output=tmp_path / "bundle", timed=False)
    assert result.report.recognised["merge_tokens"] == 2
    refuses = "ONNX Runtime refuses the model with the native kernels, and runs it without: "
    assert any(one.startswith(refuses) for one in result.report.warnings)
    with pytest.warns(KernelsWarning, match=refuses):
        load(tmp_path / "bundle").close()
    with pytest.raises(KernelsError, match=refuses):
        load(tmp_path / "bundle", require_kernels=True)
