"""What ``help()`` says of the public functions."""

from __future__ import annotations

import ast
import pydoc
import re
from dataclasses import MISSING, fields

import pytest

import tokexport
from tokexport.exporter.config import CompileConfig, CompileOptions

HELP = pydoc.plain(pydoc.render_doc(tokexport.compile))
DEFAULTS = {one.name: one.default for one in fields(CompileConfig) if one.default is not MISSING}


def test_every_option_of_compile_has_a_default() -> None:
    assert set(DEFAULTS) == set(CompileOptions.__annotations__)


@pytest.mark.parametrize("name", DEFAULTS)
def test_help_has_every_option_of_compile_with_its_default_and_its_meaning(name: str) -> None:
    (found,) = re.findall(rf"^ +{name} \(default (.*?)\): (\S.*)$", HELP, re.MULTILINE)
    default, meaning = found
    assert ast.literal_eval(default) == DEFAULTS[name]
    assert len(meaning.split()) > 3


def test_help_names_no_option_of_compile_that_there_is_not() -> None:
    assert set(re.findall(r"^ +(\w+) \(default ", HELP, re.MULTILINE)) == set(DEFAULTS)
