"""Runs Python and programs for 64-bit ARM on emulated processors, each with a root of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SYSTEM: Final = ROOT / "build" / "aarch64-root"
_TOOLS: Final = ROOT / "build" / "aarch64" / "bin"
#: How many cores a processor says that it has.
_CORES: Final = 2
#: The glibcs, 2.N, whose wheels the root runs.
_GLIBCS: Final = (17, 24, 26, 27, 28, 31, 34, 35)
#: Where Linux says what it knows of them.
_CPUS: Final = Path("sys/devices/system/cpu")


@dataclass(frozen=True)
class Processor:
    """An emulated processor.

    Attributes:
        name: What it is called here.
        emulated: What the emulator calls it.
        isa: The kernels that it gets.
        features: What Linux would say that it can do, in /proc/cpuinfo, from which ONNX Runtime
            reads it; the emulator shows the file of the processor below.
        part: Its number among those of ARM, there.
    """

    name: str
    emulated: str
    isa: str
    features: str
    part: str


_PLAIN = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_DOTPROD = f"{_PLAIN} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
PROCESSORS: Final = (
    Processor("Cortex-A72", "cortex-a72", "neon", _PLAIN, "0xd08"),
    Processor("Neoverse N1", "neoverse-n1", "neon_dotprod", _DOTPROD, "0xd0c"),
    Processor("max", "max", "neon_i8mm", f"{_DOTPROD} sve bf16 i8mm sme", "0xd40"),
)


def fetch() -> None:
    """Fetches compiler, emulator and root, where they are missing.

    The root holds Debian's Python; beside it lie numpy and the runtimes as PyPI has them.
    """
    subprocess.run([ROOT / "ci" / "aarch64.sh"], check=True)
    whole = SYSTEM / "whole"
    if whole.exists():
        return
    shutil.rmtree(SYSTEM, ignore_errors=True)
    unpack = [str(ROOT / "ci" / "unpack_debian.sh"), "--architecture", "arm64"]
    subprocess.run([*unpack, str(SYSTEM / "root"), "python3", "libstdc++6"], check=True)
    install(SYSTEM / "site", "--no-deps", "numpy", "onnxruntime", "openvino", "openvino-telemetry")
    whole.touch()


def install(folder: Path, *arguments: str) -> None:
    """Installs wheels for the root's Python into a folder, in the versions of constraints.txt.

    Args:
        folder: Where they go.
        arguments: What pip installs, and further options of it.
    """
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
    options = ["--only-binary=:all:", f"--python-version={python_version()}"]
    options += [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in _GLIBCS]
    limits = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "--target", str(folder), *options, *limits, *arguments], check=True)


def tool(name: str) -> str:
    """Returns where a compiler or emulator is; that of the system may be too old."""
    found = shutil.which(name, path=str(_TOOLS)) or shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is missing: run ci/aarch64.sh.")
    return found


def python_version() -> str:
    """Returns the version of the root's Python: ``3.11``."""
    (python,) = (SYSTEM / "root" / "usr" / "bin").glob("python3.[0-9][0-9]")
    return python.name.removeprefix("python")


def emulated(processor: Processor, program: Path) -> list[str]:
    """Returns the command that runs a program without a root on a processor."""
    return [tool("qemu-aarch64"), "-cpu", processor.emulated, str(program)]


def run_python(
    processor: Processor,
    arguments: list[str],
    environment: Mapping[str, str],
    packages: Path = SYSTEM / "site",
) -> subprocess.CompletedProcess[str]:
    """Runs the Python of the root on a processor; ``PYTHONPATH`` comes behind the packages."""
    root = _root_of(processor)
    python = root / "usr" / "bin" / f"python{python_version()}"
    places = os.pathsep.join([str(packages), environment.get("PYTHONPATH", "")])
    return subprocess.run(
        [
            tool("qemu-aarch64"),
            "-L",
            str(root),
            "-cpu",
            processor.emulated,
            str(python),
            *arguments,
        ],
        env={**os.environ, **environment, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )


def _root_of(processor: Processor) -> Path:
    """Returns a root that says of its processor what Linux would say on it."""
    root = SYSTEM / "roots" / processor.emulated
    if root.exists():
        return root
    root.parent.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=root.parent))
    for entry in (SYSTEM / "root").iterdir():
        (made / entry.name).symlink_to(entry)
    (made / "proc").mkdir()
    (made / "proc" / "cpuinfo").write_text(
        "".join(_core(processor, number) for number in range(_CORES))
    )
    cores = made / _CPUS
    for number in range(_CORES):
        registers = cores / f"cpu{number}" / "regs" / "identification"
        registers.mkdir(parents=True)
        (registers / "midr_el1").write_text(f"0x{_midr(processor):016x}\n")
    for name in ("possible", "present", "online"):
        (cores / name).write_text(f"0-{_CORES - 1}\n")
    (cores / "kernel_max").write_text(f"{_CORES - 1}\n")
    try:
        made.rename(root)
    except OSError:  # another process was first
        shutil.rmtree(made)
    return root


def _midr(processor: Processor) -> int:
    """Returns the register that names a processor: ARM's, in its revision 1."""
    return 0x41 << 24 | 0xF << 16 | int(processor.part, 16) << 4 | 1


def _core(processor: Processor, number: int) -> str:
    """Returns what Linux says of a core."""
    lines = {
        "processor": number,
        "Features": processor.features,
        "CPU implementer": "0x41",
        "CPU architecture": 8,
        "CPU variant": "0x0",
        "CPU part": processor.part,
        "CPU revision": 1,
    }
    return "".join(f"{name}\t: {value}\n" for name, value in lines.items()) + "\n"
