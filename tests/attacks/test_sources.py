"""No crafted source runs code, reaches the network, writes a file, or takes all memory or time."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from attacks.audit import Listener
from attacks.child import Child
from attacks.kinds import FINE, kind_named


@pytest.mark.parametrize("cases", [60, pytest.param(200, marks=pytest.mark.thorough)])
def test_sources_do_nothing_that_they_may_not(cases: int, tmp_path: Path) -> None:
    """Those of the campaign with the lowest numbers."""
    kind = kind_named("sources")
    kind.prepare(tmp_path / "sources")
    with Child(kind, "loading", tmp_path / "sources", seed=0) as child:
        outcomes = [child.run(index) for index in range(cases)]
    assert [one for one in outcomes if one.verdict not in FINE] == []
    verdicts = {verdict: sum(one.verdict == verdict for one in outcomes) for verdict in FINE}
    assert min(verdicts.values()) > cases // 40, verdicts


def test_the_listener_hears_what_no_source_may_do(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "allowed")
    (tmp_path / "allowed").mkdir()
    with listener.listening() as heard:
        (tmp_path / "allowed" / "a").write_text("a")
        (tmp_path / "allowed" / "a").read_text()
    assert heard == []
    with listener.listening() as heard:
        (tmp_path / "b").write_text("b")
        (tmp_path / "b").unlink()
        subprocess.run(["true"], check=True)
        socket.socket().close()
        with pytest.raises(OSError, match="No such file"):
            os.rename(tmp_path / "c", tmp_path / "d")
    said = "\n".join(heard)
    for part in ("open for writing", "os.remove", "subprocess.Popen", "socket.", "os.rename"):
        assert part in said
