"""Native code that dies, hangs or runs out of memory is an error with its node and line."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.cli import MODELS, compile_model, refusal, tokexport
from helpers.deadly_models import (
    X,
    endless,
    endless_model,
    gather_of_no_rows,
    row_that_is_not_there,
    saved,
)
from onnx import helper

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.build.artifact import build
from tokexport.exporter.cli.parts.messages import describe
from tokexport.exporter.exit_codes import ExitCode, exit_code_of
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.worker.asking import Cause
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.process import VARIABLE, WORKER, WorkerDied
from tokexport.exporter.worker.runner import WorkerRunner, here
from tokexport.exporter.worker.steps import BUILT
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.onnx_passes.graph.source_lines import STACK_TRACE, node_line
from tokexport.runtimes.errors import BuildError, RunError
from tokexport.runtimes.memory import lacks_memory
from tokexport.runtimes.native_library import VARIABLE as LIBRARY


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of a test go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def start_anew() -> None:
    """Starts a worker that imports ONNX Runtime before it is asked: that takes none of a limit."""
    WORKER.stop()
    WORKER.start("ort")


def test_a_conversion_that_dies_names_node_and_line(tmp_path: Path, temporary: Path) -> None:
    path = gather_of_no_rows(tmp_path)
    built = tmp_path / "built"
    built.mkdir()
    with pytest.raises(BuildError) as caught:
        build(BACKENDS["openvino"], path, built)
    error = caught.value
    assert error.what == "OpenVINO died building the model: Segmentation fault (SIGSEGV)."
    assert (error.node, error.operator) == ("rows", "GatherND")
    assert "Node rows, operator GatherND, from /home/model.py:12, in forward" in error.where
    assert error.fix.startswith("Write the code of this node differently")
    assert exit_code_of(error) is ExitCode.BUILD_FAILED
    assert [*built.iterdir(), *temporary.iterdir()] == []

    good = saved(tmp_path, [helper.make_node("Neg", ["x"], ["y"])])
    assert build(BACKENDS["openvino"], good, built).flavour == "openvino-cpu"


@pytest.mark.thorough
def test_int8_that_dies_before_it_is_quantised_names_the_node(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    samples = Batches(("x",), {"x": X[np.newaxis]}, 2, None, "")
    with pytest.raises(BuildError) as caught:
        build(BACKENDS["openvino"], gather_of_no_rows(tmp_path), built, "int8", samples)
    assert caught.value.what.startswith("OpenVINO died building the model")
    assert (caught.value.node, caught.value.operator) == ("rows", "GatherND")


def test_a_cut_in_int8_is_quantised_on_a_sample(tmp_path: Path) -> None:
    """It dies only where its ranges are measured, and only on the sample that the whole died on."""
    cause = Cause(BACKENDS["openvino"], BUILT, row_that_is_not_there(tmp_path), precision="int8")
    assert (cause.is_searched, cause.searched_in) == (True, ("fp32", "int8"))
    asked = {
        "backend": "openvino",
        "until": BUILT,
        "model": str(cause.model),
        "scratch": str(tmp_path),
        "precision": "int8",
        "native": True,
    }
    WORKER.ask("try", asked, limit_s=600)
    with pytest.raises(WorkerDied):
        WORKER.ask("try", asked, {"x": X * np.float32(1e7)}, limit_s=600)


class Plant(ir.passes.InPlacePass):
    """Puts nodes behind the last product whose result another operator reads, with its line."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Plants in place."""
        graph = model.graph
        products = [n for n in graph if n.op_type in ("MatMul", "Gemm") and node_line(n)]
        node = [n for n in products if n.outputs[0].uses() and n.outputs[0].shape][-1]
        rows = node.outputs[0]
        readers = tuple(rows.uses())
        nodes = self.nodes(graph, rows)
        for made in nodes:
            made.metadata_props[STACK_TRACE] = node.metadata_props[STACK_TRACE]
        result = nodes[-1].outputs[0]
        result.shape, result.dtype = rows.shape, rows.dtype
        graph.insert_after(node, nodes)
        for reader, position in readers:
            reader.replace_input_with(position, result)
        return ir.passes.PassResult(model, modified=True)

    def nodes(self, graph: ir.Graph, rows: ir.Value) -> list[ir.Node]:
        """Returns what is planted; what it gives last stands for the rows."""
        raise NotImplementedError

    def constant(self, graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        return value


class PlantGather(Plant):
    """Joins no rows to the rows, by an index that OpenVINO's front end dies of."""

    def nodes(self, graph: ir.Graph, rows: ir.Value) -> list[ir.Node]:
        assert rows.shape is not None
        index = self.constant(graph, "none", np.zeros((rows.shape.numpy()[0], 0, 1), np.int64))
        gather = ir.node("GatherND", [rows, index], {"batch_dims": 1}, name="planted")
        return [gather, ir.node("Concat", [rows, gather.outputs[0]], {"axis": 1}, name="joined")]


class PlantLoop(Plant):
    """Turns the rows' sign in a loop that does not end."""

    def nodes(self, graph: ir.Graph, rows: ir.Value) -> list[ir.Node]:
        (loop,) = (node for node in ir.from_proto(endless_model()).graph if node.op_type == "Loop")
        body = loop.attributes["body"].as_graph()
        rounds = self.constant(graph, "rounds", np.array(2**62))
        return [ir.node("Loop", [rounds, None, rows], {"body": body.clone()}, name="planted")]


def plant(monkeypatch: pytest.MonkeyPatch, target: str, planted: Plant) -> None:
    passes = pipelines.LOWER[target]
    wrong = (*passes[:-1], planted, passes[-1])  # lines are cleared last
    monkeypatch.setattr(pipelines, "LOWER", {**pipelines.LOWER, target: wrong})


def test_a_compile_ends_in_exit_code_4_and_leaves_nothing(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "openvino", PlantGather())
    output = tmp_path / "outputs"
    output.mkdir()
    answer = compile_model(f"{MODELS}:with_inputs", output / "out", target="openvino")
    message = refusal(
        *(answer, 4, output, "OpenVINO died building the model: Segmentation fault (SIGSEGV)."),
        *("Node planted, operator GatherND", "  From ", "cli_models.py:", "in forward"),
    )
    assert "of this node differently" in message
    assert [*output.iterdir(), *temporary.glob("tokexport*")] == []


def test_a_compile_that_does_not_end_is_exit_code_5(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_anew()
    plant(monkeypatch, "ort", PlantLoop())
    monkeypatch.setenv(VARIABLE, "2")
    output = tmp_path / "outputs"
    output.mkdir()
    refusal(
        *(compile_model(f"{MODELS}:with_inputs", output / "out"), 5, output),
        *("ONNX Runtime did not end running the model within 2 s.", "Node planted, operator Loop"),
        *("  From ", "cli_models.py:", VARIABLE),
    )
    assert [*output.iterdir(), *temporary.glob("tokexport*")] == []


def test_inspect_tells_it_as_a_refusal_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "openvino", PlantGather())
    answer = tokexport("inspect", f"{MODELS}:with_inputs", "--target", "openvino")
    assert answer.code == 0
    assert "OpenVINO died building the model" in answer.said
    assert "Node planted (GatherND), from " in answer.said
    assert "cli_models.py:" in answer.said


def test_a_run_that_does_not_end(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_anew()
    monkeypatch.setenv(VARIABLE, "1.5")
    with WorkerRunner(Opening(endless(tmp_path))) as runner:
        with pytest.raises(RunError) as caught:
            runner.run({"x": X})
        error = caught.value
        assert error.what == "ONNX Runtime did not end running the model within 1.5 s."
        assert error.where == "Node for ever, operator Loop"
        assert f"set {VARIABLE} to more seconds" in error.fix
        assert exit_code_of(error) is ExitCode.RUN_FAILED
        assert list(temporary.iterdir()) == []


def test_a_worker_that_the_system_ends_lacks_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends it as Linux does where memory runs out, which a test must not bring about for all."""
    with WorkerRunner(Opening(endless(tmp_path))) as runner:
        assert WORKER._child is not None
        pid = WORKER._child._started.pid
        timer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
        timer.start()
        monkeypatch.setenv(VARIABLE, "1.5")  # the search runs what does not end
        with pytest.raises(RunError) as caught:
            runner.run({"x": X})
        timer.join()
    assert caught.value.what.startswith("ONNX Runtime was ended running the model, as a process is")
    assert "smaller batch" in caught.value.fix


def huge(folder: Path, planes: int) -> Path:
    """Writes a model that fills so many planes of 4 MB before it adds them up."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["a"], name="huge"),
        helper.make_node("ReduceSum", ["a"], ["b"], name="sum"),
        helper.make_node("Add", ["x", "b"], ["y"], name="last"),
    ]
    return saved(folder, nodes, shape=np.array([2**10, 2**10, planes]))


def test_memory_that_there_is_not(tmp_path: Path) -> None:
    path = huge(tmp_path, 2**26)
    with WorkerRunner(Opening(path)) as runner, pytest.raises(RunError) as caught:
        runner.run({"x": X})
    assert caught.value.what == "ONNX Runtime found too little memory running the model."
    assert caught.value.where == "Node huge, operator ConstantOfShape"
    assert exit_code_of(caught.value) is ExitCode.RUN_FAILED
    build(BACKENDS["openvino"], path, tmp_path)
    with pytest.raises(BuildError, match="computes a constant that is larger than its weights"):
        WorkerRunner(Opening(tmp_path / "model.xml"), path)


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_a_limit_of_memory_is_a_lack_of_it(tmp_path: Path) -> None:
    path = huge(tmp_path, 2**9)  # 2 GB
    start_anew()
    with WorkerRunner(Opening(path)) as runner:
        assert WORKER._child is not None
        pid = WORKER._child._started.pid
        held = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (held + 2**20, held + 2**20))
        with pytest.raises(RunError, match="found too little memory running the model"):
            runner.run({"x": X})
    WORKER.stop()


