"""What a run leaves to read: tables as text, CSV, JSON, and figures where matplotlib is installed."""

import csv
import io
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from minikits.evaluation import SCORES, some, summarise
from minikits.files import write_text, written_whole
from minikits.paper import TABLE_1
from minikits.volumes import Volume

NO_SCORE = {  # what a score of NaN means
    "kidney": "neither mask nor reference has any kidney or tumor",
    "tumor": "neither mask nor reference has any tumor",
    "composite": "it is the mean of both scores, and one of them is missing",
}


def table(rows):
    """The rows, their mean and its 95% interval as lines of text, in per cent as the paper prints
    them; then why scores or intervals are missing."""
    summary = summarise(rows)
    lines = _lines([*rows, *_ends(summary)])
    for score in SCORES:
        missing = [row["case"] for row in rows if np.isnan(row[score])]
        if missing:
            have = "has" if len(missing) == 1 else "have"
            lines.append(
                f"{len(missing)} of {len(rows)} cases {have} no {score} score "
                f"({some(missing)}): {NO_SCORE[score]}"
            )
    return "\n".join([*lines, *_without_interval(summary)])


def comparison_table(compared):
    """What `compare` found as lines of text: the paper's Table 1 with intervals, its own numbers, the tests."""
    names = compared["ranking"] + compared["not_ranked"]
    rows = []
    for name in names:
        rows += _ends(compared["summaries"][name], name)
        if name in TABLE_1:
            printed = {score: dice / 100 for score, dice in zip(SCORES, TABLE_1[name])}
            rows.append({"case": "  paper", **printed})
    lines = _lines(rows)
    for name in compared["not_ranked"]:
        lines.append(f"{name}: not ranked, since it has no composite score of these cases")
    for name in names:
        lines += [f"{name}: {line}" for line in _without_interval(compared["summaries"][name])]
    for pair in compared["pairs"]:
        found = ", ".join(f"{score} {_difference(pair[score])}" for score in SCORES)
        lines.append(f"{pair['better']} - {pair['worse']}: {found}")
    return "\n".join(lines)


def _difference(found):
    if not found["cases"]:
        return "- (no case where both have a score)"
    p = f"p {found['p']:.3f}" if found["p"] >= 0.0005 else "p < 0.001"
    cases = "1 case" if found["cases"] == 1 else f"{found['cases']} cases"
    return f"{100 * found['difference']:+.2f} ({p}, {cases})"


def _without_interval(summary):
    """Lines on the scores whose mean has no interval, those of one reason together."""
    reasons = {}
    for score, found in summary.items():
        if found["no_interval"]:
            reasons.setdefault(found["no_interval"], []).append(score)
    return [f"no 95% interval of {', '.join(scores)}: {why}" for why, scores in reasons.items()]


def _ends(summary, name="mean"):
    return [
        {"case": label, **{score: found[end] for score, found in summary.items()}}
        for label, end in ((name, "mean"), ("  95% from", "from"), ("  to", "to"))
    ]


def _lines(rows):
    width = max(len("Dice in %"), *(len(row["case"]) for row in rows))
    cells = [
        [
            row["case"],
            *("-" if np.isnan(row[score]) else f"{100 * row[score]:.2f}" for score in SCORES),
        ]
        for row in rows
    ]
    return [
        f"{name:<{width}}{k:>11}{t:>11}{c:>11}"
        for name, k, t, c in [["Dice in %", *SCORES], *cells]
    ]


def as_csv(rows):
    """One or more rows of the same keys as the text of a CSV file, a line of names first; NaN is
    `nan`."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([row[name] for name in rows[0]])
    return text.getvalue()


def as_json(content):
    """Strict JSON: NaN becomes null."""
    return (
        json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None), indent=1) + "\n"
    )


def write_log(path, log):
    write_text(path, as_csv(log))


def draw_curve(path, log):
    """Losses, patch Dice and learning rates of all epochs, where matplotlib is installed."""
    if not find_spec("matplotlib"):
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in log]
    for name in ("loss", "patch_dice_kidney", "patch_dice_tumor", "learning_rate"):
        unit, label = 1, name.replace("_", " ")
        if name == "learning_rate":
            unit, label = log[0][name], "learning rate / its first"
        axes.plot(epochs, [row[name] / unit for row in log], label=label)
    axes.set(
        xlabel="epoch",
        ylim=(-1, max(1.0, log[0]["loss"])),
        title=f"{path.parent.parent.name} U-Net, {path.parent.name}",
    )
    axes.legend(loc="best")
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=120)


def first_line(error: Exception | Warning) -> str:
    """What went wrong, for a message of one line; the kind of error where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def draw_overlay(
    path: Path, row: dict, image: Volume, mask: np.ndarray, reference: np.ndarray
) -> None:
    """Two axial slices in soft tissue's window of HU, with the contours of reference (solid) and
    mask (dashed), arrays (Z, Y, X). ValueError where slices are one voxel thin: no contours."""
    from matplotlib.figure import Figure

    if min(reference.shape[1:]) < 2:
        raise ValueError(f"slices of {reference.shape[1:]} voxels have no contours")
    has_tumor = (reference == 2).any()
    most = ("most tumor", reference == 2) if has_tumor else ("most kidney", reference > 0)
    worst = ("most voxels wrong", mask != reference)
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for axes, (why, voxels) in zip(figure.subplots(1, 2), (most, worst)):
        z = int(voxels.sum(axis=(1, 2)).argmax())
        aspect = image.spacing_mm[1] / image.spacing_mm[2]
        axes.imshow(image.voxels[z], "gray", vmin=-160, vmax=300, aspect=aspect)
        for labels, line in ((reference[z], "solid"), (mask[z], "dashed")):
            for lowest, colour in ((1, "tab:cyan"), (2, "tab:red")):  # kidney with tumor, tumor
                region = labels >= lowest
                if region.any() and not region.all():  # else it has no contour
                    axes.contour(region, [0.5], colors=colour, linestyles=line)
        axes.set(title=f"slice {z}: {why}", xticks=[], yticks=[])
    title = (
        f"{row['case']}: Dice of kidney (cyan) {percent(row['kidney'])}, "
        f"of tumor (red) {percent(row['tumor'])}; reference solid, prediction dashed"
    )
    title = title.encode(errors="backslashreplace").decode()  # a file's name may be no UTF-8
    figure.suptitle(title, parse_math=False)  # a dollar in a name begins no formula
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=110)


def percent(score: float) -> str:
    return "-" if np.isnan(score) else f"{100 * score:.1f}"
