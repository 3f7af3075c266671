"""What an installation without torch can do: each environment is a real one, built here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_vit import DigitsViT
from environments import alike, ask, differences
from helpers.cli import tokexport as tokexport_command
from helpers.fresh_environments import Environment, new_environment
from helpers.picture_digits import OFF
from helpers.sshd import server
from helpers.torchvision_ops import child_environment

import tokexport
from tokexport.exporter.bench_bundle.own_wheel import build_wheel
from tokexport.exporter.schemas.stored import all_schemas, schema

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with the wheel, what it asks for, and onnxruntime."""
    environment = new_environment(tmp_path_factory.mktemp("installed"))
    environment.install(wheel, "onnxruntime")
    return environment


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with numpy, onnxruntime and the wheel, without what the wheel asks for."""
    environment = new_environment(tmp_path_factory.mktemp("device"))
    environment.install("numpy", "onnxruntime")
    environment.install("--no-deps", wheel)
    return environment


@dataclass(frozen=True)
class Compiled:
    """A bundle, the samples in a file, and what PyTorch answers to them."""

    bundle: Path
    inputs: Path
    expected: np.ndarray


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("compiled")
    torch.manual_seed(3)
    model = DigitsViT().eval()
    images = torch.rand(3, 1, 8, 8)
    np.savez(folder / "images.npz", image=images.numpy())
    result = tokexport.compile(
        model, images[:1], "ort", output=folder / "bundle", inputs=folder / "images.npz"
    )
    with torch.no_grad():
        expected = model(images).numpy()
    return Compiled(result.bundle, folder / "images.npz", expected)


def test_installing_brings_no_torch_and_no_onnx(installed: Environment) -> None:
    for absent in ("torch", "onnx", "onnx_ir", "onnxscript", "sklearn", "exporter", "runtimes"):
        assert not installed.has(absent)
    for present in ("numpy", "typer", "rich", "onnxruntime", "tokexport"):
        assert installed.has(present)


def test_the_schemas_are_in_the_wheel(installed: Environment) -> None:
    listed = installed.tokexport("schema", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    names = {one["name"] for one in json.loads(listed.stdout)["schemas"]}
    assert names == {one.name for one in all_schemas().schemas}
    for name in ("report.json", "compile"):
        assert installed.tokexport("schema", name).stdout == schema(name).text


@pytest.mark.thorough
@pytest.mark.parametrize("asked", [False, True])
def test_a_build_fetches_openvino_where_it_is_asked_for(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEXPORT_OPENVINO", "1" if asked else "0")
    environment = new_environment(tmp_path / "own")
    environment.install(".")
    assert environment.tokexport("--version").returncode == 0
    assert not environment.has("openvino")
    built = environment.folder.glob("lib/python*/site-packages/tokexport/runtimes/native/*.so")
    names = {path.name.partition("-")[0].removesuffix(".so") for path in built}
    assert names == {"tokexport_native", *(["tokexport_openvino"] if asked else [])}


def test_run_without_torch(installed: Environment, compiled: Compiled, tmp_path: Path) -> None:
    output = tmp_path / "logits.npz"
    command = ("run", compiled.bundle, "--inputs", compiled.inputs, "--output", output, "--json")
    result = installed.tokexport(*command)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["samples"] == 3
    with np.load(output) as arrays:
        np.testing.assert_allclose(arrays["output"], compiled.expected, rtol=0, atol=1e-4)


def test_verify_without_torch(installed: Environment, compiled: Compiled) -> None:
    result = installed.tokexport("verify", compiled.bundle)
    assert (result.returncode, result.stderr) == (0, "")
    assert "PASSED" in result.stdout
    assert "onnxruntime-cpu" in result.stdout


def test_bench_of_a_bundle_without_torch(installed: Environment, compiled: Compiled) -> None:
    options = ("--threads", "1", "--rounds", "5", "--json")
    result = installed.tokexport("bench", compiled.bundle, *options)
    assert (result.returncode, result.stderr) == (0, "")
    (row,) = json.loads(result.stdout)["rows"]
    assert row["latency"]["runs"] == 5


@pytest.mark.parametrize("format", ["tar", "triton", "oci", "modelpack"])
def test_package_without_torch(
    installed: Environment, compiled: Compiled, tmp_path: Path, format: str
) -> None:
    output = tmp_path / "package"
    options = ("--batching",) if format == "triton" else ()
    command = ("package", compiled.bundle, "--format", format, "--output", output, "--json")
    result = installed.tokexport(*command, *options)
    assert (result.returncode, result.stderr) == (0, "")
    assert output.exists()
    assert json.loads(result.stdout)["digest"].startswith("sha256:")


def test_a_bill_of_materials_without_torch(
    installed: Environment, compiled: Compiled, tmp_path: Path
) -> None:
    result = installed.tokexport("bom", compiled.bundle, "--output", tmp_path / "bom.json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads((tmp_path / "bom.json").read_text())["bomFormat"] == "CycloneDX"


def test_signatures_name_the_extra(
    installed: Environment, compiled: Compiled, tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_text("a key")
    for command in (
        ("sign", compiled.bundle, "--key", tmp_path / "key.pem"),
        ("verify", compiled.bundle, "--public-key", tmp_path / "key.pem"),
    ):
        result = installed.tokexport(*command)
        assert result.returncode == 6
        assert "pip install 'tokexport[sign]'" in result.stderr


@pytest.mark.thorough
def test_bench_on_another_machine_installs_the_wheel_there_and_removes_it(
    wheel: Path, compiled: Compiled, tmp_path: Path
) -> None:
    """The machine is this one over ssh; its pip finds packages as this process does."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    with server(tmp_path, kept) as host:
        options = ("--wheel", wheel, "--threads", "1", "--rounds", "5", "--json")
        answer = tokexport_command("bench", compiled.bundle, *host.arguments, *options)
        assert answer.code == 0, answer
        assert host.left() == []
    packages = answer.json["machine"]["packages"]
    assert {"tokexport", "onnxruntime", "numpy"} <= packages.keys()
    assert "torch" not in packages
    (row,) = answer.json["rows"]
    assert row["latency"]["runs"] == 5


