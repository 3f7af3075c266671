from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime
import pytest

from tokexport.runtimes import compatibility
from tokexport.runtimes.bundle.bundle_files import hash_file
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, REFERENCE_NAME
from tokexport.runtimes.errors import BundleError, ProcessorError
from tokexport.runtimes.loading import load
from tokexport.runtimes.native_library import NO_KERNELS, native_library
from tokexport.runtimes.processor import sums_saturate
from tokexport.runtimes.verification import verify_bundle

BundleMaker = Callable[..., Path]


def rewrite_reference(bundle: Path, **changes: np.ndarray | None) -> None:
    """Replaces arrays of the reference data (None takes one out) and its hash in the manifest."""
    path = bundle / REFERENCE_NAME
    with np.load(path) as archive:
        arrays = dict(archive.items())
    named = {key.replace("__", "/"): array for key, array in changes.items()}
    arrays = {key: a for key, a in (arrays | named).items() if a is not None}
    np.savez(path, **arrays)
    rehash(bundle)


def rehash(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    manifest["files"][REFERENCE_NAME] = hash_file(bundle / REFERENCE_NAME)
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))


def test_a_right_bundle_passes_over_all_batches(make_bundle: BundleMaker) -> None:
    result = verify_bundle(make_bundle())
    assert result.passed
    assert result.batches == 3
    assert result.runtime.name == "ort"
    logits, label = result.outputs
    assert (logits.name, label.name) == ("logits", "label")
    assert logits.relative_error <= 1e-5
    assert logits.comparison.cosine == pytest.approx(1.0)
    assert logits.comparison.top1_agreement == 1.0
    assert (label.relative_error, label.comparison.top1_agreement) == (0.0, None)
    assert repr(result).startswith("PASSED: 3 batches on onnxruntime-cpu ")
    assert repr(result).endswith("; label is off by 0.0e+00")
    shown = list(ElementTree.fromstring(result._repr_html_()).itertext())
    assert (shown[0], shown[-3:]) == ("PASSED", ["label", "0.0e+00", "passed"])


def test_an_error_beyond_the_gate_fails_that_output_alone(make_bundle: BundleMaker) -> None:
    result = verify_bundle(make_bundle(error=1e-3))
    assert not result.passed
    assert [output.passed for output in result.outputs] == [False, True]
    assert result.outputs[0].comparison.max_abs == pytest.approx(1e-3, rel=1e-2)


def test_the_scale_of_the_gate_decides(make_bundle: BundleMaker) -> None:
    gates = {
        "logits": {"relative_tolerance": 1e-5, "scale": 1e6},
        "label": {"relative_tolerance": 0.0},
    }
    result = verify_bundle(make_bundle(error=1e-3, gates=gates))
    assert result.passed
    assert result.outputs[0].relative_error == pytest.approx(1e-9, rel=1e-2)


def test_a_gate_of_the_cosine_takes_large_errors_of_single_numbers(
    make_bundle: BundleMaker,
) -> None:
    gates = {"logits": {"least_cosine": 0.99, "scale": 1.0}, "label": {"relative_tolerance": 0.0}}
    result = verify_bundle(make_bundle(error=1e-3, gates=gates))
    logits = result.outputs[0]
    assert result.passed
    assert (logits.relative_tolerance, logits.least_cosine) == (None, 0.99)
    assert logits.relative_error > 1e-5


def test_a_gate_of_the_cosine_fails_another_direction(make_bundle: BundleMaker) -> None:
    gates = {"logits": {"least_cosine": 0.99, "scale": 1.0}, "label": {"relative_tolerance": 0.0}}
    bundle = make_bundle(gates=gates)
    with np.load(bundle / REFERENCE_NAME) as archive:
        logits = archive["outputs/logits"].copy()
    rewrite_reference(bundle, outputs__logits=logits + 2 * np.abs(logits).max())
    result = verify_bundle(bundle)
    assert [output.passed for output in result.outputs] == [False, True]


