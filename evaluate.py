"""Kidney, tumor and composite Dice of masks: python evaluate.py --pred masks/ --ref data/"""

import argparse
import signal
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from time import monotonic

from minikits.cases import Case, Found, find_masks, look_for_cases
from minikits.comparisons import draw_apart, draw_comparison, most_apart
from minikits.evaluation import (
    BOTH_EMPTY,
    CaseScores,
    compare,
    score_case,
    some,
    summarise,
)
from minikits.files import (
    forgiving_output,
    read_json,
    typed_path,
    write_text,
)
from minikits.folds import excluded_ids
from minikits.frames import check_same_grid
from minikits.layouts import image_beside, nifti_name
from minikits.measures import (
    DICE_ALONE,
    CaseLesions,
    Measures,
    Wanted,
    add_measure_options,
    chosen_measures,
    further_columns,
    lesion_table,
    lesions_csv,
    lesions_of_case,
    measure,
    surface_tables,
    surfaces_csv,
    surfaces_json,
)
from minikits.mistakes import BELOW, Mistake, find_mistakes, is_below, worst_first
from minikits.nifti import read_labels, read_volume
from minikits.pages import (
    FIGURE,
    ScoredCases,
    page_of_cases,
    page_of_comparison,
    picture_of,
)
from minikits.paper import PAPER
from minikits.processes import is_short_of_memory
from minikits.reading import Reading, add_reading_options, chosen_reading
from minikits.reports import (
    cases_csv,
    comparison_json,
    comparison_table,
    draw_overlay,
    first_line,
    in_percent,
    list_of_apart,
    list_of_worst,
    summary_json,
    table,
    why_no_figures,
)
from minikits.sampling import fetch_ahead
from minikits.volumes import Volume

UNKNOWN = "whether the networks were trained on these cases is unknown"


@dataclass(frozen=True)
class LabelFiles:
    """Of a folder of masks or references: {case: label file}, {case: image, if it has one}, and
    lines on what else lies there and is left out."""

    labels: dict[str, Path]
    images: dict[str, Path]
    left_out: list[str]


@dataclass(frozen=True)
class Pair:
    """A case's files: what is scored, and the image for its picture."""

    id: str
    mask: Path
    reference: Path
    image: Path | None


@dataclass(frozen=True)
class Scored:
    """A pair and what was found of it: Dice, what is wrong where that is low, and where they are
    wanted surfaces and lesions."""

    pair: Pair
    dice: CaseScores
    mistakes: list[Mistake]
    surfaces: Measures | None
    lesions: CaseLesions | None


def main() -> None:
    forgiving_output()
    parser = argument_parser()
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once; files appear whole
    try:
        failed = evaluate_all(arguments)
    except (ValueError, OSError) as error:
        failed = [str(error)]

    each_once = dict.fromkeys(failed)  # a damaged reference fails in every folder of masks
    lines = [f"evaluate.py: {line}\n" for line in each_once]
    parser.exit(2 if failed else 0, "".join(lines))


def argument_parser() -> argparse.ArgumentParser:
    """The options; `python evaluate.py --help` prints them."""
    parser = argparse.ArgumentParser(
        description="Score masks against references as the KiTS19 challenge does."
    )
    add = parser.add_argument
    add(
        "--pred",
        type=typed_path,
        nargs="+",
        action="extend",
        required=True,
        help="folders of masks; several are compared",
    )
    add(
        "--ref",
        type=typed_path,
        required=True,
        help="KiTS19 folder, or a flat folder of label files",
    )
    add(
        "--out",
        type=typed_path,
        help="folder for cases.csv, summary.json, comparison.json, and pages with pictures",
    )
    add(
        "--below",
        type=typed_dice,
        default=BELOW,
        metavar="DICE",
        help="of kidney or tumor: what is wrong in such cases is said with --out (default "
        "%(default)s)",
    )
    add("--allow-missing", action="store_true", help="score the cases that both have")
    add_measure_options(parser)
    add_reading_options(parser, of="a volume")
    return parser


def typed_dice(text: str) -> float:
    """A Dice of the command line (argparse's type)."""
    try:
        dice = float(text)
    except ValueError:
        dice = nan
    if not 0 < dice <= 1:  # NaN neither
        raise argparse.ArgumentTypeError(f"{text}: wanted a Dice, more than 0 and at most 1")
    return dice


