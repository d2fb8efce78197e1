"""The house rules: who imports whom, who touches files, how much a reader has to read."""

import ast
import re
import sys

import pytest
from conftest import ROOT

PACKAGE = sorted((ROOT / "minikits").glob("*.py"))
SCRIPTS = [ROOT / f"{name}.py" for name in ("train", "predict", "evaluate")]
FILES = [*PACKAGE, *SCRIPTS]

MAY_IMPORT = {
    "fast": {"losses"},
    "recipe": set(),
    "files": set(),
    "preprocessing": {"volumes", "resampling"},
    "frames": {"volumes", "files"},
    "nifti": {"volumes", "files", "frames"},
    "doubts": {"volumes"},
    "cases": {"volumes", "preprocessing", "files", "frames", "nifti", "doubts"},
    "sampling": {"cases", "augmentation"},
    "checkpoints": {"files", "unet"},
    "nnunet": {"files", "unet", "checkpoints"},
    "training": {"devices", "losses", "sampling"},
    "ensemble": {"checkpoints"},
    "prediction": {"volumes", "preprocessing"},
    "masks": {"files", "cases", "ensemble"},
    "reports": {"volumes", "files", "evaluation"},
    "phantoms": {"nifti", "files", "cases"},  # what is a case, it asks there
}
TOUCH_FILES = {"files", "nifti", "cases", "checkpoints", "masks", "reports"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def functions(path):
    return [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
    ]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_modules_import_only_what_they_may(path):
    ours = {
        name.removeprefix("minikits.") for name in imports(path) if name.startswith("minikits.")
    }
    for_all = {"recipe"} if path.stem in ("recipe", "paper") else {"recipe", "paper"}
    assert ours <= MAY_IMPORT.get(path.stem, set()) | for_all
    assert not {name for name in imports(path) if name in ("train", "predict", "evaluate")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_three_dependencies(path):
    others = (
        {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"minikits"}
    )
    draws = path.stem == "reports"
    allowed = {"torch", "numpy", "nibabel"} | ({"matplotlib"} if draws else set())
    assert others <= allowed


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_only_these_touch_files(path):
    touches = re.search(
        r"\bopen\(|np\.load|np\.save|torch\.load|torch\.save|write_text\(|mkdir\(", path.read_text()
    )
    assert not touches or path.stem in TOUCH_FILES


def test_functions_take_few_arguments():
    for path in FILES:
        for node in functions(path):
            positional = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg != "self"]
            assert len(positional) <= 7, f"{path.name}: {node.name}"


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_public_functions_say_what_they_do(path):
    """All but the pairs of augmentation, whose names and the module's header say it, and the one-line builders."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            short = node.end_lineno - node.lineno < 8
            assert ast.get_docstring(node) or short or node.name == "main", node.name


def test_nothing_happens_on_import():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            calm = (
                ast.Import,
                ast.ImportFrom,
                ast.FunctionDef,
                ast.ClassDef,
                ast.Assign,
                ast.AnnAssign,
                ast.Expr,
            )
            guarded = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
            assert guarded or isinstance(node, calm), f"{path.name}:{node.lineno}"


def test_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text()
    for path in FILES:
        assert path.stem == "__init__" or f"{path.name}" in readme, path.name
