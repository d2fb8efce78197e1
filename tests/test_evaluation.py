"""Hand-worked cases, the official formula on real labels, and what has no score."""

import csv
import io
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from minikits.evaluation import (
    FEWEST_CASES,
    RESAMPLES,
    SCORES,
    compare,
    holm,
    kits_dice,
    mean_interval,
    ranked,
    score_case,
    sign_flip_test,
    summarise,
)
from minikits.nifti import read_labels
from minikits.paper import TABLE_1
from minikits.reports import as_csv, as_json, comparison_table, table


def test_four_voxels_by_hand():
    """Kidney counts the tumor with it."""
    assert kits_dice(np.array([1, 2, 0, 1]), np.array([1, 1, 2, 0])) == pytest.approx((4 / 6, 0))
    assert kits_dice(np.array([0, 2, 2, 1]), np.array([0, 2, 1, 1])) == pytest.approx((1, 2 / 3))


def test_degenerate_cases():
    nothing, kidney, tumor = np.zeros(5), np.array([0, 1, 1, 0, 0]), np.array([0, 2, 2, 0, 0])
    assert all(map(math.isnan, kits_dice(nothing, nothing)))
    assert kits_dice(kidney, nothing) == (0, pytest.approx(math.nan, nan_ok=True))
    score = kits_dice(kidney, kidney)
    assert score[0] == 1 and math.isnan(score[1])
    assert kits_dice(kidney, tumor) == (1, 0) and kits_dice(nothing, tumor) == (0, 0)
    with pytest.raises(ValueError, match="differ in shape"):
        kits_dice(np.zeros(4), np.zeros(5))


@pytest.mark.parametrize("form", ["C", "F", "turned", "flipped", "every second"])
def test_how_arrays_lie_in_memory_changes_nothing(form):
    generator = np.random.default_rng(5)
    prediction, reference = generator.integers(0, 3, (2, 3, 4, 5))
    forms = {
        "C": np.ascontiguousarray,
        "F": np.asfortranarray,
        "turned": lambda labels: np.ascontiguousarray(labels.transpose(1, 2, 0)).transpose(2, 0, 1),
        "flipped": lambda labels: np.ascontiguousarray(labels[:, ::-1])[:, ::-1],
        "every second": lambda labels: labels.repeat(2, axis=2)[:, :, ::2],
    }
    kidney = (
        2
        * ((prediction > 0) & (reference > 0)).sum()
        / ((prediction > 0).sum() + (reference > 0).sum())
    )
    tumor = (
        2
        * ((prediction == 2) & (reference == 2)).sum()
        / ((prediction == 2).sum() + (reference == 2).sum())
    )

    assert kits_dice(forms[form](prediction), reference) == pytest.approx((kidney, tumor))
    assert kits_dice(prediction, forms[form](reference)) == pytest.approx((kidney, tumor))


@pytest.mark.parametrize(
    "strange, named",
    [
        ([0, 3], "3"),
        ([-1, 0], "-1"),
        ([0.0, 0.4], "0.4"),
        ([0.0, math.nan], "nan"),
        ([2.0, math.inf], "inf"),
    ],
)
def test_what_are_no_labels_has_no_dice(strange, named):
    """Probabilities, for example, would pass for labels in silence."""
    with pytest.raises(
        ValueError, match=f"prediction: label values {named} found, wanted only 0, 1 and 2"
    ):
        kits_dice(np.array(strange), np.array([0, 1]))
    with pytest.raises(ValueError, match=f"reference: label values {named} found"):
        kits_dice(np.array([0, 1]), np.array(strange))


def test_labels_of_any_type_have_the_same_dice():
    for kind in (np.uint8, np.int16, np.uint16, np.float32, np.float64):
        assert kits_dice(np.array([1, 2, 0, 1], kind), np.array([1, 1, 2, 0])) == pytest.approx(
            (4 / 6, 0)
        )
    assert kits_dice(np.array([True, False]), np.array([1, 1])) == (
        2 / 3,
        pytest.approx(math.nan, nan_ok=True),
    )


