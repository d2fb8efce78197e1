"""README, docs and results against the code: commands, options, files, links, names, numbers.

docs/paper.md has a test of its own beside this one, test_paper_map.py: each row of its tables names
code and tests.
"""

import argparse
import ast
import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import json
import math
import re
import signal
import sys
import tomllib
from pathlib import Path

import fuzz
import numpy as np
import pytest
import test_hazards
import test_hostile_checkpoints
import torch
from conftest import ROOT, TINY
from torch.utils.flop_counter import FlopCounterMode

import minikits
import minikits.paper
from minikits import augmentation, doubts, fast, nifti
from minikits.cases import five_folds
from minikits.evaluation import SCORES
from minikits.losses import segmentation_loss
from minikits.nifti import write_image
from minikits.nnunet import GEOMETRY
from minikits.paper import (
    ARCHITECTURES,
    DEMO,
    FOLDS,
    KERNEL,
    NEGATIVE_SLOPE,
    PAPER,
    code_departures,
    departures,
    recipe_from,
    run_departures,
)
from minikits.paper import TABLE_1 as TABLE_1_OF_PAPER
from minikits.phantoms import make_case
from minikits.prediction import window_starts
from minikits.unet import build_unet

RESULTS_FOLDER = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
DOCS = [README, *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*DOCS, *sorted(RESULTS_FOLDER.glob("*.md"))]
EVALUATORS = ROOT / "docs" / "evaluators.md"
FILES = ROOT / "docs" / "files.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
PAPER_MAP = ROOT / "docs" / "paper.md"
RESULTS = ROOT / "docs" / "results.md"
SCALING = ROOT / "docs" / "scaling.md"
USING = ROOT / "docs" / "using.md"
SPEED = ROOT / "docs" / "speed.md"
GPU = RESULTS_FOLDER / "gpu.md"
PAPER_ON_CPU = RESULTS_FOLDER / "paper_on_cpu.md"
PARITY = RESULTS_FOLDER / "parity.md"
PREDICTION = RESULTS_FOLDER / "prediction_on_cpu.md"
TABLE_1 = RESULTS_FOLDER / "table1.md"
TRAINING = RESULTS_FOLDER / "training_on_cpu.md"
MODULES = [path.stem for path in (ROOT / "minikits").glob("*.py") if path.stem != "__init__"]

SCRIPTS = ("train.py", "predict.py", "evaluate.py")
PROGRAMS = (
    *SCRIPTS,
    "minikits.phantoms",
    "minikits.nnunet",
    "minikits.explain",
    "benchmarks/table1.py",
    "benchmarks/learning.py",
    "benchmarks/reproduce.py",
)  # those with a parser
REQUIRED = {
    "train.py": [],
    "predict.py": ["--in", "a", "--out", "b"],
    "evaluate.py": ["--pred", "a", "--ref", "b"],
    "minikits.phantoms": ["--out", "a"],
}
PLACEHOLDERS = {"N": "5", "Z": "3", "Y": "1", "X": "1", "FILE": "x.json", "FILE.json": "x.json"}
OTHERS_OPTIONS = {"--process-slot-var"}  # GNU xargs', and said to be
FOLDERS = ("minikits/", "docs/", "tests/", "benchmarks/")
WRITTEN = ("csv", "json", "png", "pt", "npy", "gz")  # what files end in that the scripts write
OPTION = re.compile(r"--[\w-]+")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
each_page_of_docs = pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)


# reading the pages


def words_of(page):
    """A page's text with one space between words, wherever its lines break."""
    return " ".join(page.read_text().split())


def blocks(page):
    """The indented and the fenced blocks of a page: lists of lines without their indentation."""
    found, block, fenced = [], [], False
    for line in [*page.read_text().splitlines(), ""]:
        fence = line.startswith("```")
        if fence:
            fenced = not fenced
        if fenced and not fence:
            block.append(line)
        elif line.startswith("    "):
            block.append(line[4:])
        elif block:
            found.append(block)
            block = []
    return found


def block_with(page, start):
    """The first block of a page whose first line has this text."""
    for block in blocks(page):
        if start in block[0]:
            return block
    raise AssertionError(f"{page.name}: no block begins with {start}")


def block_lines(page):
    """The lines of all blocks; one that ends in a backslash goes on."""
    lines = []
    for block in blocks(page):
        lines += "\n".join(block).replace("\\\n", " ").splitlines()
    return lines


