"""What a run leaves to read: tables as text, CSV, JSON; figures where matplotlib is installed."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from minikits.comparisons import Apart
from minikits.evaluation import (
    SCORES,
    CaseScores,
    Comparison,
    Difference,
    MeanScore,
    some,
    summarise,
    values_of,
)
from minikits.files import write_text, written_whole
from minikits.mistakes import Mistake, is_below
from minikits.paper import TABLE_1
from minikits.volumes import Volume

NO_SCORE = {  # what a score of NaN means
    "kidney": "neither mask nor reference has any kidney or tumor",
    "tumor": "neither mask nor reference has any tumor",
    "composite": "it is the mean of both scores, and one of them is missing",
}
SOFT_TISSUE_HU = (-160, 300)  # black and white of a picture
SLICES_APART = 5  # a second picture any nearer shows the same again


# --- tables ---------------------------------------------------------------------------------------


def table(cases: Sequence[CaseScores], *, heading: str = "Dice in %") -> str:
    """The scores of each case, their mean and its 95% interval as lines of text, in per cent as the
    paper prints them; then why scores or intervals are missing."""
    summary = summarise(cases)
    rows = []
    for scores in cases:
        rows.append((scores.case, [scores.kidney, scores.tumor, scores.composite]))
    lines = _aligned(rows + _mean_rows("mean", summary), heading)

    for score in SCORES:
        values = values_of(cases, score)
        missing = [scores.case for scores, value in zip(cases, values) if np.isnan(value)]
        if missing:
            have = "has" if len(missing) == 1 else "have"
            lines.append(
                f"{cases_of(len(missing), len(cases))} {have} no {score} score "
                f"({some(missing)}): {NO_SCORE[score]}"
            )
    return "\n".join(lines + _without_interval(summary))


def comparison_table(comparison: Comparison) -> str:
    """A comparison as lines of text: the paper's Table 1 with intervals, its own numbers below the
    systems that bear their names, and the tests."""
    names = comparison.ranking + comparison.not_ranked
    rows = []
    for name in names:
        rows += _mean_rows(name, comparison.summaries[name])
        if name in TABLE_1:
            rows.append(("  paper", [percent / 100 for percent in TABLE_1[name]]))
    lines = _aligned(rows)

    for name in comparison.not_ranked:
        lines.append(f"{name}: not ranked, since it has no composite score of these cases")
    for name in names:
        for line in _without_interval(comparison.summaries[name]):
            lines.append(f"{name}: {line}")
    for pair in comparison.pairs:
        lines.append(
            f"{pair.better} - {pair.worse}: kidney {difference_in_words(pair.kidney)}, "
            f"tumor {difference_in_words(pair.tumor)}, composite {difference_in_words(pair.composite)}"
        )
    return "\n".join(lines)


def list_of_worst(
    cases: Sequence[CaseScores], mistakes: Mapping[str, Sequence[Mistake]], bound: float
) -> str:
    """The cases below the bound as lines of text, in the order given, with what is wrong in each,
    {case: mistakes}."""
    worst = [scores for scores in cases if is_below(scores, bound)]
    have = "has" if len(worst) == 1 else "have"
    said = f"{cases_of(len(worst), len(cases))} {have} a Dice of kidney or tumor below"
    lines = [f"{said} {in_percent(bound)}{', worst first:' if worst else ''}"]

    width = max((len(scores.case) for scores in worst), default=0)
    for scores in worst:
        dice = f"kidney {in_percent(scores.kidney)}, tumor {in_percent(scores.tumor)}"
        wrong = ", ".join(map(str, mistakes[scores.case]))
        lines.append(f"{scores.case.ljust(width)}  {dice}: {wrong}")
    return "\n".join(lines)


def list_of_apart(apart: Sequence[Apart]) -> str:
    """The cases on which systems differ most as lines of text, each with all scores."""
    if not apart:
        return "They score the same in each case"
    lines = ["Where they differ most (-: neither mask nor reference has any):"]
    width = max(len(one.case) for one in apart)
    for one in apart:
        scores = [f"{name} {in_percent(score)}" for name, score in one.scores.items()]
        lines.append(f"{one.case.ljust(width)}  {one.structure}: {', '.join(scores)}")
    return "\n".join(lines)


def _mean_rows(name, summary):
    """Rows (name, [kidney, tumor, composite]) of a mean and the ends of its interval."""
    return [
        (name, [summary[score].mean for score in SCORES]),
        ("  95% from", [summary[score].low for score in SCORES]),
        ("  to", [summary[score].high for score in SCORES]),
    ]


def _aligned(rows, heading="Dice in %"):
    """Lines of rows (name, [kidney, tumor, composite]), in columns, below a heading."""
    width = max(len(heading), *(len(name) for name, _ in rows))
    lines = [heading.ljust(width) + "".join(score.rjust(11) for score in SCORES)]
    for name, scores in rows:
        cells = [in_percent(score).rjust(11) for score in scores]
        lines.append(name.ljust(width) + "".join(cells))
    return lines


def cases_of(count: int, total: int) -> str:
    """ "1 of 3 cases", "1 of 1 case"."""
    cases = "case" if total == 1 else "cases"
    return f"{count} of {total} {cases}"


def in_percent(score: float, decimals: int = 2) -> str:
    """97.34 of 0.9734; - where there is no score."""
    return "-" if np.isnan(score) else f"{100 * score:.{decimals}f}"


def difference_in_words(found: Difference) -> str:
    """ "+1.20 (p 0.031, 6 cases)", in points."""
    if found.cases == 0:
        return "- (no case where both have a score)"
    p = f"p {found.p:.3f}" if found.p >= 0.0005 else "p < 0.001"
    cases = "1 case" if found.cases == 1 else f"{found.cases} cases"
    return f"{100 * found.difference:+.2f} ({p}, {cases})"


def _without_interval(summary):
    """Lines on the scores whose mean has no interval, those of one reason together."""
    scores_by_reason = {}
    for score, found in summary.items():
        if found.no_interval:
            scores_by_reason.setdefault(found.no_interval, []).append(score)
    return [
        f"no 95% interval of {', '.join(scores)}: {reason}"
        for reason, scores in scores_by_reason.items()
    ]


# --- files ----------------------------------------------------------------------------------------


def cases_csv(cases: Sequence[CaseScores]) -> str:
    """The text of cases.csv: case, kidney, tumor, composite."""
    return as_csv([asdict(scores) for scores in cases])


def summary_json(summary: dict[str, MeanScore], protocol: str = "kits19") -> str:
    """The text of summary.json; it names a protocol that is not the challenge's of 2019."""
    content: dict[str, object] = dict(summary_content(summary))
    if protocol != "kits19":
        content["protocol"] = protocol
    return as_json(content)


