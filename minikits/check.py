"""A data set before the first training: what can be read, what it measures, which cases stand out:

    python -m minikits.check data/
    python -m minikits.check data/ --out checked --worst 20

A line for each case, a summary that says what to do, and in the folder --out check.csv, check.json
and, where matplotlib is installed, a page with pictures of the cases that stand out most.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np

from minikits.cases import look_for_cases
from minikits.facts import CaseFacts, facts_of, pooled
from minikits.files import forgiving_output, typed_path, write_text
from minikits.findings import (
    WHAT_TO_DO,
    Finding,
    counted,
    findings_of,
    kidneys_of,
    stored_otherwise,
)
from minikits.folds import excluded_ids
from minikits.layouts import some
from minikits.nifti import read_labels, read_volume
from minikits.pages import as_html, whole_page
from minikits.paper import PAPER
from minikits.pictures import (
    BLACK_AND_WHITE_HU,
    CORONAL,
    PLANES,
    draw_panels,
    panel_of,
    panels_of,
)
from minikits.processes import cores, map_of_processes
from minikits.reading import Reading, a_number, add_reading_options, chosen_reading
from minikits.reports import as_csv, as_json, cases_of, first_line, why_no_figures

# A mean of all cases this many sd from the paper's is another contrast: with the paper's numbers the
# networks would not see values about 0.
OTHER_MEAN_SDS = 0.25
FIRST_CASES = 10  # with fewer, processes that just start would make the time left absurd


@dataclass(frozen=True, eq=False)
class Checked:
    """A data set that was checked: its cases by id, {id: what stands out}, what was left out of its
    folder (a line each), and how long it took."""

    folder: Path
    cases: list[CaseFacts]
    findings: dict[str, list[Finding]]
    left_out: list[str]
    seconds: float

    @property
    def worst(self) -> list[CaseFacts]:
        """The cases that stand out, those with most findings first."""
        outstanding = [facts for facts in self.cases if facts.id in self.findings]
        return sorted(outstanding, key=lambda facts: -len(self.findings[facts.id]))


def check(arguments: argparse.Namespace, say: Callable[[str], None]) -> bool:
    """Checks a data set, writes its report, and tells whether every case can be read; lines on all
    of it to `say`. ValueError or OSError where there is no data set."""
    found = look_for_cases(arguments.data)
    say(f"{arguments.data}: {found.summary()}")
    files = [(case.id, case.image, case.labels) for case in found.cases]
    reading = chosen_reading(arguments)

    with map_of_processes(min(arguments.jobs, len(files))) as mapped:
        began = time.monotonic()
        cases = measured(files, reading, mapped, say)
        seconds = time.monotonic() - began
        checked = Checked(arguments.data, cases, findings_of(cases), found.left_out, seconds)

        for line in summary_of(checked):
            say(line)
        write_report(checked, arguments.out)
        pictures = draw_worst(checked, arguments.worst, arguments.out, reading, mapped, say)
        page = arguments.out / "index.html"
        write_text(page, page_of(checked, pictures))
    say(f"{page}, with check.csv and check.json beside it")
    return not any(facts.refused for facts in cases)


def measured(
    files: Sequence[tuple[str, Path | None, Path | None]],
    reading: Reading,
    mapped: Callable,
    say: Callable[[str], None],
) -> list[CaseFacts]:
    """The CaseFacts of (id, image, labels), a line to `say` for each as they come."""
    began = time.monotonic()
    ids, images, labels = zip(*files)

    cases = []
    for facts in mapped(facts_of, ids, images, labels, repeat(reading)):
        cases.append(facts)
        place = f"{len(cases)} of {len(files)}"
        if len(cases) >= FIRST_CASES:
            seconds_each = (time.monotonic() - began) / len(cases)
            left = seconds_each * (len(files) - len(cases))
            place += f", {left:.0f} s left"
        say(f"{line_of(facts)} ({place})")
    return cases


# --- what is said ---------------------------------------------------------------------------------


def line_of(facts: CaseFacts) -> str:
    """What was measured of a case, in a line; or why it cannot be used."""
    if facts.refused:
        return f"{facts.id}: {'; '.join(facts.refused)}"

    shape = "x".join(map(str, facts.shape))
    spacing = "x".join(f"{mm:.2f}" for mm in facts.spacing_mm)
    said = [f"{shape} of {spacing} mm"]
    if facts.of_labels:
        kidneys = [f"{region.kidney_ml:.0f}" for region in kidneys_of(facts.of_labels)]
        said.append(f"kidneys {' + '.join(kidneys) or '-'} ml")
        said.append(f"tumor {facts.of_labels.tumor_ml:.1f} ml in {facts.of_labels.tumors}")
    else:
        said.append("no labels")
    if facts.hu:
        said.append(
            f"HU {facts.hu.mean:.0f} sd {facts.hu.sd:.0f}, {facts.hu.low:.0f} to {facts.hu.high:.0f}"
        )
    return f"{facts.id}: {', '.join(said)}"


def summary_of(checked: Checked) -> list[str]:
    """The lines below those of the cases: what the data set is like, which cases stand out, and
    what to do."""
    cases, findings = checked.cases, checked.findings
    labelled = sum(facts.labels is not None for facts in cases)
    with_image = sum(facts.image is not None for facts in cases)
    lines = [
        "",
        f"{counted(len(cases), 'case')} in {checked.seconds:.0f} s, {labelled} with labels, {with_image} with "
        "an image",
    ]
    lines += table_of(cases)
    lines += lines_on_hu(cases)
    lines += notes_on(cases)

    if not findings:
        return [*lines, "no case stands out"]
    stand = "stands" if len(findings) == 1 else "stand"
    lines += ["", f"{cases_of(len(findings), len(cases))} {stand} out:"]
    for facts in checked.worst:
        reasons = [finding.told for finding in findings[facts.id]]
        lines.append(f"  {facts.id}: {'; '.join(reasons)}")

    kinds = {finding.kind for found in findings.values() for finding in found}
    lines += ["", "what to do:"]
    lines += [f"  {advice}" for kind, advice in WHAT_TO_DO.items() if kind in kinds]
    return lines


def table_of(cases: Sequence[CaseFacts]) -> list[str]:
    """Lines with the smallest, the median and the largest of what was measured."""
    read = [facts for facts in cases if not facts.refused]
    labelled = [facts.of_labels for facts in read if facts.of_labels]
    values_by_name = {
        "slices": [facts.shape[0] for facts in read],
        "spacing z, mm": [facts.spacing_mm[0] for facts in read],
        "spacing y, mm": [facts.spacing_mm[1] for facts in read],
        "spacing x, mm": [facts.spacing_mm[2] for facts in read],
        "kidney, ml": [labels.kidney_ml for labels in labelled],
        "tumor, ml": [labels.tumor_ml for labels in labelled],
    }

    lines = [f"{'':<16}{'smallest':>10}{'median':>10}{'largest':>10}"]
    for name, values in values_by_name.items():
        if values:
            ends = (min(values), np.median(values), max(values))
            lines.append(f"{name:<16}" + "".join(f"{value:>10.4g}" for value in ends))
    return lines


def lines_on_hu(cases: Sequence[CaseFacts]) -> list[str]:
    """Lines on the HU in kidney and tumor of all cases together, beside the paper's."""
    if not any(facts.image for facts in cases):
        return ["HU in kidney and tumor: left out, since no case has an image"]
    histograms = [facts.hu.histogram for facts in cases if facts.hu]
    if not histograms:
        both = [facts for facts in cases if facts.image and facts.labels]
        why = "no case has an image and labels"
        if both:
            why = "nothing is labelled"
        if both and all(facts.refused for facts in both):
            why = "no case with an image and labels can be used"
        return [f"HU in kidney and tumor: left out, since {why}"]

    ours = pooled(histograms)
    low, high = PAPER.window_hu
    lines = [
        f"HU in kidney and tumor, all voxels: mean {ours['mean']:.1f}, sd {ours['sd']:.1f}, 0.5% "
        f"below {ours['low']:g}, 0.5% above {ours['high']:g}",
        f"the paper's: mean {PAPER.mean_hu:g}, sd {PAPER.sd_hu:g}, 0.5% below {low:g}, 0.5% above "
        f"{high:g}",
    ]
    if abs(ours["mean"] - PAPER.mean_hu) > OTHER_MEAN_SDS * PAPER.sd_hu:
        values = {
            "mean_hu": round(ours["mean"], 1),
            "sd_hu": round(ours["sd"], 1),
            "window_hu": [ours["low"], ours["high"]],
        }
        lines.append(
            f"  another contrast than KiTS19's? --recipe FILE with {json.dumps(values)} would "
            "normalise by this data set"
        )
    return lines