def quoted(page):
    """What stands between backticks, outside the blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.findall(r"`([^`]+)`", text)


def commands(page):
    """(program, arguments) of each command of this project, in blocks and between backticks."""
    found = []
    for line in [*block_lines(page), *quoted(page)]:
        words = re.sub("['\"]", " ", line.split("#")[0]).split()
        for place, word in enumerate(words):
            script = word.endswith(".py") and ("/" not in word or word.startswith(FOLDERS))
            module = word.startswith("minikits.") and words[place - 1 : place] == ["-m"]
            if script or module:
                found.append((word, words[place + 1 :]))
                break
    return found


def table(page, heading):
    """The rows of the first table that has a column of this heading: a list of {column: cell}."""
    columns, rows = None, []
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if columns and not line.startswith("|"):
            return rows
        if columns and not set(line) <= set("|-"):
            rows.append(dict(zip(columns, cells)))
        if columns is None and line.startswith("|") and heading in cells:
            columns = cells
    assert columns, f"{page.name}: no table with {heading}"
    return rows


def number(pattern, page):
    """The number that `pattern` finds first in a page's words."""
    found = re.search(pattern, words_of(page))
    assert found, f"{page.name}: nothing like {pattern}"
    return float(found[1].replace(",", ""))


# running what they name


class Parsed(Exception):
    """A command line was understood."""


def program_of(name):
    """The module of a script (train.py), of the package (minikits.phantoms) or a benchmark."""
    if name.startswith("minikits."):
        return importlib.import_module(name)
    if name in SCRIPTS:
        return importlib.import_module(name.removesuffix(".py"))
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(monkeypatch, capsys):
    """parse(program, arguments): None, or what the program's own parser has against them."""
    monkeypatch.syspath_prepend(ROOT)
    understood = argparse.ArgumentParser.parse_args

    def stop(parser, *given, **named):
        understood(parser, *given, **named)
        raise Parsed

    def parse(program, arguments):
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        try:
            program_of(program).main()
        except Parsed:
            return None
        except SystemExit:
            return capsys.readouterr().err.strip().splitlines()[-1]
        raise AssertionError(f"{program} did not parse its command line")

    return parse


@pytest.fixture
def options_of(monkeypatch, capsys):
    """options_of(program): the options that its --help lists."""
    monkeypatch.syspath_prepend(ROOT)

    def options_of(program):
        monkeypatch.setattr(sys, "argv", [program, "--help"])
        with pytest.raises(SystemExit):
            program_of(program).main()
        listed = re.findall(r"^ +(-.*?)(?:  |$)", capsys.readouterr().out, flags=re.MULTILINE)
        return set(OPTION.findall(" ".join(listed)))

    return options_of


def weights_of(arch, recipe):
    with torch.device("meta"):
        network = build_unet(arch, recipe)
    return sum(parameter.numel() for parameter in network.parameters())


def windows_of(shape):
    """How many windows a prepared case of this shape has with the paper's patch."""
    count = 1
    for size, patch in zip(shape, PAPER.patch):
        count *= len(window_starts(size, patch))
    return count


def sides(text):
    """ "128x248x248" -> (128, 248, 248)"""
    return tuple(int(side) for side in text.split("x"))


# commands, options, targets


@each_page
def test_every_command_names_a_program_and_is_understood_by_it(page, parse, options_of):
    for program, arguments in commands(page):
        places = [ROOT / folder / program for folder in ("", *FOLDERS)]
        there = any(place.is_file() for place in places)
        assert there or program.startswith("minikits."), f"{program}: no such file"
        if program not in PROGRAMS or not arguments:
            continue

        named = {word for word in arguments if OPTION.fullmatch(word)}
        missing = named - options_of(program)  # in full: parsers take beginnings too
        assert not missing, f"{program} has no {', '.join(missing)}"

        if any(re.search(r"\$|\.\.\.|[|;]", word) for word in arguments):
            continue  # a shell's part, or an ellipsis
        filled = [PLACEHOLDERS.get(word, word) for word in arguments]
        required = REQUIRED.get(program, [])
        in_part = not set(required[::2]) <= set(arguments)  # between backticks, what is spoken of
        said = parse(program, [*required, *filled] if in_part else filled)
        without_value = in_part and said and "expected" in said
        assert said is None or without_value, f"{program} {' '.join(arguments)}: {said}"


def test_there_are_commands_to_check():
    assert len(commands(USING)) > 15 and len(commands(SCALING)) >= 4
    for page in (README, USING):
        assert ("predict.py", ["--in", "scans/", "--out", "masks/"]) in commands(page)


