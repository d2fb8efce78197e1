"""The pages of evaluate.py: what stands in them, in which order, and that names are only names."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from math import inf, nan

import pytest
from test_evaluation import cases_of

from minikits.comparisons import most_apart
from minikits.evaluation import CaseScores, compare
from minikits.measures import Column
from minikits.mistakes import KINDS, Mistake
from minikits.pages import SORTING, ScoredCases, as_link, page_of_cases, page_of_comparison

SCORED = ScoredCases(
    [
        CaseScores("good", 0.95, 0.9, 0.925),
        CaseScores("bad", 0.5, 0.0, 0.25),
        CaseScores("none", 0.9, nan, nan),
    ],
    {"bad": [Mistake("kidney missed", 1, 150.25, 31), Mistake("false tumor", 3, 2.0, 4)]},
    {"good": "overlays/good.png", "bad": "overlays/bad.png"},
    bound=0.8,
)


class Page(HTMLParser):
    """rows: the cells' text of each row; values: what each sorts by; sources: of pictures."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.values, self.sources, self.tags, self.links = [], [], [], [], []
        self.low = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.values.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.values[-1].append(told.get("data-value"))
            self.low += "low" in (told.get("class") or "")
        if tag == "img":
            self.sources.append(told["src"])
        if tag == "a":
            self.links.append(told["href"])

    def handle_data(self, text):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += text.strip()


def test_cases_stand_worst_first_with_what_is_wrong():
    page = Page(page_of_cases("masks, by case", SCORED))

    assert [row[:5] for row in page.rows[:4]] == [
        ["case", "kidney", "tumor", "composite", "what is wrong"],
        [
            "bad",
            "50.00",
            "0.00",
            "25.00",
            "kidney missed (150.2 ml, slice 31), false tumor (3 pieces, 2.0 ml, slice 4)",
        ],
        ["none", "90.00", "-", "-", ""],
        ["good", "95.00", "90.00", "92.50", ""],
    ]
    assert page.rows[4][:4] == ["mean", "78.33", "45.00", "58.75"]
    assert page.values[1][:4] == ["bad", "0.500000", "0.000000", "0.250000"]
    assert page.values[2][2:] == ["", "", ""]  # last, whichever way it is sorted
    assert page.low == 2  # the kidney and the tumor of the bad one
    assert page.sources == ["overlays/bad.png", "overlays/good.png"]
    assert page.links == ["#case-0", "#case-2"]  # none to a picture that is not there


def test_further_columns_stand_between_dice_and_what_is_wrong():
    lengths = Column("length mm", {"good": 1.25, "bad": inf, "none": nan}, "{:.1f}".format)

    page = Page(page_of_cases("masks", replace(SCORED, columns=[lengths])))

    assert [row[3:5] for row in page.rows[:4]] == [
        ["composite", "length mm"],
        ["25.00", "inf"],
        ["-", "nan"],
        ["92.50", "1.2"],
    ]
    assert [values[4] for values in page.values[1:4]] == ["Infinity", "", "1.250000"]
    assert [len(row) for row in page.rows] == [6] * 5
    assert page.low == 2  # still the kidney and the tumor of the bad one


def test_the_page_says_its_bound_and_what_its_words_mean():
    text = page_of_cases("masks", SCORED)

    assert "below 80.00: 1 of 3" in text
    for kind in KINDS:
        assert f"<dt>{kind}</dt>" in text


def test_the_page_needs_nothing_from_elsewhere():
    text = page_of_cases("masks", SCORED)
    page = Page(text)

    assert not {"link", "iframe", "form", "base"} & set(page.tags)
    assert "://" not in text
    assert not re.search(r"<script[^>]*src", text)


@pytest.mark.parametrize("name", ["<b>a&b", "\"quoted' onclick=", "</td><script>", "\udcfc"])
def test_a_name_that_looks_like_html_is_text(name):
    cases = [CaseScores(name, 0.5, 0.5, 0.5)]
    scored = replace(SCORED, cases=cases, mistakes={}, pictures={name: f"overlays/{name}.png"})
    plain = replace(
        SCORED, cases=[CaseScores("a", 0.5, 0.5, 0.5)], mistakes={}, pictures={"a": "a"}
    )

    page = Page(page_of_cases(name, scored))

    assert page.tags == Page(page_of_cases("a", plain)).tags
    shown = name.encode(errors="backslashreplace").decode()
    assert page.rows[1][0] == shown
    assert page.values[1][0] == shown