def test_doctor_without_torch(installed: Environment) -> None:
    result = installed.tokexport("doctor", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    components = json.loads(result.stdout)["components"]
    assert any("onnxruntime" in json.dumps(component) for component in components)
    assert "pip install 'tokexport[compile]'" in result.stdout
    assert "pip install 'tokexport[openvino]'" in result.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_compile_names_the_extra(installed: Environment, as_json: bool) -> None:
    arguments = ["compile", "timm:deit_tiny_patch16_224", "--target", "ort"]
    result = installed.tokexport(*arguments, *["--json"] * as_json)
    said = json.dumps(json.loads(result.stdout)["error"]) if as_json else result.stderr
    assert result.returncode == 6
    assert "torch, onnx" in said
    assert "pip install 'tokexport[compile]'" in said
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("program", ["tokexport.compile", "from tokexport import compile"])
def test_the_python_face_names_the_extra(installed: Environment, program: str) -> None:
    result = installed.python("-c", f"import tokexport\n{program}")
    assert result.returncode == 1
    assert "PackageMissingError: Compiling a model needs torch, onnx" in result.stderr
    assert result.stderr.splitlines()[-1] == "pip install 'tokexport[compile]'"


def test_numpy_and_onnxruntime_are_enough_on_a_device(
    device: Environment, compiled: Compiled, tmp_path: Path
) -> None:
    assert not any(device.has(name) for name in ("typer", "rich", "torch", "onnx"))
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "import numpy as np\n"
        "import tokexport.runtimes\n"
        "bundle, inputs, output = sys.argv[1:]\n"
        "images = np.load(inputs)['image']\n"
        "with tokexport.runtimes.load(bundle) as runner:\n"
        "    assert runner.inputs[0].name == 'image', runner.inputs\n"
        "    assert runner.outputs[0].shape == (1, 10), runner.outputs\n"
        "    rows = [runner.run({'image': image[None]})['output'] for image in images]\n"
        "np.save(output, np.concatenate(rows))\n"
    )
    output = tmp_path / "logits.npy"
    result = device.python(program, compiled.bundle, compiled.inputs, output)
    assert (result.returncode, result.stderr) == (0, "")
    np.testing.assert_allclose(np.load(output), compiled.expected, rtol=0, atol=1e-4)