def notes_on(cases: Sequence[CaseFacts]) -> list[str]:
    """Lines on what is no fault: label files written otherwise than most, cases that the paper
    leaves out, images that have no labels."""
    lines = []
    otherwise = stored_otherwise(cases)
    if otherwise:
        usual, others, ids = otherwise
        lines.append(
            f"label files stored as {others}, where most are {usual}: {some(ids)}; they were "
            "written apart from the others, such as a correction"
        )

    ids = [facts.id for facts in cases]
    excluded = sorted(excluded_ids(PAPER).intersection(ids))
    if excluded:
        lines.append(f"left out of a training by the paper, and by train.py: {some(excluded)}")

    unlabelled = [facts.id for facts in cases if facts.labels is None]
    if unlabelled:
        lines.append(f"without labels, so that nothing is trained on them: {some(unlabelled)}")
    return lines


# --- what is written ------------------------------------------------------------------------------


def write_report(checked: Checked, out: Path) -> None:
    """check.csv, a row for each case, and check.json, what was found of all."""
    rows = [row_of(facts, checked.findings.get(facts.id, [])) for facts in checked.cases]
    write_text(out / "check.csv", as_csv(rows))

    histograms = [facts.hu.histogram for facts in checked.cases if facts.hu]
    findings = {}
    for id, found in checked.findings.items():
        findings[id] = [asdict(finding) for finding in found]
    content = {
        "data": str(checked.folder),
        "cases": len(checked.cases),
        "left_out": checked.left_out,
        "hu": pooled(histograms) if histograms else None,
        "findings": findings,
    }
    write_text(out / "check.json", as_json(content))


