"""Bounds what a zip archive of others may become when it is unpacked."""

from __future__ import annotations

import zipfile
from typing import Final

#: Bytes that an archive may become in any case, and times its own bytes that it may beyond.
_SMALL: Final = 1 << 26
_MOST_TIMES: Final = 100


def unpacks_too_far(archive: zipfile.ZipFile, size: int) -> str:
    """Says how an archive unpacks to far more bytes than it has; '' where it does not.

    Args:
        archive: The archive.
        size: The bytes of its file.
    """
    whole = sum(info.file_size for info in archive.infolist())
    if whole <= max(_SMALL, _MOST_TIMES * size):
        return ""
    return f"its {size:,} bytes unpack to {whole:,}"
