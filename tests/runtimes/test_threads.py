"""Runners shared by threads, closed under them, failing alone, and met again in a forked child."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from digits_vit import DigitsViT
from helpers.function_models import Call, all_inputs
from helpers.graphs import emitted, lowered, rewrite
from helpers.native_kernels import RUNTIMES, opened
from helpers.thorough import thorough_but
from helpers.token_cases import Array, rows, values
from onnx import TensorProto
from onnx.helper import make_node, make_tensor_value_info

from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.graph_passes.onnx_passes.fuse.pack_integer_linears import packed_bytes
from tokexport.graph_passes.onnx_passes.fuse.pack_linears import packed_panels
from tokexport.graph_passes.onnx_passes.graph.integer_weights import per_channel
from tokexport.graph_passes.ops.fused_functions import PANEL
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import RunError
from tokexport.runtimes.native_library import kernels_of, native_library
from tokexport.runtimes.openvino.runner import OpenVinoRunner, convert
from tokexport.runtimes.ort.runner import OrtRunner

THREADS = 8
RUNS = 600  # of each thread
TARGETS = ("ort", "openvino")
Feed = dict[str, Array]


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small ViT that merges, as each CPU runtime takes it."""
    folder = tmp_path_factory.mktemp("merging")
    torch.manual_seed(0)
    model = DigitsViT(width=16, heads=2, merge=(3, 0)).eval()
    found = emitted(rewrite(model, torch.rand(1, 1, 8, 8)))
    for target in TARGETS:
        save_onnx(lowered(found, target), folder / f"{target}.onnx")
    convert(folder / "openvino.onnx", folder / "openvino.xml")
    return folder


def open_target(
    folder: Path, target: str, *, native: bool = True, threads: int | None = None
) -> Runner:
    """Opens the model of a folder in one runtime."""
    if target == "ort":
        return OrtRunner.from_file(folder / "ort.onnx", native=native, threads=threads)
    return OpenVinoRunner.from_file(folder / "openvino.xml", native=native, threads=threads)


def digits(seed: int) -> Feed:
    return {"in0": np.random.default_rng(seed).random((1, 1, 8, 8), np.float32)}


