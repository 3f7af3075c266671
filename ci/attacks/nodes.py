"""Crafts calls of native kernels with attributes, shapes and indices that no exporter writes.

For ONNX Runtime each instruction set of the processor is a target, and the library is one built
under AddressSanitizer and UndefinedBehaviorSanitizer. AddressSanitizer refuses how OpenVINO loads
its plugins, so its entry points run without a plugin: ``openvino_nodes.cpp`` makes the operator and
evaluates it on OpenVINO's own tensors. A node that runs is held to the body of its function.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from attacks.kinds import ROOT, Bench, Case, Kind, Outcome, drawn
from attacks.values import count
from numpy.typing import NDArray

#: The instruction sets that kernels are compiled for, and what a processor needs for each.
SETS: Final = {
    "baseline": (),
    "avx2": ("avx2", "fma"),
    "avxvnni": ("avx2", "fma", "avx_vnni"),
    "avx512": ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx512vnni": ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
}
#: Parts of the largest number of a tensor that a kernel may be off the body.
_FAR: Final = 2e-5
_OPENVINO: Final = "openvino entry points, sanitized"
#: Numbers of an output that the harness makes room for.
_MOST_NUMBERS: Final = 1 << 22


class Nodes(Kind):
    """Crafted nodes for every instruction set, and for OpenVINO's entry points."""

    name: ClassVar[str] = "nodes"
    what: ClassVar[str] = (
        "Calls of every operator with changed attributes, shapes and indices, whose kernels are "
        "compiled with AddressSanitizer and UndefinedBehaviorSanitizer: in ONNX Runtime with each "
        "instruction set, and by OpenVINO's own classes without its CPU plugin, which "
        "AddressSanitizer cannot load. What runs is held to the body of the function."
    )
    planned: ClassVar[int] = 2_000 * (len(SETS) + 1)
    targets: ClassVar[tuple[str, ...]] = (*(f"ort {isa}, sanitized" for isa in SETS), _OPENVINO)

    def absent(self, target: str) -> str:
        """Returns what the processor lacks."""
        needed = SETS.get(target.removeprefix("ort ").partition(",")[0], ())
        lacking = [one for one in needed if one not in _processor()]
        return f"as the processor has no {' and no '.join(lacking)}" if lacking else ""

    def environment(self, target: str) -> dict[str, str]:
        """Returns what puts the sanitized library in."""
        preloaded = [_printed("c++", f"-print-file-name={name}.so") for name in _PRELOADED]
        found = {
            "TOKEXPORT_NATIVE": str(_built() / "tokexport_native.so"),
            "LD_PRELOAD": " ".join(preloaded),
            "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=16:handle_segv=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        if target.startswith("ort "):
            found["TOKEXPORT_MAX_ISA"] = target.removeprefix("ort ").partition(",")[0]
        return found

    def prepare(self, folder: Path) -> None:
        """Builds the library, and the harness for OpenVINO, with sanitizers."""
        native, built = ROOT / "runtimes" / "native", _built()
        cmake = Path(sys.executable).with_name("cmake")
        options = ["-DTOKEXPORT_SANITIZE=ON", "-DTOKEXPORT_OPENVINO=OFF"]
        _run([cmake, "-S", native, "-B", built, *options])
        _run([cmake, "--build", built])
        folder.mkdir(parents=True, exist_ok=True)
        source = Path(__file__).with_name("openvino_nodes.cpp")
        harness = folder / "openvino_nodes.so"
        newest = max(one.stat().st_mtime for one in (source, *native.rglob("*")))
        if not harness.exists() or harness.stat().st_mtime < newest:
            _run(_harness_command(source, native, harness))

    def open(self, target: str, folder: Path) -> Bench:
        """Returns the bench of ONNX Runtime or of OpenVINO's entry points."""
        return EntryBench(folder / "openvino_nodes.so") if target == _OPENVINO else OrtBench()


_PRELOADED: Final = ("libasan", "libstdc++")


def _built() -> Path:
    """Returns where ``make sanitize`` builds its library too."""
    return ROOT / "build" / "sanitized"


@cache
def _processor() -> frozenset[str]:
    """Returns what the processor has, in the words of Linux."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(next((one.split() for one in lines if one.startswith("flags")), ()))


def _printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _run(command: list[Any]) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout[-2000:]} {done.stderr[-2000:]}")


def _harness_command(source: Path, native: Path, harness: Path) -> list[Any]:
    """Returns the command that compiles the harness with the kernels of the plain set."""
    import importlib.util

    found = importlib.util.find_spec("openvino")
    assert found is not None
    assert found.submodule_search_locations
    package = Path(found.submodule_search_locations[0])
    library = next((package / "libs").glob("libopenvino.so*"))
    tbb = next((package / "libs").glob("libtbb.so*"))
    kernels = native / "kernels" / "dispatch.cpp", native / "kernels" / "kernels.cpp"
    operators = ("groups", "mctf", "tokens", "tome")
    return [
        *("c++", "-std=c++20", "-shared", "-fPIC", "-O1", "-g", "-ffp-contract=fast"),
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-Wno-psabi"),
        *("-DTOKEXPORT_ISA=baseline", "-DTOKEXPORT_WIDTH=4", f"-I{native}"),
        *(f"-I{package / 'include'}", source, *kernels),
        *(*(native / "operators" / f"{name}.cpp" for name in operators), library, tbb),
        *(f"-Wl,-rpath,{package / 'libs'}", "-o", harness),
    ]


def compared(node: Any) -> Outcome:
    """Runs a node with its kernel, and compares its results with the function's body."""
    import onnx_ir as ir
    from helpers.function_models import Call, model_of

    from tokexport.runtimes.errors import RuntimesError
    from tokexport.runtimes.native_library import NO_KERNELS
    from tokexport.runtimes.ort.runner import OrtRunner

    arrays = {f"in{i}": array for i, array in enumerate(node.inputs)}
    with OrtRunner.from_bytes(node.model(), threads=2) as runner:
        if runner.runtime.details["kernels"] == NO_KERNELS:
            return Outcome("wrong", "no kernel ran")
        found = [*runner.run(arrays).values()]
    call = Call(node.name, node.inputs, [one.shape for one in found], node.attributes)
    try:
        model = ir.to_proto(model_of([call])).SerializeToString()
        with OrtRunner.from_bytes(model, threads=2, native=False) as runner:
            wanted = [*runner.run(arrays).values()]
    except RuntimesError:  # an attribute that only the body reads
        return Outcome("right", "the body does not take the node")
    far = differing(found, wanted)
    if far and node.name.startswith("cosine_") and node.attributes["step"] == [1]:
        # The sets overlap: tokens match themselves, and which are the best is a matter of rounding.
        return Outcome("right", "the cosine of a token with itself is 1, and all of these tie")
    return Outcome("wrong", far) if far else Outcome("right")


def differing(found: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> str:
    """Returns which results of a kernel differ from the body's; '' for none."""
    for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if one.shape != other.shape:
            return f"result {place} has shape {one.shape}, and the body's {other.shape}"
        largest = np.abs(other[np.isfinite(other)]).max(initial=1)
        close = np.isclose(one, other, rtol=0, atol=_FAR * largest, equal_nan=True)
        if not close.all():
            return f"{int((~close).sum())} numbers of result {place} are not those of the body"
    return ""


class OrtBench(Bench):
    """Runs crafted nodes in ONNX Runtime, with the kernels that the environment names."""

    def __init__(self) -> None:
        from helpers.crafted_nodes import sound_integer_nodes, sound_nodes

        from tokexport.runtimes.errors import RuntimesError
        from tokexport.runtimes.native_library import kernels_of

        library = Path(os.environ["TOKEXPORT_NATIVE"])
        self.on = f"kernels {kernels_of(library)} under AddressSanitizer"
        self._sound = sound_nodes()
        try:
            for node in sound_integer_nodes():
                compared(node)
                self._sound.append(node)
        except RuntimesError:  # the set has no products in bytes
            self.on += ", none in bytes"

    def honest(self) -> None:
        """Runs every operator as an exporter writes it."""
        for node in self._sound:
            outcome = compared(node)
            if outcome.verdict != "right":
                raise RuntimeError(f"{node.name}: {outcome.said}")

    def case(self, seed: int, index: int, place: Path) -> Case:
        """Returns a crafted node."""
        from helpers.crafted_nodes import changed

        node = changed(self._sound[index % len(self._sound)], drawn("nodes", seed, index))
        return Case(described(node), lambda: compared(node))


def described(node: Any) -> str:
    """Describes a node in a line."""
    shapes = ", ".join(str(array.shape) for array in node.inputs)
    return f"{node.name} of {shapes} with {json.dumps(dict(node.attributes))}"


class EntryBench(Bench):
    """Runs crafted nodes by the entry points of OpenVINO's operator.

    Args:
        harness: The library of ``openvino_nodes.cpp``.
    """

    def __init__(self, harness: Path) -> None:
        from helpers.crafted_nodes import sound_nodes

        from tokexport.graph_passes.onnx_passes.every_target.annotate_kernel_calls import OPERATORS

        self._run_node = ctypes.CDLL(str(harness)).run_node
        self._run_node.restype = ctypes.c_char_p
        self._sound = [one for one in sound_nodes() if one.name in OPERATORS]
        missing = OPERATORS - {one.name for one in self._sound}
        if missing:
            raise RuntimeError(f"There is no sound call of {sorted(missing)}.")
        self._shapes = {one.name: _answer(one) for one in self._sound}
        self.on = "OpenVINO's operator class without its CPU plugin, under AddressSanitizer"

    def honest(self) -> None:
        """Runs every operator as an exporter writes it."""
        for node in self._sound:
            outcome = self._compared(node, [one.shape for one in self._shapes[node.name]])
            if outcome.verdict != "right":
                raise RuntimeError(f"{node.name}: {outcome.said}")

    def case(self, seed: int, index: int, place: Path) -> Case:
        """Returns a crafted node, with shapes of outputs that are mostly those it would have."""
        from helpers.crafted_nodes import changed

        from tokexport.runtimes.errors import RuntimesError

        random = drawn("entry nodes", seed, index)
        node = changed(self._sound[index % len(self._sound)], random)
        try:
            shapes = [[*one.shape] for one in _answer(node)]
        except RuntimesError:
            shapes = [[*one.shape] for one in self._shapes[node.name]]
        if random.random() < 0.3:
            shape = random.choice(shapes)
            if shape:
                shape[random.randrange(len(shape))] = count(random)
            else:
                shape.append(1)
        return Case(described(node), lambda: self._compared(node, shapes))

    def _compared(self, node: Any, shapes: list[Any]) -> Outcome:
        inputs = [_narrow(array) for array in node.inputs]
        if any(np.prod(shape, dtype=object) > _MOST_NUMBERS for shape in shapes):
            room: list[NDArray[Any]] = []  # it is refused before, or the harness says so
        else:
            kinds = [one.dtype.kind for one in self._shapes[node.name]]
            room = [
                np.empty([max(size, 0) for size in shape], np.float32 if kind == "f" else np.int32)
                for shape, kind in zip(shapes, kinds, strict=True)
            ]
        asked = {
            "operator": node.name,
            "attributes": [*node.attributes],
            "numbers": [_first(one) for one in node.attributes.values()],
            "shapes": [number for shape in shapes for number in (len(shape), *shape)],
        }
        said = self._run_node(*_arguments(asked, inputs, room))
        if said:
            return Outcome("refused", said.decode(errors="replace"))
        if not all((array == wide).all() for array, wide in zip(inputs, node.inputs, strict=True)):
            return Outcome("right", "an index has more bits than OpenVINO gives it")
        far = differing(room, _answer(node))
        return Outcome("wrong", far) if far else Outcome("right")


def _first(value: Any) -> int:
    """Returns the number of an attribute: OpenVINO's operator takes one each."""
    return int(value[0]) if isinstance(value, list) and value else 0


def _answer(node: Any) -> list[NDArray[Any]]:
    """Returns what ONNX Runtime gives with the kernel."""
    from tokexport.runtimes.ort.runner import OrtRunner

    with OrtRunner.from_bytes(node.model(), threads=1) as runner:
        return [*runner.run({f"in{i}": one for i, one in enumerate(node.inputs)}).values()]


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array.astype(np.int32) if array.dtype.kind == "i" else array)


def _arguments(asked: Any, inputs: list[NDArray[Any]], room: list[NDArray[Any]]) -> list[Any]:
    """Returns what the harness takes: texts, numbers, and for each tensor kind, sizes and place."""

    def numbers(given: Any) -> Any:
        return (ctypes.c_int64 * max(len(given), 1))(*given)

    names = [name.encode() for name in asked["attributes"]]
    sizes = [size for array in inputs for size in array.shape]
    return [
        asked["operator"].encode(),
        ctypes.c_int64(len(names)),
        (ctypes.c_char_p * max(len(names), 1))(*names),
        numbers(asked["numbers"]),
        ctypes.c_int64(len(asked["shapes"])),
        numbers(asked["shapes"]),
        ctypes.c_int64(len(inputs)),
        numbers([int(array.dtype.kind == "i") for array in inputs]),
        numbers([array.ndim for array in inputs]),
        numbers(sizes),
        (ctypes.c_void_p * max(len(inputs), 1))(*(array.ctypes.data for array in inputs)),
        ctypes.c_int64(len(room)),
        (ctypes.c_void_p * max(len(room), 1))(*(array.ctypes.data for array in room)),
    ]


KIND: Final = Nodes()