def test_the_wheel_holds_one_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    info = f"tokexport-{tokexport.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"tokexport", info}
    modules = {
        f"tokexport/{path.relative_to(ROOT)}"
        for room in ("exporter", "graph_passes", "runtimes")
        for suffix in ("py", "json", "html", "css", "py.txt", "sh.txt")
        for path in (ROOT / room).rglob(f"*.{suffix}")
    }
    own = {name for name in names if name.startswith("tokexport/")}
    version = importlib.metadata.version("openvino")
    libraries = {
        f"tokexport/runtimes/native/{name}.so"
        for name in ("tokexport_native", f"tokexport_openvino-{version}")
    }
    assert own == modules | {"tokexport/__init__.py", "tokexport/py.typed", *libraries}


def test_lock_and_check_without_torch(
    installed: Environment, compiled: Compiled, tmp_path: Path
) -> None:
    lock = tmp_path / "parity.lock.json"
    for command in (("lock", compiled.bundle, "--file", lock), ("check", "--lock", lock)):
        result = installed.tokexport(*command, "--json")
        assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["outcome"] == "unchanged"
    page = installed.tokexport("check", "--lock", lock, "--html", tmp_path / "check.html")
    assert page.returncode == 6
    assert "tokexport[report]" in page.stderr
    source = installed.tokexport("check", "--lock", lock, "--source", "digits_vit:build")
    assert source.returncode == 6


def test_compare_without_torch(installed: Environment, compiled: Compiled) -> None:
    command = ("compare", compiled.bundle, compiled.bundle / "model.onnx")
    result = installed.tokexport(*command, "--inputs", compiled.inputs, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["verdict"] == "identical"
    result = installed.tokexport("compare", compiled.bundle, "digits_vit:build")
    assert result.returncode == 6
    assert "pip install 'tokexport[compile]'" in result.stderr


def test_warnings_are_errors_for_every_command(tmp_path: Path) -> None:
    """The commands of this very environment, torch included, under ``-W error``."""
    environment = {**child_environment(), "PYTHONWARNINGS": "error"}
    command = Path(sys.executable).with_name("tokexport")
    bundle = tmp_path / "bundle"
    np.savez(tmp_path / "x.npz", image=np.random.default_rng(0).random((2, 1, 8, 8), "float32"))
    compile_it = ["compile", "digits_vit:build", "--code-path", ROOT / "examples"]
    compile_it += ["--inputs", tmp_path / "x.npz", "--target", "ort", "--output", bundle, "--json"]
    run_it = ["run", bundle, "--inputs", tmp_path / "x.npz", "--output", tmp_path / "y.npz"]
    for arguments in (compile_it, run_it, ["verify", bundle], ["doctor"]):
        result = subprocess.run(
            [command, *arguments], capture_output=True, text=True, check=False, env=environment
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Warning" not in result.stderr


@pytest.mark.thorough
def test_the_same_labels_in_every_environment(wheel: Path, tmp_path: Path) -> None:
    eager, *others = ask(tmp_path, wheel)
    assert [one.environment for one in others] == [
        *("numpy + onnxruntime", "aarch64, numpy + onnxruntime", "numpy + openvino"),
        *("C++", "Node.js"),
    ]
    for one in others:
        assert differences(one, eager, "score") < OFF
        assert differences(one, eager, "margin") < 2 * OFF
        assert alike(one, eager, near=4 * OFF) == len(eager.pictures)
