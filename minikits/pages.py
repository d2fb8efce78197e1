"""Pages of plain HTML, which any browser opens from a folder, without a server: the frame of each, the
cases of an evaluation with the worst first, and systems compared."""

import html
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from minikits.comparisons import Apart
from minikits.evaluation import SCORES, CaseScores, Comparison, MeanScore, summarise
from minikits.measures import Column
from minikits.mistakes import KINDS, Mistake, is_below, worst_first
from minikits.reports import difference_in_words, in_percent

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 84em; margin: 2em auto; padding: 0 1em; }
.told { max-width: 60em; }
table { border-collapse: collapse; }
th { text-align: left; font-weight: normal; vertical-align: top; }
th, td { padding: 0.1em 1.5em 0.1em 0; border-bottom: 1px solid #ddd; }
img { max-width: 100%; margin-top: 1em; }
"""

STYLE_OF_SCORES = """
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
thead th.number { white-space: normal; }
thead button { font: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th[aria-sort] button { font-weight: bold; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.low { background: #fde3e0; }
figure { margin: 2em 0; }
dt { float: left; clear: left; width: 9em; }
dd { margin-left: 9em; }
"""

# Sorts rows by a column, at a second click the other way round, and the pictures with them.
# What has no value (data-value="") stays last.
SORTING = """
<script>
const table = document.querySelector("table.sorted");
const headings = [...table.tHead.rows[0].cells];

function order(one, other, upwards) {
  if (one === "" || other === "") return (one === "") - (other === "");
  const numbers = !isNaN(one) && !isNaN(other);
  const sign = numbers ? one - other : one.localeCompare(other, "en", {numeric: true});
  return upwards ? sign : -sign;
}

function sortBy(column) {
  const upwards = headings[column].getAttribute("aria-sort") !== "ascending";
  headings.forEach(heading => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", upwards ? "ascending" : "descending");

  const rows = [...table.tBodies[0].rows];
  const value = row => row.cells[column].dataset.value;
  rows.sort((one, other) => order(value(one), value(other), upwards));
  for (const row of rows) {
    table.tBodies[0].append(row);
    const figure = document.getElementById(row.dataset.figure);
    if (figure) figure.parentNode.append(figure);
  }
}

headings.forEach((heading, column) => heading.firstChild.onclick = () => sortBy(column));
</script>
"""


# --- any page -------------------------------------------------------------------------------------


def whole_page(title: str, parts: Sequence[str], *, style: str = "") -> str:
    """The text of a page: the title, in the window's bar too, and below it parts that are HTML.
    style: more of CSS."""
    head = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f"<title>{as_html(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>",
        f"<h1>{as_html(title)}</h1>",
    ]
    return "\n".join([*head, *parts, "</body>\n</html>\n"])


def as_html(text: str) -> str:
    """A text as it stands in HTML; of a file's name that is no UTF-8 too."""
    return html.escape(text.encode(errors="backslashreplace").decode())


def as_link(path: str) -> str:
    """A path beside the page as it stands in src and href: the bytes of the file's name, whatever
    they are.

    >>> as_link("overlays/50% é.png")
    'overlays/50%25%20%C3%A9.png'
    """
    return quote(os.fsencode(path))


# --- an evaluation --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredCases:
    """What the page of an evaluation shows: scores of cases, {case: what is wrong} of those below
    the bound, {case: its picture's file beside the page}, and columns besides Dice."""

    cases: Sequence[CaseScores]
    mistakes: Mapping[str, Sequence[Mistake]]
    pictures: Mapping[str, str]
    bound: float
    columns: Sequence[Column] = ()


def page_of_cases(title: str, scored: ScoredCases) -> str:
    """A table of all cases, the worst first, that sorts by any column, and their pictures in its
    order."""
    cases = worst_first(scored.cases)
    count = sum(is_below(scores, scored.bound) for scores in cases)
    told = (
        f"Dice in %. The worst case stands first: the one with the lowest mean of kidney and tumor. "
        f"A click on a heading sorts by it, pictures too. Cases with a Dice of kidney or tumor "
        f"below {in_percent(scored.bound)}: {count} of {len(cases)}; what is wrong stands beside "
        "them, with its ml and the slice that has most of it."
    )
    parts = [f'<p class="told">{as_html(told)}</p>', *_table(cases, scored)]

    parts.append("<h2>What the words mean</h2>\n<dl>")
    for kind, meaning in KINDS.items():
        parts.append(f"<dt>{as_html(kind)}</dt><dd>{as_html(meaning)}</dd>")
    parts.append("</dl>")

    parts += ["<h2>Pictures</h2>", "<div>"]
    for number, scores in enumerate(cases):
        if scores.case in scored.pictures:
            parts.append(_figure(number, scores, scored))
    parts += ["</div>", SORTING]
    return whole_page(title, parts, style=STYLE_OF_SCORES)


def _table(cases, scored):
    """The table, a row for each case; below, their mean."""
    parts = ['<table class="sorted">', "<thead><tr>"]
    of_numbers = [*SCORES, *(column.heading for column in scored.columns)]
    for heading in ("case", *of_numbers, "what is wrong"):
        kind = ' class="number"' if heading in of_numbers else ""
        parts.append(f'<th{kind}><button type="button">{heading}</button></th>')
    parts.append("</tr></thead>\n<tbody>")

    for number, scores in enumerate(cases):
        parts.append(f'<tr data-figure="case-{number}">')
        name = as_html(scores.case)
        if scores.case in scored.pictures:
            name = f'<a href="#case-{number}">{name}</a>'
        parts.append(f'<td data-value="{as_html(scores.case)}">{name}</td>')
        for score in SCORES:
            value = getattr(scores, score)
            low = score != "composite" and value < scored.bound  # by which cases are chosen
            parts.append(_cell(value, in_percent(value), low=low))
        for column in scored.columns:
            value = column.values[scores.case]
            parts.append(_cell(value, column.shown(value)))
        wrong = as_html(_in_words(scored.mistakes.get(scores.case, [])))
        parts.append(f'<td data-value="{wrong}">{wrong}</td></tr>')

    parts.append("</tbody>\n<tfoot><tr><td>mean</td>")
    summary = summarise(cases)
    for score in SCORES:
        parts.append(f'<td class="number">{in_percent(summary[score].mean)}</td>')
    parts.append("<td></td>" * len(scored.columns))
    parts.append("<td></td></tr></tfoot>\n</table>")
    return parts


def _cell(value, shown, *, low=False):
    """A number; marked where it is low."""
    kind = "number low" if low else "number"
    sorted_by = f"{value:.6f}"
    if np.isnan(value):
        sorted_by = ""
    elif np.isinf(value):
        sorted_by = "Infinity"  # as the script reads it
    return f'<td class="{kind}" data-value="{sorted_by}">{shown}</td>'


def _in_words(mistakes):
    return ", ".join(map(str, mistakes))


def _figure(number, scores, scored):
    """A case's picture, below what is wrong."""
    told = as_html(
        f"{scores.case}: {_in_words(scored.mistakes.get(scores.case, [])) or 'not below the bound'}"
    )
    source = as_link(scored.pictures[scores.case])
    image = f'<img src="{source}" alt="{told}" loading="lazy">'
    return f'<figure id="case-{number}"><figcaption>{told}</figcaption>\n{image}</figure>'


# --- systems compared -----------------------------------------------------------------------------


FIGURE = "comparison.png"


def picture_of(one: Apart) -> str:
    """The file of its picture, beside the page."""
    return f"differences/{one.case}.png"


def page_of_comparison(
    comparison: Comparison, apart: Sequence[Apart], drawn: Collection[str]
) -> str:
    """Systems in tables by structure, the figure, and the cases on which they differ most, each
    with its picture if that is among the files `drawn`. Each system's own page is index.html in
    the folder of its name."""
    names = comparison.ranking + comparison.not_ranked
    cases = len(comparison.cases)
    told = (
        f"Dice in % of the {cases} case{'s' if cases > 1 else ''} that all have, with the 95% "
        "interval of the mean; the best system first. A name leads to the system's own cases."
    )
    parts = [
        f'<p class="told">{as_html(told)}</p>',
        "<table>",
        _headings("system"),
    ]
    for name in names:
        cells = [_interval_in_words(comparison.summaries[name][score]) for score in SCORES]
        link = f'<a href="{as_link(name)}/index.html">{as_html(name)}</a>'
        parts.append(_row(link, cells))
    parts.append("</tbody></table>")

    parts.append("<h2>Differences</h2>")
    told = (
        "Of each pair the mean difference in points, p by sign flips (paired, corrected for the "
        "number of pairs by Holm's method), and the interval of this pair alone, where six cases "
        "or more have both scores."
    )
    parts += [f'<p class="told">{as_html(told)}</p>', "<table>", _headings("pair")]
    for pair in comparison.pairs:
        cells = [_difference_with_interval(getattr(pair, score)) for score in SCORES]
        parts.append(_row(as_html(f"{pair.better} - {pair.worse}"), cells))
    parts.append("</tbody></table>")
    if FIGURE in drawn:
        parts.append(f'<img src="{FIGURE}" alt="Scores by system, and differences by case">')

    parts.append("<h2>Where they differ most</h2>")
    if not apart:
        parts.append("<p>They score the same in each case.</p>")
    for one in apart:
        scores = ", ".join(f"{name} {in_percent(score)}" for name, score in one.scores.items())
        told = as_html(f"{one.case}, {one.structure}: {scores}")
        parts.append(f"<figure><figcaption>{told}</figcaption>")
        if picture_of(one) in drawn:
            parts.append(f'<img src="{as_link(picture_of(one))}" alt="{told}">')
        parts.append("</figure>")
    return whole_page(" and ".join(names), parts, style=STYLE_OF_SCORES)


def _headings(first):
    """The head of a table of all scores."""
    scores = "".join(f'<th class="number">{score}</th>' for score in SCORES)
    return f"<thead><tr><th>{first}</th>{scores}</tr></thead>\n<tbody>"


def _row(first, cells):
    """A row of a table; `first` is HTML, cells are text."""
    others = "".join(f'<td class="number">{as_html(cell)}</td>' for cell in cells)
    return f"<tr><td>{first}</td>{others}</tr>"


def _interval_in_words(found: MeanScore) -> str:
    """ "97.34 (95.10 to 98.20)" """
    if np.isnan(found.low):
        return in_percent(found.mean)
    return f"{in_percent(found.mean)} ({in_percent(found.low)} to {in_percent(found.high)})"


def _difference_with_interval(found):
    """ "+1.20 (p 0.031, 6 cases), 0.40 to 2.10" """
    said = difference_in_words(found)
    if np.isnan(found.low):
        return said
    return f"{said}, {100 * found.low:+.2f} to {100 * found.high:+.2f}"
