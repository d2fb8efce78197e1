"""How plainly the code reads, in figures: python benchmarks/read.py [FOLDER ...] [--out FILE.md]

A report and no gate: a figure that becomes a target stops telling anything. FOLDER is any checkout,
this one if none is given: its package minikits/ and its three scripts, or all its Python files where
there is no such package, without tests; several are measured one after the other. For each file and
in total:

  lines            of the file, blank ones and comments too
  over 100         % of all lines that are longer than 100 columns
  tokens           a line of code, mean and ninth decile: what Python's tokenizer finds, without
                   comments, docstrings, line ends and indentation; lines of code are those on which
                   one begins. An f-string is one token, whatever stands in its braces
  nested           comprehensions (and generator expressions) in another one, or with two `for`
  :=               assignments inside of expressions
  and/or           statements that are nothing but an `and` or an `or`: done for its side effect
  if-else          conditional expressions in 100 lines
  blank            % of the lines of functions, from the first one below the docstring
  typed            % of the arguments of functions that have a type, without self and cls

Below stand the same figures, counted by this program, of two that are known to be read with ease
(nanoGPT's model.py, train.py and sample.py at 3adf61e, whisper at c0d2f62) and of minikits when it
had a limit of 2,200 lines (d223d0a).
"""

import argparse
import ast
import io
import statistics
import tokenize
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST = 100  # columns

COLUMNS = (
    *("lines", "over 100 %", "tokens a line", "ninth decile", "nested", ":=", "and/or"),
    *("if-else in 100", "blank %", "typed %"),
)
MODELS = """\
| nanoGPT | 755 | 4.1 | 9.0 | 18 | 0 | 0 | 0 | 1.9 | 5.5 | 0 |
| whisper | 3966 | 1.3 | 7.3 | 15 | 12 | 7 | 0 | 1.1 | 11.3 | 82 |
| minikits, of 2,200 lines | 2199 | 20.6 | 13.5 | 29 | 29 | 16 | 4 | 4.3 | 0.7 | 0 |"""

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}
FSTRING_START = getattr(tokenize, "FSTRING_START", None)  # from Python 3.12 on
FSTRING_END = getattr(tokenize, "FSTRING_END", None)


@dataclass
class Figures:
    """What is counted in a file; the figures of several files are those of all their lines."""

    lines: int
    long_lines: int
    tokens: list[int]  # on each line of code
    nested: int
    walruses: int
    bare_choices: int  # statements made of and/or
    conditionals: int
    function_lines: int
    blank_lines: int  # in functions
    arguments: int
    typed: int

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )


def measure(source: str) -> Figures:
    """The figures of a file's text."""
    tree = ast.parse(source)
    lines = source.splitlines()
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]

    outermost = set(functions)
    for function in functions:
        for inner in ast.walk(function):
            if inner is not function:
                outermost.discard(inner)
    in_functions = []
    for function in outermost:
        in_functions += lines[_first_line_of_code(function) - 1 : function.end_lineno]

    arguments = []
    for function in functions:
        arguments += _arguments(function)

    return Figures(
        lines=len(lines),
        long_lines=sum(len(line) > LONGEST for line in lines),
        tokens=tokens_of_lines(source, docstring_rows(nodes)),
        nested=sum(_is_nested(node) for node in nodes),
        walruses=sum(isinstance(node, ast.NamedExpr) for node in nodes),
        bare_choices=sum(_is_bare_choice(node) for node in nodes),
        conditionals=sum(isinstance(node, ast.IfExp) for node in nodes),
        function_lines=len(in_functions),
        blank_lines=sum(not line.strip() for line in in_functions),
        arguments=len(arguments),
        typed=sum(argument.annotation is not None for argument in arguments),
    )


def tokens_of_lines(source: str, docstrings: set[int]) -> list[int]:
    """How many tokens of code begin on each line on which one does. docstrings: their first rows."""
    counts: dict[int, int] = {}
    depth = 0  # of f-strings, which newer tokenizers take apart
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row = token.start[0]
        if token.type == FSTRING_END:
            depth -= 1
            continue
        is_docstring = token.type == tokenize.STRING and row in docstrings
        if depth == 0 and token.type not in NO_CODE and not is_docstring:
            counts[row] = counts.get(row, 0) + 1
        if token.type == FSTRING_START:
            depth += 1
    return list(counts.values())


def docstring_rows(nodes: list[ast.AST]) -> set[int]:
    """The rows on which a string begins that stands as a statement of its own."""
    rows = set()
    for node in nodes:
        is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_constant and isinstance(node.value.value, str):
            rows.add(node.lineno)
    return rows


def _first_line_of_code(function):
    first = function.body[0]
    if ast.get_docstring(function) is not None and len(function.body) > 1:
        first = function.body[1]
    return first.lineno


def _arguments(function):
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    arguments += [argument for argument in (given.vararg, given.kwarg) if argument]
    return [argument for argument in arguments if argument.arg not in ("self", "cls")]


def _is_nested(node):
    if not isinstance(node, COMPREHENSIONS):
        return False
    inner = [other for other in ast.walk(node) if isinstance(other, COMPREHENSIONS)]
    return len(inner) > 1 or len(node.generators) > 1


def _is_bare_choice(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.BoolOp)


def row_of(name: str, figures: Figures) -> str:
    """A line of the table."""
    code_lines = len(figures.tokens) or 1
    ninth_decile = statistics.quantiles(figures.tokens, n=10)[-1] if code_lines > 1 else 0
    cells = [
        name,
        str(figures.lines),
        f"{100 * figures.long_lines / (figures.lines or 1):.1f}",
        f"{sum(figures.tokens) / code_lines:.1f}",
        f"{ninth_decile:.0f}",
        str(figures.nested),
        str(figures.walruses),
        str(figures.bare_choices),
        f"{100 * figures.conditionals / (figures.lines or 1):.1f}",
        f"{100 * figures.blank_lines / (figures.function_lines or 1):.1f}",
        f"{100 * figures.typed / (figures.arguments or 1):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def files_of(folder: Path) -> list[Path]:
    """The package and the scripts; in other checkouts all Python files that are no tests."""
    if (folder / "minikits").is_dir():
        scripts = [folder / f"{name}.py" for name in ("train", "predict", "evaluate")]
        return [*sorted((folder / "minikits").glob("*.py")), *scripts]

    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if not any(part == "tests" or part.startswith(".") for part in parts):
            found.append(path)
    return found


def table(folder: Path) -> list[str]:
    """The lines of the table of a checkout."""
    measured = {}
    for path in files_of(folder):
        measured[str(path.relative_to(folder))] = measure(path.read_text())
    if not measured:
        raise SystemExit(f"{folder}: no Python files; wanted a checkout")

    total, *others = measured.values()
    for figures in others:
        total = total + figures

    lines = [f"| file | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, figures in measured.items():
        lines.append(row_of(name, figures))
    return [*lines, row_of("in total", total), *MODELS.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description="How plainly the code reads, in figures.")
    parser.add_argument("folders", type=Path, nargs="*", default=[ROOT], help="checkouts")
    parser.add_argument("--out", type=Path, help="a file for the tables, which are printed too")
    arguments = parser.parse_args()

    reports = ["\n".join(table(folder)) for folder in arguments.folders]
    report = "\n\n".join(reports)
    print(report)
    if arguments.out:
        arguments.out.write_text(f"{report}\n")


if __name__ == "__main__":
    main()
