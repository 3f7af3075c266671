from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.runtimes.conftest import make_model, value
from tokexport.runtimes import BundleRunner, load, loading
from tokexport.runtimes.bundle.bundle_files import hash_file
from tokexport.runtimes.bundle.manifest import (
    SCHEMA_VERSION,
    Manifest,
    Rung,
    RuntimeInfo,
    TensorSpec,
)
from tokexport.runtimes.errors import BundleError, InputMismatchError, RunError

WEIGHT = np.random.default_rng(7).standard_normal((8, 5), dtype=np.float32)
GAIN = np.array([2.0, 0.5, 1.0, -1.0, 3.0], np.float32)


def model(batch: int, *, mixes: bool = False, sums: bool = False) -> Any:
    """X (N, 8) and gain (5,) to logits = x w · gain (N, 5), and label = argmax (N,).

    With ``mixes`` the mean of the batch is added; with ``sums`` a total over it is returned.
    """
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Mul", ["product", "gain"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["mean"], keepdims=0),
        helper.make_node(
            *(("Add", ["scaled", "mean"]) if mixes else ("Identity", ["scaled"])), ["logits"]
        ),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [value("logits", [batch, 5]), value("label", [batch], TensorProto.INT64)]
    if sums:
        outputs.append(value("mean", []))
    return make_model(
        nodes, [value("x", [batch, 8]), value("gain", [5])], outputs, weights={"w": WEIGHT}
    )


def specs(batch: int, sums: bool) -> dict[str, Any]:
    outputs = [TensorSpec("logits", (batch, 5), "float32"), TensorSpec("label", (batch,), "int64")]
    return {
        "inputs": (
            TensorSpec("x", (batch, 8), "float32"),
            TensorSpec("gain", (5,), "float32"),
        ),
        "outputs": (*outputs, *[TensorSpec("mean", (), "float32")] * sums),
    }


Maker = Callable[..., Path]


@pytest.fixture
def make_ladder(tmp_path: Path) -> Maker:
    """Writes a bundle with an artifact for each batch."""

    def make(
        *batches: int,
        independent: bool | None = True,
        latencies: dict[int, float] | None = None,
        name: str = "bundle",
        **options: bool,
    ) -> Path:
        bundle = tmp_path / name
        bundle.mkdir()
        for batch in batches:
            (bundle / f"model.batch{batch}.onnx").write_bytes(
                model(batch, **options).SerializeToString()
            )
        first, *others = batches
        sums, times = options.get("sums", False), latencies or {}
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            tokexport_version="0.1.0",
            created="2026-01-01T00:00:00+00:00",
            target="ort",
            status="PASSED",
            artifact=f"model.batch{first}.onnx",
            runtime=RuntimeInfo("ort", "onnxruntime-cpu", "1.22.0"),
            precision="fp32",
            **specs(first, sums),
            constant_outputs={},
            token_schedule=(),
            gates={},
            source={},
            preprocessing=None,
            files={one.name: hash_file(one) for one in bundle.iterdir()},
            samples_independent=independent,
            latency_ms=times.get(first),
            rungs=tuple(
                Rung(
                    artifact=f"model.batch{batch}.onnx",
                    reference="reference.npz",
                    **specs(batch, sums),
                    gates={},
                    latency_ms=times.get(batch),
                )
                for batch in others
            ),
        )
        manifest.write(bundle)
        return bundle

    return make


