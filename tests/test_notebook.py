"""docs/walkthrough.ipynb: it is what docs/make_notebook.py makes of the walkthrough, and it runs."""

import ast
import contextlib
import doctest
import io
import json

import make_notebook
import pytest
from make_notebook import NOTEBOOK, PAGE, as_text, notebook_of

TEXT = """# A page

Told.

    a formula = 1

    >>> x = 2  # doctest: +ELLIPSIS
    >>> if x:
    ...     print(x)
    2
    >>> x + 1
    3
    >>> y = 4

The end.
"""


def joined(cell):
    return "".join(cell["source"])


def run_cell(source, names):
    """What a cell shows: what it prints, and the value of its last line."""
    *statements, last = ast.parse(source).body
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(ast.Module(statements, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            if value is not None:
                print(repr(value))
        else:
            exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return shown.getvalue()


def test_a_page_is_cut_into_text_and_what_is_tried():
    cells = notebook_of(TEXT)["cells"]

    assert [cell["cell_type"] for cell in cells] == [
        *("markdown", "code", "code", "code", "markdown")
    ]
    assert joined(cells[0]) == "# A page\n\nTold.\n\n    a formula = 1"
    assert joined(cells[1]) == "x = 2  # doctest: +ELLIPSIS\nif x:\n    print(x)"
    assert cells[1]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": ["2\n"]}]
    assert joined(cells[2]) == "x + 1"
    assert joined(cells[3]) == "y = 4" and cells[3]["outputs"] == []
    assert joined(cells[4]) == "The end."
    assert len({cell["id"] for cell in cells}) == 5


def test_a_cell_shows_what_it_prints_and_its_last_value():
    names = {}

    assert run_cell("x = 2\nprint(x)\nx + 1", names) == "2\n3\n"
    assert run_cell("x", names) == "2\n"
    assert run_cell("None", names) == ""


def test_the_notebook_is_what_the_script_makes_of_the_page():
    made = as_text(notebook_of(PAGE.read_text()))

    assert NOTEBOOK.read_text() == made, "python docs/make_notebook.py"


def test_nothing_that_the_page_tries_is_lost():
    examples = doctest.DocTestParser().get_examples(PAGE.read_text())
    cells = notebook_of(PAGE.read_text())["cells"]

    tried = "".join(joined(cell) + "\n" for cell in cells if cell["cell_type"] == "code")

    assert tried == "".join(example.source for example in examples)
    assert len(examples) > 20


def test_the_script_writes_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_notebook, "NOTEBOOK", tmp_path / "a.ipynb")

    make_notebook.main()

    assert (tmp_path / "a.ipynb").read_text() == NOTEBOOK.read_text()
    assert capsys.readouterr().out == f"{tmp_path / 'a.ipynb'}\n"


def test_the_cells_run_in_order_and_show_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check = doctest.OutputChecker().check_output
    names = {}

    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            continue
        found = run_cell(joined(cell), names)
        wanted = "".join(line for output in cell["outputs"] for line in output["text"])
        assert check(wanted, found, doctest.ELLIPSIS), joined(cell)


@pytest.mark.parametrize("picture", ["figures/"])
def test_pictures_lie_where_the_notebook_looks_for_them(picture):
    text = "".join(joined(cell) for cell in notebook_of(PAGE.read_text())["cells"])

    assert f"]({picture}" in text
    assert NOTEBOOK.parent == PAGE.parent
