"""Dice worked by hand, the official formula on real labels, intervals, and systems compared."""

import math
from fractions import Fraction

import numpy as np
import pytest
from one_page import plain_dice
from scipy import stats

from minikits.evaluation import (
    FEWEST_CASES,
    RESAMPLES,
    CaseScores,
    Difference,
    MeanScore,
    compare,
    difference_interval,
    holm,
    kits_dice,
    mean_interval,
    ranked,
    score_case,
    sign_flip_test,
    some,
    summarise,
)
from minikits.nifti import read_labels
from minikits.reports import comparison_table, table


def test_four_voxels_by_hand():
    """Kidney counts the tumor with it."""
    assert kits_dice(np.array([1, 2, 0, 1]), np.array([1, 1, 2, 0])) == pytest.approx((4 / 6, 0))
    assert kits_dice(np.array([0, 2, 2, 1]), np.array([0, 2, 1, 1])) == pytest.approx((1, 2 / 3))


def test_degenerate_cases():
    nothing = np.zeros(5)
    kidney = np.array([0, 1, 1, 0, 0])
    tumor = np.array([0, 2, 2, 0, 0])
    no_score = pytest.approx(math.nan, nan_ok=True)

    assert kits_dice(nothing, nothing) == (no_score, no_score)
    assert kits_dice(kidney, nothing) == (0, no_score)
    assert kits_dice(kidney, kidney) == (1, no_score)
    assert kits_dice(kidney, tumor) == (1, 0)
    assert kits_dice(nothing, tumor) == (0, 0)
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
    kidney = plain_dice(prediction > 0, reference > 0)
    tumor = plain_dice(prediction == 2, reference == 2)

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
    reference = np.array([1, 1, 2, 0])
    for kind in (np.uint8, np.int16, np.uint16, np.float32, np.float64):
        prediction = np.array([1, 2, 0, 1], kind)
        assert kits_dice(prediction, reference) == pytest.approx((4 / 6, 0))

    kidney, tumor = kits_dice(np.array([True, False]), np.array([1, 1]))
    assert kidney == 2 / 3
    assert math.isnan(tumor)


def test_real_labels_against_themselves_and_shifted(kits19):
    """The official formula: Dice of the masks > 0, and of the masks == 2."""
    for id in ("case_00008", "case_00040", "case_00061"):
        labels = read_labels(kits19 / id / "segmentation.nii.gz").voxels
        assert kits_dice(labels, labels) == (1, 1)

        shifted = np.roll(labels, (1, 3, -4), axis=(0, 1, 2))

        kidney = plain_dice(shifted > 0, labels > 0)
        tumor = plain_dice(shifted == 2, labels == 2)
        assert kits_dice(shifted, labels) == pytest.approx((kidney, tumor))
        assert 0.3 < min(kidney, tumor) <= max(kidney, tumor) < 0.99


def test_composite_is_the_arithmetic_mean_and_nan_is_left_out_and_counted():
    whole = score_case("a", np.array([1, 2]), np.array([1, 2]))  # kidney 1, tumor 1
    no_tumor = score_case("b", np.array([1, 0]), np.array([1, 1]))  # kidney 2 / 3
    made_up = score_case("c", np.array([2, 1]), np.array([1, 1]))  # kidney 1, tumor 0
    assert whole.composite == 1
    assert math.isnan(no_tumor.composite)
    assert made_up.composite == 0.5

    summary = summarise([whole, no_tumor, made_up])
    assert summary["kidney"].mean == pytest.approx(8 / 9)
    assert summary["tumor"].mean == 0.5
    assert summary["composite"].mean == 0.75
    assert (summary["kidney"].cases, summary["kidney"].without_score) == (3, 0)
    assert (summary["tumor"].cases, summary["tumor"].without_score) == (2, 1)
    assert (summary["composite"].cases, summary["composite"].without_score) == (2, 1)

    text = table([whole, no_tumor, made_up])
    assert "mean" in text
    assert "88.89" in text
    assert "1 of 3 cases has no tumor score" in text


def test_without_cases_there_is_no_mean():
    assert math.isnan(summarise([])["kidney"].mean)