def test_real_labels_against_themselves_and_shifted(kits19):
    """The official formula: Dice of the masks > 0, and of the masks == 2."""
    for id in ("case_00008", "case_00040", "case_00061"):
        labels = read_labels(kits19 / id / "segmentation.nii.gz").voxels
        assert kits_dice(labels, labels) == (1, 1)
        shifted = np.roll(labels, (1, 3, -4), axis=(0, 1, 2))
        wanted = []
        for ours, theirs in ((shifted > 0, labels > 0), (shifted == 2, labels == 2)):
            wanted.append(2 * np.logical_and(ours, theirs).sum() / (ours.sum() + theirs.sum()))
        assert (
            kits_dice(shifted, labels) == pytest.approx(tuple(wanted))
            and 0.3 < min(wanted) <= max(wanted) < 0.99
        )


def test_composite_is_the_arithmetic_mean_and_nan_is_left_out_and_counted():
    rows = [
        score_case("a", np.array([1, 2]), np.array([1, 2])),
        score_case("b", np.array([1, 0]), np.array([1, 1])),
        score_case("c", np.array([2, 1]), np.array([1, 1])),
    ]
    assert [row["composite"] for row in rows[::2]] == [1, 0.5] and math.isnan(rows[1]["composite"])
    summary = summarise(rows)
    assert summary["kidney"]["mean"] == pytest.approx(8 / 9) and summary["tumor"]["mean"] == 0.5
    assert [(s["cases"], s["without_score"]) for s in summary.values()] == [(3, 0), (2, 1), (2, 1)]
    assert summary["composite"]["mean"] == 0.75
    text = table(rows)
    assert "mean" in text and "88.89" in text and "1 of 3 cases has no tumor score" in text
    assert json.loads(as_json(rows))[1]["tumor"] is None
    assert math.isnan(summarise([])["kidney"]["mean"])


def test_the_mean_is_over_cases_whatever_their_size():
    """A large kidney that is found whole, a small one that is missed: by voxels it would be 200 / 201."""
    large, small = np.ones(100), np.ones(1)
    rows = [score_case("large", large, large), score_case("small", 0 * small, small)]

    assert summarise(rows)["kidney"]["mean"] == 0.5


@pytest.mark.parametrize("ones, n", [(1, 3), (2, 5), (5, 6), (21, 22), (160, 168)])
def test_the_interval_of_ones_and_zeros_is_clopper_and_pearsons(ones, n):
    found = mean_interval([1] * ones + [0] * (n - ones))

    wanted = stats.binomtest(ones, n).proportion_ci(0.95, method="exact")
    assert found == pytest.approx((wanted.low, wanted.high), abs=0.008)


@pytest.mark.parametrize(
    "scores",
    [
        [0.2, 0.5, 0.9],
        [0.8449, 0.9215, 0.9439, 0.8452, 0.8174, 0.9306],
        [0.1, 0.11, 0.5, 0.51, 0.52, 0.9, 0.99],
    ],
)
def test_the_interval_is_that_of_weights_drawn_uniformly(scores):
    """The mean of n + 1 distinct numbers x with such weights is above t with probability
    sum over x > t of (x - t)^n / product over the others y of (x - y) (Curry and Schoenberg 1966),
    here in fractions."""

    def above(numbers, t):
        chance = Fraction(0)
        for x in numbers:
            if x > t:
                chance += (x - t) ** len(scores) / math.prod(x - y for y in numbers if y != x)
        return float(chance)

    low, high = (Fraction(end) for end in mean_interval(scores))
    exact = [Fraction(score) for score in scores]
    assert above([*exact, Fraction(0)], low) == pytest.approx(0.975, abs=0.002)
    assert above([*exact, Fraction(1)], high) == pytest.approx(0.025, abs=0.002)


