"""Kidney, tumor and composite Dice of masks: python evaluate.py --pred masks/ --ref data/"""

import argparse
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path

from minikits.cases import Case, Found, excluded_ids, find_masks, look_for_cases, nifti_name
from minikits.evaluation import compare, score_case, some, summarise
from minikits.files import (
    forgiving_output,
    read_json,
    typed_path,
    typed_spacing,
    voxel_count,
    write_text,
)
from minikits.nifti import MAX_VOXELS, check_same_grid, read_labels, read_volume
from minikits.paper import PAPER
from minikits.reports import as_csv, as_json, comparison_table, draw_overlay, first_line, table
from minikits.sampling import fetch_ahead
from minikits.volumes import Volume

UNKNOWN = "whether the networks were trained on these cases is unknown"


@dataclass(frozen=True)
class Masks:
    """{case: mask}, and lines on what lies among the masks and is none."""

    files: dict[str, Path]
    left_out: list[str]


@dataclass(frozen=True)
class References:
    """{case: label file}, {case: image, if it has one}, and lines on what is left out."""

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


def main():
    forgiving_output()
    parser = argument_parser()
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once; files appear whole
    try:
        failed = evaluate_all(arguments)
    except (ValueError, OSError) as error:
        failed = [str(error)]
    lines = [f"evaluate.py: {line}\n" for line in dict.fromkeys(failed)]
    parser.exit(2 if failed else 0, "".join(lines))


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Score masks against references as the KiTS19 challenge does."
    )
    add = parser.add_argument
    add(
        "--pred",
        type=typed_path,
        nargs="+",
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
        help="folder for cases.csv, summary.json, comparison.json and pictures",
    )
    add("--allow-missing", action="store_true", help="score the cases that both have")
    add("--affine", choices=["sform", "qform"], help="which to take where they or pixdim differ")
    add(
        "--assume-spacing",
        type=typed_spacing,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="mm; axes as KiTS19's",
    )
    add(
        "--max-voxels",
        type=voxel_count,
        default=MAX_VOXELS,
        help="of a volume (default %(default)s)",
    )
    return parser


def evaluate_all(arguments: argparse.Namespace) -> list[str]:
    """Scores every folder of masks, then compares them; returns a line for all that failed."""
    folders = {folder.resolve().name: folder for folder in arguments.pred}
    if len(folders) < len(arguments.pred):
        raise ValueError(
            "--pred: several folders of one name; rename one, the reports bear their names"
        )
    reading = {
        "affine": arguments.affine,
        "assume_spacing": arguments.assume_spacing,
        "max_voxels": arguments.max_voxels,
    }

    systems, failed = {}, []
    for name, folder in folders.items():
        out = arguments.out
        if out and len(folders) > 1:
            out = out / name
        try:
            rows, lines = evaluate(folder, arguments.ref, out, arguments.allow_missing, **reading)
        except (ValueError, OSError) as error:
            rows, lines = [], [str(error)]
        failed += lines
        if rows:
            systems[name] = rows

    if len(systems) > 1:
        try:
            compare_systems(systems, arguments.out)
        except ValueError as error:
            failed.append(f"--pred: {error}")
    return failed


def compare_systems(systems: dict[str, list[dict]], out: Path | None) -> None:
    """Prints how {name: rows} compare, and writes it; ValueError where they share no case."""
    compared = compare(systems)
    count = len(compared["cases"])
    cases = "case" if count == 1 else "cases"
    print(f"\nThe {count} {cases} that all have, best first; p: sign flips, paired, Holm")
    print(comparison_table(compared), flush=True)
    if out:
        write_if_possible(out / "comparison.json", as_json(compared))


