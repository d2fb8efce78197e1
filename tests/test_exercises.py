"""The exercises' checks: a right answer passes, a stub fails, and what students do wrong fails with
the message that helps them. The answers lie in exercise_answers/."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from exercise_answers import package, reference
from exercise_answers.wrong import WRONG

from minikits.paper import PAPER
from minikits.prediction import importance_map, predict_probabilities
from minikits.resampling import axis_matrix, resample_labels
from minikits.unet import build_unet

FOLDER = ROOT / "exercises"
LECTURE = ROOT / "docs" / "lecture.md"
REFERENCE = ROOT / "tests" / "exercise_answers" / "reference.py"


def module_of(name):
    """A file of exercises/, as a module."""
    path = FOLDER / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"exercises_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECKS = module_of("checks").CHECKS
STUBS = module_of("answers")

each_exercise = pytest.mark.parametrize("name", CHECKS)
each_wrong_answer = pytest.mark.parametrize(
    "name, message, answer", WRONG, ids=[answer.__name__ for _, _, answer in WRONG]
)


def check(*options, expect):
    """What `python -m pytest exercises` prints, with these options."""
    command = [sys.executable, "-m", "pytest", "exercises", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


# each exercise


def test_there_are_twelve_each_with_a_stub_and_a_reference():
    stubs = [name for name, thing in vars(STUBS).items() if inspect.isfunction(thing)]

    assert stubs == list(CHECKS)
    assert len(stubs) == 12
    for number, name in enumerate(stubs, start=1):
        stub, answer = getattr(STUBS, name), getattr(reference, name)
        assert stub.__doc__.startswith(f"{number}. ") and "By hand" in stub.__doc__, name
        assert inspect.signature(stub) == inspect.signature(answer), name


@each_exercise
def test_the_reference_passes(name):
    CHECKS[name](getattr(reference, name))


@each_exercise
def test_the_stub_fails(name):
    with pytest.raises(NotImplementedError):
        CHECKS[name](getattr(STUBS, name))


@each_wrong_answer
def test_a_wrong_answer_fails_with_its_message(name, message, answer):
    with pytest.raises(AssertionError, match=re.escape(message)):
        CHECKS[name](answer)


@each_exercise
def test_at_least_three_wrong_answers_were_tried(name):
    tried = [exercise for exercise, _, _ in WRONG]

    assert tried.count(name) >= 3


# the sheet asks for what the method does

IN_THE_SAME_FORM = (
    *("normalise", "linear_matrix", "foreground_start", "preactivation_block"),
    *("soft_dice_loss", "deep_supervision", "training_step", "case_scores"),
)


@pytest.mark.parametrize("name", IN_THE_SAME_FORM)
def test_the_package_passes(name):
    CHECKS[name](getattr(package, name))


@pytest.mark.parametrize("patch", [(80, 160, 160), (64, 64, 64), (36, 36, 36), (48, 64, 64)])
def test_the_plan_is_the_recipes(patch):
    recipe = replace(PAPER, patch=patch)

    assert tuple(reference.downsampling_plan(patch)) == recipe.strides


def test_labels_are_resampled_as_the_package_does(generator):
    labels = torch.randint(0, 3, (5, 6, 7), generator=generator).numpy()
    shape = (9, 5, 11)
    matrices = [axis_matrix(old, new, 1).numpy() for old, new in zip(labels.shape, shape)]

    given = reference.resample_labels(labels, matrices)

    certain, wanted = with_certainty(labels, matrices), resample_labels(labels, shape, 1)
    assert certain.mean() > 0.9
    assert np.array_equal(given[certain], wanted[certain])


def with_certainty(labels, matrices):
    """Where one label's mask is the largest by far: there a tie's rule does not matter."""
    masks = [np.einsum("zyx, Zz, Yy, Xx -> ZYX", labels == value, *matrices) for value in (0, 1, 2)]
    _, second, first = np.sort(masks, axis=0)
    return first - second > 1e-3


def test_windows_are_blended_as_the_package_does(generator):
    image = torch.randn((20, 40, 50), generator=generator)
    network = random_network()

    given = reference.blend_windows(network, image, importance_map(TINY.patch))

    wanted = predict_probabilities([network], image, TINY, mirroring=False)
    assert torch.allclose(given, wanted, atol=1e-5)


def test_a_patch_is_mirrored_as_the_package_does(generator):
    image = torch.randn(TINY.patch, generator=generator)
    network = random_network()

    given = reference.mirrored_mean(network, image[None, None])

    wanted = predict_probabilities([network], image, TINY)
    assert torch.allclose(given[0], wanted, atol=1e-5)


def random_network():
    """A tiny network that is not the same mirrored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_unet("plain", TINY).eval()


