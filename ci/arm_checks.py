"""Holds kernels and bundles to their answers on emulated processors of 64-bit ARM.

    python ci/arm_checks.py run [--minutes 30]     fetches, builds and checks; may be stopped
    python ci/arm_checks.py write                  ci/ARM_CHECKS.md, from what is known

The fuzz tests of the kernels run with the kernels on the emulated processor, and the bodies of
their functions here. Bundles are compiled here, and verified there by the package's ``runtimes``
with numpy and PyPI's ONNX Runtime or OpenVINO, with the kernels and without. Each check becomes a
line of ci/arm_checks.jsonl at once. An emulator says nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from arm_processors import PROCESSORS, ROOT, SYSTEM, Processor, emulated, fetch, run_python, tool

RESULTS: Final = ROOT / "ci" / "arm_checks.jsonl"
PAGE: Final = ROOT / "ci" / "ARM_CHECKS.md"
NOTES: Final = ROOT / "ci" / "arm_checks_notes.md"
FOLDER: Final = ROOT / "build" / "arm-checks"
KERNEL_TESTS: Final = ("test_native_kernels.py", "test_both_ways_kernels.py")
#: How many examples each fuzz test draws.
EXAMPLES: Final = 40
#: The check of a product in integers, by ONNX Runtime's own operators.
PRODUCT: Final = "integer product"
#: What names a check.
NAMES: Final = ("check", "processor", "kernels_wanted")


@dataclass(frozen=True)
class Wanted:
    """A bundle: timm's smallest ViT with random weights, compiled on x86."""

    target: str
    precision: str
    recipe: str | None
    weight_bits: int | None = None
    quantization: str | None = None

    @property
    def name(self) -> str:
        """What its folder is called."""
        parts = (self.target, self.precision, self.quantization, self.weight_bits, self.recipe)
        return "-".join(re.sub(r"\W+", "_", str(part)) for part in parts if part is not None)


REDUCTIONS: Final = (
    *(None, "tome:r=8", "pitome:keep=0.8"),
    *("mctf:r=4", "evit:keep=0.7", "tofu:keep=0.8"),
    *("dpcknn:keep=0.8", "divprune:keep=0.8"),
)
BUNDLES: Final = (
    *(Wanted("ort", "fp32", recipe) for recipe in REDUCTIONS),
    Wanted("ort", "int8", None, 8),
    Wanted("ort", "int8", "evit:keep=0.7", 7),
    Wanted("ort", "int8", None, 8, "static"),
    Wanted("openvino", "fp32", "tome:r=8"),
    Wanted("openvino", "int8", None),
)
#: Where bundles are verified, and whether with the native kernels.
COLUMNS: Final = (
    ("here", "yes"),
    *((processor.name, "yes") for processor in reversed(PROCESSORS)),
    *((processor.name, "no") for processor in PROCESSORS[:0:-1]),
)


def main() -> int:
    """Runs or writes, as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "write"))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    if options.what == "write":
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    run(time.monotonic() + 60 * options.minutes)
    return 0


def run(end: float) -> None:
    """Does the checks that are not known yet, and begins none after a time."""
    fetch()
    known = {tuple(one[name] for name in NAMES) for one in results()}
    for check in checks():
        if tuple(check[name] for name in NAMES) in known:
            continue
        if time.monotonic() > end:
            return
        begun = time.monotonic()
        found = {**check, **checked(check), "seconds": round(time.monotonic() - begun, 1)}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def checks() -> Iterator[dict[str, str]]:
    """Yields what names each check, in order."""
    for processor in PROCESSORS:
        for test in KERNEL_TESTS:
            yield {"check": test, "processor": processor.name, "kernels_wanted": "yes"}
    for processor in PROCESSORS:
        yield {"check": PRODUCT, "processor": processor.name, "kernels_wanted": "no"}
    for name, kernels in COLUMNS:
        for wanted in BUNDLES:
            yield {"check": wanted.name, "processor": name, "kernels_wanted": kernels}


def checked(check: dict[str, str]) -> dict[str, Any]:
    """Does one check."""
    processor = next((one for one in PROCESSORS if one.name == check["processor"]), None)
    if check["check"] in KERNEL_TESTS:
        assert processor is not None
        return fuzzed(processor, ROOT / "tests" / "runtimes" / check["check"])
    if check["check"] == PRODUCT:
        assert processor is not None
        return multiplied(processor)
    wanted = next(one for one in BUNDLES if one.name == check["check"])
    return verified(make(wanted), processor, check["kernels_wanted"] == "yes")


def results() -> list[dict[str, Any]]:
    """Returns the lines so far."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