def evaluate(
    folder: Path, reference_folder: Path, out: Path | None, allow_missing: bool, **reading
) -> tuple[list[dict], list[str]]:
    """Scores one folder of masks, and prints the table; then writes it, and a picture per case,
    into `out` if given. Returns the rows, and a line for each mask or reference that cannot be
    used. reading: options of `read_volume`. ValueError or OSError where there is nothing to score,
    or where masks or references are missing and may not be."""
    references = find_references(reference_folder)
    masks = find_label_files(folder, references.labels)
    pairs, left_out = match(folder, masks, references, allow_missing)

    rows, damaged, failed = score(pairs, reading)
    left_out += [f"{id} (cannot be scored)" for id in damaged]
    found = Found([Case(row["case"]) for row in rows], left_out)
    print(f"{folder} against {reference_folder}, {found.summary()}")
    if rows:
        print(table(rows), flush=True)
    for doubt in doubts_about(folder, pairs):
        print(f"warning: {doubt}")

    if out and rows:
        write_if_possible(out / "cases.csv", as_csv(rows))
        write_if_possible(out / "summary.json", as_json(summarise(rows)))
        scored = [pair for pair in pairs if pair.id not in damaged]
        for line in draw_overlays(out / "overlays", scored, rows, reading):
            print(f"warning: {line}")
    return rows, failed


def find_references(folder: Path) -> References:
    """Those of a folder of cases; in a flat folder every file is a label file."""
    found = look_for_cases(folder)
    labels = {case.id: case.labels for case in found.cases if case.labels}
    if labels:
        images = {case.id: case.image for case in found.cases if case.image}
        unlabelled = [f"{case.id} (no labels)" for case in found.cases if not case.labels]
        return References(labels, images, found.left_out + unlabelled)
    files = {case.image for case in found.cases}
    labels = {id: path for id, path in find_masks(folder).items() if path in files}
    return References(labels, {}, found.left_out)


def find_label_files(folder: Path, ids) -> Masks:
    """Those of a flat folder of masks, of one mask, or the labels of a folder of cases. ids: those
    of the references."""
    if not folder.is_dir():
        return Masks(find_masks(folder, ids=ids), [])

    found = look_for_cases(folder)
    labels = {case.id: case.labels for case in found.cases if case.labels}
    if labels:
        return Masks(labels, found.left_out)

    masks = find_masks(folder, ids=ids)
    # a mask that cannot be opened is named when it is read; probabilities/ is predict.py's own
    named_elsewhere = (*(f"{path.name} (" for path in masks.values()), "probabilities/")
    left_out = [line for line in found.left_out if not line.startswith(named_elsewhere)]
    return Masks(masks, left_out)


def match(
    folder: Path, masks: Masks, references: References, allow_missing: bool
) -> tuple[list[Pair], list[str]]:
    """The Pairs of masks and references, and lines on what is left out: what is missing and may be
    (`--allow-missing`), and what the paper excludes. ValueError where anything else is missing, or
    nothing is left."""
    both = sorted(masks.files.keys() & references.labels.keys())
    without_reference = sorted(masks.files.keys() - references.labels.keys())
    without_mask = sorted(references.labels.keys() - masks.files.keys())
    excluded = sorted(excluded_ids(PAPER).intersection(without_mask))
    without_mask = [id for id in without_mask if id not in excluded]

    strays = list(dict.fromkeys(references.left_out + masks.left_out))  # one folder may be both
    if not both:
        raise ValueError(
            f"{folder}: no case has a mask and a reference: masks of {some(sorted(masks.files))}, "
            f"references of {some(sorted(references.labels))}{also(strays)}; wanted one name"
        )
    for kind, missing in (("reference", without_reference), ("mask", without_mask)):
        if missing and not allow_missing:
            have = "case has" if len(missing) == 1 else "cases have"
            raise ValueError(
                f"{folder}: {len(missing)} {have} no {kind} ({some(missing)}), wanted one for "
                f"each{also(strays)}; --allow-missing scores the cases that have both"
            )

    left_out = [f"{id} (no mask)" for id in without_mask]
    left_out += [f"{id} (no mask; among the paper's excluded cases)" for id in excluded]
    left_out += [f"{id} (no reference)" for id in without_reference]
    pairs = []
    for id in both:
        pairs.append(Pair(id, masks.files[id], references.labels[id], references.images.get(id)))
    return pairs, left_out + strays