def test_the_interval_holds_the_mean_and_does_not_depend_on_the_order_of_cases():
    scores = np.random.default_rng(1).beta(8, 2, 22)
    low, high = mean_interval(scores)

    assert 0 < low < scores.mean() < high < 1
    assert mean_interval(scores[::-1]) == (low, high)
    assert mean_interval(1 - scores) == pytest.approx((1 - high, 1 - low), abs=0.003)


@pytest.mark.parametrize("n", [3, 6, 22])
def test_the_interval_covers_the_true_mean_of_scores_with_rare_failures(n):
    """One case in twelve fails: most sets of few cases have none. Percentiles of resamples cover 45 to 84%."""
    generator = np.random.default_rng(2)
    sets = np.where(generator.random((80, n)) < 1 / 12, 0, generator.beta(20, 2, (80, n)))
    mean = 11 / 12 * 20 / 22

    covered = 0
    for scores in sets:
        low, high = mean_interval(scores)
        covered += low <= mean <= high
    assert covered >= 0.95 * len(sets)


def test_too_few_and_equal_scores_have_no_interval():
    assert FEWEST_CASES == 3
    for scores in ([], [0.5], [0.4, 0.6], [0.7] * 6, [0.0] * 4):
        assert all(map(math.isnan, mean_interval(scores)))
    assert not any(map(math.isnan, mean_interval([0.4, 0.5, 0.6])))


@pytest.mark.parametrize("strange", [math.nan, -0.1, 1.1, 85.0])
def test_the_interval_of_what_is_no_score_is_refused(strange):
    with pytest.raises(ValueError, match="wanted them within 0 to 1"):
        mean_interval([0.5, 0.6, 0.7, strange])


@pytest.mark.parametrize(
    "n, shift", [(6, 0.3), (10, 1.0), (12, 0.0), (13, -0.5), (30, 0.2), (40, 0.6), (40, -0.3)]
)
def test_the_sign_flip_test_is_scipys(n, shift):
    """Up to 13 differences exactly; beyond, both draw 9,999 patterns."""
    differences = np.random.default_rng(n).normal(shift, 1, n)
    wanted = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=1
    ).pvalue
    assert sign_flip_test(differences) == pytest.approx(wanted, abs=1e-9 if n <= 13 else 0.02)


def test_the_sign_flip_test_by_hand():
    assert sign_flip_test([1, 1, 1]) == 2 / 8  # only all plus and all minus are as far
    assert sign_flip_test([0.1, 0.1, 0.1, -0.3]) == 1
    assert (
        sign_flip_test([1, -1]) == 1 and sign_flip_test([0, 0, 0]) == 1 and sign_flip_test([]) == 1
    )


def test_the_p_of_random_sign_flips_is_never_0():
    """The differences as they are count as one pattern more. Of 9,999 others no one has 40 equal signs."""
    assert RESAMPLES == 9999
    assert sign_flip_test([1] * 40) == sign_flip_test([-0.2] * 40) == 1 / 10000


def test_the_sign_flip_test_refuses_differences_that_are_no_numbers():
    """With NaN no pattern would be as far: p 0."""
    for strange in (math.nan, math.inf):
        with pytest.raises(ValueError, match="wanted finite ones"):
            sign_flip_test([0.1, strange])


