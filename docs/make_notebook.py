"""The walkthrough as a notebook: python docs/make_notebook.py

Writes docs/walkthrough.ipynb from docs/walkthrough.md, plain JSON, and needs nothing but Python. What
the page tries (its lines that begin with >>>) becomes cells of code with the output that the page
shows; all else stays text, the quoted source too, which belongs to the package. The notebook is never
edited by hand: change the page, and run this again."""

import doctest
import json
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "walkthrough.md"
NOTEBOOK = HERE / "walkthrough.ipynb"


def notebook_of(text: str) -> dict:
    """The notebook (format 4.5) of a page in Markdown."""
    cells = []
    for tried, lines in parts_of(text):
        if tried:
            cells += code_cells(lines)
        elif any(line.strip() for line in lines):
            cells.append(markdown_cell(lines))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return {
        "cells": cells,
        "metadata": {"language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def parts_of(text: str) -> list[tuple[bool, list[str]]]:
    """(whether it is tried, lines) of each part of a page. What is tried is an indented block whose
    first line begins with >>>."""
    parts = [(False, [])]
    for line in text.splitlines():
        tried, lines = parts[-1]
        if tried and not line.startswith("    "):
            parts.append((False, [line]))
        elif not tried and line.startswith("    >>> "):
            parts.append((True, [line]))
        else:
            lines.append(line)
    return parts


def markdown_cell(lines: list[str]) -> dict:
    """Text, without empty lines around it."""
    text = "\n".join(lines).strip("\n")
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def code_cells(lines: list[str]) -> list[dict]:
    """Statements up to one that shows something are a cell."""
    cells, waiting = [], ""
    for example in doctest.DocTestParser().get_examples("\n".join(lines) + "\n"):
        waiting += example.source
        if example.want:
            cells.append(code_cell(waiting, example.want))
            waiting = ""
    if waiting:
        cells.append(code_cell(waiting, ""))
    return cells


def code_cell(source: str, shown: str) -> dict:
    """Code, and what the page says that it shows."""
    outputs = []
    if shown:
        text = shown.splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": outputs,
        "source": source.rstrip("\n").splitlines(keepends=True),
    }


def as_text(notebook: dict) -> str:
    """The text of a notebook's file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    NOTEBOOK.write_text(as_text(notebook_of(PAGE.read_text())))
    print(NOTEBOOK)


if __name__ == "__main__":
    main()
