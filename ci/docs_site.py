"""Brings the files that the documentation links to into its site: a hook of mkdocs.

In the repository a page of docs/ links to files beside docs/ by their path. The site has them too:
Markdown as pages under ``project/``, other files as they are. Links between them are kept.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FOLDER = "project"
#: A link in Markdown, or the source of an image in HTML: what is before its target, and that.
_LINK = re.compile(r"(\]\(|src=\"|srcset=\")([^)\s\"#]+)")
_CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files beside docs/ that pages link to, and those that these link to."""
    from mkdocs.structure.files import File

    waiting = [f"docs/{one.src_uri}" for one in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        for path in linked(waiting.pop()):
            if path in seen:
                continue
            seen.add(path)
            if not path.startswith("docs/") and (ROOT / path).is_file():
                found = File.generated(config, place(path), abs_src_path=str(ROOT / path))
                files.append(found)
            if path.endswith(".md"):
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between files of the site."""
    own = page.file.src_uri
    path = own.removeprefix(f"{FOLDER}/") if own.startswith(f"{FOLDER}/") else f"docs/{own}"
    parts, last = [], 0
    for code in _CODE.finditer(markdown):  # what stands in code is no link
        parts += [_relinked(markdown[last : code.start()], path, own), code.group()]
        last = code.end()
    return "".join([*parts, _relinked(markdown[last:], path, own)])


def linked(path: str) -> list[str]:
    """Returns the paths in the repository that a page of Markdown links to."""
    text = _CODE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    targets = [target for _, target in _LINK.findall(text) if "://" not in target]
    return [posixpath.normpath(posixpath.join(posixpath.dirname(path), one)) for one in targets]


def place(path: str) -> str:
    """Returns where a file of the repository lies in the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{FOLDER}/{path}"


def _relinked(text: str, path: str, own: str) -> str:
    def moved(link: re.Match[str]) -> str:
        before, target = link.groups()
        if "://" in target or target.startswith("mailto:"):
            return link.group()
        found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if not (ROOT / found).is_file():
            return link.group()
        return before + posixpath.relpath(place(found), posixpath.dirname(own) or ".")

    return _LINK.sub(moved, text)
