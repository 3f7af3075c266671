"""Crafts checkpoints and pickled modules: damaged, hostile, huge or endless ones."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Final

from attacks.honest_sources import BUILDER, Craft, Crafted, Honest
from attacks.values import COUNTS, damaged, text

#: Functions that a pickle may name, with what they are called with.
_CALLS: Final = (
    *(("os", "system", "touch {}"), ("posix", "system", "touch {}"), ("os", "mkdir", "{}")),
    *(
        ("builtins", "open", "{}"),
        ("builtins", "exec", "open({!r}, 'w')"),
        ("os", "getenv", "HOME"),
    ),
    *(("builtins", "eval", "open({!r}, 'w')"), ("subprocess", "getoutput", "touch {}")),
    *(("socket", "gethostbyname", "example.org"), ("urllib.request", "urlopen", "http://[::1]/")),
    *(("torch", "load", "{}"), ("torch.hub", "load", "a/b"), ("runpy", "run_path", "{}")),
    *(("builtins", "__import__", "antigravity"), ("importlib", "import_module", "this")),
    *(("numpy", "load", "{}"), ("shutil", "rmtree", "{}"), ("pty", "spawn", "id")),
    *(("torch.serialization", "load", "{}"), ("models.source_tiny", "fails", "")),
    *(("builtins", "getattr", "x"), ("operator", "attrgetter", "x"), ("code", "interact", "x")),
)
_LARGE: Final = 8 << 30


def _zipped(path: Path, pickled: bytes, **entries: bytes) -> Path:
    """Writes an archive of torch with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, content in entries.items():
            archive.writestr(f"a/{name.replace('__', '/')}", content)
    return path


def _checkpoint(what: str, path: Path, random: Random) -> Crafted:
    """Hands a file over as a checkpoint: of a factory, of timm or with a builder."""
    way = random.randrange(4)
    if way == 0:
        return Crafted(f"{what}, of a factory", BUILDER, {"checkpoint": path})
    if way == 1:
        return Crafted(f"{what}, as a source alone", str(path))
    return Crafted(what, str(path), {"builder": BUILDER})


def _bytes(random: Random, place: Path, honest: Honest) -> Crafted:
    """Damages bytes of a checkpoint of one of the three layouts."""
    path = random.choice((honest.state, honest.plain, honest.tensors))
    content, done = damaged(path.read_bytes(), random)
    made = place / path.name
    made.write_bytes(content)
    return _checkpoint(f"{path.name}: {done}", made, random)


def _pickle_bytes(random: Random, place: Path, honest: Honest) -> Crafted:
    """Damages bytes of the pickle of a checkpoint, and packs it rightly."""
    made = place / "state.pt"
    with zipfile.ZipFile(honest.state) as old, zipfile.ZipFile(made, "w") as new:
        done = ""
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("data.pkl"):
                content, done = damaged(content, random)
            new.writestr(info.filename, content)
    return _checkpoint(f"pickle: {done}", made, random)


def _call(random: Random, place: Path, honest: Honest) -> Crafted:
    """Names a function and calls it, somewhere in a checkpoint."""
    module, name, argument = random.choice(_CALLS)
    given = argument.format(place / "ran").encode()
    call = f"c{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(given)) + given + b"\x85R"
    way = random.randrange(5)
    body = {
        0: b"\x80\x02" + call + b".",
        1: b"\x80\x02}X\x05\x00\x00\x00model" + call + b"s.",
        2: b"\x80\x02}" + call + b"K\x01s.",
        3: b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00items" + call + b"sb.",
        4: b"\x80\x02c__builtin__\nset\n](" + call + b"e\x85R.",
    }[way]
    made = _zipped(place / "state.pt", body, byteorder=b"little")
    if random.random() < 0.2:
        made.write_bytes(body)
    return _checkpoint(f"a call of {module}.{name}, place {way}", made, random)


