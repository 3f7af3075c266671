"""Crafts exported programs: archives whose JSON becomes Python, and their pickles."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

from attacks.honest_sources import Craft, Crafted, Honest
from attacks.values import damaged, text, value

#: Sizes of a graph, which torch evaluates.
_EXPRESSIONS: Final = (
    *("9**9**9**9", "Pow(Integer(9),Pow(Integer(9),Integer(99999999)))", "LShift(1, 10**12)"),
    *("Pow(Pow(Pow(Pow(Integer(99),99),99),99),99)", "1 << 99999999999", "(1," * 500),
    *(
        "PowByNatural(10, 10**11)",
        "Symbol('s0', integer=True)**10**9",
        "Add(" * 400 + "1" + ")" * 400,
    ),
    *("__import__('os').system('true')", "exec('x')", "Integer('__import__')", "lambda: 0"),
    *(
        "Mul(" + ",".join(["Add(Symbol('s0'),Symbol('s1'))"] * 3000) + ")",
        "10**10**10",
        "-" * 9000 + "1",
    ),
    *("Mod(10**400, 0)", "Integer(1)/Integer(0)", "Max()", "Float('1e999999999')", "s0" * 5000),
    *(
        "Float('0.5', precision=999999999)",
        "And(" + ",".join(f"Ne(s{i},{i})" for i in range(40)) + ")",
    ),
)
_OPERATORS: Final = (
    *(
        "torch.os.system",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.load",
        "eval",
        "_operator.call",
    ),
    *(
        "torch.ops.aten.save.default",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.full.default",
    ),
    *(
        "torch.ops.aten.empty.memory_format",
        "torch.ops.aten.repeat.default",
        "torch.ops.aten.linear.defaul",
    ),
    *(
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.resize_.default",
        "torch.ops.\x1b[2J.x.default",
    ),
    *("torch.ops.tokexport.gather_tokens.default", "torch.ops.higher_order.cond", "math.factorial"),
    *(
        "torch.sym_max",
        "_operator.pow",
        "_operator.lshift",
        "torch.ops.profiler._record_function_enter.default",
    ),
)
_PICKLES: Final = (
    b"cos\nsystem\n(S'touch {}'\ntR.",
    b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.",
    b"\x80\x05\x96" + struct.pack("<Q", 8 << 30) + b"x.",
    b"\x80\x02}r\xff\xff\xff\x7f.",
    b"\x80\x02K\x01" + b"\x85" * 500_000 + b".",
    b"\x80\x02}K\x01" + b"\x85" * 500_000 + b"K\x01s.",
    b"",
    b"\x80",
)


def _rewritten(
    honest: Honest, made: Path, change: dict[str, bytes], more: dict[str, bytes] | None = None
) -> Path:
    """Writes the program again, with entries changed by the ends of their names."""
    with zipfile.ZipFile(honest.program) as old, zipfile.ZipFile(made, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for info in old.infolist():
            ends = [end for end in change if info.filename.endswith(end)]
            new.writestr(info.filename, change[ends[0]] if ends else old.read(info))
        for name, content in (more or {}).items():
            new.writestr(f"{root}/{name}", content)
    return made


def _entry(honest: Honest, end: str) -> bytes:
    with zipfile.ZipFile(honest.program) as old:
        return old.read(next(name for name in old.namelist() if name.endswith(end)))


def _bytes(random: Random, place: Path, honest: Honest) -> Crafted:
    """Damages bytes of the archive."""
    content, done = damaged(honest.program.read_bytes(), random)
    made = place / "program.pt2"
    made.write_bytes(content)
    return Crafted(f"program: {done}", str(made))


def _entry_bytes(random: Random, place: Path, honest: Honest) -> Crafted:
    """Damages bytes of one entry, and packs it rightly."""
    with zipfile.ZipFile(honest.program) as old:
        name = random.choice(old.namelist()).partition("/")[2]
    content, done = damaged(_entry(honest, name), random)
    made = _rewritten(honest, place / "program.pt2", {name: content})
    return Crafted(f"{name}: {done}", str(made))


def _places(found: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the place of every value of JSON."""
    if path:
        yield path
    if isinstance(found, dict | list):
        for key, inner in found.items() if isinstance(found, dict) else enumerate(found):
            yield from _places(inner, (*path, key))