def comparison_json(comparison: Comparison) -> str:
    """The text of comparison.json."""
    content = asdict(comparison)
    for name, summary in comparison.summaries.items():
        content["summaries"][name] = summary_content(summary)
    return as_json(content)


def summary_content(summary: dict[str, MeanScore]) -> dict[str, dict]:
    """A summary as JSON has it, the interval `from` and `to`."""
    content = {}
    for score, found in summary.items():
        content[score] = {
            "mean": found.mean,
            "from": found.low,
            "to": found.high,
            "no_interval": found.no_interval,
            "cases": found.cases,
            "without_score": found.without_score,
        }
    return content


def as_csv(rows: Sequence[dict]) -> str:
    """One or more rows of the same keys as the text of a CSV file, a line of names first; NaN is
    `nan`."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = list(rows[0])
    writer.writerow(names)
    for row in rows:
        writer.writerow([row[name] for name in names])
    return text.getvalue()


def as_json(content: object) -> str:
    """The text of a file of strict JSON: NaN becomes null."""
    text = json.dumps(content)
    strict = json.loads(text, parse_constant=lambda _: None)
    return json.dumps(strict, indent=1) + "\n"


def first_line(error: Exception | Warning | str) -> str:
    """What went wrong, for a message of one line; the kind of error where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- a training's log and curve -------------------------------------------------------------------