def row_of(facts: CaseFacts, findings: Sequence[Finding]) -> dict:
    """A case's row of check.csv; "" where there is nothing to tell."""
    shape = facts.shape or ("", "", "")
    spacing = facts.spacing_mm or ("", "", "")
    row = {"case": facts.id, "slices": shape[0], "rows": shape[1], "columns": shape[2]}
    row |= {f"spacing_{axis}_mm": mm for axis, mm in zip("zyx", spacing)}

    labels, hu = facts.of_labels, facts.hu
    row |= {
        "labels_stored_as": facts.stored,
        "kidneys": len(kidneys_of(labels)) if labels else "",
        "kidney_ml": round(labels.kidney_ml, 3) if labels else "",
        "tumors": labels.tumors if labels else "",
        "tumor_ml": round(labels.tumor_ml, 3) if labels else "",
        "regions": len(labels.regions) if labels else "",
        "cut_cm2": round(sum(cut.cm2 for cut in labels.cuts), 2) if labels else "",
        "mean_hu": round(hu.mean, 2) if hu else "",
        "sd_hu": round(hu.sd, 2) if hu else "",
        "percentile_00_5_hu": round(hu.low, 2) if hu else "",
        "percentile_99_5_hu": round(hu.high, 2) if hu else "",
        "below_window": round(hu.below, 4) if hu else "",
        "above_window": round(hu.above, 4) if hu else "",
        "image_digest": facts.image_digest or "",
        "labels_digest": (labels.digest or "") if labels else "",
        "stands_out": "; ".join(finding.told for finding in findings),
    }
    return row


def page_of(checked: Checked, pictures: dict[str, str]) -> str:
    """The text of the page: the summary, then the cases that stand out. pictures: {id: name}."""
    summary = "\n".join(summary_of(checked))
    parts = [f"<pre>{as_html(summary)}</pre>"]
    for facts in checked.worst:
        parts.append(f"<h2>{as_html(facts.id)}</h2>\n<p>{as_html(line_of(facts))}</p>\n<ul>")
        for finding in checked.findings[facts.id]:
            parts.append(f"<li>{as_html(finding.told)}</li>")
        parts.append("</ul>")
        if facts.id in pictures:
            picture = as_html(pictures[facts.id])
            parts.append(f'<p><img src="{picture}" alt="{as_html(facts.id)}"></p>')
    return whole_page(f"{checked.folder}: which cases stand out", parts)


