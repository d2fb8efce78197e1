"""How often a 95% interval of the mean Dice covers the true mean: five kinds of it, for few cases.

    python benchmarks/interval_coverage.py [--draws 2000] [--out FILE.md]

Sets of n scores are drawn from distributions whose mean is known: mixtures of beta distributions,
shaped like the scores of the paper's networks and of the demo's, some with failures (a Dice of 0).
A second table leaves nothing to chance: all sets of n scores of two values. A few minutes; the
random streams are fixed, so that every machine gives the same figures.
"""

import argparse
from datetime import date
from math import comb
from pathlib import Path
from statistics import NormalDist

import numpy as np

from minikits.evaluation import WEIGHTS_DRAWN, mean_interval

CASES = (3, 5, 6, 10, 22, 168)  # 6: the demo; 22: Table 1 in small; 168: training cases of a split
RESAMPLES = 4999
STUDENT_T = {  # its 97.5% quantile for n cases, of n - 1 degrees of freedom
    3: 4.302653,
    5: 2.776445,
    6: 2.570582,
    10: 2.262157,
    22: 2.079614,
    168: 1.974271,
}
METHODS = ("percentile", "BCa", "Student t", "studentised", "evaluate.py")

# {name: [(share, a, b) of a beta distribution, or (share, constant)]}
DISTRIBUTIONS = {
    "kidney": [(0.96, 60, 1.6), (0.04, 6, 3)],
    "tumor": [(0.84, 9, 1.2), (0.12, 2, 2), (0.04, 0.0)],
    "rare failures": [(0.92, 20, 2), (0.08, 0.0)],
    "the demo's kidney": [(1, 50, 6.6)],
    "the demo's tumor": [(1, 4.5, 2.3)],
    "weak tumor": [(0.75, 1.5, 2.5), (0.25, 0.0)],
}


def draw(parts, generator, size):
    """Scores of a mixture, of a shape."""
    shares = [part[0] for part in parts]
    chosen = generator.choice(len(parts), size=size, p=shares)
    scores = np.empty(size)
    for number, (_, *form) in enumerate(parts):
        here = chosen == number
        if len(form) == 1:
            scores[here] = form[0]
        else:
            scores[here] = generator.beta(*form, size=here.sum())
    return scores


def true_mean(parts):
    mean = 0
    for share, *form in parts:
        mean += share * (form[0] if len(form) == 1 else form[0] / (form[0] + form[1]))
    return mean


def intervals(scores):
    """{method: (from, to), two arrays} of (sets, n) scores; resamples and weights are the same for
    each set."""
    n = scores.shape[1]
    mean, sd = scores.mean(axis=1), scores.std(axis=1, ddof=1)
    counts = np.zeros((n, RESAMPLES))
    generator = np.random.default_rng(0)
    for resample in range(RESAMPLES):
        counts[:, resample] = np.bincount(generator.integers(n, size=n), minlength=n)
    resampled_mean = scores @ counts / n
    resampled_variance = (scores**2 @ counts / n - resampled_mean**2).clip(min=0) * n / (n - 1)

    half = STUDENT_T[n] * sd / np.sqrt(n)
    low, high = studentised(mean, sd, resampled_mean, np.sqrt(resampled_variance), n)
    return {
        "percentile": np.percentile(resampled_mean, (2.5, 97.5), axis=1),
        "BCa": bias_corrected(scores, mean, resampled_mean),
        "Student t": ((mean - half).clip(0, 1), (mean + half).clip(0, 1)),
        "studentised": (low.clip(0, 1), high.clip(0, 1)),
        "evaluate.py": ours(scores),
    }


def studentised(mean, sd, resampled_mean, resampled_sd, n):
    """By quantiles of (mean - true mean) / standard error among resamples; where all scores of one
    are equal, that is infinite."""
    apart = resampled_mean - mean[:, None]
    error = resampled_sd / np.sqrt(n)
    t = np.where(apart == 0, 0, np.copysign(np.inf, apart))
    spread = resampled_sd > 1e-9
    t[spread] = apart[spread] / error[spread]
    low, high = np.quantile(t, (0.025, 0.975), axis=1, method="inverted_cdf")
    with np.errstate(invalid="ignore"):
        return mean - high * sd / np.sqrt(n), mean - low * sd / np.sqrt(n)


