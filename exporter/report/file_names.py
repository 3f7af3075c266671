"""Names the files that a compile leaves beside an artifact for people to read."""

from __future__ import annotations

from typing import Final

REPORT_NAME: Final = "report.json"
#: What the page shows beside the report.
PAGE_DATA_NAME: Final = "page.json"
PAGE_NAME: Final = "report.html"