# --- pictures -------------------------------------------------------------------------------------


def draw_worst(
    checked: Checked,
    count: int,
    out: Path,
    reading: Reading,
    mapped: Callable,
    say: Callable[[str], None],
) -> dict[str, str]:
    """A picture of each of the `count` cases that stand out most: {case id: name of the file}."""
    worst = [facts for facts in checked.worst if facts.of_labels and facts.of_labels.regions]
    worst = worst[:count]
    why_not = why_no_figures()
    if why_not and worst:
        say(f"no pictures: matplotlib cannot be imported ({why_not})")
    if why_not or not worst:
        return {}

    places, paths, pictures = [], [], {}
    for number, facts in enumerate(worst, 1):
        places.append(place_of(facts, checked.findings[facts.id]))
        paths.append(out / f"worst_{number:02d}.png")

    say(f"drawing {len(worst)} cases")
    errors = mapped(draw_case, worst, places, paths, repeat(reading))
    for facts, path, error in zip(worst, paths, errors):
        if error:
            say(f"warning: {path}: not drawn ({error})")
        else:
            pictures[facts.id] = path.name
    return pictures


def place_of(facts: CaseFacts, findings: Sequence[Finding]) -> tuple[int, ...]:
    """A voxel of the first finding that has a place; else the middle of the largest region."""
    for finding in findings:
        if finding.place:
            return finding.place
    assert facts.of_labels  # whoever has no labels is not drawn
    return facts.of_labels.regions[0].place


def draw_case(facts: CaseFacts, place: tuple[int, ...], path: Path, reading: Reading) -> str:
    """Writes a picture of a case: three planes through a place, and all labels seen from the front.
    Returns why that cannot be done, "" where it can."""
    assert facts.labels  # whoever has no labels is not drawn
    try:
        labels = read_labels(facts.labels, **vars(reading))
        shown, values = (0.0, 2.0), labels.voxels
        if facts.image:
            shown, values = BLACK_AND_WHITE_HU, read_volume(facts.image, **vars(reading)).voxels

        panels = panels_of(
            PLANES, values, labels.spacing_mm, place, shown=shown, labels=labels.voxels
        )
        whole = panel_of(CORONAL, labels.voxels, labels.spacing_mm, place, shown=(0.0, 2.0))
        from_front = labels.voxels.max(axis=CORONAL.axis)
        panels.append(replace(whole, values=from_front, title="all labels, from the front"))
        draw_panels(path, [panels])
    except Exception as error:  # whatever a drawing library may raise
        return first_line(error)
    return ""


# --- the command ----------------------------------------------------------------------------------


def main() -> None:
    forgiving_output()
    parser = command_line()
    arguments = parser.parse_args()
    try:
        all_read = check(arguments, say=partial(print, flush=True))
    except KeyboardInterrupt:
        parser.exit(130, "check: stopped\n")
    except BrokenExecutor:
        parser.exit(2, "check: a process was ended, for want of memory? --jobs 1 takes the least\n")
    except (ValueError, OSError) as error:
        parser.exit(2, f"check: {first_line(error)}\n")
    if not all_read:
        parser.exit(2, "check: some cases cannot be read, or not be used\n")


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m minikits.check",
        description="A data set before training: what it measures, and which cases stand out.",
    )
    add = parser.add_argument
    add("data", type=typed_path, help="KiTS19 folder, or images/ and labels/; labels alone do too")
    add("--out", type=typed_path, default=Path("checked"), help="folder (default %(default)s)")
    add("--worst", type=a_number, default=12, help="how many to draw (default %(default)s)")
    add("--jobs", type=a_number, default=cores(), help="processes (default %(default)s, the cores)")
    add_reading_options(parser, of="a volume")
    return parser


if __name__ == "__main__":
    main()