def evaluate_all(arguments: argparse.Namespace) -> list[str]:
    """Scores every folder of masks, then compares them; returns a line for all that failed."""
    folders = {folder.resolve().name: folder for folder in arguments.pred}
    if len(folders) < len(arguments.pred):
        raise ValueError(
            "--pred: several folders of one name; rename one, the reports bear their names"
        )
    reading = chosen_reading(arguments)
    wanted = chosen_measures(arguments)

    systems, failed = {}, []
    for name, folder in folders.items():
        out = arguments.out
        if out and len(folders) > 1:
            out = out / name
        try:
            scored, lines = evaluate(
                folder,
                arguments.ref,
                reading,
                out=out,
                allow_missing=arguments.allow_missing,
                below=arguments.below,
                wanted=wanted,
            )
        except (ValueError, OSError) as error:
            failed.append(str(error))
            continue
        failed += lines
        if scored:
            systems[name] = scored

    if len(systems) > 1:
        try:
            compare_systems(systems, arguments.out, reading)
        except ValueError as error:
            failed.append(f"--pred: {error}")
    return failed


def evaluate(
    folder: Path,
    reference_folder: Path,
    reading: Reading,
    *,
    out: Path | None = None,
    allow_missing: bool = False,
    below: float = BELOW,
    wanted: Wanted = DICE_ALONE,
) -> tuple[dict[str, Scored], list[str]]:
    """Scores one folder of masks, and prints the tables; then, if `out` is given, what is wrong in
    the cases below a Dice, and writes it all there, with a picture per case. Returns {case: what was
    found}, and a line for each mask or reference that cannot be used. ValueError or OSError where
    there is nothing to score, or where masks or references are missing and may not be."""
    references = find_references(reference_folder)
    masks = find_mask_files(folder, references.labels)
    if folder.is_file() and reference_folder.is_file():
        masks = named_as_reference(masks, references)
    pairs, left_out = match(folder, masks, references, allow_missing)

    bound = below if out else 0.0  # what is wrong takes a moment to find
    scored, failed = score(pairs, reading, wanted, bound)
    left_out += [f"{pair.id} (cannot be scored)" for pair in pairs if pair.id not in scored]

    found = Found([Case(id) for id in scored], left_out)
    print(f"{folder} against {reference_folder}, {found.summary()}")
    if wanted.protocol == "kits23":
        print("Protocol of KiTS23: a structure in neither mask nor reference scores 100")
    if scored:
        print(table(dice_of(scored)), flush=True)
    for doubt in doubts_about(folder, pairs):
        print(f"warning: {doubt}")

    if scored:
        report(folder.resolve().name, scored, reading, out=out, below=below, wanted=wanted)
    return scored, failed


def compare_systems(
    systems: dict[str, dict[str, Scored]], out: Path | None, reading: Reading
) -> None:
    """Prints how the systems, {name: {case: what was found}}, compare and on which cases they differ
    most, and writes it, with pictures; ValueError where they share no case."""
    scores = {name: dice_of(scored) for name, scored in systems.items()}
    comparison = compare(scores)
    apart = most_apart(scores, comparison.cases)

    count = len(comparison.cases)
    cases = "case" if count == 1 else "cases"
    print(f"\nThe {count} {cases} that all have, best first; p: sign flips, paired, Holm")
    print(comparison_table(comparison))
    print(list_of_apart(apart), flush=True)
    if not out:
        return

    write_if_possible(out / "comparison.json", comparison_json(comparison))
    drawings = {FIGURE: partial(draw_comparison, out / FIGURE, scores, comparison)}
    for one in apart:
        pairs = {name: systems[name][one.case].pair for name in one.scores}
        picture = picture_of(one)
        drawings[picture] = partial(draw_difference, out / picture, pairs, reading)
    drawn = draw_each(drawings)
    write_if_possible(out / "index.html", page_of_comparison(comparison, apart, drawn))


# --- which masks, which references ----------------------------------------------------------------


def find_references(folder: Path) -> LabelFiles:
    """Those of a folder of cases; in a flat folder every file is a label file. A case's label file
    by itself has the image that lies beside it."""
    found = look_for_cases(folder)
    labels = {case.id: case.labels for case in found.cases if case.labels}
    if labels:
        images = {case.id: case.image for case in found.cases if case.image}
        beside = image_beside(folder)
        if beside:
            images = dict.fromkeys(labels, beside)
        unlabelled = [f"{case.id} (no labels)" for case in found.cases if not case.labels]
        return LabelFiles(labels, images, found.left_out + unlabelled)

    files = {case.image for case in found.cases}
    labels = {id: path for id, path in find_masks(folder).items() if path in files}
    return LabelFiles(labels, {}, found.left_out)


