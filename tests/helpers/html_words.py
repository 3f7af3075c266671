"""Reads the words of a page, and holds its elements to be closed in order."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "link", "img", "br", "hr", "input"}


class Words(HTMLParser):
    """The words of a page outside its style, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        named = dict(attrs)
        self.references += [named[key] or "" for key in ("src", "href", "data") if key in named]
        self.ids += [named["id"] or ""] if "id" in named else []
        self.words += [f" {named['data-name']}: "] if named.get("data-name") else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @classmethod
    def of(cls, path: Path) -> str:
        """The words of a page, as one line."""
        return " ".join(" ".join(cls.read(path).words).split())

    @classmethod
    def read(cls, path: Path) -> Words:
        found = cls()
        found.feed(path.read_text(encoding="utf-8"))
        found.close()
        assert found.open == []
        return found
