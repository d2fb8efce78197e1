"""What evaluate.py says of masks besides Dice, where it is asked: surfaces, volumes and lesions of
each case, as text and as files."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import nan

import numpy as np

from minikits.components import bounding_box
from minikits.evaluation import BOTH_EMPTY, CaseScores, summarise
from minikits.lesions import LEAST_OVERLAP, Lesion, LesionScores, find_lesions, score_lesions
from minikits.reports import as_csv, as_json, in_percent, summary_content, table
from minikits.surfaces import TOLERANCES_MM, distance_95, surface_dice
from minikits.volumes import Volume

WITHOUT_HD95 = nan  # it takes seconds, and is computed where it is asked for


@dataclass(frozen=True)
class Wanted:
    """What is scored besides Dice, and by whose rules."""

    protocol: str = "kits19"  # of BOTH_EMPTY
    tolerances: str = "kits23"  # of TOLERANCES_MM
    surface: bool = False
    hd95: bool = False
    lesions: bool = False


DICE_ALONE = Wanted()

HEADINGS = {  # of the fields of Measures, on a page
    "kidney_surface_dice": "kidney surface Dice",
    "tumor_surface_dice": "tumor surface Dice",
    "kidney_ml": "kidney + tumor ml",
    "kidney_off_ml": "kidney + tumor off ml",
    "tumor_ml": "tumor ml",
    "tumor_off_ml": "tumor off ml",
    "kidney_hd95_mm": "kidney HD95 mm",
    "tumor_hd95_mm": "tumor HD95 mm",
}


@dataclass(frozen=True)
class Measures:
    """The surfaces and volumes of one case. Surface Dice is a share, 0 to 1. The kidney counts with
    the tumor in it, as in Dice. off: the mask's volume less the reference's."""

    case: str
    kidney_surface_dice: float
    tumor_surface_dice: float
    kidney_ml: float
    kidney_off_ml: float
    tumor_ml: float
    tumor_off_ml: float
    kidney_hd95_mm: float
    tumor_hd95_mm: float


@dataclass(frozen=True)
class CaseLesions:
    """The lesions of one case, the mask's and the reference's, the largest first."""

    case: str
    mask: list[Lesion]
    reference: list[Lesion]
    scores: LesionScores


@dataclass(frozen=True)
class Column:
    """A number of each case, {case: number}, and how it is shown."""

    heading: str
    values: dict[str, float]
    shown: Callable[[float], str]


# --- options --------------------------------------------------------------------------------------


def add_measure_options(parser: argparse.ArgumentParser) -> None:
    """Adds --protocol, --surface, --hd95, --tolerances and --lesions."""
    add = parser.add_argument
    add(
        "--protocol",
        choices=list(BOTH_EMPTY),
        default="kits19",
        help="a structure in neither: kits19 has no score, kits23 scores 1 (default %(default)s)",
    )
    add("--surface", action="store_true", help="surface Dice and volumes too")
    add("--hd95", action="store_true", help="of surfaces the 95th percentile distance, mm, too")
    add(
        "--tolerances",
        choices=list(TOLERANCES_MM),
        help=f"of surface Dice: whose (default {Wanted.tolerances})",
    )
    add("--lesions", action="store_true", help="tumors one by one: found, missed, false")


def chosen_measures(arguments: argparse.Namespace) -> Wanted:
    """What the options of `add_measure_options` ask for; --hd95 and --tolerances ask for --surface."""
    surface = arguments.surface or arguments.hd95 or arguments.tolerances is not None
    return Wanted(
        protocol=arguments.protocol,
        tolerances=arguments.tolerances or Wanted.tolerances,
        surface=surface,
        hd95=arguments.hd95,
        lesions=arguments.lesions,
    )


# --- one case -------------------------------------------------------------------------------------


def measure(case: str, mask: Volume, reference: Volume, wanted: Wanted) -> Measures:
    """The Measures of two label maps on one grid; HD95 only if wanted, else NaN."""
    ours, theirs = _cut_to_foreground(mask, reference)
    kidney = _measure_structure("kidney", ours > 0, theirs > 0, reference, wanted)
    tumor = _measure_structure("tumor", ours == 2, theirs == 2, reference, wanted)
    return Measures(case, **kidney, **tumor)


def _cut_to_foreground(mask, reference):
    """The label maps in the box around all that is not background in either; all of them where
    there is nothing."""
    box = bounding_box((mask.voxels > 0) | (reference.voxels > 0))
    if box is None:
        return mask.voxels, reference.voxels
    ours = np.ascontiguousarray(mask.voxels[box])
    theirs = np.ascontiguousarray(reference.voxels[box])
    return ours, theirs


def _measure_structure(name, ours, theirs, frame, wanted):
    """{field of Measures: value} of one structure, two bool masks."""
    spacing_mm = frame.spacing_mm
    ml = np.count_nonzero(ours) * frame.voxel_mm3 / 1000
    reference_ml = np.count_nonzero(theirs) * frame.voxel_mm3 / 1000
    tolerance_mm = TOLERANCES_MM[wanted.tolerances][name]
    both_empty = BOTH_EMPTY[wanted.protocol]
    score = surface_dice(ours, theirs, spacing_mm, tolerance_mm, both_empty=both_empty)
    hd95_mm = distance_95(ours, theirs, spacing_mm) if wanted.hd95 else WITHOUT_HD95
    return {
        f"{name}_surface_dice": score,
        f"{name}_ml": ml,
        f"{name}_off_ml": ml - reference_ml,
        f"{name}_hd95_mm": hd95_mm,
    }


def lesions_of_case(case: str, mask: Volume, reference: Volume) -> CaseLesions:
    """The lesions of two label maps on one grid."""
    ours, theirs = _cut_to_foreground(mask, reference)
    spacing_mm, voxel_mm3 = reference.spacing_mm, reference.voxel_mm3
    in_mask = find_lesions(ours == 2, theirs == 2, spacing_mm, voxel_mm3)
    in_reference = find_lesions(theirs == 2, ours == 2, spacing_mm, voxel_mm3)
    return CaseLesions(case, in_mask, in_reference, score_lesions(in_mask, in_reference))


# --- text -----------------------------------------------------------------------------------------


def surface_tables(cases: Sequence[Measures], wanted: Wanted) -> str:
    """Surface Dice as the table of Dice has it, then volumes and distances with their medians."""
    tolerances_mm = TOLERANCES_MM[wanted.tolerances]
    near = (
        f"Surface Dice, weighted by area: near is within {tolerances_mm['kidney']:.4f} mm of the "
        f"kidney, {tolerances_mm['tumor']:.4f} mm of the tumor ({wanted.tolerances})"
    )

    names = ["kidney_ml", "kidney_off_ml", "tumor_ml", "tumor_off_ml"]
    heading = ["kidney + tumor", "off by", "tumor", "off by"]
    if wanted.hd95:
        names += ["kidney_hd95_mm", "tumor_hd95_mm"]
        heading += ["kidney HD95 mm", "tumor HD95 mm"]
    rows = [(one.case, [getattr(one, name) for name in names]) for one in cases]
    medians = [_median([getattr(one, name) for one in cases]) for name in names]
    rows.append(("median", medians))
    lines = _columns("volumes, ml", heading, rows)
    lines.append("off by: the mask's ml less the reference's; minus is too small")
    return "\n".join([near, table(surface_scores(cases), heading="surface in %"), *lines])


def surface_scores(cases: Sequence[Measures]) -> list[CaseScores]:
    """Surface Dice as scores of cases; the composite is the mean of both structures."""
    scores = []
    for one in cases:
        kidney, tumor = one.kidney_surface_dice, one.tumor_surface_dice
        scores.append(CaseScores(one.case, kidney, tumor, (kidney + tumor) / 2))
    return scores


def _median(values):
    """Of those that are numbers, the infinite ones too; NaN where there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.median(known)) if known else nan