def find_mask_files(folder: Path, ids: Collection[str]) -> LabelFiles:
    """Those of a flat folder of masks, of one mask, or the labels of a folder of cases. ids: those
    of the references."""
    if not folder.is_dir():
        return LabelFiles(find_masks(folder, ids=ids), {}, [])

    found = look_for_cases(folder)
    labels = {case.id: case.labels for case in found.cases if case.labels}
    if labels:
        return LabelFiles(labels, {}, found.left_out)

    masks = find_masks(folder, ids=ids)
    # a mask that cannot be opened is named when it is read; probabilities/ is predict.py's own
    left_out = []
    for line in found.left_out:
        is_mask = any(line.startswith(f"{path.name} (") for path in masks.values())
        if not is_mask and not line.startswith("probabilities/"):
            left_out.append(line)
    return LabelFiles(masks, {}, left_out)


def named_as_reference(masks: LabelFiles, references: LabelFiles) -> LabelFiles:
    """One mask by itself, as the mask of the only reference, whatever it is called; a line says so
    where their names differ."""
    (name,) = masks.labels
    (id,) = references.labels
    mask, reference = masks.labels[name], references.labels[id]
    if name != id:
        print(f"one mask, one reference: {mask.name} is scored against {reference}, as {id}")
    return LabelFiles({id: mask}, {}, masks.left_out)


def match(
    folder: Path, masks: LabelFiles, references: LabelFiles, allow_missing: bool
) -> tuple[list[Pair], list[str]]:
    """The Pairs of masks and references, and lines on what is left out: what is missing and may be
    (`--allow-missing`), and what the paper excludes. ValueError where anything else is missing, or
    nothing is left."""
    both = sorted(masks.labels.keys() & references.labels.keys())
    without_reference = sorted(masks.labels.keys() - references.labels.keys())
    without_mask = sorted(references.labels.keys() - masks.labels.keys())
    excluded = sorted(excluded_ids(PAPER).intersection(without_mask))
    without_mask = [id for id in without_mask if id not in excluded]
    strays = list(dict.fromkeys(references.left_out + masks.left_out))  # one folder may be both

    also = f"; left out: {some(strays)}" if strays else ""
    if not both:
        wanted = min(references.labels, default="NAME")
        raise ValueError(
            f"{folder}: no case has a mask and a reference: masks of {some(sorted(masks.labels))}, "
            f"references of {some(sorted(references.labels))}{also}; wanted one name; rename each mask "
            f"as its case is called, such as {wanted}.nii.gz"
        )
    for kind, missing in (("reference", without_reference), ("mask", without_mask)):
        if missing and not allow_missing:
            have = "case has" if len(missing) == 1 else "cases have"
            raise ValueError(
                f"{folder}: {len(missing)} {have} no {kind} ({some(missing)}), wanted one for "
                f"each{also}; --allow-missing scores the cases that have both"
            )

    pairs = []
    for id in both:
        pairs.append(Pair(id, masks.labels[id], references.labels[id], references.images.get(id)))
    left_out = [f"{id} (no mask)" for id in without_mask]
    left_out += [f"{id} (no mask; among the paper's excluded cases)" for id in excluded]
    left_out += [f"{id} (no reference)" for id in without_reference]
    return pairs, left_out + strays


# --- scores ---------------------------------------------------------------------------------------


def score(
    pairs: list[Pair], reading: Reading, wanted: Wanted, bound: float
) -> tuple[dict[str, Scored], list[str]]:
    """{case: what was found} of the pairs that can be scored; a line for each reason why others
    cannot be. Prints each case's Dice as it comes where HD95 is wanted, which takes long."""
    scored, failed = {}, []
    began = monotonic()
    ahead = fetch_ahead(lambda pair: read_pair(pair, reading), pairs)  # a thread reads the next one
    for number, (pair, (volumes, errors)) in enumerate(zip(pairs, ahead), 1):
        if errors:
            failed += errors
            continue
        mask, reference = volumes
        try:
            scored[pair.id] = score_pair(pair, mask, reference, wanted, bound)
        except (MemoryError, RuntimeError) as error:
            if not is_short_of_memory(error):
                raise
            failed.append(f"{pair.mask}: not enough memory to score it")
            continue

        if wanted.hd95:
            dice = scored[pair.id].dice
            left = (monotonic() - began) / number * (len(pairs) - number)
            print(
                f"{pair.id}: kidney {in_percent(dice.kidney)}, tumor {in_percent(dice.tumor)} "
                f"({number} of {len(pairs)}, {left:.0f} s left)",
                flush=True,
            )
    return scored, failed


