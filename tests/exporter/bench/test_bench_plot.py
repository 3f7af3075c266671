"""The plot of a benchmark: values on the bars, and no bar that squashes the others."""

from __future__ import annotations

import pytest

from tokexport.exporter.bench.plot import axis_end


@pytest.mark.parametrize(
    ("times", "end"),
    [
        ([4.0, 5.0, 9.0], 9.0),  # the longest bar is shown whole
        ([4.0, 5.0, 6.0, 160.0], 1.15 * 6.0),  # it is cut
        ([4.0, 5.0, 6.0, 160.0, 170.0], 1.15 * 6.0),
        ([7.0], 7.0),
        ([], 1.0),
    ],
)
def test_an_axis_ends_behind_what_the_others_leave_readable(times: list[float], end: float) -> None:
    assert axis_end(times) == pytest.approx(end)