# the command


@pytest.mark.parametrize("path", [*FOLDER.glob("*.py"), REFERENCE], ids=lambda path: path.name)
def test_nothing_is_taken_from_the_package(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert "minikits" not in ast.unparse(node)


def test_an_unsolved_sheet_is_one_line_for_each_exercise():
    said = check(expect=1)

    assert re.findall(r"^(\w+): not done yet$", said, flags=re.MULTILINE) == list(CHECKS)
    assert "12 failed" in said
    assert "Traceback" not in said and "exception" not in said and "gw0" not in said
    assert len(said.splitlines()) < 40


def test_another_files_functions_are_chosen_by_words_and_a_failure_is_its_message(tmp_path):
    path = tmp_path / "mine.py"
    wrong = "def normalise(image_hu, window_hu, mean_hu, sd_hu):\n    pass\n\n\ndel linear_matrix\n"
    path.write_text(REFERENCE.read_text() + wrong)

    said = check("--answers", str(path), "-k", "normalise or matrix or dice", expect=1)

    lines = said.splitlines()
    assert "normalise: gave None; is there a return at the function's end?" in lines
    assert "linear_matrix: the file has no function of this name" in lines
    assert "2 failed, 1 passed, 9 deselected" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("mine.py", "def normalise(:\n", "mine.py, line 1: invalid syntax"),
        ("mine.py", "import numpy\nnump.ones(3)\n", "mine.py, line 2: NameError: name 'nump'"),
        ("mine.ipynb", "{}", "mine.ipynb: wanted a Python file, NAME.py"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_a_line(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises(pytest.UsageError, match=re.escape(message)):
        module_of("conftest").loaded(path)


def test_a_file_that_is_not_there_is_told_in_a_line(tmp_path):
    with pytest.raises(pytest.UsageError, match=r"mine\.py: there is no such file"):
        module_of("conftest").loaded(tmp_path / "mine.py")


def test_the_projects_own_tests_leave_the_exercises_alone(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests"]


# the pages


def test_the_lectures_predictions_come_true():
    tried = doctest.testfile(str(LECTURE), module_relative=False)

    assert tried.attempted > 10
    assert tried.failed == 0


def test_the_messages_that_the_lecture_quotes_are_the_checks():
    rows = re.findall(r"^\| (\d+) \|[^|]+\| `(.+?)` \|", LECTURE.read_text(), flags=re.MULTILINE)
    names = list(CHECKS)

    assert {int(number) for number, _ in rows} == set(range(1, 13))
    for number, quoted in rows:
        told = [message for name, message, _ in WRONG if name == names[int(number) - 1]]
        assert any(quoted in message for message in told), quoted


def test_the_sheets_table_names_each_exercise_and_where_minikits_has_it():
    rows = re.findall(
        r"^\| (\d+) \| `(\w+)` \| (\d+) \|.*\| (.+) in `(\w+)\.py` \|$",
        (FOLDER / "README.md").read_text(),
        flags=re.MULTILINE,
    )

    assert [name for _, name, _, _, _ in rows] == list(CHECKS)
    assert sum(int(minutes) for _, _, minutes, _, _ in rows) == 180
    for _, _, _, functions, module in rows:
        for function in re.findall(r"`([\w.]+)`", functions):
            first, *_ = function.split(".")
            assert hasattr(importlib.import_module(f"minikits.{module}"), first), function
