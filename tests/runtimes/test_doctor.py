from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable
from subprocess import CompletedProcess

import onnx
import pytest

from tokexport.runtimes.doctor import IDENTITY_MODEL, Component, diagnose, gpu_component, summary
from tokexport.runtimes.native_library import Kernels, kernels_of, native_library
from tokexport.runtimes.openvino.runner import kernels_here
from tokexport.runtimes.trt.cuda_driver import Gpu

RunPython = Callable[[str], CompletedProcess[str]]


@pytest.fixture(scope="module")
def components() -> dict[str, Component]:
    return {component.name: component for component in diagnose()}


def test_the_probe_is_a_valid_model() -> None:
    model = onnx.load_model_from_string(IDENTITY_MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Identity"]
    assert model.SerializeToString() == IDENTITY_MODEL


def test_every_component_is_listed(components: dict[str, Component]) -> None:
    assert list(components) == [
        "numpy",
        "onnxruntime",
        "kernels for ort",
        "openvino",
        "kernels for openvino",
        "TensorRT",
        "TensorRT-RTX",
        "NVIDIA GPU and driver",
        "torch",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "safetensors",
        "nncf",
        "timm",
        "transformers",
    ]


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("onnxruntime", "onnxruntime"),
        ("TensorRT-RTX", "tensorrt_rtx_cu13_bindings"),
        ("torch", "torch"),
        ("onnx_ir", "onnx-ir"),
        ("transformers", "transformers"),
    ],
)
def test_what_is_installed_works_and_has_its_version(
    components: dict[str, Component], name: str, distribution: str
) -> None:
    component = components[name]
    assert component.works
    assert component.version == importlib.metadata.version(distribution)
    assert (component.missing, component.install) == ("", "")


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_kernels_are_named_by_their_instruction_set(
    components: dict[str, Component], target: str
) -> None:
    library = native_library() if target == "ort" else kernels_here()
    assert library is not None
    assert components[f"kernels for {target}"].version == kernels_of(library)


@pytest.mark.parametrize(
    ("wanted", "said", "remedy"),
    [
        ("off", "TOKEXPORT_NATIVE=off leaves them out.", "Unset the variable TOKEXPORT_NATIVE."),
        ("/nowhere/at/all.so", "TOKEXPORT_NATIVE leads to no library for ", "Unset the variable "),
    ],
)
def test_kernels_that_are_not_there_have_their_remedy(
    monkeypatch: pytest.MonkeyPatch, wanted: str, said: str, remedy: str
) -> None:
    monkeypatch.setenv("TOKEXPORT_NATIVE", wanted)
    found = {component.name: component for component in diagnose()}
    for target, runtime in (("ort", "onnxruntime"), ("openvino", "openvino")):
        assert found[runtime].works
        kernels = found[f"kernels for {target}"]
        assert not kernels.works
        assert kernels.version is None
        assert kernels.missing.startswith(said)
        assert kernels.install.startswith(remedy)


def test_kernels_that_were_not_built_have_the_command_that_builds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokexport.runtimes.ort.runner.ort_kernels", Kernels)
    monkeypatch.setattr("tokexport.runtimes.openvino.runner.found_kernels", Kernels)
    found = {component.name: component for component in diagnose()}
    for target in ("ort", "openvino"):
        kernels = found[f"kernels for {target}"]
        assert not kernels.works
        assert kernels.missing.endswith(" is installed.")
        assert "pip install --force-reinstall --no-deps" in kernels.install


def test_a_gpu_that_rtx_does_not_list_needs_full_tensorrt() -> None:
    hopper = Gpu("NVIDIA H200", "9.0", (13, 0))
    without, beside = (gpu_component(hopper, builds_here=here) for here in (False, True))
    assert not without.works
    assert "does not list compute capability 9.0" in without.missing
    assert without.install == "pip install tensorrt"
    assert beside.works
    listed = Gpu("NVIDIA GeForce RTX 4090", "8.9", (13, 0))
    assert gpu_component(listed, builds_here=False).works
    old = gpu_component(Gpu(listed.name, "8.9", (12, 8)), builds_here=True)
    assert not old.works
    assert "older than CUDA 13" in old.missing


def test_what_does_not_work_says_what_is_missing_and_what_to_do(
    components: dict[str, Component],
) -> None:
    for component in components.values():
        assert component.works == (component.missing == "") == (component.install == "")


def test_the_report_is_plain_json(components: dict[str, Component]) -> None:
    plain = [component.to_dict() for component in components.values()]
    assert json.loads(json.dumps(plain)) == plain


def test_a_bare_environment_gets_every_install_command(run_python: RunPython) -> None:
    hidden = [
        "torch",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "onnxruntime",
        "openvino",
        "tensorrt",
        "tensorrt_rtx_bindings",
        "safetensors",
        "nncf",
        "timm",
        "transformers",
    ]
    done = run_python(
        f"import json, sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"
        "from tokexport.runtimes.doctor import diagnose\n"
        "print(json.dumps({c.name: [c.works, c.missing, c.install] for c in diagnose()}))"
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["numpy"] == [True, "", ""]
    extras = {
        "onnxruntime": "ort",
        "kernels for ort": "ort",
        "openvino": "openvino",
        "kernels for openvino": "openvino",
        "TensorRT-RTX": "trt-rtx",
        "torch": "compile",
        "onnx": "compile",
        "onnx_ir": "compile",
        "onnxscript": "compile",
        "safetensors": "compile",
        "nncf": "int8",
        "timm": "timm",
        "transformers": "transformers",
    }
    for name, extra in extras.items():
        works, missing, install = found[name]
        assert not works
        assert "not installed" in missing
        assert install == f"pip install 'tokexport[{extra}]'"
    assert found["TensorRT"][2] == "pip install tensorrt"


def test_the_compiling_packages_are_never_imported(run_python: RunPython) -> None:
    done = run_python(
        "import sys\n"
        "from tokexport.runtimes.doctor import diagnose\n"
        "diagnose()\n"
        "print([n for n in ('torch', 'onnx', 'onnxscript', 'timm', 'transformers')\n"
        "       if n in sys.modules])"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            (),
            "compiles for ort, openvino and trt; it runs and verifies ort, openvino and trt.",
        ),
        (("torch",), "compiles for nothing; it runs and verifies ort, openvino and trt."),
        (("nncf", "timm"), "compiles for ort, openvino and trt; it runs and"),
        (
            ("NVIDIA GPU and driver", "TensorRT"),
            "compiles for ort, openvino and trt; it runs and verifies ort and openvino.",
        ),
        (
            ("openvino", "TensorRT", "TensorRT-RTX"),
            "compiles for ort; it runs and verifies ort.",
        ),
        (("onnxruntime", "openvino", "TensorRT", "TensorRT-RTX", "onnx"), "verifies nothing."),
    ],
)
def test_one_line_says_what_the_machine_can_do(broken: tuple[str, ...], said: str) -> None:
    found = tuple(dataclasses.replace(one, works=one.name not in broken) for one in diagnose())
    assert set(broken) <= {one.name for one in found}
    assert said in summary(found)