@each_page_of_docs
def test_every_option_by_itself_is_one_of_a_script(page, parse, options_of):
    listed = set()
    for program in REQUIRED:
        listed |= options_of(program)
    for text in quoted(page):
        if not text.startswith("--") or text in OTHERS_OPTIONS:
            continue
        words = [PLACEHOLDERS.get(word, word) for word in text.split()]
        said = [parse(program, [*required, *words]) for program, required in REQUIRED.items()]
        taken = None in said
        without_value = any("expected" in complaint for complaint in said if complaint)
        assert text.split()[0] in listed and (taken or without_value), f"`{text}`: {said}"


def test_the_table_of_options_is_predicts(parse, options_of):
    rows = table(USING, "option")
    assert len(rows) >= 6
    for row in rows:
        for text in re.findall(r"`(--[^`]+)`", row["option"] + row["what it does"]):
            words = [PLACEHOLDERS.get(word, word) for word in text.split()]
            assert words[0] in options_of("predict.py"), text
            assert parse("predict.py", [*REQUIRED["predict.py"], *words]) is None, text


@each_page
def test_every_make_target_exists(page):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    texts = [*block_lines(page), *quoted(page)]
    named = {text.split()[1] for text in texts if re.match(r"make \w", text)}
    assert named <= targets, named - targets
    assert page != README or {"demo", "test", "fuzz", "table1", "parity"} <= named


# files, links, names


@each_page
def test_every_file_of_the_project_that_is_named_exists(page):
    for text in quoted(page):
        path = text.split("::")[0]
        bare = "/" not in path and path.endswith((".py", ".md", ".toml"))
        if " " in path or not (bare or path.startswith(FOLDERS)):
            continue
        places = (ROOT, page.parent, ROOT / "minikits", ROOT / "tests")
        assert any((place / path).exists() for place in places), f"{page.name}: `{path}`"


@each_page
def test_every_test_that_is_named_exists(page):
    for file, name in re.findall(r"`(\w+\.py)::(\w+)`", page.read_text()):
        tree = ast.parse((ROOT / "tests" / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{page.name}: {file}::{name}"


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@each_page
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}"


def test_the_readme_is_read_in_five_minutes():
    assert len(README.read_text().split()) <= 900


def test_every_page_of_docs_can_be_reached_from_the_readme():
    linked = set(re.findall(r"\]\((docs/\w+\.md)", README.read_text()))
    assert linked == {f"docs/{page.name}" for page in DOCS[1:]}


@each_page
def test_every_dotted_name_is_one_of_the_code(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    for text in quoted(page):
        first, *rest = text.split(".")
        dotted = re.fullmatch(r"[a-z]\w*(\.\w+)+", text)
        if page == PAPER_MAP or not dotted or rest[-1] in (*WRITTEN, "py", "md"):
            continue

        if f"{first}.py" in SCRIPTS:
            thing = importlib.import_module(first)
        elif first in MODULES:
            thing = importlib.import_module(f"minikits.{first}")
        elif first in ("minikits", "torch"):
            if importlib.util.find_spec(text):
                continue  # a module
            thing = importlib.import_module(first)
        else:
            continue
        for name in rest:
            assert hasattr(thing, name), f"{page.name}: `{text}`"
            thing = getattr(thing, name)


def test_a_name_said_to_be_in_a_file_is_there():
    found = re.findall(r"`(\w+)`\s+in\s+`([\w/]+)\.py`", RESULTS.read_text())
    assert ("best_threshold_dice", "tests/test_phantoms") in found
    for name, path in found:
        assert hasattr(importlib.import_module(Path(path).name), name), f"{path}.py: no {name}"


def test_the_map_and_the_reading_order_have_every_module_and_script():
    cells = " ".join(row["file"] for row in table(README, "file"))
    files = [f"minikits/{module}.py" for module in MODULES]
    assert sorted(re.findall(r"`([^`]+)`", cells)) == sorted([*files, *SCRIPTS])

    order = minikits.__doc__.partition("Reading order, a patch's life: ")[2]
    named = re.findall(r"(\w+(?:\.py)?)(?:,|\.| \(|$)", order)
    assert sorted(named) == sorted([*MODULES, *SCRIPTS])


# examples that run


def test_the_library_example_runs(tmp_path, monkeypatch):
    """As it stands, but with a recipe of the same kind that is small."""
    code = "\n".join(block_with(USING, "from minikits"))
    image, _, spacing_mm = make_case(0, shape=(16, 30, 28), spacing_mm=(6.0, 5.5, 5.5))
    write_image(tmp_path / "scan.nii.gz", image, spacing_mm)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minikits.paper, "PAPER", TINY)

    names = {}
    exec(compile(code, "using.md", "exec"), names)

    resampled = names["image"].shape
    assert tuple(names["probabilities"].shape) == (3, *resampled) != (3, *image.shape)
    assert names["labels"].shape == image.shape and set(np.unique(names["labels"])) <= {0, 1, 2}


def test_the_examples_of_the_page_on_evaluators_are_true():
    tried = doctest.testfile(str(EVALUATORS), module_relative=False)

    assert tried.attempted > 8
    assert tried.failed == 0


def test_preparing_before_the_trainings_runs(phantoms, tmp_path, monkeypatch):
    line = block_with(SCALING, "python -c ")[0]
    code = re.fullmatch(r'python -c "(.*)"', line)[1]
    (tmp_path / "data").symlink_to(phantoms)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minikits.paper, "PAPER", TINY)

    exec(code, {})

    assert len(list((tmp_path / "runs" / "prepared").glob("phantom_*"))) == 6