@cache
def native() -> Path:
    """Builds the libraries for ARM, and returns that for ONNX Runtime."""
    folder = FOLDER / "native"
    options = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": tool("aarch64-linux-gnu-g++"),
        "TOKEXPORT_OPENVINO": "ON",
        "TOKEXPORT_OPENVINO_PACKAGE": SYSTEM / "site" / "openvino",
    }
    cmake = Path(sys.executable).with_name("cmake")
    program = str(cmake) if cmake.exists() else "cmake"
    source = ROOT / "runtimes" / "native"
    defined = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(
        [program, "-S", source, "-B", folder, *defined], check=True, stdout=subprocess.DEVNULL
    )
    subprocess.run([program, "--build", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "tokexport_native.so"


@cache
def server() -> Path:
    """Builds the program that runs operators, from the library's own objects."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.emulated_kernels import link_server

    return link_server(native().parent, tool("aarch64-linux-gnu-g++"))


def fuzzed(processor: Processor, test: Path) -> dict[str, Any]:
    """Runs a file of fuzz tests with the kernels on a processor."""
    command = shlex.join(emulated(processor, server()))
    environment = {**os.environ, "TOKEXPORT_EMULATED": command, "TOKEXPORT_FUZZ": str(EXAMPLES)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", str(test)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1]
    counts = {
        name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|skipped)", last)
    }
    found: dict[str, Any] = {
        "kernels": processor.isa,
        "passed": done.returncode == 0,
        **{"tests": counts},
    }
    return found if done.returncode == 0 else {**found, "output": done.stdout[-4000:]}


def make(wanted: Wanted) -> Path:
    """Compiles a bundle, where it is not there yet."""
    bundle = FOLDER / "bundles" / wanted.name
    if (bundle / "manifest.json").exists():
        return bundle
    bundle.parent.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    import numpy as np
    import timm
    import torch

    import tokexport

    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()
    options: dict[str, Any] = {"precision": wanted.precision, "reduce": wanted.recipe}
    if wanted.target == "ort" and wanted.precision == "int8":
        options |= {"weight_bits": wanted.weight_bits, "quantization": wanted.quantization}
    if wanted.quantization == "static":
        samples = FOLDER / "samples.npz"
        np.savez(samples, x=torch.randn(16, 3, 160, 160).numpy())
        options["inputs"] = samples
    tokexport.compile(
        model, torch.randn(2, 3, 160, 160), wanted.target, output=bundle, timed=False, **options
    )
    return bundle


def multiplied(processor: Processor) -> dict[str, Any]:
    """Multiplies in integers on a processor, and says how far that is from exact integers."""
    folder = FOLDER / "product"
    if not (folder / "product.onnx").exists():
        make_product(folder)
    done = run_python(processor, [str(ROOT / "ci" / "integer_products.py"), str(folder)], {})
    if done.returncode != 0:
        return {"passed": False, "error": done.stderr[-2000:]}
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"passed": min(found["whole"], found["rows"]) < 1e-6, "off": found}


def make_product(folder: Path) -> None:
    """Writes a model that multiplies in integers as bundles do, and an input of unlike rows."""
    import numpy as np
    import onnx
    import onnx.parser

    from tokexport.graph_passes.onnx_passes.graph.integer_weights import per_channel

    rows, depth, columns = 33, 96, 64
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, depth)) * np.exp(generator.normal(size=(rows, 1)))
    integers, scales = per_channel(generator.normal(size=(depth, columns)).astype(np.float32))
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        product (float[{rows}, {depth}] x) => (float[{rows}, {columns}] y) {{
          q, step, zero = DynamicQuantizeLinear(x)
          sums = MatMulInteger(q, integers, zero)
          numbers = Cast<to = 1>(sums)
          factor = Mul(step, scales)
          y = Mul(numbers, factor)
        }}""")
    for name, array in (("integers", integers), ("scales", scales)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "product.npz", x=x.astype(np.float32), integers=integers, scales=scales)
    onnx.save(model, folder / "product.onnx")


def verified(bundle: Path, processor: Processor | None, kernels: bool) -> dict[str, Any]:
    """Verifies a bundle on a processor, or on the one at hand."""
    script = [str(ROOT / "ci" / "verified_bundle.py"), str(bundle)]
    environment = {"PYTHONPATH": str(ROOT / "ci" / "typing")}
    if not kernels:
        environment["TOKEXPORT_NATIVE"] = "off"
    elif processor is not None:
        environment["TOKEXPORT_NATIVE"] = str(native())
    if processor is not None:
        done = run_python(processor, script, environment)
    else:
        done = subprocess.run(
            [sys.executable, *script],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        return {"passed": False, "error": done.stderr[-2000:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def page() -> str:
    """Returns the page: what was run, and how much of what is allowed it took."""
    lines = results()
    fuzz = [one for one in lines if one["check"] in KERNEL_TESTS]
    bundles = [one for one in lines if one["check"] not in (*KERNEL_TESTS, PRODUCT)]
    products = {one["processor"]: one for one in lines if one["check"] == PRODUCT}
    there = [one for one in bundles if one["processor"] != "here"]
    failed = [one for one in lines if not one["passed"]]
    names = {one.name: one for one in PROCESSORS}
    rows = [
        f"| {processor.name} | `{processor.isa}` | "
        + " | ".join(
            str(sum(one["tests"].get(kind, 0) for one in fuzz if one["processor"] == name))
            for kind in ("passed", "skipped", "failed")
        )
        + " |"
        for name, processor in names.items()
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "onnxruntime", "openvino"))
    worst = max((one["share"] for one in there if "share" in one), default=0.0)
    return "\n".join(
        [
            "# Checks on ARM",
            "",
            "Written by `python ci/arm_checks.py write`. The kernels are built for 64-bit ARM, and "
            "bundles are compiled on x86; both are held to their answers on emulated processors. "
            "An emulator says nothing of speed, and none is claimed.",
            "",
            f"**{len(lines)} checks, {len(failed)} failed.** Of what the gates of the bundles "
            f"allow, the worst that ran took {worst:.2f} on ARM. {versions}, "
            "from PyPI's wheels for aarch64.",
            "",
            "## Kernels",
            "",
            f"The fuzz tests of every kernel against the body of its function, {EXAMPLES} examples "
            "each. Skipped are those of bytes where the processor has no product of bytes, and "
            "three on the library that is installed here.",
            "",
            "| processor | kernels | passed | skipped | failed |",
            "| --- | --- | ---: | ---: | ---: |",
            *rows,
            "",
            "## Bundles",
            "",
            "timm's `test_vit` with random weights, 2 images at once; the bundle's own `verify`, "
            "with numpy and the runtime alone. A figure is the largest share of what a gate "
            "allows; 1 is all of it. Without kernels the runtime's own operators run.",
            "",
            *bundle_table(bundles),
            "",
            *(["Failed:", ""] + [failure(one) for one in failed] + [""] if failed else []),
            "## Products in integers",
            "",
            "`DynamicQuantizeLinear` and `MatMulInteger` by ONNX Runtime's own operators: how far "
            "the answer is off three exact ones, as root mean squares, of that of the product.",
            "",
            "| processor | one range for the input, as the standard says | a range for each row | "
            "float32 |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {name} | {' | '.join(f'{one:.1e}' for one in products[name]['off'].values())} |"
                for name in names
                if "off" in products.get(name, {})
            ),
            "",
            NOTES.read_text(encoding="utf-8").strip(),
            "",
        ]
    )


def bundle_table(lines: list[dict[str, Any]]) -> list[str]:
    """Returns a row for each bundle, and a column for each processor with and without kernels."""
    heads = [
        f"{'x86' if name == 'here' else name}{'' if kernels == 'yes' else ', no kernels'}"
        for name, kernels in COLUMNS
    ]
    found = {tuple(one[name] for name in NAMES): one for one in lines}
    rows = []
    for wanted in BUNDLES:
        cells = []
        for column in COLUMNS:
            one = found.get((wanted.name, *column))
            cells.append("" if one is None else cell(one))
        bits = "" if wanted.weight_bits is None else f", {wanted.weight_bits} bits"
        ranges = "" if wanted.quantization is None else f", {wanted.quantization}"
        rows.append(
            f"| {wanted.target} {wanted.precision}{bits}{ranges} | {wanted.recipe or '–'} | "
            + " | ".join(cells)
            + " |"
        )
    head = f"| bundle | reduction | {' | '.join(heads)} |"
    return [head, "| --- | --- |" + " ---: |" * len(COLUMNS), *rows]


def cell(one: dict[str, Any]) -> str:
    """Returns how one verification went."""
    if "share" not in one:
        return "crashed" if "Segmentation" in one.get("error", "") else "refused"
    return f"{one['share']:.2f}" if one["passed"] else f"**{one['share']:.2f}**"


def failure(one: dict[str, Any]) -> str:
    """Returns a line that names a check that failed."""
    said = one.get("error", "").strip().splitlines()
    named = f"{one['check']}, {one['processor']}, kernels {one['kernels_wanted']}"
    return f"- {named}: {' '.join(said[:1])}"


if __name__ == "__main__":
    sys.exit(main())
