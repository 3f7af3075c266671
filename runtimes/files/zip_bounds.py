"""Bounds the unpacked size of an untrusted zip archive."""

from __future__ import annotations

import zipfile
from typing import Final

#: The unpacked bytes that are always allowed, and the allowed multiple of the archive's bytes.
_SMALL: Final = 1 << 26
_MOST_TIMES: Final = 100


def unpacks_too_far(archive: zipfile.ZipFile, size: int) -> str:
    """Returns how an archive unpacks to far more bytes than it has; '' if it does not.

    Args:
        archive: The archive.
        size: The bytes of its file.
    """
    whole = sum(info.file_size for info in archive.infolist())
    if whole <= max(_SMALL, _MOST_TIMES * size):
        return ""
    return f"its {size:,} bytes unpack to {whole:,}"