def write_log(path: Path, log: Sequence[dict]) -> None:
    """A line for each epoch."""
    write_text(path, as_csv(log))


def draw_curve(path: Path, log: Sequence[dict]) -> None:
    """Losses, patch Dice and learning rates of all epochs, where matplotlib is installed."""
    if not find_spec("matplotlib"):
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in log]
    for name in ("loss", "patch_dice_kidney", "patch_dice_tumor"):
        axes.plot(epochs, [row[name] for row in log], label=name.replace("_", " "))
    first_rate = log[0]["learning_rate"]
    rates = [row["learning_rate"] / first_rate for row in log]
    axes.plot(epochs, rates, label="learning rate / its first")

    axes.set(
        xlabel="epoch",
        ylim=(-1, max(1.0, log[0]["loss"])),
        title=f"{path.parent.parent.name} U-Net, {path.parent.name}",
    )
    axes.legend(loc="best")
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=120)


# --- a case's picture -----------------------------------------------------------------------------


def why_no_figures() -> str:
    """Why matplotlib cannot be imported; empty where it can. A broken one may raise anything."""
    try:
        import matplotlib.figure  # noqa: F401
    except Exception as error:
        return first_line(error)
    return ""


def draw_overlay(
    path: Path, scores: CaseScores, image: Volume, mask: np.ndarray, reference: np.ndarray
) -> None:
    """Two axial slices in soft tissue's window of HU, with the contours of reference (solid) and
    mask (dashed), arrays (Z, Y, X): that of most tumor, and that of most voxels wrong; where these
    are one, a worst one away from it besides. ValueError where slices are one voxel thin: no contours."""
    from matplotlib.figure import Figure

    if min(reference.shape[1:]) < 2:
        raise ValueError(f"slices of {reference.shape[1:]} voxels have no contours")

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    most, why = _slice_of_most(reference > 0), "most kidney"
    if (reference == 2).any():
        most, why = _slice_of_most(reference == 2), "most tumor"

    wrong = mask != reference
    worst, why_worst = _slice_of_most(wrong), "most voxels wrong"
    if worst == most:
        wrong[max(most - SLICES_APART + 1, 0) : most + SLICES_APART] = False
        if wrong.any():
            worst, why = _slice_of_most(wrong), f"{why}, {why_worst}"
            why_worst = f"most wrong {SLICES_APART} slices away or more"

    _draw_slice(left, most, why, image, mask, reference)
    _draw_slice(right, worst, why_worst, image, mask, reference)

    title = (
        f"{scores.case}: Dice of kidney (cyan) {in_percent(scores.kidney, decimals=1)}, "
        f"of tumor (red) {in_percent(scores.tumor, decimals=1)}; "
        "reference solid, prediction dashed"
    )
    title = title.encode(errors="backslashreplace").decode()  # a file's name may be no UTF-8
    figure.suptitle(title, parse_math=False)  # a dollar in a name begins no formula
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _slice_of_most(voxels):
    """The z of the slice that holds the most of a mask (Z, Y, X)."""
    return int(voxels.sum(axis=(1, 2)).argmax())


def _draw_slice(axes, z, why, image, mask, reference):
    darkest, brightest = SOFT_TISSUE_HU
    _, y_mm, x_mm = image.spacing_mm
    axes.imshow(image.voxels[z], "gray", vmin=darkest, vmax=brightest, aspect=y_mm / x_mm)
    axes.set(title=f"slice {z}: {why}", xticks=[], yticks=[])
    for x, side in ((0.03, "R"), (0.97, "L")):  # the patient's; X runs to the left
        axes.text(x, 0.5, side, color="gold", ha="center", va="center", transform=axes.transAxes)

    for labels, line in ((reference[z], "solid"), (mask[z], "dashed")):
        _draw_contour(axes, labels >= 1, "tab:cyan", line)  # the kidney with the tumor in it
        _draw_contour(axes, labels == 2, "tab:red", line)


def _draw_contour(axes, region, colour, line):
    if region.any() and not region.all():  # else it has none
        axes.contour(region, [0.5], colors=colour, linestyles=line)
