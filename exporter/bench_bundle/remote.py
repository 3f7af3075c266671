"""Measures bundles on another machine over ssh, and brings home what was measured.

One session does all of it: the script, then an archive of the bundles and the wheel go to its
input, which stays open until the answer is here. Where the connection breaks, the script ends and
takes its folder away by itself. No name of this machine becomes a word of a shell there.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import secrets
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from rich.console import Console

from tokexport.exporter import errors as exporter_errors
from tokexport.exporter.bench_bundle.config import BundleBenchConfig
from tokexport.exporter.bench_bundle.own_wheel import build_wheel
from tokexport.exporter.bench_bundle.results import BundleBench
from tokexport.exporter.errors import PackageMissingError, UsageError
from tokexport.exporter.progress import Checklist
from tokexport.exporter.typed_json import typed
from tokexport.runtimes import errors as runtime_errors
from tokexport.runtimes.bundle.bundle_files import check_files, file_in
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, Manifest
from tokexport.runtimes.errors import RunError
from tokexport.runtimes.printable import all_printable, printable
from tokexport.runtimes.signatures import SIGNATURE_NAME, trusted_manifest

_SCRIPT: Final = Path(__file__).with_name("remote_script.sh.txt")
#: The most bytes of an answer; a row has a few hundred.
_LARGEST_ANSWER: Final = 1 << 24
#: How much of what the other machine prints an error shows, in characters.
_SHOWN: Final = 600
#: ssh's own exit code where it did not connect, or lost the connection.
_NOT_CONNECTED: Final = 255
#: Ends a session whose connection is dead; options of the user come before, and win.
_KEEP_ALIVE: Final = ("ServerAliveInterval=15", "ServerAliveCountMax=8")
#: The extra that installs the runtime of each flavour; full TensorRT has to be there.
_EXTRAS: Final = {
    "onnxruntime-cpu": "ort",
    "openvino-cpu": "openvino",
    "tensorrt-rtx": "trt-rtx",
}
_WHEEL: Final = re.compile(r"[A-Za-z0-9._+!-]+\.whl")
#: What failed, by the exit code of the script.
_FAILURES: Final = {
    71: ("has no place for a temporary folder", "Free some space there, or set TMPDIR there."),
    72: (
        "did not take the files",
        "It needs `tar` and `head`, and room for the bundle in its temporary folder.",
    ),
    73: (
        "cannot make an environment for the wheel",
        "Install the venv module of its Python (python3-venv), or pass --python with one that has "
        "tokexport.",
    ),
    74: (
        "cannot install the wheel",
        "Pass a wheel for its system and Python; or where it reaches no package index, --python "
        "with one that has tokexport.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """The machine to measure on, and how to reach it.

    Attributes:
        host: Its name, as ssh takes it: ``name``, ``user@name``, or one of the user's ssh config.
        port: The port; None leaves it to ssh.
        ssh_options: Options of ssh, ``Name=value``.
        python: The interpreter there: with ``wheel`` it makes the environment, else it has
            tokexport.
        wheel: The wheel of tokexport to install there, in an environment that is removed again;
            None installs nothing.
        built_from: The checkout that the wheel is built from where none is given; None builds none.
    """

    host: str
    port: int | None = None
    ssh_options: tuple[str, ...] = ()
    python: str = "python3"
    wheel: Path | None = None
    built_from: Path | None = None

    def __post_init__(self) -> None:
        """Refuses what ssh, or a shell, would take for something else."""
        if not self.host or self.host.startswith("-") or re.search(r"[\s\x00-\x1f\x7f]", self.host):
            raise UsageError(
                f"The host {self.host!r:.80} is no name of a machine.",
                fix="Pass --on HOST or --on USER@HOST, as ssh takes it.",
            )
        if self.port is not None and not 0 < self.port < 65536:
            raise UsageError(f"--port is {self.port}.", fix="Pass a port of 1 to 65535.")
        for option in self.ssh_options:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*[ =].*", option):
                raise UsageError(
                    f"The option {option!r:.80} of ssh has no name and value.",
                    fix="Pass --ssh-option Name=value, as after ssh -o.",
                )
        if not self.python or "\0" in self.python or "\n" in self.python:
            raise UsageError("--python names no interpreter.", fix="Pass its name or its path.")
        if self.wheel is None:
            return
        if not self.wheel.is_file() or not _WHEEL.fullmatch(self.wheel.name):
            raise UsageError(
                "The wheel is no file with the name of one.",
                where=str(self.wheel),
                fix="Pass what `pip wheel --no-deps .` wrote in a checkout of tokexport.",
            )


def bench_on(
    remote: RemoteConfig, config: BundleBenchConfig, progress: Checklist | None = None
) -> BundleBench:
    """Measures bundles on another machine, in a new folder there that is removed again.

    Args:
        remote: The machine.
        config: The bundles, and how long they are run.
        progress: Shows what is done; silent without one.

    Raises:
        PackageMissingError: This machine has no ssh.
        RunError: The machine is not reached, or fails, or answers something else.
        BundleError: A bundle is altered, before anything is sent.
        Exception: The error that the measurement there ended with.
    """
    ssh = shutil.which("ssh")
    if ssh is None:
        raise PackageMissingError(
            "There is no ssh on this machine.", fix="Install OpenSSH's client."
        )
    manifests = [trusted_manifest(bundle) for bundle in config.bundles]
    for bundle, manifest in zip(config.bundles, manifests, strict=True):
        check_files(bundle, manifest)
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    with ExitStack() as stack:
        if remote.built_from is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with checklist, checklist.stage("build a wheel"):
                wheel = build_wheel(remote.built_from, folder)
            remote = dataclasses.replace(remote, wheel=wheel, built_from=None)
        return _measured(ssh, remote, config, manifests, checklist)


def _measured(
    ssh: str,
    remote: RemoteConfig,
    config: BundleBenchConfig,
    manifests: Sequence[Manifest],
    checklist: Checklist,
) -> BundleBench:
    stage = f"measure on {printable(remote.host)}"
    with checklist, checklist.stage(stage), tempfile.TemporaryFile() as archive:
        _pack(archive, config.bundles, manifests, remote.wheel)
        said = _session(ssh, remote, _script(remote, config, manifests, archive), archive)
    return _result(said, remote, config)


def _pack(
    archive: IO[bytes],
    bundles: Sequence[Path],
    manifests: Sequence[Manifest],
    wheel: Path | None,
) -> None:
    """Writes the files of the bundles, under names of its own, and the wheel."""
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as files:
        for at, (bundle, manifest) in enumerate(zip(bundles, manifests, strict=True)):
            signed = (bundle / SIGNATURE_NAME).is_file()
            for name in (MANIFEST_NAME, *[SIGNATURE_NAME] * signed, *manifest.files):
                _add(files, file_in(bundle, name), f"{_remote_name(at)}/{name}")
        if wheel is not None:
            _add(files, wheel, wheel.name)


def _add(files: tarfile.TarFile, path: Path, name: str) -> None:
    with path.open("rb") as file:
        info = tarfile.TarInfo(name)
        info.size, info.mode = file.seek(0, io.SEEK_END), 0o600
        file.seek(0)
        files.addfile(info, file)


def _remote_name(at: int) -> str:
    return f"bundle-{at}"


@dataclass(frozen=True)
class _Script:
    """A script for the other machine, and the word with which it marks its own lines."""

    text: str
    mark: str


def _script(
    remote: RemoteConfig,
    config: BundleBenchConfig,
    manifests: Sequence[Manifest],
    archive: IO[bytes],
) -> _Script:
    mark = f"tokexport-{secrets.token_hex(12)}"
    wheel = "" if remote.wheel is None else remote.wheel.name
    flavours = {one.runtime.flavour for one in manifests}
    extras = sorted(_EXTRAS[one] for one in flavours & _EXTRAS.keys())
    arguments = [*map(_remote_name, range(len(config.bundles))), "--json"]
    arguments += ["--rounds", str(config.rounds)]
    if config.time_limit_s is not None:
        arguments += ["--time-limit", str(config.time_limit_s)]
    if config.threads:
        arguments += ["--threads", ",".join(map(str, config.threads))]
    if config.batches:
        arguments += ["--batches", ",".join(map(str, config.batches))]
    if config.require_kernels:
        arguments.append("--require-kernels")
    values = {
        "mark": mark,
        "size": str(archive.seek(0, io.SEEK_END)),
        "python": remote.python,
        "wheel": wheel,
        "requirement": f"./{wheel}[{','.join(extras)}]",
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    module = "-m tokexport.exporter.cli.app bench"
    lines.append(f'bench() {{ exec "$python" {module} {shlex.join(arguments)}; }}')
    return _Script("\n".join((*lines, _SCRIPT.read_text(encoding="utf-8"))), mark)


@dataclass(frozen=True)
class _Said:
    """What a session printed, by the part of the script that it came to.

    Attributes:
        code: The exit code of ssh.
        reached: The last part that began; '' where the script did not.
        answer: The output of the measurement.
        ended: The exit code of the measurement; None where it did not end.
        errors: The end of what was printed on standard error.
    """

    code: int
    reached: str
    answer: str
    ended: int | None
    errors: str


def _session(ssh: str, remote: RemoteConfig, script: _Script, archive: IO[bytes]) -> _Said:
    """Runs a script there, with an archive behind it on its input."""
    text = script.text.encode()
    command = [ssh, "-T"]
    for option in (*remote.ssh_options, *_KEEP_ALIVE):
        command += ["-o", option]
    if remote.port is not None:
        command += ["-p", str(remote.port)]
    # one line without anything that some shell of a user would expand
    command += ["--", remote.host, f"exec sh -c 'eval \"$(head -c {len(text)})\"'"]
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed
        )
        assert process.stdin is not None
        assert process.stdout is not None
        sending = threading.Thread(target=_send, args=(process.stdin, text, archive), daemon=True)
        sending.start()
        try:
            found = process.stdout.read(_LARGEST_ANSWER)
            if len(found) == _LARGEST_ANSWER:
                raise RunError(
                    f"The host {remote.host} answers without end.", fix="Look at what it runs."
                )
            process.wait()
        finally:
            process.kill()  # the end of its input makes the script there end
            process.wait()
            sending.join()
            process.stdout.close()
            with suppress(OSError):
                process.stdin.close()
        printed.seek(0)
        errors = printed.read().decode(errors="replace").strip()[-_SHOWN:]
    return _read(process.returncode, found.decode(errors="replace"), script.mark, errors)


def _send(pipe: IO[bytes], text: bytes, archive: IO[bytes]) -> None:
    """Writes all, and leaves the pipe open: its end would end the script."""
    with suppress(OSError, ValueError):  # the session ended before: what it printed says why
        pipe.write(text)
        archive.seek(0)
        shutil.copyfileobj(archive, pipe, 1 << 20)
        pipe.flush()


def _read(code: int, text: str, mark: str, errors: str) -> _Said:
    reached, ended, answer = "", None, ""
    for part in text.split(f"\n{mark} ")[1:]:
        line, _, rest = part.partition("\n")
        kind, _, value = line.partition(" ")
        if kind == "ended":
            ended = int(value) if value.isdigit() else None
            continue
        reached = value
        if value == "answer":
            answer = rest
    return _Said(code, reached, answer, ended, errors)


def _result(said: _Said, remote: RemoteConfig, config: BundleBenchConfig) -> BundleBench:
    """Returns what was measured, under the names that the bundles have here."""
    host = remote.host
    where = printable(f"{host} printed: {said.errors}") if said.errors else host
    if said.ended is None:
        raise _no_answer(said, host, where)
    try:
        data = all_printable(json.loads(said.answer))
        if not isinstance(data, dict):
            raise ValueError("it is no object")
        if said.ended != 0:
            raise _as_error(data["error"], host)
        found = typed(BundleBench, data)
        if len(found.bundles) != len(config.bundles) or not found.rows:
            raise ValueError("it is of other bundles")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(
            f"The host {host} did not answer with measurements: {said.ended} is its exit code.",
            where=where,
            fix="Pass --python with an interpreter there that has this version of tokexport "
            "installed, or --wheel.",
        ) from error
    names = {_remote_name(at): str(bundle) for at, bundle in enumerate(config.bundles)}
    inputs = found.inputs
    for short, name in names.items():
        inputs = inputs.replace(f"inputs of {short}", f"inputs of {name}")
    return dataclasses.replace(
        found,
        host=host,
        inputs=inputs,
        bundles=tuple(_renamed(one, names) for one in found.bundles),
        rows=tuple(_renamed(one, names) for one in found.rows),
    )


def _renamed(one: Any, names: Mapping[str, str]) -> Any:
    return dataclasses.replace(one, bundle=names.get(one.bundle, one.bundle))


def _no_answer(said: _Said, host: str, where: str) -> RunError:
    """Returns the error of a session that ended before the measurement did."""
    if said.code in _FAILURES and said.reached in ("", "copy", "install"):
        what, fix = _FAILURES[said.code]
        return RunError(f"The host {host} {what}.", where=where, fix=fix)
    if not said.reached:
        return RunError(
            f"The host {host} was not reached over ssh, or has no POSIX shell.",
            where=where,
            fix=f"Try `ssh {shlex.quote(host)} true`, and pass --port or --ssh-option as it needs.",
        )
    lost = "The connection broke" if said.code in (_NOT_CONNECTED, -9) else "The session ended"
    return RunError(
        f"{lost} before {host} answered, in the part '{said.reached}'.",
        where=where,
        fix="Run it again; what was copied there is removed when the connection ends.",
    )


def _as_error(said: Mapping[str, Any], host: str) -> Exception:
    """Returns the error that a measurement ended with, of its own class where that is known."""
    kind = str(said["kind"])
    what, where, fix = (str(said[name]) for name in ("what", "where", "fix"))
    place = f"On {host}: {where}" if where else f"On {host}"
    known = runtime_errors.RuntimesError | exporter_errors.ExporterError
    for module in (runtime_errors, exporter_errors):
        found = getattr(module, kind, None)
        if isinstance(found, type) and issubclass(found, known) and kind != "InternalError":
            error: Exception = found(what, where=place, fix=fix)
            return error
    return RunError(what, where=place, fix=fix)