def _columns(corner, heading, rows):
    """Lines of rows (name, numbers), in columns below a heading; - for NaN."""
    width = max(len(corner), *(len(name) for name, _ in rows))
    lines = [corner.ljust(width) + "".join(name.rjust(16) for name in heading)]
    for name, numbers in rows:
        cells = [_one_decimal(number).rjust(16) for number in numbers]
        lines.append(name.ljust(width) + "".join(cells))
    return lines


def _one_decimal(number):
    return "-" if np.isnan(number) else f"{number:z.1f}"


def lesion_table(cases: Sequence[CaseLesions], wanted: Wanted) -> str:
    """Lesions found, missed and false in each case and in all of them, as lines of text."""
    both_empty = BOTH_EMPTY[wanted.protocol]
    counted = [(one.case, one.scores) for one in cases]
    counted.append(("all", total_of(cases)))

    width = max(len("tumors one by one"), *(len(name) for name, _ in counted))
    heading = ["found", "missed", "false", "F1 in %"]
    lines = ["tumors one by one".ljust(width) + "".join(name.rjust(11) for name in heading)]
    for name, scores in counted:
        cells = [str(scores.found), str(scores.missed), str(scores.false)]
        cells.append(in_percent(scores.f1(both_empty=both_empty)))
        lines.append(name.ljust(width) + "".join(cell.rjust(11) for cell in cells))
    lines.append(
        f"found: {100 * LEAST_OVERLAP:.0f}% or more of the reference's lesion is tumor in the "
        "mask; false: less than that of the mask's is tumor in the reference"
    )
    return "\n".join(lines)


