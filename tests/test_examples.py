"""The examples in docstrings say what the code does."""

import doctest
import importlib

import pytest
from conftest import ROOT

MODULES = [
    path.stem for path in sorted((ROOT / "minikits").glob("*.py")) if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    module = importlib.import_module(f"minikits.{name}")

    tried = doctest.testmod(module)

    assert tried.attempted > 0
    assert tried.failed == 0
