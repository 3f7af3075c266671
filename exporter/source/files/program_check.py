"""Finds fields in the JSON of an exported program that could run code in torch.

torch.export's format looks like data, and its loader trusts it. These fields become Python, or
choose a function to call::

    expr_str               given to sympy.sympify, which evaluates it
    name, as_name, keys    written into the generated forward, which is executed
    in_spec, out_spec      may name modules to import
    target, as_operator    looked up from torch with getattr: torch.os.system is a name there

Here every one of them must have the form that torch itself writes. ``guards_code``, also executed,
is left out by asking for the module without its guards. Strings torch only keeps are not looked at:
``as_string`` (written with repr) and ``metadata``.
"""

from __future__ import annotations

import ast
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_FREE = ("as_string", "as_strings", "metadata", "guards_code")
_PLAIN = re.compile(r"[\w.+-]*")
_IDENTIFIERS = ("name", "as_name", "forward_arg_names")
_OPERATOR = re.compile(r"torch\.ops\.([a-z_]\w*)\.(\w+)(?:\.(\w+))?")
_SYMBOLIC = re.compile(r"torch\.sym_[a-z]+|math\.[a-z]\w*")
# Namespaces whose operators compute on tensors, and do nothing else.
NAMESPACES = (
    "aten",
    "higher_order",
    "prims",
    "quantized",
    "quantized_decomposed",
    "tokexport",
    "torchvision",
)
_PYTHON_OPERATORS = (
    *("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod"),
    *("pow", "truediv", "and_", "or_", "lshift", "rshift", "getitem"),
)
# What sympy's srepr writes, and the functions that torch adds.
_EXPRESSIONS = (
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs"),
    *("Equality", "Eq", "Unequality", "Ne", "Not", "And", "Or", "Piecewise", "ExprCondPair"),
    *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "floor", "ceiling"),
    *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt"),
    *("FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv"),
    *("IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt"),
    *("RoundToInt", "RoundDecimal", "ToFloat", "Identity"),
)
#: Functions of sizes whose results may grow without bound; a size may have few, with small numbers.
_GROWING = ("Pow", "PowByNatural", "FloatPow", "LShift", "RShift")
_MOST_GROWING = 4
_LARGEST_EXPONENT = 8
_MOST_DIGITS = 1000
_LONGEST = 10_000
_SYMBOL = re.compile(r"[a-z_]+\d*")
_NODES = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.Tuple),
    *(ast.UnaryOp, ast.USub, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow),
    *(ast.FloorDiv, ast.Mod),
)
_IMPORTING_TREE = "collections.defaultdict"  # its context names a module and a function


def unsafe_parts(program: Any) -> Iterator[str]:
    """Yields a clause for every field of a program that could run code.

    Args:
        program: ``models/<name>.json`` of the archive, parsed.
    """
    yield from _walk(program, "")


def _walk(value: Any, key: str) -> Iterator[str]:
    """Checks a value under its key; the elements of a list have the list's key."""
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            if key != "range_constraints" and _PLAIN.fullmatch(inner_key) is None:
                yield f"the name {_short(inner_key)} in {key!r}"
            if inner_key not in _FREE:
                yield from _walk(inner, inner_key)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, key)
    elif isinstance(value, str):
        yield from _check_text(value, key)


def _check_text(text: str, key: str) -> Iterator[str]:
    if key in ("target", "as_operator"):
        why = operator_fault(text)
        if why:
            yield f"the function {_short(text)} {why}"
    elif key == "expr_str":
        if not _is_expression(text):
            yield f"the size {_short(text)} is not an expression of sizes"
    elif key in ("in_spec", "out_spec"):
        yield from _check_tree(text, key)
    elif key in _IDENTIFIERS:
        if text and not text.isidentifier():
            yield f"the name {_short(text)} is not one of a value"
    elif _PLAIN.fullmatch(text) is None:
        yield f"the text {_short(text)} in {key!r}"


def operator_fault(target: str) -> str:
    """Returns why a function may not be in a program; empty when it may."""
    if _SYMBOLIC.fullmatch(target):
        return ""
    if target.startswith("_operator."):
        known = target.removeprefix("_operator.") in _PYTHON_OPERATORS
        return "" if known else "is not arithmetic on sizes"
    match = _OPERATOR.fullmatch(target)
    if match is None:
        return "is not an operator on tensors"
    namespace, name, overload = match.groups()
    if namespace not in NAMESPACES:
        return f"is of the namespace {namespace!r}, whose code tokexport does not know"
    return _operator_object_fault(namespace, name, overload)


