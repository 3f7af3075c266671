"""Damages the files of a bundle: their bytes, their kinds, their names."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from random import Random

from attacks.values import damaged, text


def damage_bytes(random: Random, bundle: Path) -> str:
    """Damages the bytes of a file; returns what was done."""
    path = random.choice(sorted(bundle.iterdir()))
    content, done = damaged(path.read_bytes(), random)
    path.write_bytes(content)
    return f"{path.name}: {done}"


def damage_files(random: Random, bundle: Path) -> str:
    """Puts something else in the place of a file, or beside it; returns what was done."""
    paths = sorted(bundle.iterdir())
    path, other = random.choice(paths), random.choice(paths)
    outside = bundle.parent / "outside"
    way = random.randrange(14)
    if way == 0:
        path.unlink()
        return f"{path.name} is gone"
    if way == 1:
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
        return f"{path.name} and {other.name} change places"
    if way == 2:
        path.write_bytes(b"")
        return f"{path.name} is empty"
    if way == 3:
        path.write_bytes(path.read_bytes() + other.read_bytes())
        return f"{path.name} and {other.name} in one"
    if way == 4:
        with path.open("r+b") as file:
            file.truncate(random.choice((1 << 20, 1 << 26)))
        return f"{path.name} with zeros behind"
    if way == 5:
        name = text(random).replace("/", "_").replace("\0", "_")[:200] or "extra"
        name = name.encode("utf-8", "replace").decode()[:100]
        (bundle / f"{name}.bin").write_bytes(b"extra")
        return f"a file more, {name!r:.40}"
    if way == 6:
        (bundle / path.stem).with_suffix(".bin").write_bytes(random.randbytes(64))
        return f"a file beside {path.name}"
    content = path.read_bytes()
    if way == 7:
        outside.write_bytes(content)
    path.unlink()
    if way == 7:
        path.symlink_to(outside)
        return f"{path.name} is a link out of the folder"
    if way == 8:
        target = random.choice((path.name, other.name, "/dev/zero", "/dev/stdin", "/", "nowhere"))
        path.symlink_to(target)
        return f"{path.name} is a link to {target}"
    if way == 9:
        os.mkfifo(path)
        return f"{path.name} is a pipe"
    if way == 10:
        path.mkdir()
        return f"{path.name} is a folder"
    if way == 11:
        with socket.socket(socket.AF_UNIX) as made:
            before = Path.cwd()
            os.chdir(bundle)  # the name of a socket is short
            try:
                made.bind(path.name)
            finally:
                os.chdir(before)
        return f"{path.name} is a socket"
    if way == 12:
        inside = bundle / "inside"
        inside.mkdir()
        (inside / path.name).write_bytes(content)
        return f"{path.name} lies deeper"
    path.write_bytes(content)
    path.chmod(0)
    return f"{path.name} may not be read"
