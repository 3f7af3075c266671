"""Crafts names of sources, and recipes as text, TOML and JSON."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Final

from attacks.honest_sources import Craft, Crafted, Honest
from attacks.values import text

_TIMM: Final = (
    *("hf-hub:a/b", "hf_hub:a/b", "local-dir:/etc", "vit_tiny_patch16_224.hf-hub:a/b", "../x", ""),
    *(
        "test_vit.",
        "test_vit.\x1b[2J",
        "test_vit.none",
        "test_vit/../x",
        "https://[::1]/x",
        "a" * 4000,
    ),
    *("resnet18@main", "schema:x", "test_vit\n", "TEST_VIT", "test_vit.r160_in1k.x", "__class__"),
)
_NAMES: Final = (
    *("a" * 300, "a" * 5000, "x/" * 3000, "os:system", "os:getpid", "sys:exit", "builtins:iter"),
    *("models.source_tiny:fails", "models.source_tiny:leaves", "models.source_tiny:returns_pair"),
    *("models.source_tiny:__class__.__mro__", "models.source_tiny:build.__globals__", "nul\x00.pt"),
    *("\x1b[2J.pt", "\u202egnp.pt", "-", "--help", ".", "/", "~", "http://[::1]/model.pt", "a:b:c"),
    *(
        "models.source_tiny:needs_size",
        "models.source_tiny:NOT_CALLABLE",
        "ftp://x/y.pt2",
        "a\nb.pt",
    ),
    *(
        "models.source_tiny:Builders",
        "torch.hub:load",
        "models.source_tiny:fails_in_torch",
        "é" * 200,
    ),
)
_LITERALS: Final = (
    *(
        "9" * 400,
        "9" * 5000,
        "-1",
        "0",
        "1e999",
        "NaN",
        "[" * 900 + "]" * 900,
        "[" * 9000,
        '"',
        "{}",
    ),
    *(
        "[1,[2]]",
        "null",
        "true",
        "\x1b[2J",
        "1" * 30,
        "0x10",
        "[9e99]",
        "../x",
        "/dev/zero",
        "1e400",
    ),
    *("[" + "9" * 400 + "]", "[" * 300 + "1" + "]" * 300, "-" + "9" * 400),
)
_METHODS: Final = ("tome", "evit", "diffrate", "pitome", "mctf", "dynamicvit", "tofu", "random")
_KEYS: Final = (
    *("r", "keep", "layers", "schedule", "weights", "protect", "blocks", "restore", "ratio", "x"),
)


def _timm(random: Random, place: Path, honest: Honest) -> Crafted:
    """Asks timm for an unknown name, or for one elsewhere."""
    name = random.choice(_TIMM)
    options = {"checkpoint": honest.state} if random.random() < 0.2 else {}
    return Crafted(f"timm:{name!r:.60}", f"timm:{name}", options)


def _name(random: Random, place: Path, honest: Honest) -> Crafted:
    """Names no source."""
    name = random.choice((*_NAMES, text(random) + random.choice(("", ".pt", ":build"))))
    options = {"code_path": (place,)} if random.random() < 0.3 else {}
    return Crafted(f"name {name!r:.60}", name or "x", options)


def _builder(random: Random, place: Path, honest: Honest) -> Crafted:
    """Names no builder, or no checkpoint."""
    name = random.choice((*_NAMES, text(random)))
    if random.random() < 0.5:
        return Crafted(f"builder {name!r:.60}", str(honest.state), {"builder": name})
    wanted = {"checkpoint": Path(name.replace("\x00", ""))}
    return Crafted(f"checkpoint {name!r:.60}", "models.source_tiny:build", wanted)


def _factory(random: Random, place: Path, honest: Honest) -> Crafted:
    """Fails in the user's own code, which the message has to name."""
    body = random.choice(
        (
            "def build(): return build()",
            "def build(): 1 / 0",
            "raise SystemExit('\\x1b[2J')",
            "def build(): raise ValueError('\\x1b[2J' * 3000)",
            "build = {'a': 1}",
            "class build:\n  def __new__(cls): raise MemoryError",
            "def build(): return [[]] * 9",
            "def build(:",
            "import no_such_module_here\nbuild = 1",
            "class E(Exception):\n  def __str__(self): raise E()\ndef build(): raise E()",
            "build = type('build', (), {'__call__': None})()",
            "\x00",
            "import torch\ndef build(): return torch.nn.Linear(2, 2), {1: torch.ones(1)}",
            "import torch\nclass M(torch.nn.Module):\n"
            "  def __init__(self): raise SystemExit\nbuild = M",
        )
    )
    name = f"crafted_{random.randrange(10**9)}"
    (place / f"{name}.py").write_text(body, encoding="utf-8")
    return Crafted(f"factory {body!r:.60}", f"{name}:build", {"code_path": (place,)}, own=True)


def _recipe(random: Random, place: Path, honest: Honest) -> Crafted:
    """Writes a recipe with invalid options."""
    method = random.choice((*_METHODS, *_METHODS, text(random)))
    parts = [
        f"{random.choice((*_KEYS, text(random)))}={random.choice((*_LITERALS, text(random)))}"
        for _ in range(random.choice((1, 1, 2)))
    ]
    recipe = f"{method}:{','.join(parts)}".replace("\x00", "")
    return Crafted(f"recipe {recipe!r:.70}", recipe=recipe)


def _recipe_file(random: Random, place: Path, honest: Honest) -> Crafted:
    """Writes an invalid recipe file, or replaces it by something else."""
    suffix = random.choice((".toml", ".json"))
    path = place / f"recipe{suffix}"
    way = random.choice(("pipe", "/dev/zero", "loop", "folder", "text", "text", "text", "text"))
    if way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif way != "text":
        path.symlink_to({"loop": path}.get(way, Path(way)))
    else:
        literal = random.choice(_LITERALS)
        key = random.choice(_KEYS)
        content = random.choice(
            (
                f'method = "tome"\n{key} = {literal}\n',
                f'{{"method": "tome", "{key}": {literal}}}',
                "a" + ".a" * 20_000 + " = 1",
                '{"a":' * 5000,
                "[" * 100_000,
                "x = [" * 3000,
                "[[a]]\n" * 3000,
                'method = "\\u001b[2J"',
                "method = 1",
                "\x00",
                "x" * 3_000_000,
            )
        )
        path.write_text(content, encoding="utf-8")
        way = f"{content[:40]!r}"
    return Crafted(f"recipe{suffix}: {way}", recipe=str(path))


NAMES: Final[tuple[Craft, ...]] = (_timm, _name, _builder, _factory)
RECIPES: Final[tuple[Craft, ...]] = (_recipe, _recipe, _recipe_file)