def _operator_object_fault(namespace: str, name: str, overload: str | None) -> str:
    import torch
    from torch._ops import HigherOrderOperator, OpOverload

    found = getattr(getattr(torch.ops, namespace), name, None)
    if found is not None and overload is not None:
        found = getattr(found, overload, None)
    if found is None:  # torch says so itself when it loads the program
        return ""
    if isinstance(found, HigherOrderOperator):
        return ""
    if not isinstance(found, OpOverload):
        return "is not an operator on tensors"
    if any(argument.name == "filename" for argument in found._schema.arguments):
        return "reads or writes files"
    if not torch._C._dispatch_has_kernel(found._name):
        return "is not an operator on tensors"
    return ""


def _is_expression(text: str) -> bool:
    """Returns whether a text consists of symbols, numbers and the functions of sizes alone."""
    if len(text) > _LONGEST:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if not _is_bounded(tree):
        return False
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    named = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Symbol"
        and node.args
    }
    return all(_is_expression_node(node, called, named) for node in ast.walk(tree))


def _is_bounded(tree: ast.Expression) -> bool:
    """Returns whether sympy finishes with an expression: few powers, of small numbers."""
    numbers = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    growing = [*_growing(tree)]
    return (
        len(growing) <= _MOST_GROWING
        and all(_is_at_most(number, limit) for number, limit in growing)
        and all(abs(number) < 2**64 for number in numbers if isinstance(number, int))
    )


def _growing(tree: ast.Expression) -> Iterator[tuple[ast.expr | None, int]]:
    """Yields the exponents, shifts and precisions of an expression, with their limits."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            yield node.right, _LARGEST_EXPONENT
        elif isinstance(node, ast.keyword) and node.arg == "precision":
            yield node.value, _MOST_DIGITS
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in _GROWING:
            yield (node.args[1] if len(node.args) > 1 else None), _LARGEST_EXPONENT


def _is_at_most(node: ast.expr | None, limit: int) -> bool:
    """Returns whether a node is a small number, written as ``2``, ``-1`` or ``Integer(2)``."""
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    if isinstance(node, ast.Call) and node.args:  # Rational(1, 2) is less than its first number
        return _is_at_most(node.args[0], limit)
    value = node.value if isinstance(node, ast.Constant) else None
    return isinstance(value, int | float) and abs(value) <= limit


def _is_expression_node(node: ast.AST, called: set[int], named: set[int]) -> bool:
    if not isinstance(node, _NODES):
        return False
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name)
    if isinstance(node, ast.Name):
        pool = node.id in _EXPRESSIONS
        return pool if id(node) in called else pool or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        # Strings are evaluated once more anywhere but in Symbol and Float.
        if id(node) in named:
            return node.value.isidentifier()
        return re.fullmatch(r"-?[\d.]{1,40}(e[+-]?\d{1,3})?", node.value) is not None
    return True


def _check_tree(text: str, key: str) -> Iterator[str]:
    """Checks how inputs and outputs are nested."""
    try:
        _, root = json.loads(text)
        if key == "in_spec":
            yield from _check_keywords(root)
        yield from _check_level(root)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        yield f"the structure {_short(text)} of {key!r}"


def _check_keywords(root: dict[str, Any]) -> Iterator[str]:
    """Checks the names of inputs given by name: they are parameters of the generated forward."""
    children = root["children_spec"]
    if root["type"] != "builtins.tuple" or len(children) != 2 or not children[1]["context"]:
        return
    for name in json.loads(children[1]["context"]):
        if not isinstance(name, str) or not name.isidentifier():
            yield f"the input's name {_short(str(name))}"


def _check_level(level: dict[str, Any]) -> Iterator[str]:
    if level["type"] == _IMPORTING_TREE:
        yield f"a {_IMPORTING_TREE}, which names a function to import"
    if _names_enumeration(level["context"]):
        yield f"an enumeration to import, {_short(str(level['context']))}"
    for child in level["children_spec"]:
        yield from _check_level(child)


def _names_enumeration(context: Any) -> bool:
    """Returns whether a context, which is JSON in a string, names an enumeration's module."""
    if isinstance(context, str):
        try:
            return _names_enumeration(json.loads(context))
        except ValueError:
            return False
        except RecursionError:
            return True
    if isinstance(context, dict):
        return "__enum__" in context or any(map(_names_enumeration, context.values()))
    return isinstance(context, list) and any(map(_names_enumeration, context))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}…")