def in_threads(work: Callable[[int], None]) -> None:
    """Calls work(0), work(1), … in a thread each, and raises what one of them raised."""
    errors: list[BaseException] = []

    def watched(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=watched, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def assert_shared(runner: Runner, feeds: list[Feed], runs: int) -> None:
    """Holds what threads get of one runner, each run with another input, to what one gets alone."""
    wanted = [runner.run(feed) for feed in feeds]
    first = next(iter(wanted[0]))
    assert len({answer[first].tobytes() for answer in wanted}) == len(feeds)

    def work(number: int) -> None:
        for turn in range(number, number + runs):
            place = turn % len(feeds)
            found = runner.run(feeds[place])
            for name, array in wanted[place].items():
                np.testing.assert_array_equal(found[name], array)

    in_threads(work)


@pytest.mark.parametrize(
    ("target", "native"),
    thorough_but([(target, True) for target in TARGETS], itertools.product(TARGETS, (True, False))),
)
def test_threads_that_share_a_runner_get_their_own_answers(
    merging: Path, target: str, native: bool
) -> None:
    with open_target(merging, target, native=native) as runner:
        details = runner.runtime.details
        assert (details["kernels"] != "none") is native
        assert details.get("kernel_calls", 1) or not native
        assert_shared(runner, [digits(seed) for seed in range(THREADS)], RUNS)


@pytest.mark.parametrize("target", TARGETS)
def test_threads_share_a_runner_of_one_thread(merging: Path, target: str) -> None:
    with open_target(merging, target, threads=1) as runner:
        assert_shared(runner, [digits(seed) for seed in range(THREADS)], RUNS // 4)


def token_calls(seed: int) -> list[Call]:
    """Calls of the kernels that move tokens, in both runtimes, on 2 images."""
    x, size = values(seed, 2, 24, 8), 1 + np.abs(values(seed + 1, 2, 24, 1)).round()
    ranked, dst = rows(seed + 2, 2, 12, 12, unique=True), rows(seed + 3, 2, 5, 12)
    match = (ranked[:, 5:].copy(), ranked[:, :5].copy(), dst)
    back = rows(seed + 4, 2, 12, 12, unique=True)
    # Of 12 even tokens 5 go forth to the 12 odd ones, and of these 4 back to the 7 that are left.
    both = (*match, back[:, 4:].copy(), back[:, :4].copy(), rows(seed + 5, 2, 4, 7))
    sets = {"a_start": [0], "b_start": [1], "step": [2]}
    halves, moved = (x[:, ::2].copy(), x[:, 1::2].copy()), [(2, 7), (2, 5), (2, 5)]
    merged, half = {"protected": [0], **sets}, [(2, 15, 8), (2, 15, 1)]
    keys = {"heads": [2], "depth": [4], "start": [0], "blocked": [1], "r": [5], **sets}
    return [
        Call("bipartite_match", (values(seed + 6, 2, 12, 12),), moved, {"r": [5]}),
        Call("cosine_match", (x,), moved, keys),
        Call("gather_tokens", (x, dst), [(2, 5, 8)]),
        Call("scatter_tokens_mean", (x, dst, x[:, :5].copy()), [x.shape]),
        Call("merge_tokens_mean", (*halves, *match), [(2, 19, 8)]),
        Call("merge_by_size", (x, size, *match), [(2, 19, 8), (2, 19, 1)], merged),
        Call("places_both_ways", both, [(2, 24)], merged),
        Call("merge_both_ways_by_weight", (x, size, *both), half, merged),
    ]


def dense_calls(seed: int) -> list[Call]:
    """Calls of the kernels that ONNX Runtime alone has, on 2 images."""
    x, size = values(seed, 2, 24, 24), 1 + np.abs(values(seed + 1, 2, 24, 1)).round()
    weight, bias = values(seed + 2, 24, PANEL + 3), values(seed + 3, PANEL + 3)
    shape, affine = (2, 24, PANEL + 3), (values(seed + 4, 24), values(seed + 5, 24))
    image = values(seed + 6, 2, 1, 8, 8)
    embedding = packed_panels(values(seed + 7, 4, 5)), values(seed + 8, 5), values(seed, 1, 17, 5)
    patch = {"patch": (2, 2), "kernel": [-1, 1, 2, 2], "first": [1]}
    heads = {"scale": 0.4, "heads": [2], "depth": [4], "q_start": [0], "k_start": [8]}
    match = {"heads": [2], "depth": [4], "start": [0], "blocked": [1], "r": [5]}
    match |= {"protected": [0], "a_start": [0], "b_start": [1], "step": [2]}
    normed = [(2, 19, 24), (2, 19, 1), (2, 19, 24)]
    calls = [
        Call("linear", (x, packed_panels(weight), bias), [shape]),
        Call("linear_gelu", (x, packed_panels(weight), bias), [shape]),
        Call("patch_embed", (image, *embedding), [(2, 17, 5)], patch),
        Call("layer_norm", (x, *affine), [x.shape], {"epsilon": 1e-5}),
        Call("rows_attention", (x, x, x), [(2, 24, 8)], {**heads, "v_start": [16]}),
        Call("rows_attention_by_size", (x, x, x, size), [(2, 24, 8)], {**heads, "v_start": [16]}),
        Call("attention_weights", (x, x), [(2, 2, 24, 24)], heads),
        Call("cosine_merge_norm", (x, x, size, *affine), normed, {**match, "epsilon": 1e-5}),
    ]
    library = native_library()
    if library is not None and kernels_of(library).endswith("vnni"):
        integers, scales = per_channel(weight)
        calls.append(Call("integer_linear", (x, packed_bytes(integers), scales, bias), [shape]))
    return calls


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_that_share_kernels_get_their_own_answers(runtime: str) -> None:
    def calls(seed: int) -> list[Call]:
        return [*token_calls(seed), *(dense_calls(seed) if runtime == "ort" else ())]

    feeds = [
        {f"in{i}": array for i, array in enumerate(all_inputs(calls(10 * seed)))}
        for seed in range(THREADS)
    ]
    with opened(calls(0), True, runtime) as runner:
        assert_shared(runner, feeds, RUNS // 4)


@pytest.mark.parametrize("target", thorough_but([*TARGETS][::2], TARGETS))
def test_a_runner_that_is_closed_under_threads_answers_or_says_so(
    merging: Path, target: str
) -> None:
    for _ in range(20):
        assert_closes(open_target(merging, target))


def assert_closes(runner: Runner) -> None:
    """Closes a runner that threads run: each answer is right, and then they hear of it."""
    wanted, running = runner.run(digits(0))["out0"], threading.Barrier(THREADS + 1)
    heard: list[str] = []

    def work(_: int) -> None:
        run = runner.bound(digits(0))
        running.wait()
        try:
            while True:
                np.testing.assert_array_equal(run()["out0"], wanted)
        except RunError as error:
            heard.append(error.what)

    def close() -> None:
        running.wait()
        runner.run(digits(0))
        runner.close()

    closing = threading.Thread(target=close)
    closing.start()
    in_threads(work)
    closing.join()
    assert heard == ["The runner is closed."] * THREADS
    runner.close()


@pytest.fixture
def reshaping(save_model: Callable[..., Path]) -> Iterator[Callable[[str, int | None], Runner]]:
    """Opens, in a runtime with so many threads, what adds 1 to x as a matrix of that shape."""
    path = save_model(
        [
            make_node("Reshape", ["x", "shape"], ["matrix"], name="to_matrix"),
            make_node("Add", ["matrix", "one"], ["y"]),
        ],
        [
            make_tensor_value_info("x", TensorProto.FLOAT, ["N"]),
            make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [make_tensor_value_info("y", TensorProto.FLOAT, ["A", "B"])],
        weights={"one": np.ones(1, np.float32)},
        name="ort.onnx",
    )
    convert(path, path.with_name("openvino.xml"))
    with ExitStack() as stack:
        yield lambda target, threads: stack.enter_context(
            open_target(path.parent, target, threads=threads)
        )


def numbers(count: int, first: float) -> Feed:
    """What fits a matrix of 4 rows and 5 columns if there are 20."""
    return {"x": first + np.arange(count, dtype=np.float32), "shape": np.array([4, 5])}


@pytest.mark.parametrize("threads", [None, 1, 2])
@pytest.mark.parametrize("target", TARGETS)
def test_a_failed_run_says_so_and_the_next_one_is_right(
    reshaping: Callable[[str, int | None], Runner], target: str, threads: int | None
) -> None:
    runner = reshaping(target, threads)
    kept = []
    for first in range(1, 4):
        with pytest.raises(RunError, match=r"failed: .*([Rr]eshape|to_matrix)") as failed:
            runner.run(numbers(6, first))
        assert "Exception from" not in failed.value.what
        kept.append(runner.run(numbers(20, first))["y"])
    for first, matrix in enumerate(kept, start=1):
        np.testing.assert_array_equal(matrix.ravel(), first + 1 + np.arange(20))


@pytest.mark.parametrize("threads", [None, 1])
@pytest.mark.parametrize("target", TARGETS)
def test_a_failed_run_is_told_to_the_thread_that_began_it(
    reshaping: Callable[[str, int | None], Runner], target: str, threads: int | None
) -> None:
    runner = reshaping(target, threads)

    def work(number: int) -> None:
        for turn in range(200):
            if (number + turn) % 2:
                with pytest.raises(RunError, match="failed"):
                    runner.run(numbers(6, number))
            else:
                found = runner.run(numbers(20, number))["y"]
                np.testing.assert_array_equal(found.ravel(), number + 1 + np.arange(20))

    in_threads(work)


ON_ONE_CORE = """
import os
from pathlib import Path
import numpy as np
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from tokexport.runtimes.openvino.runner import OpenVinoRunner
from tokexport.runtimes.errors import RunError
with OpenVinoRunner.from_file(Path({path!r})) as runner:
    print(runner.runtime.details["threads"])
    for count in (6, 20, 6):
        try:
            x = np.ones(count, np.float32)
            print(runner.run({{"x": x, "shape": np.array([4, 5])}})["y"].sum())
        except RunError:
            print("failed")
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no process has cores of its own")
def test_a_failed_run_on_one_core_says_so(
    reshaping: Callable[[str, int | None], Runner],
    tmp_path: Path,
    run_python: Callable[[str], CompletedProcess[str]],
) -> None:
    done = run_python(ON_ONE_CORE.format(path=str(tmp_path / "openvino.xml")))
    assert done.stdout.split() == ["1", "failed", "40.0", "failed"], done.stderr


FORKS = """
import os, signal, sys, threading
from pathlib import Path
import numpy as np
from tokexport.runtimes.errors import RunError
if {target!r} == "ort":
    from tokexport.runtimes.ort.runner import OrtRunner
    load = lambda: OrtRunner.from_file(Path({folder!r}, "ort.onnx"), threads={threads})
else:
    from tokexport.runtimes.openvino.runner import OpenVinoRunner
    load = lambda: OpenVinoRunner.from_file(Path({folder!r}, "openvino.xml"), threads={threads})
feed = {{"in0": np.ones((1, 1, 8, 8), np.float32)}}
runner, dropped = load(), load()
run = runner.bound(feed)
wanted = runner.run(feed)["out0"]
going = True
def work():
    while going:
        run()
other = threading.Thread(target=work)
other.start()
child = os.fork()
if child == 0:
    signal.alarm(60)
    del dropped
    for attempt in (run, lambda: runner.run(feed), runner.__enter__):
        try:
            attempt()
        except RunError as error:
            print(error.what, error.fix)
    runner.close()
    runner.close()
    try:
        with load() as own:
            print(np.array_equal(own.run(feed)["out0"], wanted))
    except RunError as error:
        print(error.what)
    sys.stdout.flush()
    os._exit(0)
status = os.waitpid(child, 0)[1]
going = False
other.join()
print(status, np.array_equal(runner.run(feed)["out0"], wanted))
runner.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("threads", [None, 1, 4])
@pytest.mark.parametrize("target", TARGETS)
def test_a_forked_child_is_told_where_to_load(
    merging: Path,
    target: str,
    threads: int | None,
    run_python: Callable[[str], CompletedProcess[str]],
) -> None:
    done = run_python(FORKS.format(target=target, folder=str(merging), threads=threads))
    refused = (
        "The runner was loaded before this process was forked from another. "
        "Start the child by the method 'spawn', or load bundles in children only."
    )
    # OpenVINO's models share threads, and hang in the child as soon as one has been run before.
    anew = "OpenVINO was loaded before this process was forked from another."
    loaded = {"ort": "True", "openvino": anew}[target]
    assert done.stdout.splitlines() == [refused] * 3 + [loaded, "0 True"], done.stderr
