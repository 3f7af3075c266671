"""Records what no source may make a process do: reach the network, start programs, write."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

#: Events of Python's audit hooks, by their beginnings.
_REFUSED: Final = (
    *("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
    *("os.startfile", "os.kill", "os.putenv", "ftplib.", "http.", "urllib.", "smtplib.", "ssl."),
    *("pty.", "webbrowser.", "code.__new__", "ctypes.dlopen"),
)
#: Of a module that only asks what the machine can.
_HARMLESS: Final = ("socket.gethostname",)
_WRITES: Final = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink")
_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Listener:
    """Records events while it listens; the hook lives as long as the process.

    Args:
        allowed: The folders in which files may be written.
    """

    def __init__(self, *allowed: Path) -> None:
        self._allowed = tuple(os.path.realpath(folder) for folder in allowed)
        self._found: list[str] | None = None
        sys.addaudithook(self._hear)

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """Returns the forbidden events of a block, complete at its end."""
        modules = set(sys.modules)
        found: list[str] = []
        self._found = found
        try:
            yield found
        finally:
            self._found = None
        inside = (sys.prefix, sys.base_prefix, *sys.path)
        for name in sorted(set(sys.modules) - modules):
            file = getattr(sys.modules.get(name), "__file__", None)
            if file is not None and not os.path.realpath(file).startswith(
                tuple(os.path.realpath(place) + os.sep for place in inside if place)
            ):
                found.append(f"import of {name} from {file}")

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        found = self._found
        if found is None:
            return
        if event.startswith(_REFUSED) and event not in _HARMLESS:
            found.append(f"{event} {arguments!r:.200}")
        elif event == "open" and self._writes(*arguments[:3]):
            found.append(f"open for writing of {arguments[0]!r:.200}")
        elif event in _WRITES and not self._is_allowed(arguments[0]):
            found.append(f"{event} {arguments!r:.200}")

    def _writes(self, path: Any, mode: Any, flags: Any) -> bool:
        wanted = isinstance(flags, int) and bool(flags & _FLAGS)
        return wanted and not isinstance(path, int) and not self._is_allowed(path)

    def _is_allowed(self, path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return True
        whole = os.path.realpath(os.fsdecode(path))
        return whole == os.devnull or any(
            whole == place or whole.startswith(place + os.sep) for place in self._allowed
        )
