"""Translates errors of torch's tracer into terms of the user's code.

``FakeTensor(..., size=(u0, 2))`` becomes "a tensor (?, 2)", ``aten.foo.default(Tensor self, …)``
the operator's name, and what is known to happen to users is explained in terms of their code.
"""

from __future__ import annotations

import re
from typing import Final

#: Errors of torch that say that a size or a branch depends on the data, by their class.
_OF_DATA: Final = (
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "GuardOnDataDependentSymNode",
    "PendingUnbackedSymbolNotFound",
)
#: Patterns in the class and text of an error, and their explanations.
_KNOWN: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern, re.DOTALL), said)
    for pattern, said in (
        (
            r"\.numpy\(\) is not supported|Cannot access data pointer|data is not allocated yet",
            "the numbers of a tensor go to NumPy or another library, which no trace follows",
        ),
        (
            r"FakeTensor\.__format__|FakeTensor\.__(int|float|index|bool)__",
            "the number in a tensor is read as a number or text of Python",
        ),
        (
            r"UncapturedHigherOrderOpError",
            "what torch.cond, while_loop, map, scan or the like calls cannot be traced by itself",
        ),
        (
            r"no fake impl registered for (?:<CustomOpDef\()?(?P<name>[\w:.]+)|"
            r"(?P<other>[\w:]+): attempted to run this operator with Meta tensors",
            "the operator {name} does not say which shapes it gives; register_fake lets it",
        ),
        (
            r"UnsupportedOperatorException: (?P<name>[\w:.]+)",
            "it has no rule for the operator {name}",
        ),
        (
            r"SymIntArrayRef expected to contain only concrete",
            "it asks for sizes as numbers, and a size here depends on the data",
        ),
        (
            r"ConstraintViolationError|Constraints violated",
            "its code works for the size of the example only",
        ),
    )
)
_TENSOR: Final = re.compile(r"FakeTensor\((?:\.\.\.|[^()]*?)(?:, )?size=\(([^()]*)\)[^()]*\)")
_SYMBOL: Final = re.compile(r"\b(?:[su]\d+|zuf\d+)\b")
_SCHEMA: Final = re.compile(r"(\b\w+(?:\.|::)\w+(?:\.\w+)?)\([A-Z]\w*\b[^)]*\)( ->[^\n]*)?")
_PLACE_IN_TORCH: Final = re.compile(r"^\S+\.(?:cpp|h|cu):\d+: ")
_DECLARATION: Final = re.compile(r"\s*(Declaration|Position|Value): .*", re.DOTALL)
_NODE: Final = re.compile(r"[(,]?\s*%\w+\b|<built-in method (\w+)[^>]*>|<class '([^']*)'>")


def depends_on_data(error: BaseException) -> bool:
    """Returns whether torch met a size or a branch that the values of the input decide."""
    return type(error).__name__ in _OF_DATA or "data-dependent" in str(error).lower()


def in_words(error: BaseException, *, whole: bool = False) -> str:
    """Returns an error in the user's terms, one clause without a full stop.

    Args:
        error: What torch, or the model's code, raised.
        whole: All lines of what the model's code raised, not the first alone.
    """
    kind = type(error).__name__
    text = str(error).strip()
    for pattern, said in _KNOWN:
        if match := pattern.search(f"{kind}: {text}"):
            name = next((one for one in match.groupdict().values() if one), "")
            return said.format(name=name.replace("::", "."))
    torchs = type(error).__module__.partition(".")[0] == "torch"
    kept = text if whole and not torchs else text.partition("\n")[0]
    kept = _without_insides(kept)
    if torchs:
        return kept or "torch says no more"
    return f"{kind}: {kept}" if kept else kind


def _without_insides(text: str) -> str:
    text = _DECLARATION.sub("", _PLACE_IN_TORCH.sub("", text))
    text = _TENSOR.sub(lambda match: f"a tensor ({_SYMBOL.sub('?', match[1])})", text)
    text = text.replace("FakeTensor", "tensor")
    text = _SCHEMA.sub(lambda match: match[1], text)
    text = _NODE.sub(lambda match: match[1] or match[2] or "", text)
    return _SYMBOL.sub("?", text).strip().removesuffix(".")
