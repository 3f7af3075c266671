"""Runs an ssh server of this machine's own, on its own port, with keys and options of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

_FOLDER_OF_ROOT = Path("/run/sshd")


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        options: Those of ssh that reach it: the client's key, and the server's.
        temporary: The temporary folder of its sessions.
        process: Its own process.
    """

    port: int
    options: tuple[str, ...]
    temporary: Path
    process: subprocess.Popen[bytes]

    @property
    def arguments(self) -> tuple[str, ...]:
        """What reaches it, as arguments of a command."""
        own = [f"--ssh-option={one}" for one in self.options]
        return ("--on", f"{getpass.getuser()}@127.0.0.1", "--port", str(self.port), *own)

    def sessions(self) -> list[int]:
        """The processes that serve a connection each."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def left(self) -> list[str]:
        """What sessions left in their temporary folder, after a moment for those that end."""
        for _ in range(200):
            if not (found := [path.name for path in self.temporary.iterdir()]):
                return []
            time.sleep(0.05)
        return found


@contextmanager
def server(folder: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Starts a server; the test is skipped only where this machine has no sshd.

    Args:
        folder: Where its keys and its configuration go.
        environment: The variables of its sessions.
    """
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(program).exists():
        pytest.skip("no sshd here: ci/sshd.sh installs it, and make test runs that")
    if os.geteuid() == 0 and not _FOLDER_OF_ROOT.exists():
        _FOLDER_OF_ROOT.mkdir(mode=0o755)
    temporary = folder / "it's a temporary folder"
    temporary.mkdir()
    for name in ("host", "client"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(key, check=True)
    shutil.copyfile(folder / "client.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"TMPDIR": str(temporary), **environment}
    quoted = " ".join(f'"{name}={value}"' for name, value in variables.items())
    config = folder / "sshd_config"
    config.write_text(
        f"""Port {port}
ListenAddress 127.0.0.1
HostKey {folder / "host"}
AuthorizedKeysFile {folder / "authorized"}
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv {quoted}
"""
    )
    known = folder / "known"
    known.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    options = (f"IdentityFile={folder / 'client'}", f"UserKnownHostsFile={known}")
    options += ("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=yes")
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=log)
    try:
        _await(port, process, folder / "sshd.log")
        yield Server(port, options, temporary, process)
    finally:
        process.terminate()
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(log.read_text())