def _json(random: Random, place: Path, honest: Honest) -> Crafted:
    """Puts other values into the JSON of a program."""
    name = random.choice(
        ("models/model.json", "models/model.json", "models/model.json", "weights_config.json")
    )
    found = json.loads(_entry(honest, name))
    done = []
    for _ in range(random.choice((1, 1, 2))):
        *above, key = random.choice(list(_places(found)))
        inner = found
        for step in above:
            inner = inner[step]
        way = random.randrange(4)
        if way == 0 and isinstance(inner, dict):
            inner[text(random)] = inner[key]
            done.append(f"{key} twice")
        elif way == 1:
            del inner[key]
            done.append(f"{key} gone")
        else:
            inner[key] = value(random)
            done.append(f"{key} = {inner[key]!r:.40}")
    made = _rewritten(honest, place / "program.pt2", {name: json.dumps(found).encode()})
    return Crafted(f"{name}: {', '.join(done)}", str(made))


def _replaced(found: Any, wanted: str, by: Any) -> None:
    """Puts a value in the place of every one under a key."""
    for key, inner in list(found.items()) if isinstance(found, dict) else list(enumerate(found)):
        if key == wanted:
            found[key] = by
        elif isinstance(inner, dict | list):
            _replaced(inner, wanted, by)


def _field(random: Random, place: Path, honest: Honest) -> Crafted:
    """Writes Python, or what never ends, into the fields that torch evaluates."""
    found = json.loads(_entry(honest, "models/model.json"))
    key, by = random.choice(
        (
            ("expr_str", random.choice(_EXPRESSIONS)),
            ("expr_str", random.choice(_EXPRESSIONS)),
            ("expr_str", random.choice(_EXPRESSIONS)),
            ("target", random.choice(_OPERATORS)),
            ("target", random.choice(_OPERATORS)),
            ("as_name", "x):\n  import os\ndef f("),
            ("name", text(random)),
            ("as_int", 2**62),
            ("guards_code", ["__import__('os').system('true')"]),
            ("sizes", [{"as_int": 2**62}] * 3),
            ("in_spec", "[1," + "[" * 50_000),
            (
                "out_spec",
                json.dumps(
                    [
                        1,
                        {
                            "type": "collections.defaultdict",
                            "context": "os.system",
                            "children_spec": [],
                        },
                    ]
                ),
            ),
            ("nodes", []),
            ("max_val", 10**400),
            ("min_val", -(10**400)),
            ("metadata", {"stack_trace": text(random) * 1000, "nn_module_stack": "a,b;" * 999}),
            ("schema_version", {"major": random.choice((0, 99, -1)), "minor": 2**70}),
            ("torch_version", text(random)),
            ("opset_version", {"aten": 2**70}),
        )
    )
    _replaced(found, key, by)
    made = _rewritten(
        honest, place / "program.pt2", {"models/model.json": json.dumps(found).encode()}
    )
    return Crafted(f"{key} = {by!r:.60}", str(made))


def _pickle(random: Random, place: Path, honest: Honest) -> Crafted:
    """Puts a pickle where torch unpickles."""
    name = random.choice(
        ("data/sample_inputs/model.pt", "data/weights/x.pt", "data/constants/y.pt")
    )
    body = random.choice(_PICKLES).replace(b"{}", str(place / "ran").encode())
    made = place / "inner"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/version", b"3\n")
    content = made.read_bytes() if random.random() < 0.6 else body
    made = _rewritten(honest, place / "program.pt2", {name: content}, {name: content})
    return Crafted(f"{name} is {body!r:.40}", str(made))


def _more(random: Random, place: Path, honest: Honest) -> Crafted:
    """Adds an entry: a library, an object, a name in other letters, or one that leads outside."""
    name = random.choice(
        (
            *("data/aotinductor/model/x.so", "MODELS/model.json", "models/other.json"),
            *(
                "data/constants/custom_obj_0",
                "../../outside",
                "/etc/x",
                "archive_format",
                "extra/x.py",
            ),
            *("models/model.json", "byteorder", "code/__torch__.py", "constants.pkl", "data.pkl"),
        )
    )
    content = random.choice((b"", b"\x7fELF", b"{}", b"big", pickle.dumps({}), b"pt2"))
    made = _rewritten(honest, place / "program.pt2", {}, {name: content})
    return Crafted(f"also {name} {content!r}", str(made))


def _bomb(random: Random, place: Path, honest: Honest) -> Crafted:
    """Packs hundreds of MB of nothing into an entry."""
    name = random.choice(
        ("models/model.json", "data/sample_inputs/model.pt", "data/weights/weight_0")
    )
    content = random.choice((b" ", b"[", b"\0")) * (400 << 20)
    made = place / "program.pt2"
    with (
        zipfile.ZipFile(honest.program) as old,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename.endswith(name) else old.read(info))
    return Crafted(f"{name} of 400 MB of {content[:1]!r}", str(made))


PROGRAMS: Final[tuple[Craft, ...]] = (
    *(_bytes, _bytes, _entry_bytes, _entry_bytes, _json, _json, _json, _field, _field, _field),
    *(_field, _pickle, _pickle, _more, _bomb),
)