def bias_corrected(scores, mean, resampled_mean):
    """Efron's BCa: percentiles, moved by the resamples' bias and by how skewed the jackknife is."""
    n = scores.shape[1]
    below = (resampled_mean < mean[:, None] - 1e-12).mean(axis=1)
    not_above = (resampled_mean <= mean[:, None] + 1e-12).mean(axis=1)
    normal = NormalDist()
    share = ((below + not_above) / 2).clip(1e-6, 1 - 1e-6)
    bias = np.array([normal.inv_cdf(value) for value in share])
    left_out = (scores.sum(axis=1, keepdims=True) - scores) / (n - 1)
    skew = left_out.mean(axis=1, keepdims=True) - left_out
    spread = (skew**2).sum(axis=1) ** 1.5
    spread[spread == 0] = np.inf  # equal scores: no acceleration
    acceleration = (skew**3).sum(axis=1) / (6 * spread)
    ordered = np.sort(resampled_mean, axis=1)
    ends = []
    for z in (normal.inv_cdf(0.025), normal.inv_cdf(0.975)):
        moved = bias + (bias + z) / (1 - acceleration * (bias + z))
        place = np.array([normal.cdf(value) for value in moved]) * RESAMPLES
        place = place.astype(int).clip(0, RESAMPLES - 1)[:, None]
        ends.append(np.take_along_axis(ordered, place, axis=1)[:, 0])
    return ends


def ours(scores):
    """`mean_interval` of each set, all at once; the first sets are compared with it."""
    sets, n = scores.shape
    ordered = np.sort(scores, axis=1)
    generator = np.random.default_rng(0)
    blocks, block = WEIGHTS_DRAWN
    draws = blocks * block
    if sets > 200:
        draws //= 10  # for memory
    weights = generator.dirichlet(np.ones(n + 1), size=draws)
    with_worst = ordered @ weights[:, :n].T  # the last weight is that of a score of 0
    with_best = with_worst + weights[:, n]  # and here of 1
    low = np.percentile(with_worst, 2.5, axis=1)
    high = np.percentile(with_best, 97.5, axis=1)
    for one, *ends in list(zip(ordered, low, high))[:3]:
        printed = mean_interval(one)
        assert np.isnan(printed).any() or np.allclose(ends, printed, atol=0.02), (ends, printed)
    return low, high


def coverage_of_two_values(n, lower, upper):
    """The least coverage over all shares of the better one of two scores, exactly: by method."""
    sets = np.array([[lower] * (n - k) + [upper] * k for k in range(n + 1)], dtype=float)
    found = intervals(sets)
    least = dict.fromkeys(METHODS, 1.0)
    for share in np.linspace(0.005, 0.995, 199):
        mean = lower + share * (upper - lower)
        better = np.arange(n + 1)
        sets_of_each = np.array([float(comb(n, k)) for k in better])
        chance = sets_of_each * share**better * (1 - share) ** (n - better)
        for method, (low, high) in found.items():
            covered = chance[(low <= mean + 1e-12) & (mean - 1e-12 <= high)].sum()
            least[method] = min(least[method], covered)
    return least


def measure(draws):
    """The tables, as lines of Markdown."""
    lines = [
        f"| scores | true mean | n | {' | '.join(METHODS)} |",
        "|---" * (3 + len(METHODS)) + "|",
    ]
    for name, parts in DISTRIBUTIONS.items():
        generator = np.random.default_rng(1)
        mean = true_mean(parts)
        for n in CASES:
            cells = []
            found = intervals(draw(parts, generator, (draws, n)))
            for method in METHODS:
                low, high = found[method]
                covered = 100 * ((low <= mean) & (mean <= high)).mean()
                cells.append(f"{covered:.1f} ({100 * (high - low).mean():.0f})")
            lines.append(f"| {name} | {100 * mean:.1f} | {n} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)

    lines += [
        "",
        "The least coverage over all shares of the better of two scores:",
        "",
        f"| the two scores | n | {' | '.join(METHODS)} |",
        "|---" * (2 + len(METHODS)) + "|",
    ]
    for lower, upper in ((0.0, 1.0), (0.0, 0.9), (0.5, 0.95)):
        for n in CASES:
            least = coverage_of_two_values(n, lower, upper)
            cells = [f"{100 * least[method]:.1f}" for method in METHODS]
            scores = f"{100 * lower:.0f} and {100 * upper:.0f}"
            lines.append(f"| {scores} | {n} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def main():
    parser = argparse.ArgumentParser(description="Measure how often intervals of a mean Dice hold.")
    parser.add_argument(
        "--draws", type=int, default=2000, help="sets of scores for each row (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="file for the tables, in Markdown")
    arguments = parser.parse_args()
    lines = measure(arguments.draws)
    if arguments.out:
        made = f"{date.today()}, numpy {np.__version__}, {arguments.draws} sets of scores a row."
        arguments.out.write_text("\n".join([made, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
