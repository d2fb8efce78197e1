"""What stands in tables, CSV and JSON, of scores that can be worked out in the head."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_evaluation import cases_of

from minikits.evaluation import (
    SCORES,
    CaseScores,
    Difference,
    compare,
    mean_interval,
    score_case,
    summarise,
)
from minikits.paper import TABLE_1
from minikits.reports import (
    as_csv,
    as_json,
    cases_csv,
    comparison_json,
    comparison_table,
    summary_json,
    table,
)


def numbers(line):
    """The last three of a line."""
    return [float(word) for word in line.split()[-3:]]


def test_the_table_says_what_each_missing_score_means():
    nothing = np.zeros(4)
    kidney = np.array([0, 1, 1, 0])
    tumor = np.array([0, 2, 1, 0])
    cases = [
        score_case("empty", nothing, nothing),
        score_case("no_tumor", kidney, kidney),
        score_case("whole", tumor, tumor),
    ]

    lines = table(cases).splitlines()

    assert [line.split() for line in lines[:5]] == [
        ["Dice", "in", "%", *SCORES],
        ["empty", "-", "-", "-"],
        ["no_tumor", "100.00", "-", "-"],
        ["whole", "100.00", "100.00", "100.00"],
        ["mean", "100.00", "100.00", "100.00"],
    ]
    assert [line.split() for line in lines[5:7]] == [
        ["95%", "from", "-", "-", "-"],
        ["to", "-", "-", "-"],
    ]
    assert lines[7:] == [
        "1 of 3 cases has no kidney score (empty): "
        "neither mask nor reference has any kidney or tumor",
        "2 of 3 cases have no tumor score (empty, no_tumor): "
        "neither mask nor reference has any tumor",
        "2 of 3 cases have no composite score (empty, no_tumor): "
        "it is the mean of both scores, and one of them is missing",
        "no 95% interval of kidney: 2 cases have a score, wanted 3 or more",
        "no 95% interval of tumor, composite: 1 case has a score, wanted 3 or more",
    ]


def test_the_columns_stand_below_each_other():
    cases = [CaseScores("a", 1, 0.5, 0.75), CaseScores("a_long_name", 0.1, 0, 0.05)]

    assert table(cases).splitlines()[:4] == [
        "Dice in %       kidney      tumor  composite",
        "a               100.00      50.00      75.00",
        "a_long_name      10.00       0.00       5.00",
        "mean             55.00      25.00      40.00",
    ]


def test_the_table_says_why_equal_scores_have_no_interval():
    cases = cases_of([0.9, 0.8, 0.7, 0.6], [0.5] * 4)
    low, high = mean_interval([0.9, 0.8, 0.7, 0.6])
    why = "all 4 scores are equal, which says nothing of how scores spread"

    lines = table(cases).splitlines()

    assert lines[6].split()[:4] == ["95%", "from", f"{100 * low:.2f}", "-"]
    assert lines[7].split()[:3] == ["to", f"{100 * high:.2f}", "-"]
    assert lines[-1] == f"no 95% interval of tumor: {why}"

    summary = json.loads(summary_json(summarise(cases)))
    assert summary["tumor"] == {
        "mean": 0.5,
        "from": None,
        "to": None,
        "cases": 4,
        "without_score": 0,
        "no_interval": why,
    }
    assert summary["kidney"]["from"] == pytest.approx(low)
    assert summary["kidney"]["to"] == pytest.approx(high)
    assert summary["kidney"]["no_interval"] == ""


def test_the_papers_rows_stand_below_the_systems_that_bear_their_names():
    cases = cases_of([0.9, 0.8, 0.7], [0.6, 0.5, 0.4])
    systems = dict.fromkeys([*TABLE_1, "mine"], cases)

    lines = comparison_table(compare(systems)).splitlines()

    first_words = [line.split()[0] for line in lines]
    for name in systems:
        at = first_words.index(name)
        assert numbers(lines[at]) == [80, 50, 65]
        assert lines[at + 1].startswith("  95% from ")
        assert lines[at + 2].startswith("  to ")
        if name in TABLE_1:
            assert lines[at + 3].startswith("  paper ")
            assert numbers(lines[at + 3]) == list(TABLE_1[name])
    assert first_words.count("paper") == len(TABLE_1)


def test_a_system_that_is_not_ranked_stands_below_with_what_scores_it_has():
    careful = cases_of([1.0] * 3, [math.nan] * 3)
    eager = cases_of([0.9, 0.8, 0.7], [0.0] * 3)
    compared = compare({"careful": careful, "eager": eager})

    lines = comparison_table(compared).splitlines()

    assert lines[1].split() == ["eager", "80.00", "0.00", "40.00"]
    assert lines[4].split() == ["careful", "100.00", "-", "-"]
    assert "careful: not ranked, since it has no composite score of these cases" in lines
    assert not any(line.startswith("eager: not ranked") for line in lines)

    read = json.loads(comparison_json(compared))
    assert (read["ranking"], read["not_ranked"]) == (["eager"], ["careful"])
    assert read["summaries"]["careful"]["composite"]["mean"] is None
    assert read["summaries"]["careful"]["kidney"]["mean"] == 1


def test_where_no_system_is_ranked_each_is_named_and_the_kidneys_are_compared():
    cases = cases_of([0.9, 0.8], [math.nan] * 2)

    text = comparison_table(compare({"b": cases, "a": cases}))

    assert "a: not ranked" in text and "b: not ranked" in text
    assert "a - b: kidney +0.00 (p 1.000, 2 cases), tumor - (no case where both" in text


def test_the_difference_of_one_case_is_of_one_case():
    compared = compare({"a": cases_of([0.9], [0.9]), "b": cases_of([0.8], [0.8])})

    assert "a - b: kidney +10.00 (p 1.000, 1 case), tumor" in comparison_table(compared)


def test_a_small_p_is_not_printed_as_0():
    good = cases_of([0.9] * 40, [0.9] * 40)
    bad = cases_of([0.5] * 40, [0.8] * 40)

    text = comparison_table(compare({"good": good, "bad": bad}))

    assert "kidney +40.00 (p < 0.001, 40 cases)" in text


@pytest.mark.parametrize(
    "p, said", [(0.0004, "p < 0.001"), (0.0006, "p 0.001"), (0.003, "p 0.003")]
)
def test_p_is_printed_to_a_thousandth(p, said):
    compared = compare({"a": cases_of([0.2], [0.2]), "b": cases_of([0.1], [0.1])})
    (pair,) = compared.pairs
    pair = replace(pair, tumor=Difference(0.1, p, 3, math.nan, math.nan))

    text = comparison_table(replace(compared, pairs=[pair]))

    assert f"tumor +10.00 ({said}, 3 cases)" in text


def test_the_csv_has_a_line_a_case_and_nan_where_there_is_no_score():
    cases = [
        CaseScores('a,"b"', 0.5, math.nan, math.nan),
        CaseScores("c", 0.25, 0.0, 0.125),
    ]

    read = list(csv.reader(io.StringIO(cases_csv(cases))))

    assert read == [
        ["case", *SCORES],
        ['a,"b"', "0.5", "nan", "nan"],
        ["c", "0.25", "0.0", "0.125"],
    ]


def test_each_row_of_a_csv_is_in_the_order_of_the_first():
    rows = [{"epoch": 1, "loss": 0.5}, {"loss": 0.25, "epoch": 2}]

    assert as_csv(rows) == "epoch,loss\r\n1,0.5\r\n2,0.25\r\n"


def test_the_json_of_a_comparison_names_all_that_was_compared():
    compared = compare(
        {
            "a": cases_of([0.9] * 3, [0.9] * 3),
            "b": cases_of([0.8] * 3, [math.nan] * 3),
        }
    )

    read = json.loads(comparison_json(compared))

    assert list(read) == ["ranking", "not_ranked", "cases", "summaries", "pairs"]
    assert read["cases"] == ["case_0", "case_1", "case_2"]
    assert list(read["summaries"]["a"]) == list(SCORES)
    (pair,) = read["pairs"]
    assert list(pair) == ["better", "worse", *SCORES]
    assert (pair["better"], pair["worse"]) == ("a", "b")
    none = {"low": None, "high": None}  # of three differences no interval
    assert pair["kidney"] == {"difference": pytest.approx(0.1), "p": 2 / 8, "cases": 3, **none}
    assert pair["tumor"] == {"difference": None, "p": None, "cases": 0, **none}


def test_the_json_is_strict():
    def refuse(word):
        raise AssertionError(word)

    text = as_json({"a": [0.5, math.nan, math.inf], "name": "é"})

    assert json.loads(text, parse_constant=refuse) == {"a": [0.5, None, None], "name": "é"}
    assert text.endswith("\n")
