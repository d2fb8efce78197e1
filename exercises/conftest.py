"""`--answers FILE`: whose functions are checked."""

import importlib.util
import os
import traceback
from pathlib import Path

import pytest

# told before torch is imported: these networks are tiny, and threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

STUBS = Path(__file__).parent / "answers.py"
ANSWERS = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption(
        "--answers",
        metavar="FILE",
        default=str(STUBS),
        help="the Python file with your functions (default: exercises/answers.py)",
    )


def pytest_configure(config):
    # short: what a check says is all that there is to be read
    config.option.tbstyle = "short"
    config.option.reportchars = "N"
    config.stash[ANSWERS] = loaded(Path(config.getoption("--answers")))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Twelve short checks need no processes of their own."""
    return 0


@pytest.fixture
def answers(request):
    """The student's file, as a module."""
    return request.config.stash[ANSWERS]


def loaded(path):
    """A Python file as a module; one line, and no more, where it cannot be read."""
    if not path.is_file():
        raise pytest.UsageError(f"--answers {path}: there is no such file")
    if path.suffix != ".py":
        raise pytest.UsageError(f"--answers {path}: wanted a Python file, NAME.py")

    spec = importlib.util.spec_from_file_location("students_answers", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise pytest.UsageError(f"{path}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        kind = type(error).__name__
        raise pytest.UsageError(f"{path}, line {line}: {kind}: {error}") from None
    return module