@pytest.mark.parametrize(
    "said",
    [
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 4294967296",
        "libopenvino_intel_cpu_plugin.so: failed to map segment from shared object",
        "alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "Unable to allocate 16.0 GiB for an array with shape (65536, 65536) and data type float32",
        "OSError: [Errno 12] Cannot allocate memory",
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_known_in_any_words(said: str | MemoryError) -> None:
    assert lacks_memory(said)
    assert not lacks_memory("Node (memory) Op (Add): shape mismatch")


def test_memory_that_this_process_lacks_is_no_bug() -> None:
    end = describe(MemoryError("DefaultCPUAllocator"))
    assert end["exit_code"] == ExitCode.RUN_FAILED
    assert end["error"]["what"] == "There is too little memory."


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_what_it_printed_last_is_told_and_reaches_no_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "kernels.c"
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n"
        'const char *tokexport_kernels(void) { return "bent"; }\n'
        'void *RegisterCustomOps(void *a, void *b) { puts("table is bent"); fflush(stdout);'
        " abort(); return a == b ? a : b; }\n"
    )
    library = tmp_path / "kernels.so"
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    monkeypatch.setenv(LIBRARY, str(library))
    with pytest.raises(BuildError) as caught:
        WorkerRunner(Opening(saved(tmp_path, [helper.make_node("Neg", ["x"], ["y"])])))
    assert caught.value.what == "ONNX Runtime died loading the model: Aborted (SIGABRT)."
    # no node of the model is to blame
    assert caught.value.where == "The last that it printed: table is bent"
    assert capfd.readouterr() == ("", "")


def test_a_runner_outlives_the_worker_and_opens_here(tmp_path: Path) -> None:
    path = saved(tmp_path, [helper.make_node("Neg", ["x"], ["y"])])
    with WorkerRunner(Opening(path)) as runner:
        assert [str(spec) for spec in runner.inputs] == ["x float32 (2, 5, 4)"]
        np.testing.assert_array_equal(runner.run({"x": X})["y"], -X)
        WORKER.stop()
        np.testing.assert_array_equal(runner.run({"x": X})["y"], -X)
        local = here(runner)
        np.testing.assert_array_equal(local.run({"x": X})["y"], -X)
        assert here(local) is local
    with pytest.raises(RunError, match="closed"):
        local.run({"x": X})


def test_what_a_runtime_says_crosses_as_it_is(tmp_path: Path) -> None:
    """An error of a runtime in the worker is the one that it is in this process."""
    path = saved(tmp_path, [helper.make_node("Nonsense", ["x"], ["y"], name="odd")])
    for opening in (Opening(path), Opening(tmp_path / "missing.onnx")):
        with pytest.raises(BuildError) as local:
            opening.open()
        with pytest.raises(BuildError) as remote:
            WorkerRunner(opening)
        assert type(remote.value) is type(local.value)
        assert vars(remote.value) == vars(local.value)


def test_a_limit_that_is_no_number_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("soon", "0", "-1", "nan", "inf"):
        monkeypatch.setenv(VARIABLE, text)
        refusal(
            compile_model(f"{MODELS}:Heavy", tmp_path / "out", "--input-shape", "1,1024"),
            *(2, tmp_path, f"{VARIABLE} is '{text}', and it is a number of seconds."),
        )


def test_torch_is_no_part_of_the_worker() -> None:
    program = "import sys, tokexport.exporter.worker.main; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
    assert torch is sys.modules["torch"]
