"""Opens untrusted files: regular ones only, so that no read blocks or never ends."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

#: Where it is missing (Windows), there is no file to wait for either.
_WITHOUT_WAITING: Final[int] = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading.

    Args:
        path: The file, or a link to it.

    Raises:
        OSError: It is missing or not readable, or it is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | _WITHOUT_WAITING)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "It is a pipe, a socket or a device, not a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_at_most(path: Path, most: int) -> bytes:
    """Reads a regular file whole.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        OSError: As of ``open_regular``; or the file has more bytes.
    """
    with open_regular(path) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise OSError(errno.EFBIG, f"It has more than {most:,} bytes", str(path))
    return found