def test_holm_by_hand():
    """Holm's own example: 0.01 * 4, 0.02 * 3, then never below what came before."""
    assert holm([0.02, 0.01, 0.03, 0.04]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


def rows_of(kidneys, tumors):
    return [
        {"case": f"case_{n}", "kidney": k, "tumor": t, "composite": (k + t) / 2}
        for n, (k, t) in enumerate(zip(kidneys, tumors))
    ]


def test_systems_are_ranked_and_compared_on_the_cases_that_all_have():
    systems = {
        "plain": rows_of([0.9, 0.8, 0.7, 0.1], [0.5, 0.6, math.nan, 0.9]),
        "residual": rows_of([0.9, 0.9, 0.9], [0.6, 0.8, math.nan]),
        "mine": rows_of([1.0, 0.7, 0.9], [0.5, 1.0, math.nan]),
    }
    compared = compare(systems)
    assert compared["cases"] == ["case_0", "case_1", "case_2"]
    assert compared["ranking"] == ["mine", "residual", "plain"]  # two are equal, the tumor decides
    assert (
        compared["summaries"]["mine"]["composite"]["mean"]
        == compared["summaries"]["residual"]["composite"]["mean"]
    )
    pair = compared["pairs"][-1]
    assert (pair["better"], pair["worse"]) == ("residual", "plain")
    assert pair["kidney"]["difference"] == pytest.approx(0.1) and pair["tumor"][
        "difference"
    ] == pytest.approx(0.15)
    raw = [sign_flip_test(d) for d in ([0.1, -0.2, 0.0], [0.1, -0.1, 0.2], [0.0, 0.1, 0.2])]
    assert [found["kidney"]["p"] for found in compared["pairs"]] == holm(raw)
    text = comparison_table(compared)
    assert "97.34" in text and "97.36" in text and text.index("mine") < text.index("residual")
    assert json.loads(as_json(compared))["pairs"][0].keys() == {"better", "worse", *SCORES}


def test_a_case_that_one_system_lacks_counts_for_none():
    """By its own cases `lucky` would lead; on the two that both have it is behind."""
    systems = {
        "lucky": rows_of([0.5, 0.6, 1.0, 1.0], [0.5, 0.6, 1.0, 1.0]),
        "steady": rows_of([0.7, 0.8], [0.7, 0.8]),
    }
    compared = compare(systems)

    assert compared["cases"] == ["case_0", "case_1"] and compared["ranking"] == ["steady", "lucky"]
    assert compared["summaries"]["lucky"]["kidney"]["mean"] == pytest.approx(0.55)
    assert compared["summaries"]["lucky"]["kidney"]["cases"] == 2
    assert compared["pairs"][0]["kidney"]["difference"] == pytest.approx(0.2)


def test_cases_are_paired_by_name_whatever_their_order():
    one = rows_of([0.9, 0.5, 0.1], [0.9, 0.5, 0.1])
    other = rows_of([0.8, 0.4, 0.0], [0.8, 0.4, 0.0])[::-1]
    pair = compare({"one": one, "other": other})["pairs"][0]

    assert pair["kidney"]["difference"] == pytest.approx(0.1) and pair["kidney"]["p"] == 2 / 8


def test_systems_without_a_common_case_are_not_compared():
    with pytest.raises(
        ValueError, match=r"no case is in all of them.*one has case_0, case_1; other has case_9$"
    ):
        compare(
            {
                "one": rows_of([0.9, 0.8], [0.9, 0.8]),
                "other": [{"case": "case_9", "kidney": 1, "tumor": 1, "composite": 1}],
            }
        )


def summary_of(composite, tumor):
    return {"composite": {"mean": composite}, "tumor": {"mean": tumor}, "kidney": {"mean": 0.5}}


def test_the_ranking_is_by_composite_then_tumor_then_name_and_nan_comes_last():
    nan = math.nan
    wanted = {
        "first": (0.9, 0.1),
        "tie, better tumor": (0.8, 0.7),
        "tie, worse tumor": (0.8, 0.6),
        "tie, no tumor": (0.8, nan),
        "a same": (0.7, 0.7),
        "b same": (0.7, 0.7),
        "a nothing": (nan, nan),
        "b nothing": (nan, nan),
    }
    for order in (list(wanted), list(wanted)[::-1], sorted(wanted)):
        assert ranked({name: summary_of(*wanted[name]) for name in order}) == list(wanted)


def test_composites_that_differ_by_rounding_alone_are_equal():
    one, other = (0.1 + 0.2) / 3, 0.1
    assert one != other
    assert ranked({"a": summary_of(one, 0.4), "b": summary_of(other, 0.5)}) == ["b", "a"]


def test_a_pair_without_a_score_has_no_difference_and_does_not_count_in_holms_family():
    nan = math.nan
    systems = {
        "a": rows_of([0.9] * 6, [0.9] * 6),
        "b": rows_of([0.8] * 6, [0.8] * 6),
        "c": rows_of([0.7] * 6, [nan] * 6),
    }
    pairs = compare(systems)["pairs"]

    assert [(pair["better"], pair["worse"]) for pair in pairs] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    assert pairs[0]["tumor"] == {
        "difference": pytest.approx(0.1),
        "p": 2 / 64,
        "cases": 6,
    }  # the only one tested
    assert pairs[0]["kidney"]["p"] == pytest.approx(3 * 2 / 64)  # one of three
    assert math.isnan(pairs[1]["tumor"]["difference"]) and math.isnan(pairs[1]["tumor"]["p"])
    assert json.loads(as_json(pairs))[1]["tumor"] == {"difference": None, "p": None, "cases": 0}
    text = comparison_table(compare(systems))
    assert (
        "a - c: kidney +20.00 (p 0.094, 6 cases), tumor - (no case where both have a score)" in text
    )
    assert "nan" not in text


def test_a_system_without_a_composite_is_not_ranked():
    """No tumor in the references. `careful` finds none and its kidneys are perfect, `eager` makes
    one up: 0, and so has a composite."""
    systems = {
        "careful": rows_of([1.0] * 3, [math.nan] * 3),
        "eager": rows_of([0.9, 0.8, 0.7], [0.0] * 3),
    }

    compared = compare(systems)

    assert compared["ranking"] == ["eager"] and compared["not_ranked"] == ["careful"]
    (pair,) = compared["pairs"]
    assert pair["kidney"]["difference"] == pytest.approx(-0.2)  # the same as ever: eager - careful
    lines = comparison_table(compared).splitlines()
    assert lines[1].split() == ["eager", "80.00", "0.00", "40.00"]
    assert lines[4].split() == ["careful", "100.00", "-", "-"]
    assert "careful: not ranked, since it has no composite score of these cases" in lines
    assert not any(line.startswith("eager: not ranked") for line in lines)
    read = json.loads(as_json(compared))
    assert (read["ranking"], read["not_ranked"]) == (["eager"], ["careful"])
    assert read["summaries"]["careful"]["composite"]["mean"] is None
    assert read["summaries"]["careful"]["kidney"]["mean"] == 1


def test_where_no_system_has_a_composite_none_is_ranked():
    rows = rows_of([0.9, 0.8], [math.nan] * 2)

    compared = compare({"b": rows, "a": rows})

    assert compared["ranking"] == [] and compared["not_ranked"] == ["a", "b"]
    text = comparison_table(compared)
    assert "a: not ranked" in text and "b: not ranked" in text
    assert "a - b: kidney +0.00 (p 1.000, 2 cases), tumor - (no case where both" in text


def test_the_difference_of_one_case_is_of_one_case():
    compared = compare({"a": rows_of([0.9], [0.9]), "b": rows_of([0.8], [0.8])})

    assert "a - b: kidney +10.00 (p 1.000, 1 case), tumor" in comparison_table(compared)


def numbers(line):
    return [float(word) for word in line.split()[-3:]]


def test_the_papers_rows_stand_below_the_systems_that_bear_their_names():
    rows = rows_of([0.9, 0.8, 0.7], [0.6, 0.5, 0.4])
    lines = comparison_table(compare(dict.fromkeys([*TABLE_1, "mine"], rows))).splitlines()

    for name in [*TABLE_1, "mine"]:
        block = lines[[line.split()[0] for line in lines].index(name) :]
        assert numbers(block[0]) == [80, 50, 65]
        assert block[1].startswith("  95% from ") and block[2].startswith("  to ")
        if name in TABLE_1:
            assert block[3].split()[0] == "paper" and numbers(block[3]) == list(TABLE_1[name])
    assert sum(line.startswith("  paper") for line in lines) == len(TABLE_1)


def test_a_small_p_is_not_printed_as_0():
    systems = {"good": rows_of([0.9] * 40, [0.9] * 40), "bad": rows_of([0.5] * 40, [0.8] * 40)}
    assert "kidney +40.00 (p < 0.001, 40 cases)" in comparison_table(compare(systems))


def test_the_table_says_what_each_missing_score_means():
    nothing, kidney, tumor = np.zeros(4), np.array([0, 1, 1, 0]), np.array([0, 2, 1, 0])
    rows = [
        score_case("empty", nothing, nothing),
        score_case("no_tumor", kidney, kidney),
        score_case("whole", tumor, tumor),
    ]
    lines = table(rows).splitlines()

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
        "1 of 3 cases has no kidney score (empty): neither mask nor reference has any kidney or tumor",
        "2 of 3 cases have no tumor score (empty, no_tumor): neither mask nor reference has any tumor",
        "2 of 3 cases have no composite score (empty, no_tumor): it is the mean of both scores, and one of them is "
        "missing",
        "no 95% interval of kidney: 2 cases have a score, wanted 3 or more",
        "no 95% interval of tumor, composite: 1 case has a score, wanted 3 or more",
    ]


