"""Makes temporary folders; those of killed processes are removed by the next run.

A process holds a lock on each of its folders, which the system takes from it however it ends. A
folder that nobody holds a lock on was left behind. Signals by which people end a program wait while
one is made or taken away.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_signals() -> Iterator[None]:
    """Delays SIGINT and SIGTERM during a block to its end.

    Python hands signals to the main thread alone: in any other the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _ENDING}
    held = [number for number, handler in before.items() if handler is not None]
    for number in held:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, before[number])
        if came:
            signal.raise_signal(came[0])


try:
    import fcntl
except ImportError:  # on Windows, where nothing is held and nothing taken away
    _can_lock = False
else:
    _can_lock = True

_PREFIX: Final = "tokexport-scratch-"
#: What ``tempfile`` makes different names of.
RANDOM: Final = "[a-z0-9_]{8}"
_swept: set[str] = set()
_lock = threading.Lock()


class HeldFolder:
    """A folder of this process; it is removed again if a signal comes while it is made.

    Args:
        make: Makes a new folder and returns it; asked again where another process took it away
            before it was held.
    """

    def __init__(self, make: Callable[[], Path]) -> None:
        self._handle: int | None = None
        self._made: Path | None = None
        try:
            with held_signals():
                self._make(make)
        except BaseException:
            self.take_away()
            raise

    def _make(self, make: Callable[[], Path]) -> None:
        while True:
            self._made = make()
            try:
                self._handle = _hold(self._made)
            except (BlockingIOError, FileNotFoundError):
                self._made = None  # another process takes it away
                continue
            if self._handle is None or _is_at(self._handle, self._made):
                return
            self.release()

    @property
    def path(self) -> Path:
        """The folder."""
        assert self._made is not None
        return self._made

    def take_away(self) -> None:
        """Removes the folder with its contents, whole even if a signal comes, and unlocks it."""
        with held_signals():
            if self._made is not None:
                shutil.rmtree(self._made, ignore_errors=True)
            self.release()

    def release(self) -> None:
        """Unlocks the folder once it is removed or renamed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Makes a temporary folder for a block, and removes those of killed processes."""
    place = tempfile.gettempdir()
    with _lock:
        is_first = place not in _swept
        _swept.add(place)
    if is_first:
        sweep(Path(place), f"{_PREFIX}{RANDOM}")
    held = HeldFolder(lambda: Path(tempfile.mkdtemp(prefix=_PREFIX)))
    try:
        yield held.path
    finally:
        held.take_away()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Runs a block in one process at a time; without locks, in any.

    Args:
        path: The file whose lock it is; made where it is missing, and left, since a process that
            waits for it may have it open.

    Raises:
        OSError: It cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _can_lock:
            with suppress(OSError):  # a disk that knows none
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sweep(place: Path, name: str) -> None:
    """Removes the folders that killed processes left.

    Args:
        place: The folder that they are in.
        name: What their names match: those of folders that are held while they are used.
    """
    with suppress(OSError):
        for entry in [*os.scandir(place)]:
            if re.fullmatch(name, entry.name) and _is_own(entry):
                with suppress(OSError):
                    _take_away(Path(entry.path))


def _is_own(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        found = entry.stat(follow_symlinks=False)
        return stat.S_ISDIR(found.st_mode) and _can_lock and found.st_uid == os.getuid()
    return False


def _take_away(path: Path) -> None:
    handle = _hold(path)
    if handle is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _hold(path: Path) -> int | None:
    """Locks a folder; None where its disk knows no locks.

    Raises:
        BlockingIOError: Another process holds it.
        FileNotFoundError: It is gone.
    """
    if not _can_lock:
        return None
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


def _is_at(handle: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False
