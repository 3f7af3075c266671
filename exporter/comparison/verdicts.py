"""Names how near an output is to its reference: the verdicts of a bundle, and of a lock."""

from __future__ import annotations

from typing import Final

IDENTICAL: Final = "identical"
ARITHMETIC: Final = "arithmetic"
TIES_ONLY: Final = "ties only"
WRONG: Final = "wrong"
#: From the nearest to the farthest.
VERDICTS: Final = (IDENTICAL, ARITHMETIC, TIES_ONLY, WRONG)