def test_the_mean_is_over_cases_whatever_their_size():
    """A large kidney that is found whole, a small one that is missed: by voxels it would be
    200 / 201."""
    found = score_case("large", np.ones(100), np.ones(100))
    missed = score_case("small", np.zeros(1), np.ones(1))

    assert summarise([found, missed])["kidney"].mean == 0.5


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
    """One case in twelve fails: most sets of few cases have none. Percentiles of resamples cover
    45 to 84%."""
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
    assert sign_flip_test([1, -1]) == 1
    assert sign_flip_test([0, 0, 0]) == 1
    assert sign_flip_test([]) == 1


def test_the_p_of_random_sign_flips_is_never_0():
    """The differences as they are count as one pattern more. Of 9,999 others no one has 40 equal
    signs."""
    assert RESAMPLES == 9999
    assert sign_flip_test([1] * 40) == sign_flip_test([-0.2] * 40) == 1 / 10000


def test_the_sign_flip_test_refuses_differences_that_are_no_numbers():
    """With NaN no pattern would be as far: p 0."""
    for strange in (math.nan, math.inf):
        with pytest.raises(ValueError, match="wanted finite ones"):
            sign_flip_test([0.1, strange])


def test_the_interval_of_six_differences_reaches_from_the_smallest_to_the_largest():
    """Of 64 patterns of signs two are the 5% that may be refused: all plus and all minus."""
    assert difference_interval([0.3, 0.1, 0.2, 0.1, 0.5, 0.4]) == (0.1, 0.5)
    assert difference_interval([0.3, 0.1, 0.2, 0.1, 0.5]) == pytest.approx(
        (math.nan,) * 2, nan_ok=True
    )
    assert difference_interval([]) == pytest.approx((math.nan,) * 2, nan_ok=True)


@pytest.mark.parametrize("n", [6, 7, 9, 12])
def test_the_interval_of_differences_holds_what_the_sign_flip_test_does_not_refuse(n):
    differences = np.random.default_rng(n).normal(0.1, 0.2, n)
    low, high = difference_interval(differences)
    little = 1e-6

    assert low < differences.mean() < high
    for inside in (low + little, high - little):
        assert sign_flip_test(differences - inside) > 0.05
    for outside in (low - little, high + little):
        assert sign_flip_test(differences - outside) <= 0.05


@pytest.mark.parametrize("n", [8, 20])
def test_the_interval_of_differences_covers_the_true_mean_in_95_of_100_trials(n):
    generator = np.random.default_rng(n)
    covered = 0
    for _ in range(200):
        low, high = difference_interval(generator.normal(0.05, 0.1, n))
        covered += low <= 0.05 <= high

    assert 0.90 <= covered / 200 <= 0.996  # 95%, within three standard errors