def test_the_examples_of_recipe_and_geometry_are_taken():
    recipes = []
    for page in DOCS:
        for text in quoted(page):
            if re.fullmatch(r'\{"\w+": \[[\d, ]*\]\}', text):
                recipes.append(recipe_from(json.loads(text)))
    assert (64, 128, 128) in [recipe.patch for recipe in recipes] and len(recipes) > 1

    geometry = json.loads("".join(block_with(USING, '{"spacing_mm"')))
    assert sorted(geometry.pop("axes")) == ["X", "Y", "Z"]
    assert set(geometry) == set(GEOMETRY) and recipe_from(geometry) == PAPER


def test_the_fifteen_trainings_are_all_of_them():
    text = SCALING.read_text()
    archs, folds = " ".join(ARCHITECTURES), " ".join(map(str, range(FOLDS)))
    assert f"archs=({archs})" in text
    assert f"for arch in {archs}; do for fold in {folds};" in text
    assert f"--array=0-{len(ARCHITECTURES) * FOLDS - 1} " in text

    stopped = 128 + signal.SIGTERM
    assert f"$? -eq {stopped} " in text and f"{stopped} is the exit status" in text


# numbers


def test_versions_are_those_that_are_installed():
    """Of README and docs, which speak of today; results say with what they were measured."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    named = []
    for page in DOCS:
        named += re.findall(r"\b([a-z][\w-]+) (\d+\.\d+\.\d+)", page.read_text())
    assert ("torch", pins["torch"]) in named
    for package, version in named:
        wanted = pins.get(package, version)
        assert version == wanted, f"{package} {version}, {wanted} in constraints.txt"


def test_what_it_needs_is_what_is_packaged():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [re.match(r"\w+", dependency)[0] for dependency in project["dependencies"]]
    python = project["requires-python"].removeprefix(">=")
    assert f"dependencies: {', '.join(needed)}." in words_of(README)
    assert f"(Python {python} or newer)" in words_of(README)


def test_the_demos_lines_are_its_recipes():
    text = RESULTS.read_text()
    weights = f"{weights_of('residual', DEMO):,} weights"
    patch = f"patch {'x'.join(map(str, DEMO.patch))}"
    length = f"{DEMO.epochs} epochs of {DEMO.batches_per_epoch} batches of {DEMO.batch_size}"
    assert f"seed 0: {weights}, {patch}, {length}, into demo/runs/residual/fold0" in text

    cases = int(number(r"--out demo/data --cases (\d+)", USING))
    run = run_departures(
        precision="bfloat16", device="cpu", processes=1, fold="0", folds_file=None, cases=cases
    )
    for kind, lines in (("recipe", departures(DEMO)), ("run", run), ("code", code_departures())):
        assert f"    {kind}: {len(lines)} departures from the paper" in text
    assert departures(DEMO)[0] in text

    rate = DEMO.learning_rate_at(DEMO.epochs - 1)
    assert f"epoch {DEMO.epochs} of {DEMO.epochs}: loss" in text
    assert f"learning rate {rate:.4f}" in text


def test_the_demos_table_adds_up():
    form = r"^    (phantom_\d+|mean) +([\d.]+) +([\d.]+) +([\d.]+)$"
    *rows, (_, *means) = re.findall(form, RESULTS.read_text(), flags=re.MULTILINE)
    dice = np.array([row[1:] for row in rows], dtype=float)
    assert dice.shape == (6, len(SCORES))
    assert np.abs(dice[:, :2].mean(axis=1) - dice[:, 2]).max() < 0.011
    assert np.abs(dice.mean(axis=0) - np.array(means, dtype=float)).max() < 0.011


def test_the_readme_prints_what_the_demo_prints():
    """Of its lines a few, and of the last epoch's the beginning."""
    shown = block_with(README, "epoch ")
    printed = block_with(RESULTS, "residual U-Net, fold 0")
    assert [line.split()[0] for line in shown] == ["epoch", "Dice", "mean"]
    for line in shown:
        beginning = line.removesuffix(", ...")
        assert any(full.startswith(beginning) for full in printed), line


