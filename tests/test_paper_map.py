"""docs/paper.md against the code: what it names exists, the values it gives are the code's, and nothing is left out."""

import ast
import dataclasses
import importlib
import re

import pytest
from conftest import ROOT

from minikits import paper, recipe
from minikits.paper import PAPER
from minikits.recipe import Recipe

PAGE = (ROOT / "docs" / "paper.md").read_text()
QUOTED = re.findall(r"`([^`\n]+)`", PAGE)
SCRIPTS = ("train", "predict", "evaluate")
CODE = re.compile(r"[a-z]\w*(\.[A-Za-z_]\w*)+")
TEST = re.compile(r"(\w+\.py)::(\w+)")
STAGE = re.compile(r"parity: (.+)")
VALUE = re.compile(r"`(?:paper\.PAPER|paper|recipe)\.(\w+)` = (\([^()]*\)|[-\d.e]+)")
MARK = re.compile(r"P|A (#\d+|[\w/]+\.py:[\d,-]+)|N [\w/]+(\.py(:[\d,-]+)?)?|O")
LETTERS = {"paper": "P", "author": "A", "nnU-Net": "N", "ours": "O"}
FIELDS = {field.name for field in dataclasses.fields(Recipe)}
CONSTANTS = {
    name: value
    for module in (paper, recipe)
    for name, value in vars(module).items()
    if name.isupper() and not name.startswith("_")
}
SOURCE = "".join((ROOT / "minikits" / name).read_text() for name in ("paper.py", "recipe.py"))


def is_path(text):
    return (ROOT / text).exists()


def quoted(pattern):
    return sorted({text for text in QUOTED if pattern.fullmatch(text) and not is_path(text)})


def rows():
    """Every row of every table: {column: cell}."""
    columns = None
    for line in PAGE.splitlines():
        cells = (
            [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        )
        if cells and columns and not set(line) <= set("|-"):
            assert len(cells) == len(columns), line
            yield dict(zip(columns, cells))
        columns = cells and (columns or cells)


@pytest.fixture
def scripts_importable(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


def test_everything_quoted_is_of_a_known_kind():
    """So that a reference that is misspelt cannot pass as prose."""
    sources = "".join((ROOT / f"{name}.py").read_text() for name in SCRIPTS)
    makefile = (ROOT / "Makefile").read_text()
    for text in QUOTED:
        known = (
            is_path(text)
            or any(kind.fullmatch(text) for kind in (CODE, TEST, STAGE))
            or (text.startswith("--") and f'"{text.split()[0]}"' in sources)
            or (text.startswith("make ") and f"\n{text.removeprefix('make ')}:" in makefile)
            or text in ("nnunet/", "nnunetv1", "minikits")
        )
        assert known, f"`{text}`: no code, test, stage, option, target or path"


def test_code_references_exist(scripts_importable):
    references = quoted(CODE)
    assert len(references) > 100
    for reference in references:
        module, *names = reference.split(".")
        thing = importlib.import_module(module if module in SCRIPTS else f"minikits.{module}")
        for name in names:
            assert hasattr(thing, name), f"`{reference}`: no {name}"
            thing = getattr(thing, name)


def test_test_references_exist():
    references = quoted(TEST)
    assert len(references) > 50
    for file, name in (TEST.fullmatch(reference).groups() for reference in references):
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{file}::{name}"
        )


def test_parity_stages_exist():
    results = (ROOT / "benchmarks" / "results" / "parity.md").read_text()
    there = set(re.findall(r"^\| ([^|]+?) \|", results, re.MULTILINE)) - {"stage"}
    references = quoted(STAGE)
    assert len(references) > 10
    missing = {STAGE.fullmatch(reference)[1] for reference in references} - there
    assert not missing, f"no row in parity.md for {sorted(missing)}"


def test_no_number_is_missing_and_every_value_is_the_codes():
    values = dict(VALUE.findall(PAGE))
    assert values.keys() >= FIELDS, f"no value for {sorted(FIELDS - values.keys())}"
    constants = CONSTANTS.keys() - {"PAPER", "DEMO", "TABLE_1"}
    assert values.keys() >= constants, sorted(constants - values.keys())
    assert {"paper.PAPER", "paper.DEMO", "paper.TABLE_1"} <= set(QUOTED)
    for name, value in VALUE.findall(PAGE):
        ours = getattr(PAPER, name) if name in FIELDS else CONSTANTS[name]
        assert ast.literal_eval(value) == ours, name


def test_table_1_is_the_codes():
    form = r"^\| ([\w-]+)[^|]*, cross-validation \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|"
    printed = re.findall(form, PAGE, re.MULTILINE)
    assert {
        arch.replace("-", ""): tuple(map(float, dice)) for arch, *dice in printed
    } == paper.TABLE_1


def test_every_row_has_its_code_its_witness_and_its_mark():
    seen = list(rows())
    assert len(seen) > 120 and {row["mark"][0] for row in seen} == set("PANO")
    for row in seen:
        assert row.keys() >= {"code", "held by", "mark"}, row
        assert MARK.fullmatch(row["mark"]), row
        assert "`" in row["code"] or row["code"] == "-", row
        assert "`" in row["held by"] or re.match(r"- \(.+\)", row["held by"]), row


def line_of(name):
    """The line of the code that gives a constant or a field of the paper's recipe its value."""
    return re.search(rf"^(    )?{name} ?= ?.*$", SOURCE, re.MULTILINE)[0]


def test_a_numbers_mark_is_the_one_in_the_code():
    for row in rows():
        for name, _ in VALUE.findall(row["code"]):
            line = line_of(name)
            mark = re.search(r"\[(paper|author|nnU-Net|ours)\b", line)[1]
            assert row["mark"][0] == LETTERS[mark], f"{name}: {row['mark']} here, {line.strip()}"


def test_where_nnunet_has_a_number_is_the_same_in_the_code():
    seen = 0
    for row in rows():
        if not row["mark"].startswith("N "):
            continue
        file, _, lines = row["mark"].rpartition("/")[2].partition(":")
        for name, _ in VALUE.findall(row["code"]):
            line = line_of(name)
            here, first = re.search(r"\[nnU-Net v1 (\w+\.py):?(\d*)\]", line).groups()
            places = f"{name}: {row['mark']} here, {line.strip()}"
            assert here == file and (not first or first in re.split("[,-]", lines)), places
            seen += 1
    assert seen > 20
