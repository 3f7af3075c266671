"""Writes weights of several models into one file, equal ones once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import BinaryIO, Final

#: Runtimes read numbers faster from places that are a multiple of this.
_ALIGNED: Final = 64


@dataclass
class WeightPool:
    """A file of weights that is being written.

    Attributes:
        file: The file, empty.
    """

    file: BinaryIO
    _places: dict[bytes, int] = field(default_factory=dict)

    def place(self, content: bytes | memoryview) -> int:
        """Returns where in the file some bytes lie; they are written where they are not there yet.

        Args:
            content: The bytes of a tensor.
        """
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            end = self.file.tell()
            self.file.write(bytes(-end % _ALIGNED))
            self._places[key] = self.file.tell()
            self.file.write(content)
        return self._places[key]