def test_table_1_in_small_is_its_result():
    start = "cases that all have, best first"
    assert block_with(RESULTS, start) == block_with(TABLE_1, start)

    recipe = dataclasses.replace(DEMO, epochs=8)
    steps = recipe.epochs * recipe.batches_per_epoch
    assert number(r"([\d,]+) training steps each", RESULTS) == steps
    length = f"{recipe.epochs} epochs of {recipe.batches_per_epoch} batches"
    assert length in words_of(TABLE_1) and f"for {steps} steps" in words_of(TABLE_1)


def test_what_others_reached_is_for_the_paper_its_table_1():
    rows = table(RESULTS, "where it is told")
    told = next(row for row in rows if row["who"] == "the paper, residual")
    dice = tuple(float(told[score]) for score in SCORES)
    assert dice == TABLE_1_OF_PAPER["residual"]
    assert f"| {dice[0]}, {dice[1]} (residual network) |" in README.read_text()
    assert f"cross-validation on {210 - len(PAPER.excluded_cases)} cases" == told["on which cases"]


def test_what_was_measured_in_small_stands_beside_the_papers_claims():
    text = "\n".join(block_with(TABLE_1, "cases that all have, best first"))
    means = re.findall(r"^(\w+) +([\d.]+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    ours = {name: dice for name, *dice in means if name not in ("paper", "to")}
    pairs = re.findall(r"^(\w+ - \w+): .*composite (\+[\d.]+) \(p ([\d.]+)", text, re.MULTILINE)
    composite = {pair: (difference, p) for pair, difference, p in pairs}

    page = PAPER_MAP.read_text()
    for row in table(PAPER_MAP, "kidney")[:4]:
        arch = re.match(r"[\w-]+", row["what it says"])[0].replace("-", "")
        assert row["measured here"] == f"in small {', '.join(ours[arch])}"
    assert f"it leads the single ones, too: composite {ours['residual'][-1]} |" in page

    gain, p = composite["ensemble - residual"]
    assert f"composite {gain} over the best one (p {p})" in page
    assert f"adds to the best network's composite | {gain} (p {p}) |" in README.read_text()

    lead, p = composite["residual - plain"]
    assert f"residual over plain by {lead.strip('+')} composite (p {p})" in page
    _, between_residuals = composite["residual - preactivation"]
    _, over_plain = composite["preactivation - plain"]
    assert f"do not part (p {between_residuals}, {over_plain})" in page
    assert number(r"around (\d+) KiTS19 label volumes, ", PAPER_MAP) == 22


def test_what_the_tests_try_is_what_the_pages_count():
    inputs = inspect.signature(fuzz.main).parameters["inputs"].default
    flips = 2 * test_hazards.FLIPS
    for page in (RESULTS, FILES):
        assert number(r"fuzz\.py`\) reads ([\d,]+) damaged files", page) == inputs
    assert number(r"\((\d+) of \d+ hostile ones\)", FILES) == test_hostile_checkpoints.HOSTILE
    assert number(r"\((\d+) flipped bits of images and labels", FILES) == flips


def test_the_bounds_of_files_are_the_codes():
    assert number(r"less than (\d+) mm of body", FILES) == doubts.COVERAGE_MM
    assert number(r"a side under (\d+) or", FILES) == doubts.LEAST_ACROSS_MM
    assert number(r"a side under \d+ or over (\d+) mm", FILES) == doubts.MOST_ACROSS_MM
    assert number(r"values beyond ([\d,]+),", FILES) == nifti.MAX_MAGNITUDE
    assert "they may be off by a thousandth" in words_of(FILES)
    assert nifti.LABEL_TOLERANCE == 1e-3

    stopped = f"{128 + signal.SIGINT}, {128 + signal.SIGTERM}"
    assert [row["exit status"] for row in table(FILES, "exit status")] == ["0", "2", stopped]


def test_the_transforms_are_as_many_as_the_readme_says():
    draws = [name for name in vars(augmentation) if name.startswith("random_")]
    changes = [name.replace("random_", "change_") for name in draws]
    fields = [field.name for field in dataclasses.fields(PAPER)]
    transforms = [name for name in fields if name.endswith("_probability")]
    assert all(hasattr(augmentation, name) for name in changes)
    assert "| eight transforms in six pairs: " in README.read_text()
    assert (len(transforms), len(draws)) == (8, 6)


def test_the_sizes_beside_the_question_of_residual_connections_are_the_networks():
    words = words_of(RESULTS)

    for recipe in (DEMO, PAPER):
        for arch in ("plain", "residual"):
            assert f"{weights_of(arch, recipe):,}" in words
    with torch.device("meta"):
        network = build_unet("residual", DEMO)
    around = [weight for name, weight in network.named_parameters() if ".skip." in name]
    idle = sum(weight.numel() for weight in around)
    assert number(r"Of its weights ([\d,]+), those of the way around", RESULTS) == idle


def test_the_glossarys_numbers_are_the_papers():
    meaning = {}
    for line in GLOSSARY.read_text().splitlines():
        if line.startswith("| "):
            word, text = line.strip("| ").split(" | ")
            meaning[word] = text

    low, high = PAPER.window_hu
    assert f"{low:.0f} to {high:.0f} here" in meaning["window"]
    assert f"subtract {PAPER.mean_hu:.0f}, divide by {PAPER.sd_hu}:" in meaning["normalise"]
    assert " x ".join(map(str, PAPER.patch)) in meaning["patch"]
    lengths = f"{PAPER.batch_size} patches; {PAPER.batches_per_epoch} batches"
    assert meaning["batch, epoch"] == lengths
    assert f"longer than {PAPER.max_gradient_norm:.0f}" in meaning["gradient clipping"]
    assert f"{NEGATIVE_SLOPE} x below 0" in meaning["ReLU, leaky ReLU"]
    assert " x ".join([f"{KERNEL}"] * 3) in meaning["convolution"]


def test_the_cases_left_out_are_the_papers():
    *others, last = PAPER.excluded_cases
    named = f"ases {', '.join(map(str, others))} and {last}"
    assert f"C{named} are left out" in words_of(USING)
    assert f"| C{named} are left out" in PAPER_MAP.read_text()
    assert f"c{named} (`excluded_cases`" in words_of(FILES)


def test_the_departures_are_the_same_on_the_page_and_in_the_log():
    number_format, *_ = run_departures(
        precision="bfloat16", device="cuda", processes=1, fold="0", folds_file=None, cases=206
    )
    said = [line.partition(":")[0] for line in [*code_departures(), number_format]]
    assert [row["what"] for row in table(PAPER_MAP, "measured effect")] == said
    assert f"[{len(code_departures())} departures of the code]" in README.read_text()
    assert "bfloat16 where the device has it" in words_of(README)


def test_the_sizes_of_networks_and_folds_are_the_codes():
    text = PAPER_MAP.read_text()
    for arch, name in zip(ARCHITECTURES, ("plain", "residual", "pre-activation")):
        weights = f"{weights_of(arch, PAPER):,}"
        assert f"{weights} {name}" in text
        assert f"paper's size, {weights} |" in PARITY.read_text()

    later_code = dataclasses.replace(PAPER, residual_blocks=(1, 2, 3, 4, 4, 4))
    ours, theirs = (weights_of("residual", recipe) for recipe in (PAPER, later_code))
    assert f"{ours:,} weights in the residual network instead of {theirs:,}" in text

    cases = map(str, range(210 - len(PAPER.excluded_cases)))
    *sizes, last = [len(held_out) for _, held_out in five_folds(cases)]
    assert f"blocks of {', '.join(map(str, sizes))} and {last}" in text


def test_what_passes_between_gpus_is_the_gradient():
    for row in table(SCALING, "gradient"):
        weights = weights_of(row["architecture"], PAPER)
        assert row["weights"] == f"{weights / 1e6:.1f} million"
        assert row["gradient"] == f"{4 * weights / 1e6:.0f} MB"
        for speed, cell in zip((25e9, 300e9), list(row.values())[3:]):
            assert cell == f"{1000 * 1.75 * 4 * weights / speed:.1f} ms"

    for gpus, moved in ((8, "1.75 with eight"), (64, "1.97 with 64")):
        assert f"{2 * (gpus - 1) / gpus:.2f} with" in moved and moved in words_of(SCALING)


def test_a_steps_operations_are_those_that_torch_counts():
    counted = {}
    for arch in ("plain", "residual"):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            network = build_unet(arch, PAPER)
            logits = network(torch.empty(PAPER.batch_size, 1, *PAPER.patch))
            segmentation_loss(logits, torch.empty(PAPER.batch_size, *PAPER.patch)).backward()
        counted[arch] = f"{counter.get_total_flops() / 1e12:.1f}"
    needed = f"needs {counted['plain']} (plain) or {counted['residual']} (residual"
    assert needed in words_of(SCALING)


def first_number(cell):
    return float(cell.split()[0])


def row_of(rows, tool):
    return next(row for row in rows if row["tool"] == tool)


def test_a_million_scans_take_what_their_windows_take():
    """From the windows of the median shape, and the seconds of a window and of the rest."""
    form = r"median shape is ([\dx]+) \(([\dx]+) with the spacing as printed"
    median, printed = re.search(form, words_of(SCALING)).groups()
    assert median == "128x248x248"
    assert windows_of(sides(median)) == windows_of(sides(printed)) == 27
    assert number(r"one of the (\d+) of a median case", PAPER_ON_CPU) == 27

    window = first_number(table(PREDICTION, "seconds a window")[0]["seconds a window"])
    rest = first_number(table(PREDICTION, "rest")[0]["rest"])
    seconds = 27 * window + rest
    core_hours = 1e6 * 2 * seconds / 3600
    text = words_of(SCALING)
    assert f"27 x {window} + {rest} = {seconds:.0f} s of two cores" in text
    assert f"that is {2 * seconds:.0f} core-seconds" in text
    assert number(r"about ([\d,]+) core-hours", SCALING) == round(core_hours, -3)
    assert round(core_hours / 10_000) == 6 and "six hours of 10,000 of them" in text


def test_the_windows_of_the_scans_that_were_measured():
    window = first_number(table(PREDICTION, "seconds a window")[0]["seconds a window"])
    rest = first_number(table(PREDICTION, "rest")[0]["rest"])
    parts = {row["part"]: row for row in table(SCALING, "part")}
    network = parts["the paper's plain network, bfloat16, no mirroring"]
    for column, shape in list(parts["voxels after resampling"].items())[1:]:
        assert network[column] == f"{windows_of(sides(shape))} windows of {window} s"
    reading = list(parts["reading, preparing, the way back, writing"].values())
    assert reading[1] == f"{rest} s"

    form = (
        r"resampled ([\dx]+), so (\d+) windows, where the paper's median shape "
        r"([\dx]+) has (\d+)"
    )
    ours, ours_windows, median, median_windows = re.search(form, words_of(PREDICTION)).groups()
    assert windows_of(sides(ours)) == int(ours_windows)
    assert windows_of(sides(median)) == int(median_windows)


def times_ours(page, column, tool, *, than="minikits"):
    """How many times ours a tool's figure is, in the first table with that column."""
    rows = table(page, column)
    return first_number(row_of(rows, tool)[column]) / first_number(row_of(rows, than)[column])


def table_of_results():
    """The README's: {text of a row's link: what was measured here}"""
    rows = table(README, "measured here")
    return {re.match(r"\[(.+?)\]", row["what"])[1]: row["measured here"] for row in rows}


def test_the_speeds_of_training_are_those_measured():
    text = words_of(RESULTS)
    faster = 1 / times_ours(TRAINING, "patches a second", "nnunet")
    assert f"augmentation {faster:.1f} times its patches a second" in text

    case = r"^\| \| nnunet \| [\d.]+ \| [\d.]+ \| [\d.]+ \| ([\d.]+) \| [\d.]+ \|$"
    ratios = re.findall(case, TRAINING.read_text(), flags=re.MULTILINE)
    slowest, fastest = min(map(float, ratios)), max(map(float, ratios))
    assert len(ratios) == 4
    assert f"preparing a case {slowest:.0f} to {fastest:.0f} times as fast" in text

    step = r"^\| \| nnunet \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|$"
    for ratio in re.findall(step, TRAINING.read_text(), flags=re.MULTILINE):
        assert f"a training step {float(ratio):.1f} times" in text
        assert f"times as fast; {float(ratio):.1f} with" in table_of_results()["a training step"]


def test_an_epochs_seconds_are_those_measured():
    """On a GPU as its table has them; on a CPU 250 of its steps, and 1000 epochs of them."""
    epochs = {row["network"]: row for row in table(GPU, "s of 250 batches")}
    steps = {row["step"]: row for row in table(GPU, "of the roofline")}
    on_cpu = {
        row["architecture"]: row
        for row in table(PAPER_ON_CPU, "step, s")
        if row["memory"] == "kept"
    }
    rows = table(SPEED, "seconds an epoch")

    assert {row["card"].split()[0] for row in rows} == {"NVIDIA", "two"}
    for row in rows:
        network, seconds = row["network"], float(row["seconds an epoch"])
        hours = float(row["hours of 1000 epochs"])
        if "H200" in row["card"]:
            assert seconds == float(epochs[network]["s of 250 batches"])
            assert hours == float(epochs[network]["hours of 1000"])
            assert row["GiB"] == steps[f"{network}, fast, compiled"]["GiB"]
        else:
            step = float(on_cpu[network]["step, s"])
            assert f"250 steps of {step} s" == row["how"] and seconds == pytest.approx(250 * step)
            assert hours == pytest.approx(seconds * 1000 / 3600, abs=0.5)
            assert row["GiB"] == on_cpu[network]["peak, GiB"]


def test_why_forms_were_chosen_is_what_was_measured():
    windows = {(row["window"], row["at once"]): row for row in table(GPU, "ms a window")}
    as_it_is = [windows["residual, as it is", count]["ms a window"] for count in "421"]
    said = words_of(SPEED)
    assert "{} ms a window; of two {}, one by one {}".format(*as_it_is) in said
    eager = windows["residual, fast, eager", "4"]["ms a window"]
    assert f"{eager} ms a window instead of {as_it_is[0]}" in said

    steps = {row["step"]: row["ms"] for row in table(GPU, "of the roofline")}
    for network in ("plain", "residual"):
        plain, compiled = steps[f"{network}, as it is"], steps[f"{network}, fast, compiled"]
        assert f"{plain} ms instead of {compiled} ({network})" in said or (
            f"{plain} instead of {compiled} ({network})" in said
        )
    assert f"{fast.WINDOWS_THAT_PAY:,} windows or more" in said
    assert f"fewer than {fast.STEPS_THAT_PAY} steps" in said
    assert number(r"for ([\d,]+) scans or more", USING) == math.ceil(
        fast.WINDOWS_THAT_PAY / (5 * 8 * 27)
    )


def test_the_speeds_of_prediction_and_scoring_are_those_measured():
    text = words_of(RESULTS)
    window = times_ours(PREDICTION, "seconds a window", "nnunet")
    assert f"a window of the network {window:.1f} times" in text

    slower = times_ours(PREDICTION, "seconds", "nnunet")
    said = number(r"to the mask on disk (\d+) times", RESULTS)
    assert abs(slower - said) < 2  # of seconds that were rounded

    whole = r"^\| nnunet \| [^|]+\| [^|]+\| [^|]+\| [\d.]+ \((\d+)\) \|"
    rests = [int(ratio) for ratio in re.findall(whole, PREDICTION.read_text(), re.MULTILINE)]
    assert f"everything but the network {min(rests)} to {max(rests)} times" in text
    in_short = table_of_results()
    assert in_short["a window"].startswith(f"{window:.1f} times")
    assert in_short["all but the network"] == f"{min(rests)} to {max(rests)} times"

    slower = times_ours(PREDICTION, "whole, seconds", "kits19")
    assert f"scoring {slower:.1f} times as fast" in text


def test_the_parity_page_says_what_its_table_says():
    largest = {}
    for row in table(PARITY, "largest difference"):
        if "-log10 p" in row["compared"]:
            continue
        difference = float(row["largest difference"])
        assert difference <= float(row["tolerance"]) and row["verdict"] == "equal", row
        largest[row["stage"]] = max(largest.get(row["stage"], 0), difference)

    turned = number(r"rotation and scaling, ([\d.e-]+):", PARITY)
    assert f"{largest['augmentation']:.0e}" == f"{turned:.0e}"
    assert largest["preprocessing"] == number(r"the normalised image, ([\d.e-]+) ", PARITY)
    assert f"({largest['preprocessing'] * PAPER.sd_hu:.4f} HU)" in words_of(PARITY)
    assert largest["prediction"] == number(r"probabilities, ([\d.e-]+):", PARITY)
