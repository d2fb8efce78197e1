"""The page of twelve chapters: its code is the source's, its examples are true, its figures are drawn."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import math
import re
from textwrap import dedent

import pytest
import torch
from conftest import ROOT

from minikits.augmentation import change_geometry

PAGE = ROOT / "docs" / "walkthrough.md"
SCRIPT = ROOT / "docs" / "make_figures.py"
FIGURES = ROOT / "docs" / "figures"

# <!-- code: minikits.module.function -->, then a fenced block
QUOTED = re.findall(
    r"^<!-- code: ([\w.]+) -->\n```python\n(.*?)\n```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
)
CHAPTERS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
PICTURES = re.findall(r"!\[([^\]]*)\]\(figures/(\w+)\.png\)", PAGE.read_text())
LINKED = set(re.findall(r"\(figures/(\w+)\.png\)", PAGE.read_text()))

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda text: text.split("\n")[0])


def source_of(name):
    """The lines of a function or method of the package, without its docstring."""
    _, module, *names = name.split(".")
    thing = importlib.import_module(f"minikits.{module}")
    for part in names:
        thing = getattr(thing, part)

    lines = dedent(inspect.getsource(thing)).splitlines()
    function = ast.parse("\n".join(lines)).body[0]
    if ast.get_docstring(function):
        told = function.body[0]
        del lines[told.lineno - 1 : told.end_lineno]
    return lines


def stands_in(quoted, source):
    """Whether these lines follow each other in the source, however far both are indented."""
    wanted = dedent(quoted).splitlines()
    for first in range(len(source) - len(wanted) + 1):
        part = source[first : first + len(wanted)]
        if dedent("\n".join(part)).splitlines() == wanted:
            return True
    return False


def test_lines_are_found_where_they_follow_each_other():
    source = ["def f(x):", "    y = x", "    return y"]

    assert stands_in("    y = x\n    return y", source)
    assert stands_in("def f(x):\n    y = x", source)
    assert not stands_in("def f(x):\n    return y", source)
    assert not stands_in("    y = x + 1", source)


@pytest.mark.parametrize("name, quoted", QUOTED, ids=[name for name, _ in QUOTED])
def test_the_code_that_is_quoted_is_the_sources(name, quoted):
    assert stands_in(quoted, source_of(name)), f"{name} has changed: quote it anew"


def test_every_block_of_code_says_whose_it_is():
    assert (
        PAGE.read_text().count("```python") == len(QUOTED) == PAGE.read_text().count("<!-- code:")
    )


def test_what_is_tried_on_the_page_comes_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    tried = doctest.testfile(str(PAGE), module_relative=False)

    assert tried.attempted > 40
    assert tried.failed == 0


def test_there_are_twelve_chapters():
    titles = [chapter.split("\n")[0] for chapter in CHAPTERS]

    assert [int(title.split()[0]) for title in titles] == list(range(1, 13))


@each_chapter
def test_each_chapter_has_its_six_parts(chapter):
    assert "**The question.**" in chapter
    assert re.search(r"^    \S.* = |^    p\(x\)", chapter, re.MULTILINE)  # a formula
    assert "<!-- code: minikits." in chapter
    assert "(figures/" in chapter
    assert "**Without " in chapter
    assert "**Try.**" in chapter


def test_every_picture_is_told_in_words():
    for told, name in PICTURES:
        assert len(told.split()) >= 10, name


def test_every_figure_is_there_and_light():
    for name in LINKED:
        path = FIGURES / f"{name}.png"
        assert path.is_file(), f"make figures draws {path.name}"
        assert path.stat().st_size < 150_000, path.name


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_figures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_draws_the_figures_of_the_page(script):
    assert {*script.FIGURES, *script.OF_A_NETWORK} == LINKED


def test_figures_are_drawn_where_they_are_wanted(script, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["make_figures.py", "nearest", "blocks", "--out", str(tmp_path)]
    )

    script.main()

    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["blocks.png", "nearest.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_a_figure_of_another_name_is_refused(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make_figures.py", "nearset"])

    with pytest.raises(SystemExit):
        script.main()

    assert "no figure nearset; there are scan, orientation, " in capsys.readouterr().err


def test_the_shapes_of_a_figure_are_those_of_a_run(script):
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), torch.nn.MaxPool3d(2))

    shapes = script.shapes_of(network, torch.zeros(1, 1, 4, 6, 8))

    assert shapes["0"] == (4, 4, 6, 8)
    assert shapes["1"] == (4, 2, 3, 4)


def test_the_layers_of_a_block_are_named_in_their_order(script):
    block = script.ResidualBlock(4, 8, (2, 2, 2))

    assert script.layers_of(block.body) == ["conv 3x3x3", "IN", "ReLU", "conv 3x3x3", "IN"]
    assert script.layers_of(block.skip) == ["conv 1x1x1", "IN"]


def test_what_becomes_of_a_small_tumor_is_as_told():
    """Of one voxel turned, and zoomed in and out; chapter 6 has the counts."""
    generator = torch.Generator().manual_seed(0)
    gone = {}

    def draw(low, high):
        return low + (high - low) * torch.rand((), generator=generator).item()

    for what, (least, most) in {"turned": (1, 1), "in": (0.7, 1), "out": (1, 1.4)}.items():
        gone[what] = 0
        for _ in range(200):
            labels = torch.zeros(40, 40, 40, dtype=torch.uint8)
            labels[tuple(int(draw(14, 23)) for _ in range(3))] = 2
            angles = (0.0, 0.0, 0.0)
            if what == "turned":
                angles = tuple(draw(-math.pi / 6, math.pi / 6) for _ in range(3))
            scale = draw(least, most) if least < most else 1.0
            _, moved = change_geometry(torch.zeros(40, 40, 40), labels, angles, scale)
            gone[what] += not (moved == 2).any()

    page = " ".join(PAGE.read_text().split())
    assert f"in {gone['turned']} of 200 rotations it is gone" in page
    assert f"of 200 zooms out in {gone['out']}, of 200 zooms in in {gone['in']};" in page