def _large(random: Random, place: Path, honest: Honest) -> Crafted:
    """Asks for memory that the file has no bytes for."""
    size = random.choice((_LARGE, 1 << 33, (1 << 63) - 1, 1 << 32))
    long = struct.pack("<Q", size)
    number = pickle.dumps(size, 2)[2:-1]
    way, body = random.choice(
        (
            ("bytearray8", b"\x80\x05\x96" + long + b"x."),
            ("bytes8", b"\x80\x04\x8e" + long + b"x."),
            ("text8", b"\x80\x04\x8d" + long + b"x."),
            ("bytearray called", b"\x80\x02cbuiltins\nbytearray\n" + number + b"\x85R."),
            ("bytes called", b"\x80\x02cbuiltins\nbytes\n" + number + b"\x85R."),
            ("memo", b"\x80\x02}r" + struct.pack("<I", 0x7FFFFFFF) + b"."),
            ("frame", b"\x80\x04\x95" + long + b"}."),
            ("long4", b"\x80\x02\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"x."),
            ("range", b"\x80\x02cbuiltins\nlist\ncbuiltins\nrange\n" + number + b"\x85R\x85R."),
            ("digits", b"\x80\x02I" + b"9" * 200_000 + b"\n."),
            ("persistent", b"Pstorage\n."),
            ("text of text", b"\x80\x02cbuiltins\nstr\n" + b"]" * 3000 + b"a" * 2999 + b"\x85R."),
        )
    )
    return _checkpoint(f"{way} of {size}", _zipped(place / "state.pt", body), random)


def _nested(random: Random, place: Path, honest: Honest) -> Crafted:
    """Nests deep, shares without end, or contains itself."""
    levels = random.choice((50, 900, 100_000, 1_000_000))
    tower = b"".join(
        b"r" + struct.pack("<I", i) + b"j" + struct.pack("<I", i) + b"\x86" for i in range(60)
    )
    way, body = random.choice(
        (
            ("tuples", b"\x80\x02K\x01" + b"\x85" * levels + b"."),
            ("tuples as a key", b"\x80\x02}K\x01" + b"\x85" * levels + b"K\x01s."),
            ("tuples in a set", b"\x80\x04\x8f(K\x01" + b"\x85" * levels + b"\x90."),
            ("lists", b"\x80\x02" + b"]" * levels + b"a" * (levels - 1) + b"."),
            (
                "dicts",
                b"\x80\x02" + b"}X\x05\x00\x00\x00model" * levels + b"}" + b"s" * levels + b".",
            ),
            ("a tower as a key", b"\x80\x02}K\x01" + tower + b"K\x01s."),
            ("a tower as a text", b"\x80\x02cbuiltins\nstr\n]K\x01a" + tower + b"\x85R."),
            ("a tower in a set", b"\x80\x02cbuiltins\nfrozenset\n]K\x01" + tower + b"a\x85R."),
            ("itself", b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."),
            (
                "an ordered dict within itself",
                b"\x80\x02ccollections\nOrderedDict\n)Rq\x00X\x05\x00\x00\x00modelh\x00s.",
            ),
            (
                "frozen sets",
                b"\x80\x04K\x01" + b"(" * 0 + b"".join(b"\x85" for _ in range(3)) + b".",
            ),
            ("marks", b"\x80\x02" + b"(" * levels + b"."),
        )
    )
    return _checkpoint(f"{way}, {levels} levels", _zipped(place / "state.pt", body), random)


def _names(random: Random, place: Path, honest: Honest) -> Crafted:
    """Names weights so that a terminal would obey, or without end."""
    count, long = random.choice(((1, 300), (3, 300), (3, 1), (2000, 1)))
    names = [text(random)[:300] * long for _ in range(count)]
    body = b"\x80\x02}("
    for number, name in enumerate(names):
        raw = f"{name}{number or ''}".encode("utf-8", "surrogatepass")
        body += b"X" + struct.pack("<I", len(raw)) + raw + _tensor((2,), (1,), 0, 4)
    return _checkpoint(
        f"weights called {names[0]!r:.40}",
        _zipped(place / "state.pt", body + b"u.", data__0=bytes(16)),
        random,
    )


def _tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, count: int) -> bytes:
    """Returns the opcodes that make a tensor of float32."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + pickle.dumps(count, 2)[2:-1]
        + b"tQ"
    )
    numbers = b"".join(pickle.dumps(each, 2)[2:-1] for each in (offset,))
    sizes = b"".join(
        b"(" + b"".join(pickle.dumps(one, 2)[2:-1] for one in each) + b"t"
        for each in (shape, stride)
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + sizes + b"\x89}tR"


def _shapes(random: Random, place: Path, honest: Honest) -> Crafted:
    """Gives a tensor huge, negative or overflowing shapes, strides and places."""
    sizes = (*COUNTS, 2**70, 0, 1, 2, 4)
    rank = random.choice((0, 1, 1, 2, 3, 70))
    shape = tuple(random.choice(sizes) for _ in range(rank))
    stride = tuple(random.choice((0, 0, 1, *sizes)) for _ in range(rank))
    offset, count = random.choice((0, 0, 0, *sizes)), random.choice((4, 4, 4, *sizes))
    body = b"\x80\x02}X\x01\x00\x00\x00w" + _tensor(shape, stride, offset, count) + b"s."
    made = _zipped(place / "state.pt", body, data__0=bytes(16), byteorder=b"little")
    return _checkpoint(f"a tensor {shape!r:.60}, {stride!r:.60}, {offset} of {count}", made, random)


def _bomb(random: Random, place: Path, honest: Honest) -> Crafted:
    """Packs 300 MB or more of zeros into an entry."""
    made = place / "state.pt"
    entry = random.choice(
        ("a/byteorder", "a/data.pkl", "a/data/0", "a/version", "a/.format_version")
    )
    megabytes = random.choice((300, 500))
    body = b"\x80\x02}X\x01\x00\x00\x00w" + _tensor((2**31,), (1,), 0, 2**31) + b"s."
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if entry != "a/data.pkl":
            archive.writestr("a/data.pkl", body)
        with archive.open(entry, "w", force_zip64=True) as file:
            if entry == "a/data.pkl":
                file.write(b"\x80\x04\x8e" + struct.pack("<Q", megabytes << 20))
            for _ in range(megabytes):
                file.write(bytes(1 << 20))
    return _checkpoint(f"{entry} of {megabytes} MB of zeros", made, random)


def _no_file(random: Random, place: Path, honest: Honest) -> Crafted:
    """Puts a pipe, a device, a socket's name, a link or a folder in place of a file."""
    suffix = random.choice((".pt", ".pt2", ".safetensors", ".bin"))
    path = place / f"model{suffix}"
    way = random.choice(
        ("pipe", "/dev/zero", "/dev/random", "/dev/stdin", "loop", "gone", "folder")
    )
    if way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    else:
        target = {"loop": path, "gone": place / "gone"}.get(way, Path(way))
        path.symlink_to(target)
    return _checkpoint(f"{way} in place of model{suffix}", path, random)


def _orders(random: Random, place: Path, honest: Honest) -> Crafted:
    """Declares another byte order, version or number than the file has."""
    body = b"\x80\x02}X\x01\x00\x00\x00w" + _tensor((2,), (1,), 0, 4) + b"s."
    order = random.choice((b"big", b"middle", b"", b"little\0", b"\xff" * 9, b"LITTLE"))
    made = _zipped(place / "state.pt", body, data__0=bytes(16), byteorder=order)
    return _checkpoint(f"byte order {order!r}", made, random)


def _header(random: Random, place: Path, honest: Honest) -> Crafted:
    """Writes a header of safetensors that says what is not so."""
    made = place / "state.safetensors"
    header = random.choice(
        (
            '{"w":{"dtype":"F32","shape":[9223372036854775807,2],"data_offsets":[0,8]}}',
            '{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}',
            '{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}',
            '{"w":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}',
            '{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
            '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,99999999999999]}}',
            '{"w":{"dtype":"F32","shape":[0,99999999999],"data_offsets":[0,0]}}',
            '{"\\u001b[2J":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            '{"__metadata__":{"format":"flax"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            '{"w":' + "[" * 100_000 + "]" * 100_000 + "}",
            '{"a":1,' * 20_000,
            "{}",
            "{" + " " * 1000,
        )
    ).encode()
    length = random.choice((len(header), len(header), len(header), 2**63, len(header) + 9, 1))
    made.write_bytes(struct.pack("<Q", length) + header + bytes(8))
    return _checkpoint(f"header {header!r:.60} of {length}", made, random)


def _module(random: Random, place: Path, honest: Honest) -> Crafted:
    """Hands a pickled module over, damaged or not, without trust."""
    made = place / "module.pt"
    content, done = honest.module.read_bytes(), "as it is"
    if random.random() < 0.8:
        content, done = damaged(content, random)
    made.write_bytes(content)
    options = {"builder": BUILDER} if random.random() < 0.3 else {}
    return Crafted(f"a pickled module: {done}", str(made), options)


CHECKPOINTS: Final[tuple[Craft, ...]] = (
    *(_bytes, _bytes, _pickle_bytes, _pickle_bytes, _call, _call, _large, _large, _nested, _nested),
    *(_names, _shapes, _shapes, _shapes, _bomb, _no_file, _orders, _header, _header),
)
MODULES: Final[tuple[Craft, ...]] = (_module,)
