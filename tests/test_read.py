"""The figures of benchmarks/read.py, on a few lines that can be counted by hand."""

import importlib.util

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def read():
    path = ROOT / "benchmarks" / "read.py"
    spec = importlib.util.spec_from_file_location("read", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLAIN = '''"""A header."""

TEN = 10  # a comment


def twice(number: int, *more) -> int:
    """Says what it does."""
    doubled = 2 * number

    return f"{doubled} {more}"
'''

DENSE = """\
rows = [[y for y in x] for x in z]
pairs = [(a, b) for a in x for b in y]
if (n := len(x)) > 2:
    print(1 if n else 2)
n or print(n)
"""


def test_tokens_are_those_of_code(read):
    figures = read.measure(PLAIN)

    # TEN = 10; def twice(number: int, *more) -> int: ; doubled = 2 * number; return f"..."
    assert figures.tokens == [3, 13, 5, 2]
    assert figures.lines == 10


def test_lines_of_a_function_begin_below_its_docstring(read):
    figures = read.measure(PLAIN)

    assert (figures.function_lines, figures.blank_lines) == (3, 1)


def test_arguments_with_and_without_a_type(read):
    figures = read.measure(PLAIN)

    assert (figures.arguments, figures.typed) == (2, 1)


def test_what_takes_a_second_look_is_counted(read):
    figures = read.measure(DENSE)

    assert figures.nested == 2
    assert figures.walruses == 1
    assert figures.conditionals == 1
    assert figures.bare_choices == 1


def test_a_long_line_has_more_than_a_hundred_columns(read):
    hundred = "x = " + 96 * "1"

    assert read.measure(f"{hundred}\n").long_lines == 0
    assert read.measure(f"{hundred}1\n").long_lines == 1


def test_figures_of_two_files_are_those_of_all_their_lines(read):
    both = read.measure(PLAIN) + read.measure(DENSE)

    assert both.lines == 15
    assert both.nested == 2
    assert both.tokens[:4] == [3, 13, 5, 2]


def test_this_checkout_has_a_row_for_each_file(read):
    rows = read.table(ROOT)

    assert any(row.startswith("| minikits/unet.py | ") for row in rows)
    assert any(row.startswith("| train.py | ") for row in rows)
    assert sum(row.startswith("| in total | ") for row in rows) == 1