def also(strays: list[str]) -> str:
    """What lies among masks and references and is none, to end a message with."""
    return f"; left out: {some(strays)}" if strays else ""


def score(pairs: list[Pair], reading: dict) -> tuple[list[dict], list[str], list[str]]:
    """Rows of scores; the ids of pairs that cannot be scored, and a line for each reason."""
    rows, damaged, failed = [], [], []
    ahead = fetch_ahead(lambda pair: read_pair(pair, reading), pairs)  # a thread reads the next one
    for pair, (volumes, errors) in zip(pairs, ahead):
        if errors:
            damaged.append(pair.id)
            failed += errors
        else:
            mask, reference = volumes
            rows.append(score_case(pair.id, mask.voxels, reference.voxels))
    return rows, damaged, failed


def read_pair(pair: Pair, reading: dict) -> tuple[list[Volume], list[str]]:
    """Mask and reference, and lines on what is wrong: none where both can be read and lie on one
    grid."""
    volumes, errors = [], []
    for path in (pair.mask, pair.reference):
        try:
            volumes.append(read_labels(path, **reading))
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

    trained_on = about.get("trained_on") if isinstance(about, dict) else None
    if not isinstance(trained_on, list) or not all(isinstance(id, str) for id in trained_on):
        return [f"{path}: not as predict.py writes it; {UNKNOWN}"]

    doubts = []
    seen = [pair.id for pair in pairs if {pair.id, nifti_name(pair.mask)}.intersection(trained_on)]
    if seen:
        doubts.append(
            f"{folder}: its networks were trained on {len(seen)} of these cases ({some(seen)})"
        )
    scans = about.get("scans")
    if isinstance(scans, dict):
        strange = [pair.mask.name for pair in pairs if pair.mask.name not in scans]
        if strange:
            doubts.append(
                f"{path}: says nothing of {len(strange)} of these masks "
                f"({some(strange)}); {UNKNOWN}"
            )
    unfinished = unfinished_networks(about)
    if unfinished:
        were = "was" if len(unfinished) == 1 else "were"
        doubts.append(
            f"{folder}: {len(unfinished)} of its networks {were} not trained to the end "
            f"({some(unfinished)})"
        )
    return doubts


def unfinished_networks(about: dict) -> list[str]:
    """ "residual fold 1: epoch 22 of 1000" for each network of prediction.json that says so."""
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


def write_if_possible(path: Path, text: str) -> None:
    """The scores are printed already: what cannot be written is a warning."""
    try:
        write_text(path, text)
    except (ValueError, OSError) as error:
        print(f"warning: {path}: not written ({error})")


def draw_overlays(folder: Path, pairs: list[Pair], rows: list[dict], reading: dict) -> list[str]:
    """A picture for each pair; lines on those left out, and on those that matplotlib warned of.
    Whatever goes wrong, the scores stand."""
    try:
        import matplotlib.figure  # noqa: F401 (a broken installation may raise anything)
    except Exception as error:
        return [f"no pictures: matplotlib cannot be imported ({first_line(error)})"]

    left_out, warned = [], []
    for pair, row in zip(pairs, rows):
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                (mask, reference), _ = read_pair(pair, reading)
                image = reference
                if pair.image:
                    image = read_volume(pair.image, **reading)
                    check_same_grid(image, reference)
                draw_overlay(folder / f"{pair.id}.png", row, image, mask.voxels, reference.voxels)
        except Exception as error:  # of the image's file, of matplotlib, of the disk
            left_out.append(f"{pair.id} ({first_line(error)})")
        else:
            warned += [f"{pair.id} ({first_line(each.message)})" for each in caught[:1]]

    lines = []
    if left_out:
        lines.append(f"{len(left_out)} of {len(pairs)} pictures left out: {some(left_out)}")
    if warned:
        lines.append(f"{len(warned)} of {len(pairs)} pictures may lack something: {some(warned)}")
    return lines


if __name__ == "__main__":
    main()