def total_of(cases: Sequence[CaseLesions]) -> LesionScores:
    """The lesions of all cases together."""
    found = sum(one.scores.found for one in cases)
    missed = sum(one.scores.missed for one in cases)
    false = sum(one.scores.false for one in cases)
    return LesionScores(found, missed, false)


# --- columns of a page ----------------------------------------------------------------------------


def further_columns(
    surfaces: Sequence[Measures], lesions: Sequence[CaseLesions], wanted: Wanted
) -> list[Column]:
    """What stands beside the Dice of each case: what is wanted of surfaces and volumes, then how
    many lesions are found, missed and false."""
    columns = []
    for name, heading in HEADINGS.items():
        values = {one.case: getattr(one, name) for one in surfaces}
        is_wanted = wanted.hd95 if name.endswith("hd95_mm") else wanted.surface
        if is_wanted:
            shown = in_percent if name.endswith("dice") else _one_decimal
            columns.append(Column(heading, values, shown))

    if wanted.lesions:
        for name in ("found", "missed", "false"):
            values = {one.case: getattr(one.scores, name) for one in lesions}
            columns.append(Column(f"tumors {name}", values, str))
    return columns


# --- files ----------------------------------------------------------------------------------------


def surfaces_csv(cases: Sequence[Measures], wanted: Wanted) -> str:
    """The text of surfaces.csv: the fields of Measures; without HD95 where it is not wanted."""
    rows = [asdict(one) for one in cases]
    if not wanted.hd95:
        for row in rows:
            del row["kidney_hd95_mm"], row["tumor_hd95_mm"]
    return as_csv(rows)


def surfaces_json(cases: Sequence[Measures], wanted: Wanted) -> str:
    """The text of surfaces.json: by which rules, and the means of surface Dice."""
    content = {
        "protocol": wanted.protocol,
        "tolerances_mm": TOLERANCES_MM[wanted.tolerances],
        "surface_dice": summary_content(summarise(surface_scores(cases))),
    }
    return as_json(content)


def lesions_csv(cases: Sequence[CaseLesions]) -> str:
    """The text of lesions.csv: a line for each lesion, `in` the mask or the reference; `overlap` is
    the share of it that is tumor in the other, `shared` whether that is enough."""
    rows = []
    for one in cases:
        for place, lesions in (("reference", one.reference), ("mask", one.mask)):
            for lesion in lesions:
                row = {"case": one.case, "in": place, **asdict(lesion), "shared": lesion.is_shared}
                rows.append(row)
    if not rows:
        return "case,in,ml,diameter_mm,overlap,shared\r\n"
    return as_csv(rows)