def score_pair(pair: Pair, mask: Volume, reference: Volume, wanted: Wanted, bound: float) -> Scored:
    """What was found of two label maps on one grid; what is wrong where a Dice is below the
    bound."""
    both_empty = BOTH_EMPTY[wanted.protocol]
    dice = score_case(pair.id, mask.voxels, reference.voxels, both_empty=both_empty)

    mistakes, surfaces, lesions = [], None, None
    if is_below(dice, bound):
        mistakes = find_mistakes(mask.voxels, reference.voxels, reference.voxel_mm3, bound)
    if wanted.surface:
        surfaces = measure(pair.id, mask, reference, wanted)
    if wanted.lesions:
        lesions = lesions_of_case(pair.id, mask, reference)
    return Scored(pair, dice, mistakes, surfaces, lesions)


def read_pair(pair: Pair, reading: Reading) -> tuple[list[Volume], list[str]]:
    """Mask and reference; or lines on why it cannot be scored: one of them cannot be read, or they
    lie on two grids."""
    volumes, errors = [], []
    for path in (pair.mask, pair.reference):
        try:
            volumes.append(read_labels(path, **vars(reading)))
        except (ValueError, OSError) as error:
            errors.append(str(error))
        except MemoryError:
            errors.append(f"{path}: not enough memory to read it")

    if not errors:
        try:
            check_same_grid(*volumes)
        except ValueError as error:
            errors.append(str(error))
    return volumes, errors


def dice_of(scored: dict[str, Scored]) -> list[CaseScores]:
    """The Dice of each case."""
    return [one.dice for one in scored.values()]


# --- what prediction.json says of the masks beside it ---------------------------------------------


def doubts_about(folder: Path, pairs: list[Pair]) -> list[str]:
    """Lines on what prediction.json, where there is one, says against the scores of the masks
    beside it; or that it does not say it."""
    beside = folder if folder.is_dir() else folder.parent  # or it is one mask
    path = beside / "prediction.json"
    try:
        if not path.exists() and not path.is_symlink():
            return []
        about = read_json(path)
    except (ValueError, OSError) as error:
        return [f"{error}; {UNKNOWN}"]
    if not names_training_cases(about):
        return [f"{path}: not as predict.py writes it; {UNKNOWN}"]

    doubts = []
    seen = []
    for pair in pairs:
        if pair.id in about["trained_on"] or nifti_name(pair.mask) in about["trained_on"]:
            seen.append(pair.id)
    if seen:
        doubts.append(
            f"{folder}: its networks were trained on {len(seen)} of these cases ({some(seen)})"
        )

    strange = []
    if isinstance(about.get("scans"), dict):
        strange = [pair.mask.name for pair in pairs if pair.mask.name not in about["scans"]]
    if strange:
        doubts.append(
            f"{path}: says nothing of {len(strange)} of these masks ({some(strange)}); {UNKNOWN}"
        )

    unfinished = unfinished_networks(about)
    if unfinished:
        were = "was" if len(unfinished) == 1 else "were"
        doubts.append(
            f"{folder}: {len(unfinished)} of its networks {were} not trained to the end "
            f"({some(unfinished)})"
        )
    return doubts


def names_training_cases(about: object) -> bool:
    """Whether it lists, as predict.py does, the ids that the networks were trained on."""
    trained_on = about.get("trained_on") if isinstance(about, dict) else None
    return isinstance(trained_on, list) and all(isinstance(id, str) for id in trained_on)


def unfinished_networks(about: dict) -> list[str]:
    """ "residual fold 1: epoch 22 of 1000" for each network that says so."""
    networks = about.get("networks")
    if not isinstance(networks, list):
        return []

    unfinished = []
    for network in networks:
        if not isinstance(network, dict):
            continue
        epoch, epochs = network.get("epoch"), network.get("epochs")
        if isinstance(epoch, int) and isinstance(epochs, int) and epoch < epochs:
            unfinished.append(
                f"{network.get('arch')} fold {network.get('fold')}: epoch {epoch} of {epochs}"
            )
    return unfinished


# --- reports: the scores are printed already, so that what fails here is a warning ----------------


