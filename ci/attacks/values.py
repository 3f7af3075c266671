"""Draws replacements of numbers, texts and bytes, and damages bytes."""

from __future__ import annotations

from random import Random
from typing import Any, Final

#: Counts and sizes: products of two or three of these leave 64 bits.
COUNTS: Final = (
    *(-(2**63), -(2**31), -1, 0, 1, 2, 3, 7, 255, 2**16, 2**24, 2**31 - 1, 2**31, 2**32),
    *(2**32 + 1, 2**44, 2**61, 2**62 + 1, 2**63 - 2, 2**63 - 1),
)
FRACTIONS: Final = (0.0, -0.0, -1.0, 1e-45, 3.4e38, float("inf"), -float("inf"), float("nan"))
#: Texts that name nothing, lead elsewhere, or steer what prints them.
TEXTS: Final = (
    *("", ".", "..", "/", "../outside", "/etc/passwd", "a\\b", "C:\\windows", "a/../../b", "~"),
    *("a\0b", "\x1b[2J\x1b]0;owned\x07", "line\nbreak\rback", "\u202egnp.exe", "\x9b31m", "%s%n"),
    *("x" * 300, "x" * 5000, "model.onnx", "manifest.json", "reference.npz", "é" * 200, "\ud800"),
    *("float32", "object", "O", "V8", "M8[ns]", "f4,f4", "NaN", "None", "true", "0x10", "1e999"),
)


def count(random: Random) -> int:
    """Returns a count."""
    return random.choice(COUNTS) if random.random() < 0.8 else random.randint(-300, 300)


def text(random: Random) -> str:
    """Returns a text."""
    return random.choice(TEXTS)


def value(random: Random, depth: int = 3) -> Any:
    """Returns a value of JSON of any type."""
    way = random.randrange(8 if depth else 6)
    if way == 0:
        return count(random)
    if way == 1:
        return random.choice(FRACTIONS)
    if way == 2:
        return text(random)
    if way < 6:
        return random.choice((None, True, False, 10**400, -(10**30), [], {}, "", 0, 1, 1.5, -1))
    if way == 6:
        return [value(random, depth - 1) for _ in range(random.randrange(4))]
    return {text(random): value(random, depth - 1) for _ in range(random.randrange(4))}


def damaged(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damages bytes at one to four places; returns them and what was done."""
    found = bytearray(content)
    done = [_damage(found, random) for _ in range(random.choice((1, 1, 1, 2, 4)))]
    return bytes(found), ", ".join(done)


def _damage(found: bytearray, random: Random) -> str:
    """Damages bytes at one place."""
    if not found:
        found += bytes(random.randrange(1, 64))
        return "filled with zeros"
    at = random.randrange(len(found))
    if random.random() < 0.3:  # where formats keep what they say of themselves
        at = random.choice((0, 1, 4, 8, len(found) - 1, len(found) - 22)) % len(found)
    length = min(random.choice((1, 2, 4, 8, 64, 1024)), len(found) - at)
    way = random.randrange(9)
    if way <= 1:
        found[at] ^= 1 << random.randrange(8)
        return f"a bit of {at} turned"
    if way == 2:
        found[at : at + length] = random.randbytes(length)
        return f"{length} bytes by chance at {at}"
    if way == 3:
        found[at : at + length] = bytes([random.choice((0, 0xFF, 0x80, 0x7F))]) * length
        return f"{length} bytes the same at {at}"
    if way == 4:
        del found[at:]
        return f"cut at {at}"
    if way == 5:
        del found[at : at + length]
        return f"{length} bytes gone at {at}"
    if way == 6:
        found[at:at] = random.randbytes(length)
        return f"{length} bytes put in at {at}"
    other = random.randrange(len(found))
    if way == 7:
        piece = found[other : other + length]
        found[at : at + len(piece)] = piece
        return f"{len(piece)} bytes of {other} copied to {at}"
    found += found[: random.choice((len(found), length))]
    return "joined with itself"