def samples(count: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(count).standard_normal((count, 8), dtype=np.float32)
    return {"x": x, "gain": GAIN}


def wanted(arrays: dict[str, np.ndarray]) -> np.ndarray:
    logits: np.ndarray = arrays["x"] @ WEIGHT * GAIN
    return logits


@pytest.mark.parametrize("batches", [(1,), (4,), (1, 4), (8, 1, 3)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11, 64])
def test_any_number_of_samples_is_answered_in_their_order(
    make_ladder: Maker, batches: tuple[int, ...], count: int
) -> None:
    arrays = samples(count)
    with load(make_ladder(*batches), threads=1) as runner:
        found = runner.run(arrays)
    assert found["logits"].shape == (count, 5)
    np.testing.assert_allclose(found["logits"], wanted(arrays), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["label"], wanted(arrays).argmax(axis=1))


def test_the_batches_are_those_that_took_least(make_ladder: Maker) -> None:
    bundle = make_ladder(1, 4, 8, latencies={1: 10.0, 4: 22.0, 8: 100.0})
    with load(bundle, threads=1) as runner:
        assert runner.batches == (1, 4, 8)
        assert runner.plan(9) == [4, 4, 1]
        times = runner.warm_up()
        assert set(times) == {1, 4, 8}
        assert all(ms > 0 for ms in times.values())
        assert runner.plan(9) != [4, 4, 1] or times[8] > 2 * times[4] / 1.05


@pytest.mark.parametrize("count", [4, 6])
def test_the_answer_is_written_where_the_caller_wants_it(make_ladder: Maker, count: int) -> None:
    arrays = samples(count)
    out = {"logits": np.empty((count, 5), np.float32), "label": np.empty(count, np.int64)}
    with load(make_ladder(1, 4), threads=1) as runner:
        found = runner.run(arrays, out)
        again = runner.run(samples(count + 4))
    assert found["logits"] is out["logits"]
    np.testing.assert_allclose(out["logits"], wanted(arrays), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["label"], wanted(arrays).argmax(axis=1))
    assert not np.shares_memory(again["logits"], out["logits"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out: out.pop("label"), "not the model's outputs"),
        (lambda out: out.update(label=np.empty(5, np.int64)), r"shape \(5,\)"),
        (lambda out: out.update(label=np.empty(4, np.int32)), "dtype int32"),
        (lambda out: out.update(label=[0, 0, 0, 0]), "a list"),
        (lambda out: out.update(label=np.empty(8, np.int64)[::2]), "not contiguous"),
        (lambda out: out["label"].setflags(write=False), "read-only"),
        (lambda out: out.update(more=np.empty(1)), "not the model's outputs"),
    ],
)
def test_memory_that_does_not_fit_the_outputs_is_refused(
    make_ladder: Maker, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    out: dict[str, Any] = {
        "logits": np.empty((4, 5), np.float32),
        "label": np.empty(4, np.int64),
    }
    change(out)
    with (
        load(make_ladder(1, 4), threads=1) as runner,
        pytest.raises(InputMismatchError, match=said),
    ):
        runner.run(samples(4), out)


def test_memory_without_names_is_refused(make_ladder: Maker) -> None:
    room: Any = [np.empty((4, 5), np.float32), np.empty(4, np.int64)]
    with (
        load(make_ladder(4), threads=1) as runner,
        pytest.raises(InputMismatchError, match="arrays of out are a list, not arrays by name"),
    ):
        runner.run(samples(4), room)


def test_samples_that_lean_on_others_stay_in_a_batch_of_their_own(make_ladder: Maker) -> None:
    bundle = make_ladder(4, independent=False, mixes=True)
    with load(bundle, threads=1) as runner:
        assert runner.run(samples(4))["logits"].shape == (4, 5)
        for count in (1, 3, 5, 8):
            with pytest.raises(InputMismatchError, match="takes 4 at once"):
                runner.run(samples(count))


def test_samples_that_lean_on_others_are_not_split_where_that_were_faster(
    make_ladder: Maker,
) -> None:
    times = {4: 100.0, 2: 1.0}
    with load(make_ladder(4, 2, independent=False, mixes=True, latencies=times)) as runner:
        arrays = samples(4)
        found = runner.run(arrays)["logits"]
    plain = wanted(arrays)
    np.testing.assert_allclose(found, plain + plain.mean(), rtol=1e-5, atol=1e-5)


def test_an_output_of_all_samples_together_is_not_put_together(make_ladder: Maker) -> None:
    with load(make_ladder(4, sums=True), threads=1) as runner:
        assert runner.run(samples(4))["mean"].shape == ()
        with pytest.raises(InputMismatchError, match="mean is one of all samples"):
            runner.run(samples(5))
        out = {"logits": np.empty((4, 5), np.float32), "label": np.empty(4, np.int64)}
        found = runner.run(samples(4), out | {"mean": np.empty((), np.float32)})
        np.testing.assert_allclose(found["mean"], wanted(samples(4)).mean(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(out["logits"], wanted(samples(4)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((0, 8), np.float32), "gain": GAIN}, "holds no samples"),
        (np.zeros((4, 8), np.float32), "are a ndarray, not arrays by name"),
        (None, "are a NoneType"),
        ({"x": np.zeros(8, np.float32), "gain": GAIN}, "Add the batch axis"),
        ({"x": np.zeros((3, 7), np.float32), "gain": GAIN}, r"takes \(3, 8\)"),
        ({"x": np.zeros((3, 8), np.float64), "gain": GAIN}, "float64"),
        ({"x": np.zeros((3, 8), np.float32), "gain": GAIN[:3]}, r"takes \(5,\)"),
        ({"x": np.full((3, 8), np.nan, np.float32), "gain": GAIN}, "NaN"),
        ({"x": np.zeros((3, 8), np.float32)}, "missing gain"),
    ],
)
def test_samples_that_do_not_fit_are_refused(make_ladder: Maker, arrays: Any, said: str) -> None:
    with load(make_ladder(1, 4), threads=1) as runner:
        for ask in (runner.run, runner.bound, lambda given: runner.submit(given).result(60)):
            with pytest.raises(InputMismatchError, match=said):
                ask(arrays)


@pytest.mark.parametrize(
    ("batches", "options"),
    [((1, 4), {}), ((4,), {"independent": False, "mixes": True}), ((4,), {"sums": True})],
)
def test_callers_share_no_run_where_an_input_has_no_samples(
    make_ladder: Maker, batches: tuple[int, ...], options: dict[str, bool]
) -> None:
    with load(make_ladder(*batches, **options), threads=1) as runner:
        assert not runner.shares_runs  # the gain is one for all samples of a run
        assert runner.manifest is not None
        assert runner.manifest.batch == batches[0]


def test_only_some_artifacts_are_loaded(make_ladder: Maker) -> None:
    bundle = make_ladder(1, 4, 8)
    with load(bundle, threads=1, batches=[4]) as runner:
        assert runner.batches == (4,)
        assert runner.run(samples(3))["logits"].shape == (3, 5)
    with pytest.raises(BundleError, match="no artifact for 2 samples"):
        load(bundle, batches=[1, 2])
    with pytest.raises(BundleError, match="no artifact for no samples"):
        load(bundle, batches=[])


def test_what_is_submitted_runs_in_order(make_ladder: Maker) -> None:
    with load(make_ladder(1, 4), threads=1) as runner:
        futures = [runner.submit(samples(count)) for count in range(1, 20)]
        for count, future in enumerate(futures, start=1):
            found = future.result(timeout=60)["logits"]
            np.testing.assert_allclose(found, wanted(samples(count)), rtol=1e-5, atol=1e-6)
        wrong = runner.submit({"x": np.zeros((1, 7), np.float32), "gain": GAIN})
        with pytest.raises(InputMismatchError, match="shape"):
            wrong.result(timeout=60)
    with pytest.raises(RunError, match="closed"):
        runner.submit(samples(1))


def test_what_waits_when_a_runner_is_closed_is_refused(make_ladder: Maker) -> None:
    runner = load(make_ladder(1), threads=1)
    blocked, go_on = threading.Event(), threading.Event()
    first = runner.submit(samples(1))
    first.add_done_callback(lambda _: (blocked.set(), go_on.wait(60)))
    assert blocked.wait(60)
    waiting = runner.submit(samples(1))
    runner.close()
    go_on.set()
    assert first.result(timeout=60)["logits"].shape == (1, 5)
    with pytest.raises(RunError, match="closed"):
        waiting.result(timeout=60)


def test_threads_that_share_a_ladder_get_their_own_answers(make_ladder: Maker) -> None:
    wrong: list[int] = []

    def ask(runner: BundleRunner, seed: int) -> None:
        for count in range(1, 40):
            arrays = samples(count % 13 + seed + 1)
            if not np.allclose(runner.run(arrays)["logits"], wanted(arrays), 1e-5, 1e-6):
                wrong.append(count)

    with load(make_ladder(1, 4, 8), threads=1) as runner:
        threads = [threading.Thread(target=ask, args=(runner, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def tasks() -> dict[str, str]:
    """The cores that each thread of this process may use, as Linux says them."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            _, _, rest = (task / "status").read_text().partition("Cpus_allowed_list:")
            found[task.name] = rest.split()[0]
    return found


def test_threads_of_the_runtime_stay_on_the_cores_that_are_named(make_ladder: Maker) -> None:
    cores = sorted(os.sched_getaffinity(0))
    before = tasks()
    with load(make_ladder(1, 4), threads=2, cores=cores[-1:]) as runner:
        runner.submit(samples(5)).result(timeout=60)
        started = {name: on for name, on in tasks().items() if name not in before}
        assert runner.runtime.details["threads"] == 2
    assert len(started) >= 2  # of each artifact one, and that of submit
    assert set(started.values()) == {str(cores[-1])}
    assert sorted(os.sched_getaffinity(0)) == cores
    with pytest.raises(RunError, match="cannot run on the cores 4711"):
        load(make_ladder(1, name="other"), cores=[4711])


@pytest.mark.parametrize("threads", [0, -1, 1025, True, 2.0, "2"])
def test_numbers_of_threads_that_no_runtime_takes_are_refused(
    make_ladder: Maker, threads: Any
) -> None:
    with pytest.raises(RunError, match=f"number of threads is {threads!r}"):
        load(make_ladder(1), threads=threads)


def test_an_array_that_is_not_aligned_is_copied(make_ladder: Maker) -> None:
    arrays = samples(4)
    shifted = np.zeros(arrays["x"].nbytes + 1, np.uint8)[1:].view(np.float32).reshape(4, 8)
    shifted[:] = arrays["x"]
    assert not shifted.flags.aligned
    with load(make_ladder(4), threads=1) as runner:
        checked = runner._taken(arrays | {"x": shifted})
        assert checked["x"].flags.aligned
        found = runner.run(arrays | {"x": shifted})["logits"]
    np.testing.assert_allclose(found, wanted(arrays), rtol=1e-5, atol=1e-6)


def test_as_many_threads_as_cores_are_free_without_a_number(
    make_ladder: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_ladder(1)
    for free in (1, 2):
        monkeypatch.setattr(loading, "free_cores_since", lambda _, count=free: count)
        with load(bundle) as runner:
            assert runner.runtime.details["threads"] == free


def test_memory_that_is_read_meanwhile_is_not_written(make_ladder: Maker) -> None:
    room = np.zeros((8, 8), np.float32)
    with load(make_ladder(4), threads=1) as runner:
        out = {"logits": room.reshape(-1)[:40].reshape(8, 5), "label": np.empty(8, np.int64)}
        with pytest.raises(InputMismatchError, match="logits shares memory with that of x"):
            runner.run({"x": room, "gain": GAIN}, out)


def test_a_run_that_is_under_way_answers_whoever_closes(
    make_ladder: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load(make_ladder(4), threads=1)
    (only,) = runner.runners.values()
    run = only._run_into

    def run_and_close(*given: Any) -> Any:
        runner.close()
        return run(*given)

    monkeypatch.setattr(only, "_run_into", run_and_close)
    arrays = samples(11)
    np.testing.assert_allclose(runner.run(arrays)["logits"], wanted(arrays), rtol=1e-5, atol=1e-6)
    assert only._session is None  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="closed"):
        runner.run(arrays)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rung: rung["inputs"][0].update(name="z"), "inputs of the artifact for 4"),
        (lambda rung: rung["inputs"].reverse(), "inputs of the artifact for"),
        (lambda rung: rung["outputs"][0].update(shape=[4, 1]), "outputs of the artifact for 4"),
        (lambda rung: rung["outputs"][0].update(dtype="float64"), "outputs of the artifact for 4"),
        (lambda rung: rung["outputs"].pop(), "outputs of the artifact for 4"),
        (lambda rung: rung["inputs"][0].update(shape=[0, 8]), "takes no samples"),
    ],
)
def test_an_artifact_of_another_model_is_refused(
    make_ladder: Maker, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    bundle = make_ladder(1, 4)
    data = json.loads((bundle / "manifest.json").read_text())
    change(data["rungs"][0])
    (bundle / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=said):
        load(bundle)
    with pytest.raises(BundleError, match=said):
        load(bundle, batches=[1])


def test_two_artifacts_of_one_size_are_refused(make_ladder: Maker) -> None:
    bundle = make_ladder(1, 4)
    text = (bundle / "manifest.json").read_text()
    rungs = text.index('"rungs"')
    (bundle / "manifest.json").write_text(
        text[:rungs] + text[rungs:].replace("4,\n", "1,\n").replace("4\n", "1\n")
    )
    with pytest.raises(BundleError, match="same number of samples"):
        load(bundle)