def report(
    title: str,
    scored: dict[str, Scored],
    reading: Reading,
    *,
    out: Path | None,
    below: float,
    wanted: Wanted,
) -> None:
    """Prints what is wanted besides Dice; if `out` is given, also what is wrong in the cases below a
    Dice, and writes it all there, the page and its pictures last."""
    dice = dice_of(scored)
    worst = worst_first(dice)
    mistakes = {id: one.mistakes for id, one in scored.items()}
    surfaces = [one.surfaces for one in scored.values() if one.surfaces]
    lesions = [one.lesions for one in scored.values() if one.lesions]

    if out:
        print(list_of_worst(worst, mistakes, below), flush=True)
    if surfaces:
        print(surface_tables(surfaces, wanted), flush=True)
    if lesions:
        print(lesion_table(lesions, wanted), flush=True)
    if not out:
        return

    write_if_possible(out / "cases.csv", cases_csv(dice))
    write_if_possible(out / "summary.json", summary_json(summarise(dice), wanted.protocol))
    if surfaces:
        write_if_possible(out / "surfaces.csv", surfaces_csv(surfaces, wanted))
        write_if_possible(out / "surfaces.json", surfaces_json(surfaces, wanted))
    if lesions:
        write_if_possible(out / "lesions.csv", lesions_csv(lesions))
    stale = stale_files(out, wanted)
    if stale:
        print(f"warning: {out} still holds {', '.join(stale)} of an earlier run")

    pictures = draw_pictures(out, worst, scored, reading)
    columns = further_columns(surfaces, lesions, wanted)
    page = page_of_cases(title, ScoredCases(worst, mistakes, pictures, below, columns))
    write_if_possible(out / "index.html", page)


def stale_files(out: Path, wanted: Wanted) -> list[str]:
    """The tables in `out` that this run does not write, and so did not write."""
    names = []
    if not wanted.surface:
        names += ["surfaces.csv", "surfaces.json"]
    if not wanted.lesions:
        names.append("lesions.csv")
    return [name for name in names if (out / name).exists()]


def write_if_possible(path: Path, text: str) -> None:
    """A file that cannot be written is a warning: the scores have been printed."""
    try:
        write_text(path, text)
    except (ValueError, OSError) as error:
        print(f"warning: {path}: not written ({error})")


def draw_pictures(
    out: Path, cases: list[CaseScores], scored: dict[str, Scored], reading: Reading
) -> dict[str, str]:
    """A picture for each case, in this order; returns {case: file in `out`} of those drawn."""
    drawings = {}
    for scores in cases:
        path = out / "overlays" / f"{scores.case}.png"
        drawings[scores.case] = partial(draw_picture, path, scored[scores.case], reading)
    drawn = draw_each(drawings)

    without_image = [case for case in drawn if scored[case].pair.image is None]
    if without_image:
        print(f"drawn without the scan, which is not beside the reference: {some(without_image)}")
    return {case: f"overlays/{case}.png" for case in drawn}


def draw_each(drawings: dict[str, Callable[[], None]]) -> list[str]:
    """Draws {name: how}, and returns the names of what was drawn; says which are left out, and of
    which matplotlib warned."""
    why = why_no_figures()
    if why:
        print(f"warning: no pictures: matplotlib cannot be imported ({why})")
        return []

    drawn, left_out, warned = [], [], []
    for name, draw in drawings.items():
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                draw()
        except Exception as error:  # of the image's file, of matplotlib, of the disk
            left_out.append(f"{name} ({first_line(error)})")
            continue
        drawn.append(name)
        if caught:
            warned.append(f"{name} ({first_line(caught[0].message)})")

    wanted = f"of {len(drawings)} pictures"
    if left_out:
        print(f"warning: {len(left_out)} {wanted} left out: {some(left_out)}")
    if warned:
        print(f"warning: {len(warned)} {wanted} may lack something: {some(warned)}")
    return drawn


def draw_picture(path: Path, one: Scored, reading: Reading) -> None:
    """Of one case: its mask and its reference."""
    mask = read_labels(one.pair.mask, **vars(reading))
    reference = read_labels(one.pair.reference, **vars(reading))
    image = read_image(one.pair, reference, reading)
    draw_overlay(path, one.dice, image, mask.voxels, reference.voxels)


def draw_difference(path: Path, pairs: dict[str, Pair], reading: Reading) -> None:
    """Of one case: its reference, and beside it the mask of each system, {name: pair}."""
    masks = {}
    for name, pair in pairs.items():
        masks[name] = read_labels(pair.mask, **vars(reading)).voxels

    some_pair = next(iter(pairs.values()))  # the reference and the image are those of all
    reference = read_labels(some_pair.reference, **vars(reading))
    image = read_image(some_pair, reference, reading)
    draw_apart(path, image, reference.voxels, masks)


def read_image(pair: Pair, reference: Volume, reading: Reading) -> Volume:
    """The image where there is one; else the reference, to be drawn in its place."""
    if not pair.image:
        return reference
    image = read_volume(pair.image, **vars(reading))
    check_same_grid(image, reference)
    return image


if __name__ == "__main__":
    main()
