"""Damages a manifest: its values, its structure, and its text."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from attacks.values import count, damaged, text, value

Path_ = tuple[Any, ...]


def damage_manifest(random: Random, bundle: Path) -> str:
    """Damages the manifest of a bundle; returns what was done."""
    path = bundle / "manifest.json"
    if random.random() < 0.25:
        content, done = _as_text(path.read_bytes(), random)
        path.write_bytes(content)
        return f"text of the manifest: {done}"
    data = json.loads(path.read_text(encoding="utf-8"))
    said = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        try:
            said.append(_change(data, random))
        except RecursionError:
            said.append("nothing more, as it is too deep for that")
    ascii_only = random.random() < 0.7 or any("\ud800" in one for one in map(str, places(data)))
    content = json.dumps(data, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    path.write_bytes(content)
    return f"manifest: {'; '.join(said)}"


def places(data: Any, before: Path_ = ()) -> Iterator[Path_]:
    """Yields the path to every value of parsed JSON but the outermost."""
    inner: Any = ()
    if isinstance(data, dict):
        inner = data.items()
    elif isinstance(data, list):
        inner = enumerate(data)
    for key, one in inner:
        yield (*before, key)
        yield from places(one, (*before, key))


def _change(data: Any, random: Random) -> str:
    """Changes one value of parsed JSON."""
    ways = [*places(data)]
    if not ways:
        return "nothing is left"
    # Every field of the manifest as often as each of the many hashes and numbers within.
    key = random.choice([*data])
    own = [way for way in ways if way[0] == key]
    way = random.choice(own if random.random() < 0.7 else ways)
    holder = data
    for part in way[:-1]:
        holder = holder[part]
    last, shown = way[-1], ".".join(map(str, way))[:60]
    kind = random.randrange(10)
    if kind == 0:
        del holder[last]
        return f"{shown} gone"
    if kind == 1:
        holder[last] = [copy.deepcopy(holder[last])] * random.choice((1, 2, 1000))
        return f"{shown} in a list"
    if kind == 2:
        depth = random.choice((3, 62, 63, 64, 65, 200, 300))
        for _ in range(depth):
            holder[last] = [holder[last]] if random.random() < 0.5 else {"in": holder[last]}
        return f"{shown} {depth} levels deeper"
    if kind == 3 and isinstance(holder, dict):
        name = text(random)
        holder[name] = holder.pop(last)
        return f"{shown} renamed to {name!r:.40}"
    if kind == 4:
        other = random.choice(ways)
        found: Any = data
        for part in other:
            found = found[part]
        holder[last] = copy.deepcopy(found)
        return f"{shown} as {'.'.join(map(str, other))[:60]}"
    if kind == 5 and isinstance(holder[last], str):
        holder[last] = text(random)
    elif kind <= 7 and isinstance(holder[last], int | float):
        holder[last] = random.choice((count(random), float(count(random)), -holder[last]))
    else:
        holder[last] = value(random)
    return f"{shown} = {str(holder[last])!r:.60}"


def _as_text(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damages the text itself."""
    said = content.decode("utf-8")
    at = random.randrange(len(said))
    deep = random.choice((50, 70, 5_000, 200_000))
    ways: dict[str, Any] = {
        "a byte order mark": lambda: b"\xef\xbb\xbf" + content,
        "UTF-16": lambda: said.encode("utf-16"),
        "half a character": lambda: content[:at] + b"\xed\xa0\x80" + content[at:],
        "NaN for a number": lambda: said.replace("1", "NaN", 1).encode(),
        "a number of 5,000 digits": lambda: said.replace("1,", "1" * 5_000 + ",", 1).encode(),
        "a number of 1e999": lambda: said.replace("1,", "1e999,", 1).encode(),
        f"{deep} lists": lambda: b"[" * deep,
        f"{deep} closed lists": lambda: b"[" * deep + b"]" * deep,
        f"{deep} objects": lambda: b'{"a":' * deep + b"1" + b"}" * deep,
        f"a field {deep} deep": lambda: (
            said.rstrip().rstrip("}") + ', "new": ' + "[" * deep + "]" * deep + "}"
        ).encode(),
        "twice": lambda: content + content,
        "a field twice": lambda: said.replace("{", '{"artifact": "../x", ', 1).encode(),
        "nothing": lambda: b"",
        "null": lambda: b"null",
        "a text": lambda: b'"manifest"',
        "17 MB of spaces": lambda: content + b" " * (17 << 20),
        "15 MB of a text": lambda: said.replace(
            "{", '{"x": "' + "y" * (15 << 20) + '",', 1
        ).encode(),
        "a million of numbers": lambda: said.replace(
            "{", '{"x": [' + "1," * 10**6 + "1],", 1
        ).encode(),
    }
    if random.random() < 0.4:
        return damaged(content, random)
    name = random.choice([*ways])
    return ways[name](), name