def test_links_are_to_files_of_any_name():
    assert as_link("overlays/a b.png") == "overlays/a%20b.png"
    assert as_link('overlays/50%"#?.png') == "overlays/50%25%22%23%3F.png"
    assert as_link("overlays/\udcfc.png") == "overlays/%FC.png"  # no UTF-8


ROWS = [["a10", "Infinity", ""], ["a2", "", "x"], ["a1", "10.5", "y"], ["a3", "9.1", ""]]


@pytest.mark.parametrize(
    "clicks, order",
    [
        ("0", ["a1", "a2", "a3", "a10"]),
        ("00", ["a10", "a3", "a2", "a1"]),
        ("1", ["a3", "a1", "a10", "a2"]),
        ("11", ["a10", "a1", "a3", "a2"]),  # what has no score is last both ways
        ("2", ["a2", "a1", "a10", "a3"]),
        ("110", ["a1", "a2", "a3", "a10"]),
    ],
)
def test_a_click_on_a_heading_sorts_by_it_and_another_one_the_other_way(clicks, order):
    """By node, with as much of a document as the script asks for."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = SORTING.strip().removeprefix("<script>").removesuffix("</script>")
    document = f"""
        const rows = {ROWS}.map(cells => ({{
            dataset: {{figure: cells[0]}},
            cells: cells.map(value => ({{dataset: {{value}}}})),
        }}));
        const figures = rows.map(row => row.dataset.figure);
        const move = (list, one) => list.push(...list.splice(list.indexOf(one), 1));
        const body = {{rows, append: row => move(rows, row)}};
        const parentNode = {{append: figure => move(figures, figure.id)}};
        const heading = () => ({{
            firstChild: {{}}, sorted: null,
            getAttribute() {{ return this.sorted; }},
            setAttribute(name, value) {{ this.sorted = value; }},
            removeAttribute() {{ this.sorted = null; }},
        }});
        const head = {{rows: [{{cells: [heading(), heading(), heading()]}}]}};
        const document = {{
            querySelector: () => ({{tHead: head, tBodies: [body]}}),
            getElementById: id => ({{id, parentNode}}),
        }};
        {script}
        for (const column of "{clicks}") headings[column].firstChild.onclick();
        console.log(rows.map(row => row.dataset.figure).join());
        console.log(figures.join());
    """

    done = subprocess.run([node, "-e", document], capture_output=True, text=True, timeout=60)

    assert done.stdout.splitlines() == [",".join(order)] * 2, done.stderr


# --- systems compared -----------------------------------------------------------------------------

SYSTEMS = {
    "one & only": cases_of([0.9] * 6, [0.8, 0.8, 0.8, 0.8, 0.8, 0.7]),
    "other": cases_of([0.8, 0.7, 0.8, 0.8, 0.8, 0.8], [nan] * 6),
}


def test_systems_are_compared_by_structure_with_intervals():
    comparison = compare(SYSTEMS)
    apart = most_apart(SYSTEMS, comparison.cases)

    page = Page(page_of_comparison(comparison, apart, ["comparison.png", "differences/case_1.png"]))

    first, second = comparison.ranking + comparison.not_ranked
    tumor = comparison.summaries[first]["tumor"]
    interval = f"({100 * tumor.low:.2f} to {100 * tumor.high:.2f})"
    assert page.rows[1] == [first, "90.00", f"78.33 {interval}", page.rows[1][3]]
    assert page.rows[2][0] == second == "other"
    assert page.rows[2][2] == "-"
    assert page.rows[4][0] == "one & only - other"
    assert page.rows[4][1].startswith("+11.67 (p 0.031, 6 cases), +10.00 to +20.00")
    assert page.rows[4][2].startswith("- (no case where both have a score)")
    assert page.links == ["one%20%26%20only/index.html", "other/index.html"]
    assert page.sources == ["comparison.png", "differences/case_1.png"]


def test_systems_that_agree_are_said_to():
    systems = {"a": cases_of([0.9], [0.9]), "b": cases_of([0.9], [0.9])}

    text = page_of_comparison(compare(systems), [], [])

    assert "They score the same in each case." in text
    assert "<img" not in text
