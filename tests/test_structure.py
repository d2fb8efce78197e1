"""The house rules: who imports whom, who touches files, who prints, where numbers stand, what a
reader is told of each function."""

import ast
import re
import sys

import pytest
from conftest import ROOT

import minikits

PACKAGE = sorted((ROOT / "minikits").glob("*.py"))
SCRIPTS = [ROOT / f"{name}.py" for name in ("train", "predict", "evaluate")]
FILES = [*PACKAGE, *SCRIPTS]

each_module = pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)

# What stands first may be imported by what comes later.
_, _, LISTED = minikits.__doc__.partition("Reading order, a patch's life: ")
READING_ORDER = re.findall(r"(?<![\w.])(\w+)(?:,|\.\s| \()", LISTED)

# The method imports itself alone: no files, no devices.
METHOD = {
    *("recipe", "paper", "volumes", "resampling", "preprocessing", "geometry", "augmentation"),
    *("sampling", "unet", "losses", "training", "prediction", "components", "evaluation"),
}
TOUCH_FILES = {"files", "nifti", "cache", "checkpoints", "records", "reports", "explain", "check"}

# Modules of the method that have numbers of their own; and numbers in the others that are none of
# the method's: how a seed is made, guards against dividing by zero.
NUMBERS_ELSEWHERE = {
    "recipe": "ranges of what is taken",
    "paper": "the numbers",
    "volumes": "tolerances",
    "resampling": "splines",
    "evaluation": "statistics",
}
OTHER_NUMBERS = {62, 64, 1e-7, 1e-8}
SMALL_NUMBERS = {0, 1, 2, 3, 4, 5, 0.5}  # of axes, neighbours, halves


def tree_of(path):
    return ast.parse(path.read_text())


def imports(path):
    """The modules that a file imports; of ours, `from minikits import x` too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "minikits":
            yield from (f"minikits.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def functions(path):
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)]


def public_functions(path):
    """(name, function) of a module's functions and of its classes' methods."""
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    yield f"{node.name}.{member.name}", member


def are_public(name):
    return not any(part.startswith("_") for part in name.split("."))


def arguments(function):
    given = function.args
    found = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [argument for argument in found if argument and argument.arg not in ("self", "cls")]


def our_imports(path):
    modules = {module.stem for module in PACKAGE}
    return {name.removeprefix("minikits.") for name in imports(path)} & modules


def test_the_reading_order_has_every_module():
    modules = {path.stem for path in PACKAGE} - {"__init__"}

    assert modules <= set(READING_ORDER)


@each_module
def test_modules_import_only_what_stands_before_them(path):
    before = READING_ORDER
    if path.stem != "__init__":
        before = READING_ORDER[: READING_ORDER.index(path.stem)]

    assert our_imports(path) <= set(before)
    assert not {"train", "predict", "evaluate"} & set(imports(path))


@each_module
def test_the_method_imports_the_method_alone(path):
    if path.stem in METHOD:
        assert our_imports(path) <= METHOD


@each_file
def test_three_dependencies(path):
    packages = {name.split(".")[0] for name in imports(path)}
    others = packages - set(sys.stdlib_module_names) - {"minikits"}

    draws = path.stem in ("reports", "pictures", "comparisons")
    drawing = {"matplotlib"} if draws else set()

    assert others <= {"torch", "numpy", "nibabel"} | drawing


@each_file
def test_matplotlib_is_imported_by_the_functions_that_draw(path):
    for node in tree_of(path).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert "matplotlib" not in ast.unparse(node), path.name


@each_module
def test_only_these_touch_files(path):
    touches = re.search(
        r"\bopen\(|np\.load|np\.save|torch\.load|torch\.save|write_text\(|mkdir\(", path.read_text()
    )
    assert not touches or path.stem in TOUCH_FILES


@each_module
def test_only_main_prints(path):
    """Progress and warnings of a module go to a function that the caller passes in."""
    printing = set()
    for function in functions(path):
        names = [node.id for node in ast.walk(function) if isinstance(node, ast.Name)]
        if "print" in names and function.name != "main":
            printing.add(function.name)

    assert not printing


@each_module
def test_numbers_of_the_method_stand_in_paper_alone(path):
    if path.stem not in METHOD - NUMBERS_ELSEWHERE.keys():
        return
    numbers = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            numbers.add(node.value)

    assert numbers <= SMALL_NUMBERS | OTHER_NUMBERS


def test_functions_take_few_arguments():
    for path in FILES:
        for node in functions(path):
            positional = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg != "self"]
            assert len(positional) <= 7, f"{path.name}: {node.name}"


@each_file
def test_public_functions_have_types(path):
    untyped = set()
    for name, function in public_functions(path):
        types = [argument.annotation for argument in arguments(function)]
        if are_public(name) and None in (*types, function.returns):
            untyped.add(name)

    assert not untyped


@each_file
def test_public_functions_say_what_they_do(path):
    assert ast.get_docstring(tree_of(path))
    for node in tree_of(path).body:
        if isinstance(node, ast.ClassDef) and are_public(node.name):
            assert ast.get_docstring(node), node.name

    silent = set()
    for name, function in public_functions(path):
        told_elsewhere = name == "main" or name.endswith(".forward")  # by the module, by the class
        if are_public(name) and not told_elsewhere and not ast.get_docstring(function):
            silent.add(name)

    assert not silent


def test_nothing_happens_on_import():
    calm = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for path in FILES:
        for node in tree_of(path).body:
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_guarded = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
            assert is_text or is_guarded or isinstance(node, calm), f"{path.name}:{node.lineno}"


def test_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text()
    for path in FILES:
        assert path.stem == "__init__" or path.name in readme, path.name