def test_holm_by_hand():
    """Holm's own example: 0.01 * 4, 0.02 * 3, then never below what came before."""
    assert holm([0.02, 0.01, 0.03, 0.04]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_what_was_not_tested_is_no_part_of_holms_family():
    """Of two tests the smaller p counts twice, the other once."""
    first, none, last = holm([0.01, math.nan, 0.5])

    assert (first, last) == (0.02, 0.5)
    assert math.isnan(none)


def cases_of(kidneys, tumors):
    """case_0, case_1, ... with these Dice."""
    cases = []
    for number, (kidney, tumor) in enumerate(zip(kidneys, tumors)):
        cases.append(CaseScores(f"case_{number}", kidney, tumor, (kidney + tumor) / 2))
    return cases


def test_systems_are_ranked_and_compared_on_the_cases_that_all_have():
    plain = cases_of([0.9, 0.8, 0.7, 0.1], [0.5, 0.6, math.nan, 0.9])
    residual = cases_of([0.9, 0.9, 0.9], [0.6, 0.8, math.nan])
    mine = cases_of([1.0, 0.7, 0.9], [0.5, 1.0, math.nan])

    compared = compare({"plain": plain, "residual": residual, "mine": mine})

    assert compared.cases == ["case_0", "case_1", "case_2"]
    assert compared.ranking == ["mine", "residual", "plain"]  # two are equal, the tumor decides
    means = {name: summary["composite"].mean for name, summary in compared.summaries.items()}
    assert means["mine"] == means["residual"]

    mine_residual, mine_plain, residual_plain = compared.pairs
    assert (residual_plain.better, residual_plain.worse) == ("residual", "plain")
    assert residual_plain.kidney.difference == pytest.approx(0.1)
    assert residual_plain.tumor.difference == pytest.approx(0.15)
    raw = [sign_flip_test(d) for d in ([0.1, -0.2, 0.0], [0.1, -0.1, 0.2], [0.0, 0.1, 0.2])]
    found = [pair.kidney.p for pair in (mine_residual, mine_plain, residual_plain)]
    assert found == holm(raw)

    text = comparison_table(compared)
    assert "97.34" in text
    assert "97.36" in text  # the paper's rows
    assert text.index("mine") < text.index("residual")


def test_a_case_that_one_system_lacks_counts_for_none():
    """By its own cases `lucky` would lead; on the two that both have it is behind."""
    lucky = cases_of([0.5, 0.6, 1.0, 1.0], [0.5, 0.6, 1.0, 1.0])
    steady = cases_of([0.7, 0.8], [0.7, 0.8])

    compared = compare({"lucky": lucky, "steady": steady})

    assert compared.cases == ["case_0", "case_1"]
    assert compared.ranking == ["steady", "lucky"]
    assert compared.summaries["lucky"]["kidney"].mean == pytest.approx(0.55)
    assert compared.summaries["lucky"]["kidney"].cases == 2
    assert compared.pairs[0].kidney.difference == pytest.approx(0.2)


def test_cases_are_paired_by_name_whatever_their_order():
    one = cases_of([0.9, 0.5, 0.1], [0.9, 0.5, 0.1])
    other = cases_of([0.8, 0.4, 0.0], [0.8, 0.4, 0.0])[::-1]

    (pair,) = compare({"one": one, "other": other}).pairs

    assert pair.kidney.difference == pytest.approx(0.1)  # 0.1 in each of them
    assert pair.kidney.p == 2 / 8


def test_systems_without_a_common_case_are_not_compared():
    one = cases_of([0.9, 0.8], [0.9, 0.8])
    other = [CaseScores("case_9", 1, 1, 1)]

    told = r"no case is in all of them.*one has case_0, case_1; other has case_9$"
    with pytest.raises(ValueError, match=told):
        compare({"one": one, "other": other})


def summary_of(composite, tumor):
    """Of the means alone."""
    means = {"kidney": 0.5, "tumor": tumor, "composite": composite}
    return {score: MeanScore(mean, 0, 1, "", 3, 0) for score, mean in means.items()}


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
        "a": cases_of([0.9] * 6, [0.9] * 6),
        "b": cases_of([0.8] * 6, [0.8] * 6),
        "c": cases_of([0.7] * 6, [nan] * 6),
    }

    a_b, a_c, b_c = compare(systems).pairs

    assert [(pair.better, pair.worse) for pair in (a_b, a_c, b_c)] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    same = pytest.approx(0.1)  # in all cases, so that both ends are the mean
    assert a_b.tumor == Difference(same, 2 / 64, 6, same, same)  # the only one tested
    assert a_b.kidney.p == pytest.approx(3 * 2 / 64)  # one of three
    assert math.isnan(a_c.tumor.difference)
    assert math.isnan(a_c.tumor.p)
    assert a_c.tumor.cases == 0
    assert math.isnan(a_c.tumor.low) and math.isnan(a_c.tumor.high)
    assert (a_c.kidney.low, a_c.kidney.high) == pytest.approx((0.2, 0.2))
    text = comparison_table(compare(systems))
    assert (
        "a - c: kidney +20.00 (p 0.094, 6 cases), tumor - (no case where both have a score)" in text
    )
    assert "nan" not in text


def test_a_system_without_a_composite_is_not_ranked():
    """No tumor in the references. `careful` finds none and its kidneys are perfect, `eager` makes
    one up: 0, and so has a composite."""
    careful = cases_of([1.0] * 3, [math.nan] * 3)
    eager = cases_of([0.9, 0.8, 0.7], [0.0] * 3)

    compared = compare({"careful": careful, "eager": eager})

    assert compared.ranking == ["eager"]
    assert compared.not_ranked == ["careful"]
    (pair,) = compared.pairs
    assert pair.kidney.difference == pytest.approx(-0.2)  # eager - careful


def test_where_no_system_has_a_composite_none_is_ranked():
    cases = cases_of([0.9, 0.8], [math.nan] * 2)

    compared = compare({"b": cases, "a": cases})

    assert compared.ranking == []
    assert compared.not_ranked == ["a", "b"]


def test_of_many_names_the_first_five_stand_in_a_message():
    assert some([]) == "none"
    assert some(list("abcde")) == "a, b, c, d, e"
    assert some(list("abcdef")) == "a, b, c, d, e, ..."
