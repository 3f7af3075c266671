"""Damages Protocol Buffers messages field by field, without their schema.

Nested messages look like texts on the wire; bytes that can be read as a message to their end are
taken for one, so a text is sometimes damaged as if it had fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from attacks.values import count, text

_VARINT, _FIXED64, _BYTES, _START, _END, _FIXED32 = 0, 1, 2, 3, 4, 5
#: Levels of messages that are gone into.
_DEEPEST: Final = 12

#: A field: its number, its wire type, and a number or bytes.
Field = tuple[int, int, int | bytes]


def damage_message(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damages one field of a message or of one within it; returns it and what was done."""
    return _damage(content, random, _DEEPEST)


def fields(content: bytes) -> list[Field] | None:
    """Returns the fields of a message; None where the bytes are none."""
    try:
        return list(_fields(content))
    except (ValueError, IndexError):
        return None


def _fields(content: bytes) -> Iterator[Field]:
    at = 0
    while at < len(content):
        key, at = _number(content, at)
        number, kind = key >> 3, key & 7
        if number == 0 or number > 10_000:
            raise ValueError("no field has this number")
        if kind == _VARINT:
            value, at = _number(content, at)
            yield number, kind, value
            continue
        if kind == _BYTES:
            length, at = _number(content, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("no field is of this type")
        if at + length > len(content):
            raise ValueError("the field is longer than the message")
        yield number, kind, content[at : at + length]
        at += length


def _number(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        byte = content[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("the number has more than 64 bits")


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def written(found: list[Field]) -> bytes:
    """Returns the message of fields."""
    whole = bytearray()
    for number, kind, value in found:
        whole += _varint(number << 3 | kind)
        if isinstance(value, int):
            whole += _varint(value)
        else:
            whole += (_varint(len(value)) if kind == _BYTES else b"") + value
    return bytes(whole)


def _damage(content: bytes, random: Random, depth: int) -> tuple[bytes, str]:
    found = fields(content)
    if not found:
        return _replaced(content, random)
    at = random.randrange(len(found))
    number, kind, value = found[at]
    if isinstance(value, bytes) and kind == _BYTES and depth and random.random() < 0.85:
        inner, done = _damage(value, random, depth - 1)
        found[at] = number, kind, inner
        return written(found), f"{number}.{done}"
    way = random.randrange(9)
    if way == 0:
        del found[at]
        return written(found), f"{number} gone"
    if way == 1:
        times = random.choice((1, 1, 100, 10_000 if len(content) < 1000 else 10))
        found[at:at] = [found[at]] * times
        return written(found), f"{number} {times} times more"
    if way == 2:
        found[at] = random.choice((1, 2, 3, 4, 5, 7, 8, 15, 20, 22, 25, 536)), kind, value
        return written(found), f"{number} is {found[at][0]}"
    if way == 3:
        other = random.randrange(len(found))
        found[at], found[other] = found[other], found[at]
        return written(found), f"{number} and {found[at][0]} change places"
    if way == 4 and isinstance(value, bytes):
        # Longer than what is there, or a group that never ends.
        wrong = _varint(number << 3 | random.choice((_BYTES, _START, _END, 6, 7)))
        length = _varint(random.choice((2**31 - 1, 2**32, 2**63, len(value) + 1)))
        return written(found[:at]) + wrong + length + value, f"{number} has no end"
    if way == 5 and isinstance(value, bytes):
        nested = value
        levels = random.choice((2, 99, 101, 2000))
        for _ in range(levels):
            nested = written([(number, _BYTES, nested)])
        found[at] = number, kind, nested
        return written(found), f"{number} {levels} times within itself"
    if isinstance(value, int):
        count_ = count(random)
        found[at] = number, kind, count_
        return written(found), f"{number} = {count_!r}"
    inner, done = _replaced(value, random)
    found[at] = number, kind, inner[: len(value)] if kind != _BYTES else inner
    return written(found), f"{number}: {done}"


def _replaced(content: bytes, random: Random) -> tuple[bytes, str]:
    """Replaces bytes that are no message."""
    way = random.randrange(6)
    if way == 0:
        return b"", "empty"
    if way == 1:
        said = text(random)
        return said.encode("utf-8", "surrogatepass"), f"{said!r:.40}"
    if way == 2:
        return content[: len(content) // 2], "half of it"
    if way == 3:
        return content * 2, "twice"
    if way == 4:
        return b"".join(_varint(count(random)) for _ in range(3)), "three numbers"
    return random.randbytes(max(len(content), 1)), "by chance"