def test_the_table_says_why_equal_scores_have_no_interval():
    rows = rows_of([0.9, 0.8, 0.7, 0.6], [0.5] * 4)
    lines = table(rows).splitlines()

    low, high = (100 * end for end in mean_interval([0.9, 0.8, 0.7, 0.6]))
    assert lines[6].split()[:4] == ["95%", "from", f"{low:.2f}", "-"]
    assert lines[7].split()[:3] == ["to", f"{high:.2f}", "-"]
    assert (
        lines[-1]
        == "no 95% interval of tumor: all 4 scores are equal, which says nothing of how scores spread"
    )
    summary = json.loads(as_json(summarise(rows)))
    assert summary["tumor"] == {
        "mean": 0.5,
        "from": None,
        "to": None,
        "cases": 4,
        "without_score": 0,
        "no_interval": "all 4 scores are equal, which says nothing of how scores spread",
    }
    assert (
        summary["kidney"]["from"] == pytest.approx(low / 100)
        and summary["kidney"]["no_interval"] == ""
    )


def test_the_csv_has_a_line_a_case_and_nan_where_there_is_no_score():
    rows = [
        {"case": 'a,"b"', "kidney": 0.5, "tumor": math.nan, "composite": math.nan},
        {"composite": 0.125, "tumor": 0.0, "kidney": 0.25, "case": "c"},
    ]
    read = list(csv.reader(io.StringIO(as_csv(rows))))

    assert read == [
        ["case", *SCORES],
        ['a,"b"', "0.5", "nan", "nan"],
        ["c", "0.25", "0.0", "0.125"],
    ]


def test_the_json_is_strict():
    text = as_json({"a": [0.5, math.nan, math.inf], "name": "é"})

    def refuse(word):
        raise AssertionError(word)

    assert json.loads(text, parse_constant=refuse) == {
        "a": [0.5, None, None],
        "name": "é",
    } and text.endswith("\n")


@pytest.mark.parametrize(
    "p, said", [(0.0004, "p < 0.001"), (0.0006, "p 0.001"), (0.003, "p 0.003")]
)
def test_p_is_printed_to_a_thousandth(p, said):
    systems = {
        name: [
            {"case": f"c{n}", **dict.fromkeys(("kidney", "tumor", "composite"), (n + better) / 10)}
            for n in range(3)
        ]
        for name, better in (("a", 1), ("b", 0))
    }
    compared = compare(systems)
    compared["pairs"][0]["tumor"]["p"] = p
    assert f"tumor +10.00 ({said}, 3 cases)" in comparison_table(compared)