def with_spread(bundle: Path, spread: float, cosine: float = 0.99) -> Path:
    """Holds the logits of a bundle to half of a spread, beside the cosine."""
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    gate = {"least_cosine": cosine, "scale": 1.0, "spread_tolerance": 0.5, "spread": spread}
    manifest["gates"]["logits"] = gate
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
    return bundle


def test_an_error_near_the_spread_fails_at_any_cosine(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    with np.load(bundle / REFERENCE_NAME) as archive:
        logits = archive["outputs/logits"] + np.float32(0.01)
    rewrite_reference(bundle, outputs__logits=logits)
    for spread, passes in ((0.021, True), (0.019, False)):
        result = verify_bundle(with_spread(bundle, spread))
        found = result.outputs[0]
        assert found.comparison.cosine > 0.99
        assert found.spread_error == pytest.approx(0.01 / spread, rel=1e-3)
        assert (found.spread_tolerance, found.passed) == (0.5, passes)
    label = result.outputs[1]
    assert (label.spread_error, label.spread_tolerance) == (None, None)


def test_the_spread_is_that_of_the_manifest_and_not_of_the_few_batches(
    make_bundle: BundleMaker,
) -> None:
    bundle = make_bundle()
    with np.load(bundle / REFERENCE_NAME) as archive:
        x, logits, label = (archive[n][:1] for n in ("inputs/x", "outputs/logits", "outputs/label"))
    off = logits + np.float32(0.01)
    rewrite_reference(bundle, inputs__x=x, outputs__logits=off, outputs__label=label)
    assert verify_bundle(with_spread(bundle, 1.0)).passed


def test_samples_with_a_near_tie_are_left_out(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    with np.load(bundle / REFERENCE_NAME) as archive:
        logits, label = archive["outputs/logits"].copy(), archive["outputs/label"].copy()
    logits[1, 0] += 1
    label[1, 0] = (label[1, 0] + 1) % 5
    steady = np.ones((3, 2), bool)
    rewrite_reference(bundle, outputs__logits=logits, outputs__label=label, steady=steady)
    assert not verify_bundle(bundle).passed
    steady[1, 0] = False
    rewrite_reference(bundle, steady=steady)
    result = verify_bundle(bundle)
    assert result.passed
    assert (result.batches, result.left_out) == (3, 1)
    logits[1, 1] += 1
    rewrite_reference(bundle, outputs__logits=logits)
    assert [output.passed for output in verify_bundle(bundle).outputs] == [False, True]


@pytest.mark.parametrize(
    "steady",
    [np.ones((2, 2), bool), np.ones((3, 2), int), np.zeros((3, 2), bool), np.ones(3, bool)],
)
def test_a_choice_of_samples_that_does_not_fit_is_refused(
    steady: np.ndarray, make_bundle: BundleMaker
) -> None:
    bundle = make_bundle()
    rewrite_reference(bundle, steady=steady)
    with pytest.raises(BundleError, match="does not select samples in each batch"):
        verify_bundle(bundle)


def test_one_differing_decision_fails_a_gate_of_zero(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    with np.load(bundle / REFERENCE_NAME) as archive:
        label = archive["outputs/label"].copy()
    label[1, 0] = (label[1, 0] + 1) % 5
    rewrite_reference(bundle, outputs__label=label)
    result = verify_bundle(bundle)
    assert [output.passed for output in result.outputs] == [True, False]
    assert result.outputs[1].relative_error == pytest.approx(1 / 6)


def test_an_output_without_a_gate_is_named(make_bundle: BundleMaker) -> None:
    bundle = make_bundle(gates={"logits": {"relative_tolerance": 1e-5, "scale": 1.0}})
    with pytest.raises(BundleError, match="no gate for output label"):
        verify_bundle(bundle)


def test_a_bundle_without_reference_data(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    del manifest["files"][REFERENCE_NAME]
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="has no reference.npz"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    ("key", "array", "why"),
    [
        ("inputs__x", None, "it has no inputs/x"),
        ("outputs__label", None, "it has no outputs/label"),
        ("inputs__x", np.zeros((3, 2, 9), np.float32), "inputs/x is float32"),
        ("inputs__x", np.zeros((3, 2, 8)), "inputs/x is float64"),
        ("inputs__x", np.zeros((2, 2, 8), np.float32), "2, 3"),
        ("outputs__label", np.zeros((3, 2), np.float32), "outputs/label is float32"),
        ("outputs__logits", np.zeros((2, 5), np.float32), "outputs/logits is float32"),
    ],
)
def test_reference_data_that_does_not_fit_is_named(
    make_bundle: BundleMaker, key: str, array: np.ndarray | None, why: str
) -> None:
    bundle = make_bundle()
    rewrite_reference(bundle, **{key: array})
    with pytest.raises(BundleError, match=why):
        verify_bundle(bundle)


def test_reference_data_without_batches(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    rewrite_reference(
        bundle,
        inputs__x=np.zeros((0, 2, 8), np.float32),
        outputs__logits=np.zeros((0, 2, 5), np.float32),
        outputs__label=np.zeros((0, 2), np.int64),
    )
    with pytest.raises(BundleError, match=r"\[0\] batches"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    "content", [b"", b"not an archive", b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)]
)
def test_reference_data_that_is_no_archive(make_bundle: BundleMaker, content: bytes) -> None:
    bundle = make_bundle()
    (bundle / REFERENCE_NAME).write_bytes(content)
    rehash(bundle)
    with pytest.raises(BundleError, match="does not fit the bundle"):
        verify_bundle(bundle)


def test_reference_data_never_runs_code(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    np.savez(bundle / REFERENCE_NAME, **{"inputs/x": np.array([{"a": 1}], dtype=object)})
    rehash(bundle)
    with pytest.raises(BundleError, match="python objects"):
        verify_bundle(bundle)


BUNDLES = Path(__file__).parents[1] / "bundles"


@pytest.mark.parametrize("name", ["relative_tolerance", "least_cosine"])
def test_a_bundle_of_an_earlier_version_verifies_as_it_is(name: str, tmp_path: Path) -> None:
    if name == "least_cosine" and sums_saturate():
        with pytest.raises(ProcessorError, match="weights have 8 bits"):
            verify_bundle(BUNDLES / name)
        return
    assert verify_bundle(BUNDLES / name).passed
    bundle = shutil.copytree(BUNDLES / name, tmp_path / name)
    with np.load(bundle / REFERENCE_NAME) as archive:
        output = archive["outputs/output"].copy()
    output[1, 2] += 0.1 * np.abs(output).max()
    rewrite_reference(bundle, outputs__output=output)
    assert not verify_bundle(bundle).passed


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_a_bundle_of_an_earlier_version_runs_with_its_kernels(target: str) -> None:
    bundle = BUNDLES / f"kernels_{target}"
    assert verify_bundle(bundle).passed
    with load(bundle) as runner:
        assert runner.runtime.details["kernels"] != NO_KERNELS
        assert runner.runtime.details.get("kernel_calls", 2) == 2


def test_every_call_of_an_earlier_bundle_is_run_by_its_kernel(tmp_path: Path) -> None:
    path, library = BUNDLES / "kernels_ort" / "model.onnx", native_library()
    assert library is not None
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with np.load(BUNDLES / "kernels_ort" / REFERENCE_NAME) as archive:
        session.run(None, {"image": archive["inputs/image"][0]})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ran = {event["args"]["op_name"] for event in events if event["cat"] == "Node"}
    calls = {node.op_type for node in onnx.load(path).graph.node if node.domain == "tokexport"}
    assert calls
    assert calls <= ran


def test_weights_of_8_bits_are_refused_where_their_sums_saturate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compatibility, "lacks_all", bool)  # on another processor
    with pytest.raises(ProcessorError, match="--weight-bits 7"):
        load(BUNDLES / "least_cosine")


def test_a_channel_is_held_to_what_the_bundle_allows_for_it(make_bundle: BundleMaker) -> None:
    bundle = with_spread(make_bundle(), 1.0, 0.9)
    allowed = np.array([1.0, 1.0, 1e-3, 1.0, 1.0])
    rewrite_reference(bundle, channel__logits__1=allowed, channel__logits__top1=np.full(5, 10.0))
    assert verify_bundle(bundle).passed
    with np.load(bundle / REFERENCE_NAME) as archive:
        logits = archive["outputs/logits"]
    logits[..., 2] += 2e-3
    rewrite_reference(bundle, outputs__logits=logits)
    found = verify_bundle(bundle).outputs[0]
    assert found.comparison.cosine > 0.9
    assert not found.passed
    assert "at index 2 of axis 1" in found.failure
    # Also where the bundle says which samples are compared, as many as there are classes.
    rewrite_reference(bundle, steady=np.ones((3, 2), bool))
    assert "at index 2 of axis 1" in verify_bundle(bundle).outputs[0].failure
    rewrite_reference(bundle, channel__logits__1=np.ones(4))
    with pytest.raises(BundleError, match="channel/logits/1 does not fit"):
        verify_bundle(bundle)
    rewrite_reference(bundle, channel__logits__1=None, channel__logits__top1=None)
    assert verify_bundle(bundle).passed  # one made before


def test_a_largest_entry_is_held_beside_an_absolute_tolerance(make_bundle: BundleMaker) -> None:
    label = {"relative_tolerance": 0.0}
    wide = {"relative_tolerance": 10.0, "scale": 1.0}
    bundle = make_bundle(gates={"logits": wide | {"top1_tolerance": 1e-5}, "label": label})
    explained = {"noise__logits__share": np.zeros((3, 2), np.float32)}
    explained["noise__logits__0"] = np.zeros((3, 2, 1), np.float32)
    rewrite_reference(bundle, **explained)
    assert verify_bundle(bundle).passed
    with np.load(bundle / REFERENCE_NAME) as archive:
        logits = archive["outputs/logits"].copy()
    logits[1, 0] = np.roll(logits[1, 0], 1)
    rewrite_reference(bundle, outputs__logits=logits)
    found = verify_bundle(bundle).outputs[0]
    assert not found.passed
    assert "no near-tie" in found.failure
    rewrite_reference(bundle, noise__logits__share=None)
    with pytest.raises(BundleError, match="what rounding does to logits"):
        verify_bundle(bundle)
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    del manifest["gates"]["logits"]["top1_tolerance"]
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert verify_bundle(bundle).passed  # one made before tells nothing of it


def test_a_value_is_held_to_what_the_bundle_allows_for_its_column(make_bundle: BundleMaker) -> None:
    label = {"relative_tolerance": 0.0}
    bundle = make_bundle(gates={"logits": {"local_tolerance": 1.0}, "label": label})
    rounding_error = {"noise__logits__share": np.zeros((3, 2), np.float32)}
    rounding_error["noise__logits__0"] = np.full((3, 2, 1), 10, np.float32)
    columns = np.full((3, 2, 5), 10, np.float32)
    columns[..., 2] = 1e-3
    rewrite_reference(bundle, noise__logits__column=columns, **rounding_error)
    assert verify_bundle(bundle).passed
    with np.load(bundle / REFERENCE_NAME) as archive:
        logits = archive["outputs/logits"].copy()
    logits[1, 0, 2] = 0
    logits[1, 0, 2] += 2e-3
    moved = logits.copy()
    rewrite_reference(bundle, outputs__logits=moved)
    found = verify_bundle(bundle).outputs[0].worst
    assert found is not None
    assert (found.index, found.share > 1) == ((1, 0, 2), True)
    rewrite_reference(bundle, noise__logits__column=np.ones((3, 2, 4), np.float32))
    with pytest.raises(BundleError, match="noise/logits/column does not fit"):
        verify_bundle(bundle)
    rewrite_reference(bundle, noise__logits__column=None)
    assert verify_bundle(bundle).passed  # one made before tells nothing of it
