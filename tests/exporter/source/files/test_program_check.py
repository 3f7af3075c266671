from __future__ import annotations

import pytest
import torch

from tokexport.exporter.source.files.program_check import operator_fault, unsafe_parts


def faults(expression: str) -> list[str]:
    return list(unsafe_parts({"sizes": [{"as_expr": {"expr_str": expression}}]}))


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('s0', integer=True))",
        "Add(Integer(-1), Pow(Symbol('u0', integer=True), Integer(2)))",
        "FloorDiv(Add(Symbol('s0', integer=True), Integer(3)), Integer(2))",
        "Float('0.5', precision=53)",
        "2*s0 + 1",
        "(s0 - 1)//2",
        "Max(1, s0)",
    ],
)
def test_expressions_of_sizes(expression: str) -> None:
    assert faults(expression) == []


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "exec('x')",
        "Symbol('s0').args",
        "Symbol('exec(1)')",
        "Add('exec(1)', 1)",
        "Integer('exec(1)')",
        "Symbol(s0, 'exec(1)')",
        "(lambda: 1)()",
        "[exec for exec in s0]",
        "s0[0]",
        "f'{s0}'",
        "getattr(s0, 'x')",
        "s0 if 1 else 2",
        "s0.__class__",
        "s0 = 1",
        "(",
        "9**9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(99)))",
        "Pow(s0, Symbol('s1'))",
        "LShift(1, 10**12)",
        "PowByNatural(10, 100000000000)",
        "Pow(Pow(Pow(Pow(Pow(s0, 8), 8), 8), 8), 8)",
        "Float('1e999999999')",
        "Float('0.5', precision=999999999)",
        "Add(" + "1, " * 4000 + "s0)",
    ],
)
def test_what_is_no_expression_of_sizes(expression: str) -> None:
    assert len(faults(expression)) == 1


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.add.Tensor",
        "torch.ops.aten._softmax.default",
        "torch.ops.aten.einsum.default",
        "torch.ops.higher_order.cond",
        "_operator.getitem",
        "_operator.floordiv",
        "math.trunc",
        "torch.sym_max",
    ],
)
def test_operators(target: str) -> None:
    assert operator_fault(target) == ""


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("torch.os.system", "is not an operator on tensors"),
        ("torch.load", "is not an operator on tensors"),
        ("torch.hub.load", "is not an operator on tensors"),
        ("torch.ops.load_library", "is not an operator on tensors"),
        ("torch.ops.aten.save.default", "reads or writes files"),
        ("torch.ops.aten.add", "is not an operator on tensors"),
        ("torch.ops.aten.add.__class__", "is not an operator on tensors"),
        ("torch.ops.aten.from_file.default", "reads or writes files"),
        ("torch.ops.other.run.default", "is of the namespace 'other'"),
        ("_operator.methodcaller", "is not arithmetic on sizes"),
        ("_operator.attrgetter", "is not arithmetic on sizes"),
        ("os.system", "is not an operator on tensors"),
        ("math.__loader__", "is not an operator on tensors"),
        ("torch.sym_max.__globals__", "is not an operator on tensors"),
    ],
)
def test_functions_that_are_no_operators(target: str, why: str) -> None:
    assert why in operator_fault(target)


def test_every_operator_that_takes_a_file_is_refused() -> None:
    """Looks at all operators that torch registers, so that a new one is noticed."""
    names = [
        schema.name.replace("::", ".") + f".{schema.overload_name or 'default'}"
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("aten::")
        and any("file" in argument.name for argument in schema.arguments)
    ]
    assert "aten.from_file.default" in names
    assert all(operator_fault(f"torch.ops.{name}") for name in names)
