"""Loads, runs and verifies damaged bundles as a device does, each in its own folder.

Half of the damages are followed by hashing the files anew in the manifest, so that what they did
reaches the runtime. A bundle that runs is held to what it says itself: ``verify`` may pass only
where the outputs are those of its reference, which is read and compared here by other means.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Final

import numpy as np
from attacks.archive_damage import damage_archive
from attacks.file_damage import damage_bytes, damage_files
from attacks.ir_damage import damage_ir
from attacks.kinds import Bench, Case, Kind, Outcome, drawn, refusal
from attacks.manifest_damage import damage_manifest
from attacks.onnx_damage import damage_onnx
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Damage = Callable[[Random, Path], str]

#: How often each damage is drawn, by target: graphs that a runtime reads the most.
_SHARES: Final[dict[str, tuple[tuple[Damage, int], ...]]] = {
    "ort": ((damage_onnx, 9), (damage_manifest, 4), (damage_archive, 3), (damage_files, 2)),
    "openvino": ((damage_ir, 9), (damage_manifest, 3), (damage_archive, 2), (damage_files, 2)),
    "trt": ((damage_manifest, 6), (damage_archive, 2), (damage_files, 4)),
}
#: Parts of the largest number that outputs may be off a reference: gates are closer than that.
_FAR: Final = {"fp32": 1e-2, "int8": 1.0}
_NO_DEVICE: Final = "NoDeviceError"


class Bundles(Kind):
    """Attacks with damaged bundles of ONNX Runtime in fp32 and int8, OpenVINO and TensorRT-RTX."""

    name: ClassVar[str] = "bundles"
    what: ClassVar[str] = (
        "Bytes, files, JSON, archives and graphs of small bundles are damaged, with the files "
        "hashed anew in half of the cases, and each is loaded, run and verified. An engine of "
        "TensorRT is read on no machine without a GPU: its bundle is held up to that."
    )
    planned: ClassVar[int] = 10_000
    targets: ClassVar[tuple[str, ...]] = (
        *("ort fp32", "openvino fp32", "ort fp32", "openvino fp32", "ort int8"),
        *("ort fp32", "openvino fp32", "ort fp32", "openvino fp32", "trt-rtx"),
    )

    def prepare(self, folder: Path) -> None:
        """Compiles the bundles that are missing."""
        from attacks.honest_bundles import compile_bundle

        for target in dict.fromkeys(self.targets):
            if not (folder / target).exists():
                compile_bundle(target, folder / target)

    def open(self, target: str, folder: Path) -> Bench:
        """Returns the bench of one of the bundles."""
        return BundleBench(target, folder / target)


class BundleBench(Bench):
    """Loads, runs and verifies damaged copies of one bundle.

    Args:
        target: One of ``Bundles.targets``.
        bundle: The bundle as it was compiled.
    """

    def __init__(self, target: str, bundle: Path) -> None:
        self._bundle = bundle
        self._target, _, self._precision = target.replace("-rtx", "").partition(" ")
        with np.load(bundle / "reference.npz") as reference:
            self._inputs = {
                name.removeprefix("inputs/"): reference[name][0]
                for name in reference.files
                if name.startswith("inputs/")
            }
        self._wanted: Arrays = {}

    def honest(self) -> None:
        """Loads, runs and verifies the bundle as it is, and keeps what it answers."""
        import tokexport.runtimes
        from tokexport.runtimes.errors import NoDeviceError
        from tokexport.runtimes.verification import verify_bundle

        try:
            with tokexport.runtimes.load(self._bundle, threads=1) as runner:
                kernels = runner.runtime.details.get("kernels", "")
                self.on = f"{runner.runtime.flavour} {runner.runtime.version}, kernels {kernels}"
                self._wanted = runner.run(self._inputs)
            if not verify_bundle(self._bundle, threads=1).passed:
                raise RuntimeError("The bundle as it was compiled does not pass.")
        except NoDeviceError:
            self.on = "TensorRT-RTX without a GPU"

    def case(self, seed: int, index: int, place: Path) -> Case:
        """Returns a damaged copy."""
        random = drawn("bundles", seed, index)
        folder = place / "bundle"
        shutil.copytree(self._bundle, folder)
        shares = _SHARES[self._target]
        damage = random.choices(
            [one for one, _ in shares] + [damage_bytes], [share for _, share in shares] + [3]
        )[0]
        again = random.random() < (0.9 if damage in (damage_onnx, damage_ir) else 0.5)
        said = damage(random, folder)
        if again:
            _hash_anew(folder)
            said += "; hashed anew"
        return Case(said, lambda: self._run(folder))

    def _run(self, folder: Path) -> Outcome:
        import tokexport.runtimes
        from tokexport.runtimes.verification import verify_bundle

        altered = [] if _is_hashed(folder) else ["a file with another hash was taken"]
        try:
            with tokexport.runtimes.load(folder, threads=1) as runner:
                found = runner.run(self._inputs)
            verified = verify_bundle(folder, threads=1)
        except Exception as error:
            return self._judged(error, altered)
        if altered:
            return Outcome("wrong", altered[0])
        if not verified.passed:
            return Outcome("refused", "verify says that it fails")
        if not verified.outputs:
            return Outcome("right", "it has no output")
        far = _differing(found, self._wanted, _FAR[self._precision])
        if not far:
            return Outcome("right")
        return self._another_model(folder, far)

    def _judged(self, error: Exception, altered: list[str]) -> Outcome:
        """Judges an error; where there is no device, a bundle that comes that far is right."""
        if self._target == "trt" and type(error).__name__ == _NO_DEVICE:
            return Outcome("wrong", altered[0]) if altered else Outcome("right", str(error))
        return refusal(error)

    def _another_model(self, folder: Path, far: str) -> Outcome:
        """Judges a bundle that passes with other outputs: are they those of its own reference?"""
        import tokexport.runtimes

        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        honest = json.loads((self._bundle / "manifest.json").read_text(encoding="utf-8"))
        if manifest["gates"] != honest["gates"]:
            return Outcome("right", "its gates are others")
        with np.load(folder / "reference.npz") as reference:
            given = {name: reference[name] for name in reference.files}
        inputs = {one["name"]: given[f"inputs/{one['name']}"] for one in manifest["inputs"]}
        with tokexport.runtimes.load(folder, threads=1) as runner:
            batches = len(next(iter(inputs.values())))
            for index in range(batches):
                found = runner.run({name: array[index] for name, array in inputs.items()})
                wanted = {name: given[f"outputs/{name}"][index] for name in found}
                differs = _differing(found, wanted, _FAR[self._precision])
                if differs:
                    return Outcome("wrong", f"verify passes, and {differs}; {far}")
        return Outcome("right", "the outputs are those of its own reference")


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any], far: float) -> str:
    """Returns which outputs differ by more than a part of their largest number; '' for none."""
    if [*found] != [*wanted]:
        return f"the outputs are {[*found]}, not {[*wanted]}"
    for name, one in found.items():
        other = wanted[name]
        if one.shape != other.shape:
            return f"{name} has shape {one.shape}, not {other.shape}"
        largest = np.abs(other[np.isfinite(other)]).max(initial=0.0)
        close = np.isclose(one, other, rtol=0, atol=far * largest, equal_nan=True)
        if not close.all():
            return f"{int((~close).sum())} numbers of {name} are others"
    return ""


def _hash_anew(folder: Path) -> None:
    """Writes the hashes of the files into the manifest, if it is still valid."""
    path = folder / "manifest.json"
    try:
        if not _is_file(path):
            return
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # Weights that a damaged graph may name have no hash yet.
        for name in [*manifest["files"], *(file.name for file in folder.glob("*.bin"))]:
            if _is_file(folder / name):
                manifest["files"][name] = _hash(folder / name)
        path.write_text(json.dumps(manifest), encoding="utf-8")
    except (ValueError, TypeError, KeyError, OSError, RecursionError, AttributeError):
        return


def _is_hashed(folder: Path) -> bool:
    """Returns whether the files that a manifest lists are those of its hashes, where it is one."""
    path = folder / "manifest.json"
    try:
        files = json.loads(path.read_bytes())["files"] if _is_file(path) else {}
        return all(
            not _is_file(folder / name) or _hash(folder / name) == str(digest).lower()
            for name, digest in files.items()
        )
    except (ValueError, TypeError, KeyError, OSError, RecursionError, AttributeError):
        return True  # it has to be refused; if it is not, the outputs show it


def _is_file(path: Path) -> bool:
    """Returns whether a path is a regular file of its own, no link."""
    return stat.S_ISREG(path.lstat().st_mode) if path.exists() else False


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


KIND: Final = Bundles()
