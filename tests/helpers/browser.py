"""Opens a page in Chromium as a person would, at some width, and says what it met."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

from helpers.debian_programs import program

_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000"),
)
#: Unfolds all of a page, and says what it looks like to the page around it.
_MEASURE = """
<script>
addEventListener("load", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const style = getComputedStyle(document.body);
  const beyond = (one) => one.getBoundingClientRect().right > innerWidth + 0.5;
  const wide = [...document.querySelectorAll("body *")].filter(
    (one) => !one.parentElement.closest("svg, .scroll, pre, .drawn") && beyond(one)
  );
  parent.postMessage(JSON.stringify({
    width: innerWidth,
    scrollWidth: document.documentElement.scrollWidth,
    wide: wide.map((one) => one.outerHTML.slice(0, 200)),
    folded: document.querySelectorAll("details:not([open])").length,
    background: style.backgroundColor,
    colour: style.color,
    svgText: [...document.querySelectorAll("svg text")].map((one) => getComputedStyle(one).fill),
    requests: performance.getEntriesByType("resource").map((one) => one.name),
    text: document.body.innerText,
  }), "*");
});
</script>
"""
#: Shows a page in a frame of some width, which may be narrower than a window, and keeps its answer.
_AROUND = """<!doctype html>
<meta charset="utf-8"><meta name="color-scheme" content="light dark">
<style>iframe {{ border: 0; width: {width}px; height: 900px }}</style>
<script>
addEventListener("message", (event) => {{
  const place = document.createElement("pre");
  place.id = "measured";
  place.textContent = event.data;
  document.body.append(place);
}});
</script>
<iframe src="{page}"></iframe>
"""


@dataclass(frozen=True)
class Opened:
    """What a browser made of a page.

    Attributes:
        measured: What the script in it found.
        console: What went to the console.
    """

    measured: dict[str, Any]
    console: list[str]


def opened(page: Path, folder: Path, width: int, dark: bool) -> Opened:
    """Opens a copy of a page at some width, on a dark or a light system.

    Args:
        page: The HTML file.
        folder: Where the copy goes, and the browser's own files.
        width: The width that the page has, in pixels.
        dark: Whether the system asks for dark pages.
    """
    copy = folder / f"{page.stem}-{width}-{dark}.html"
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace("</body>", f"{_MEASURE}</body>"), encoding="utf-8")
    around = folder / f"around-{copy.name}"
    around.write_text(_AROUND.format(width=width, page=copy.name), encoding="utf-8")
    done = subprocess.run(
        [
            *(program("chromium"), *_OPTIONS, f"--user-data-dir={folder / 'browser'}"),
            *("--window-size=1400,900", f"--blink-settings=preferredColorScheme={1 - dark}"),
            *("--dump-dom", around.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Opened(json.loads(unescape(found[1])), console)
