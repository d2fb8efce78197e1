"""A folder of cases: which there are, which fold, prepared once and kept on disk.

Two layouts: KiTS19's (`case_00000/imaging.nii.gz`, `segmentation.nii.gz`) and a flat pair of
folders (`images/NAME.nii.gz`, `labels/NAME.nii.gz`; a trailing `_0000` of an image's name is the
channel that nnU-Net writes, and dropped). Hidden files and folders belong to neither. All else that
looks like a case is named, with why it is left out."""

import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minikits.cache import identity, load_entry, read_description, save_entry
from minikits.doubts import doubts
from minikits.files import read_json, remove_leftovers
from minikits.frames import check_same_grid
from minikits.nifti import read_labels, read_volume
from minikits.paper import CLASSES, FOLD_SEED, FOLDS
from minikits.preprocessing import prepare_image, prepare_labels, resampled_shape
from minikits.recipe import Recipe
from minikits.sampling import PreparedCase
from minikits.volumes import Volume

KITS19 = {"imaging": "image", "segmentation": "labels"}  # the files of a case's folder
FOLDERS = {"images": "image", "labels": "labels"}  # of the other layout
OTHER_FORMATS = (".hdr", ".img", ".mgz", ".mha", ".mhd", ".nrrd")  # of volumes too
NAMED_AT_MOST = 20  # of what is left out, in one line
LEVELS_DOWN = 3  # how far down a folder without cases is searched for NIfTI files
CACHE_FORMAT = 2  # raised when what is written to the cache changes
KEPT = ("image", "labels", *CLASSES[1:])  # the arrays of an entry of the cache
MOST_RESAMPLED_VOXELS = 500_000_000  # a body of 2 m x 0.5 m x 0.5 m at 1 mm: 1.5 GB as it is kept


@dataclass(frozen=True)
class Case:
    """One case's files; either may be absent (None)."""

    id: str
    image: Path | None = None
    labels: Path | None = None


@dataclass(frozen=True)
class Found:
    """Cases, sorted by id, and a line "NAME (why)" for whatever looks like one and is left out."""

    cases: list[Case]
    left_out: list[str]

    def summary(self) -> str:
        """ "5 cases found, 2 left out: NAME (why), NAME (why)"; of many, the first are named."""
        cases = "case" if len(self.cases) == 1 else "cases"
        found = f"{len(self.cases)} {cases} found"
        if not self.left_out:
            return found
        return f"{found}, {len(self.left_out)} left out: {_some(self.left_out)}"


class _File(NamedTuple):
    """A file of a case: its id, "image" or "labels", and where it lies."""

    id: str
    kind: str
    path: Path


# --- names ----------------------------------------------------------------------------------------


def nifti_name(path: Path) -> str | None:
    """A file's name without folder and `.nii` or `.nii.gz` (capitals too). None for a hidden file,
    and for one that is not named as NIfTI files are."""
    named = re.fullmatch(r"([^.].*?)\.nii(\.gz)?", path.name, re.IGNORECASE | re.DOTALL)
    if named is None:
        return None
    return named[1]


def _without_channel(name):
    """An image's name without the `_0000` by which nnU-Net says that it is the first channel."""
    return name.removesuffix("_0000") or name


def kits19_kind(path: Path) -> str | None:
    """Of a file that is named as those of a KiTS19 case are "image" or "labels", else None."""
    name = nifti_name(path)
    if name is None:
        return None
    return KITS19.get(_without_channel(name).lower())


def _id_of_labels(name, known):
    """The case of a label file or mask of that name. What ends in `_0000` may be a case's own name,
    and is, where that is among the `known` ids; else it was copied from the image's name."""
    if name in known:
        return name
    return _without_channel(name)


# --- which cases there are ------------------------------------------------------------------------


def find_cases(source: str | Path) -> list[Case]:
    """The cases of `look_for_cases`, without what was left out."""
    return look_for_cases(source).cases


def look_for_cases(source: str | Path) -> Found:
    """The cases of a NIfTI file, a flat folder of them (all images), or a folder of either layout.
    FileNotFoundError where there is no `source`. ValueError where it has no case, two files for the
    same case, or files beside folders of cases, since some of them are there by mistake."""
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(
            f"{source}: no such file or folder; wanted a scan, scans, or a KiTS19 folder"
        )
    if source.is_dir():
        flat, inside, left_out = _look_into(source)
    else:
        flat, inside, left_out = _flat_files([source]), [], []

    _check_one_layout(source, flat, inside)
    by_id = _by_id(flat + inside)
    if not by_id:
        seen = ", ".join(path.name for path in _visible(source)[:5]) or "nothing"
        raise ValueError(
            f"{source}: no scans or cases found, wanted *.nii.gz, "
            "case_00000/imaging.nii.gz and segmentation.nii.gz, or images/ and "
            f"labels/; found {seen}{_also(left_out)}"
        )
    cases = [Case(id, **paths) for id, paths in sorted(by_id.items())]
    _check_masks_differ(source, cases)
    return Found(cases, left_out)


def _check_one_layout(source, flat, inside):
    """Refuses files beside folders of cases."""
    if flat and inside:
        strays = ", ".join(file.path.name for file in flat[:5])
        folders = sorted({file.path.parent.name for file in inside})
        raise ValueError(
            f"{source}: {strays} beside folders of cases ({', '.join(folders[:3])}), wanted one "
            "layout; move one of both away"
        )


def _visible(folder):
    """The paths in a folder, sorted, less hidden ones; a file is its own."""
    if not folder.is_dir():
        return [folder]
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _look_into(source):
    """(flat, inside, left_out) of a folder: the files of cases in it and those in its folders, and
    lines on what is left out."""
    flat, inside, left_out, empty = [], [], [], []
    for path in _visible(source):
        seen = _what_is(path)
        if seen == "folder":
            files, others = _look_into_folder(path)
            inside += files
            left_out += others
            if not files and not others:
                empty.append(f"{path.name} (neither imaging.nii.gz nor segmentation.nii.gz in it)")
        elif seen == "file" and nifti_name(path):
            flat.append(path)
        else:
            left_out += _why_not(path, seen, path.name)

    if inside:  # beside cases, any folder may be meant as one
        left_out += empty
    return _flat_files(flat), _with_labels_named_as_images(inside), left_out


def _with_labels_named_as_images(files):
    """The files, those in labels/ with the ids that the images have."""
    known = {file.id for file in files if file.kind == "image"}
    named = []
    for file in files:
        if FOLDERS.get(file.path.parent.name.lower()) == "labels":
            file = file._replace(id=_id_of_labels(nifti_name(file.path), known))
        named.append(file)
    return named


def _flat_files(paths):
    """The files of cases among NIfTI files in one folder. Those of a KiTS19 case bear its name."""
    files = []
    for path in paths:
        name, kind = nifti_name(path), kits19_kind(path)
        folder = Path(os.path.abspath(path)).parent.name
        if kind and folder:
            files.append(_File(folder, kind, path))
        elif name:
            files.append(_File(_without_channel(name), "image", path))
    return files


def _look_into_folder(folder):
    """Of images/, labels/ or a case's folder: the files of cases, and lines on what is left out."""
    try:
        paths = _visible(folder)
    except OSError as error:
        return [], [f"{folder.name} (cannot be listed: {error.strerror})"]

    kind_of_all = FOLDERS.get(folder.name.lower())
    files, others, folders = [], [], []
    for path in paths:
        name, seen = nifti_name(path), _what_is(path)
        kind = kits19_kind(path)
        shown = f"{folder.name}/{path.name}"
        if seen == "file" and name and kind_of_all:
            files.append(_File(_without_channel(name), kind_of_all, path))
        elif seen == "file" and kind:
            files.append(_File(folder.name, kind, path))
        elif seen == "file" and name:
            others.append(f"{shown} (neither imaging nor segmentation, nor in images/ or labels/)")
        elif seen == "folder" and not name:
            folders.append(path)
        else:
            others += _why_not(path, seen, shown)

    if kind_of_all or not files:  # what lies deeper in a case's folder is no case
        for path in folders:
            others += _why_not_below(path, f"{folder.name}/{path.name}")
    if nifti_name(folder) and not files:
        others = _why_not(folder, "folder", folder.name)
    if len(others) > 1 and not kind_of_all:  # of one case, one line
        others = [f"{others[0]} and {len(others) - 1} more in {folder.name}"]
    return files, others


def _what_is(path):
    """ "file", "folder", or why it is neither."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "file"
    return "neither a file nor a folder"


def _why_not(path, seen, shown):
    """A line on a path that is no NIfTI file but may be meant as one; none for any other. It may be
    where its name says so, or where it cannot be seen what it is."""
    name = path.name.lower()
    is_seen = seen in ("file", "folder", "neither a file nor a folder")
    if is_seen and ".nii" not in name and not name.endswith(OTHER_FORMATS):
        return []

    why = seen
    if seen == "file":
        why = "not *.nii or *.nii.gz"
    elif seen == "folder":
        why = "a folder, wanted a file"
    return [f"{shown} ({why})"]


def _why_not_below(folder, shown):
    """A line on a folder that holds a NIfTI file, or has a folder that does; none otherwise."""
    for place, folders, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        if depth + 1 < LEVELS_DOWN:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
        else:
            folders.clear()
        scans = sorted(name for name in names if nifti_name(Path(name)))
        if scans:
            first = Path(place, scans[0]).relative_to(folder)
            return [f"{shown} (too deep, with {first} in it)"]
    return []


def _by_id(files):
    """{id: {kind: path}}; refuses two files of one kind for one case."""
    by_id = {}
    for id, kind, path in files:
        paths = by_id.setdefault(id, {})
        if kind in paths:
            raise ValueError(
                f"{path}: {paths[kind].name} has the same name {id}; rename or remove one of them"
            )
        paths[kind] = path
    return by_id


def _check_masks_differ(source, cases):
    """Refuses cases whose masks would have the same name, `case_00001` and `prediction_00001`."""
    owners = {}
    for case in cases:
        name = mask_name(case)
        if name in owners:
            raise ValueError(
                f"{source}: the masks of {owners[name]} and {case.id} would both be "
                f"named {name}; rename one of them"
            )
        owners[name] = case.id


def _also(left_out):
    """What was left out, to end the message of a refusal with."""
    if not left_out:
        return ""
    return f"; left out: {_some(left_out)}"


def _some(names):
    """Names in a line: all of a few, of many the first and how many more."""
    shown = ", ".join(names[:NAMED_AT_MOST])
    others = len(names) - NAMED_AT_MOST
    if others > 0:
        shown += f" and {others} more"
    return shown


# --- masks ----------------------------------------------------------------------------------------


def mask_name(case: Case) -> str:
    """The stem of a case's mask: `prediction_00210` for the KiTS19 folder `case_00210`, as the
    challenge wants it; for any other case its id."""
    path = case.image or case.labels
    number = re.fullmatch(r"case_([0-9]{5})", case.id)
    if number and path and kits19_kind(path):
        return f"prediction_{number[1]}"
    return case.id


def find_masks(folder: str | Path, *, ids: Collection[str] = ()) -> dict[str, Path]:
    """{case id: mask file} of a flat folder of masks, or of one file. `prediction_00210` stands for
    `case_00210`, and `a_0000` for `a`, unless it is itself among `ids`, those of the references.
    FileNotFoundError where there is no such folder, ValueError where it has no mask, or two for a
    case."""
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such file or folder; wanted a folder of masks")

    masks = {}
    for path in _visible(folder):
        name = nifti_name(path)
        if name is None:
            continue
        id = _id_of_labels(name, ids)
        number = re.fullmatch(r"prediction_([0-9]{5})", id)
        if number and id not in ids:
            id = f"case_{number[1]}"
        if id in masks:
            raise ValueError(f"{path}: {masks[id].name} is a mask of {id} too; remove one of them")
        masks[id] = path
    if not masks:
        raise ValueError(f"{folder}: no masks found, wanted NAME.nii.gz or prediction_00000.nii.gz")
    return masks


# --- training: which cases, which fold ------------------------------------------------------------


def excluded_ids(recipe: Recipe) -> set[str]:
    """The ids, as KiTS19 has them, of the cases that the recipe leaves out."""
    return {f"case_{number:05d}" for number in recipe.excluded_cases}


def training_cases(folder: str | Path, recipe: Recipe) -> list[Case]:
    """The cases of `look_for_training_cases`, without what was left out."""
    return look_for_training_cases(folder, recipe).cases


def look_for_training_cases(folder: str | Path, recipe: Recipe) -> Found:
    """The labelled cases of a folder less those the recipe leaves out. ValueError where labels have
    no image, since without such a case the folds are others, and where nothing is labelled."""
    found = look_for_cases(folder)
    excluded = excluded_ids(recipe)
    cases, by_number, unlabelled, missing = [], [], [], []
    for case in found.cases:
        if case.id in excluded:
            by_number.append(f"{case.id} (one of the recipe's excluded_cases)")
        elif not case.labels:
            unlabelled.append(f"{case.id} (no labels)")
        elif not case.image:
            missing.append(case.id)
        else:
            cases.append(case)

    left_out = found.left_out + by_number + unlabelled
    if missing:
        have = "case has" if len(missing) == 1 else "cases have"
        raise ValueError(
            f"{folder}: {len(missing)} labelled {have} no image "
            f"({', '.join(missing[:5])}); get what is missing{_also(found.left_out)}"
        )
    if not cases:
        raise ValueError(
            f"{folder}: no labelled cases found, wanted case_00000/segmentation.nii.gz"
            f"{_also(left_out)}"
        )
    return Found(cases, left_out)


def find_fold(
    folder: str | Path,
    recipe: Recipe,
    fold: str,
    *,
    folds_file: Path | None = None,
    say: Callable[[str], object] | None = None,
) -> tuple[list[str], list[str]]:
    """(train, validation) ids of a fold of the labelled cases in a folder.

    fold: a number as text, or "all", which holds nothing out. folds_file: a split to take in place
    of `five_folds`. say: is told what was found and left out. ValueError for a fold that is none.
    """
    if fold == "all" and folds_file:
        raise ValueError(
            f"--fold all trains on every case, --folds {folds_file} on some; give one of them"
        )

    say = say or _in_silence
    found = look_for_training_cases(folder, recipe)
    say(found.summary())
    ids = [case.id for case in found.cases]
    if fold == "all":
        return ids, []

    if folds_file:
        folds, excluded = read_folds(folds_file, ids, recipe)
        if excluded:
            say(f"{folds_file}: {', '.join(excluded)} left out: excluded_cases of the recipe")
    else:
        folds = five_folds(ids)

    names = [str(number) for number in range(len(folds))]
    if fold not in names:
        raise ValueError(f"--fold {fold}: no such fold, wanted 0 to {len(folds) - 1}, or all")
    return folds[int(fold)]


def five_folds(case_ids: Collection[str]) -> list[tuple[list[str], list[str]]]:
    """Five (train, validation) pairs of sorted id lists; every id is in one validation list.

    The sorted ids are shuffled and cut into consecutive blocks, the longer ones first:
    scikit-learn's KFold(5, shuffle=True, random_state=12345), as nnU-Net v1 calls it."""
    ids = sorted(case_ids)
    if len(ids) < FOLDS:
        found = "case found" if len(ids) == 1 else "cases found"
        raise ValueError(
            f"{len(ids)} {found}, wanted at least {FOLDS} for {FOLDS} folds; use --fold all"
        )
    shuffled = np.random.RandomState(FOLD_SEED).permutation(ids)
    folds = []
    for block in np.array_split(shuffled, FOLDS):
        validation = sorted(block.tolist())
        train = sorted(set(ids) - set(validation))
        folds.append((train, validation))
    return folds


def read_folds(
    path: Path, known: Collection[str], recipe: Recipe
) -> tuple[list[tuple[list[str], list[str]]], list[str]]:
    """(folds, excluded) of a JSON list of objects, as nnU-Net's splits_final.json is one too.

    folds: (train, validation) pairs of sorted ids. excluded: ids in the file that the recipe leaves
    out; they are taken out of the folds. known: ids of the cases that are there; a ValueError names
    others, and what is in both halves of a fold."""
    left_out = excluded_ids(recipe)
    folds, excluded = [], set()
    for train, validation in _written_folds(path):
        excluded |= (train | validation) & left_out
        train, validation = train - left_out, validation - left_out

        unknown = (train | validation) - set(known)
        twice = train & validation
        if unknown or twice:
            shown = sorted(map(str, unknown or twice))[:5]
            raise ValueError(f"{path}: {shown} in a fold, wanted cases, once")
        if not train:
            raise ValueError(f"{path}: nothing to train on in a fold, wanted cases, once")
        folds.append((sorted(train), sorted(validation)))
    return folds, sorted(excluded)


def _written_folds(path):
    """[({train ids}, {validation ids})] as the file has them; nnU-Net calls the second "val"."""
    folds = []
    try:
        for fold in read_json(path):
            validation = fold.get("validation", fold.get("val"))
            folds.append((set(fold["train"]), set(validation)))
    except (TypeError, KeyError, AttributeError):
        raise ValueError(
            f'{path}: wanted a JSON list of {{"train": [ids], "validation": [ids]}}'
        ) from None
    return folds


# --- prepared once --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Made:
    """What is kept of a case, {name: array}, the PreparedCase's checksum, and lines on doubts."""

    arrays: dict
    checksum: str
    warnings: list


@dataclass(frozen=True, eq=False)
class _Entry:
    """A case in the cache: its folder, and what its contents follow from. numbers: those of the
    preparation; reading: the options of `read_volume`; files: `identity` of image and labels."""

    case: Case
    place: Path
    numbers: dict
    reading: dict
    files: list


def prepare(
    folder: str | Path,
    cache: str | Path,
    recipe: Recipe,
    *,
    affine: str | None = None,
    assume_spacing: Sequence[float] | None = None,
    stop: Callable[[], bool] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[PreparedCase] | None:
    """The PreparedCases of a folder's training cases, sorted by id, memory-mapped, no file open.

    What is not in `cache` yet is put there; again when a case's files (size, time of change, last
    bytes) or the numbers of its preparation change, and where what is kept is damaged. affine,
    assume_spacing: for files that `read_volume` would refuse. stop: says whether to stop; asked
    before each case, and the result is None then. say: is given a line for each case that is
    prepared, and warnings. ValueError, once all were tried, for the cases that cannot be used, a
    line each."""
    say = say or _in_silence
    cache = Path(cache)
    remove_leftovers(cache)
    reading = {"affine": affine, "assume_spacing": assume_spacing}

    cases = training_cases(folder, recipe)
    prepared, refused = {}, []
    for case in cases:
        if stop and stop():
            return None
        try:
            entry = _entry(case, cache, recipe, reading)
        except OSError as error:
            refused.append(str(error))
            continue
        prepared[entry] = _load_kept(entry, say)

    waiting = [entry for entry in prepared if prepared[entry] is None]
    started = time.monotonic()
    for number, entry in enumerate(waiting, 1):
        if stop and stop():
            return None
        try:
            made = _make(entry, recipe)
        except (ValueError, OSError) as error:
            refused.append(str(error))
            continue
        _keep(entry, made)
        prepared[entry] = _load(entry)
        for warning in made.warnings:
            say(f"warning: {warning}")
        shape = "x".join(map(str, made.arrays["image"].shape))
        left = (time.monotonic() - started) / number * (len(waiting) - number)
        say(f"prepared {entry.case.id} {shape} ({number} of {len(waiting)}, {left:.0f} s left)")

    if refused:
        lines = "".join(f"\n  {reason}" for reason in refused)
        raise ValueError(f"{folder}: {len(refused)} of {len(cases)} cases cannot be used:{lines}")
    unused = _unused(cache, list(prepared))
    if unused:
        say(_may_be_removed(cache, unused))
    return list(prepared.values())


def _in_silence(line):
    """What is told of the progress where nobody listens."""


def _entry(case, cache, recipe, reading):
    """Where a case is kept: under its id and a sum of what it is made of. Numbers are floats, so
    that 101 is 101.0; paths are no part of it, so that data that were moved are found again."""
    numbers = {
        "spacing_mm": recipe.spacing_mm,
        "window_hu": recipe.window_hu,
        "mean_hu": recipe.mean_hu,
        "sd_hu": recipe.sd_hu,
    }
    if reading["assume_spacing"]:
        numbers["assume_spacing"] = reading["assume_spacing"]
    numbers = {name: np.array(value, dtype=float).tolist() for name, value in numbers.items()}
    files = [identity(case.image), identity(case.labels)]

    made_of = json.dumps([CACHE_FORMAT, case.id, files, numbers, reading["affine"]])
    key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    return _Entry(case, cache / f"{case.id[:40]}-{key}", numbers, reading, files)


def check_resampled_size(
    volume: Volume, recipe: Recipe, *, most: int = MOST_RESAMPLED_VOXELS
) -> None:
    """Refuses, before any memory is taken, a volume that would have more than `most` voxels at the
    recipe's spacing: the file may be small, and its header say that its voxels are huge."""
    shape = resampled_shape(volume.voxels.shape, volume.spacing_mm, recipe)
    if math.prod(shape) > most:
        spacing = " x ".join(f"{mm:.4g}" for mm in volume.spacing_mm)
        raise ValueError(
            f"{volume.path}: shape {volume.voxels.shape} of {spacing} mm would have shape {shape} "
            f"at the recipe's spacing, more than {most:,} voxels; is its header right? else give "
            "--assume-spacing Z Y X (mm)"
        )


def _make(entry, recipe):
    """What is kept of a case. ValueError or OSError, naming a file, where it cannot be used."""
    try:
        scan, reference = _read_pair(entry, recipe)
        warnings = doubts(scan)
        checksum = _checksum_of(scan, reference, entry.numbers)
    except MemoryError as error:
        raise _out_of_memory(entry, "read", error) from None
    try:
        arrays = _arrays_of(scan, reference, recipe)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):  # torch says it so
            raise
        raise _out_of_memory(entry, "resampled", error) from None
    return _Made(arrays, checksum, warnings)


def _read_pair(entry, recipe):
    """(image, labels) of a case as Volumes of one grid."""
    scan = read_volume(entry.case.image, **entry.reading)
    check_resampled_size(scan, recipe)
    reference = read_labels(entry.case.labels, **entry.reading)
    check_same_grid(scan, reference)
    return scan, reference


def _arrays_of(scan, reference, recipe):
    """{name: array}: image and labels as the networks take them, and the places of each structure,
    flat indices."""
    image = np.ascontiguousarray(prepare_image(scan, recipe), dtype=np.float16)
    labels = np.ascontiguousarray(prepare_labels(reference, recipe))
    arrays = {"image": image, "labels": labels}
    for value, structure in enumerate(CLASSES[1:], 1):
        arrays[structure] = np.flatnonzero(labels == value).astype(np.int32)
    return arrays


def _out_of_memory(entry, doing, error):
    return ValueError(f"{entry.case.image}: memory ran out while it was {doing} ({error})")


def _checksum_of(scan, reference, numbers):
    """16 digits: the voxels of image and labels, each with their spacing and the numbers of the
    preparation. What was computed of them is no part of it: that differs between processors."""
    digits = ""
    for volume in (scan, reference):
        spacing = [f"{mm:.6g}" for mm in volume.spacing_mm]
        total = zlib.crc32(json.dumps([spacing, numbers]).encode())
        for plane in volume.voxels:
            total = zlib.crc32(np.ascontiguousarray(plane), total)
        digits += f"{total:08x}"
    return digits


def _keep(entry, made):
    """Writes an entry to the cache."""
    about = {
        "format": CACHE_FORMAT,
        "id": entry.case.id,
        "sources": _sources(entry),
        "files": entry.files,
        "numbers": entry.numbers,
        "affine": entry.reading["affine"],
    }
    save_entry(entry.place, made.arrays, about, made.checksum)


def _sources(entry):
    return [str(path.resolve()) for path in (entry.case.image, entry.case.labels)]


def _load_kept(entry, say):
    """The PreparedCase of an entry, or None where there is none yet. One that is damaged is
    removed, with a word."""
    if not entry.place.exists():
        return None
    try:
        return _load(entry)
    except (ValueError, OSError) as error:
        say(f"warning: {error}; {entry.case.id} is prepared again")

    shutil.rmtree(entry.place, ignore_errors=True)
    if entry.place.exists():
        raise OSError(f"{entry.place}: is damaged and cannot be removed; remove it")
    return None


def _load(entry):
    """The PreparedCase of an entry; ValueError or OSError where that is not as it was written."""
    arrays, checksum = load_entry(entry.place, KEPT)
    foreground = tuple(arrays[structure].numpy().copy() for structure in CLASSES[1:])  # small
    return PreparedCase(entry.case.id, arrays["image"], arrays["labels"], foreground, checksum)


def _unused(cache, entries):
    """The entries of the cache that another version wrote, or whose files have been replaced."""
    places = {entry.place for entry in entries}
    files = {tuple(_sources(entry)): entry.files for entry in entries}
    unused = []
    for place in _visible(cache):
        if place in places or not (place / "image.npy").exists():
            continue
        try:
            about = read_description(place)
        except ValueError:  # the first version wrote no description
            unused.append(place)
            continue
        named = about.get("sources")
        sources = tuple(map(str, named)) if isinstance(named, list) else ()
        replaced = sources in files and files[sources] != about.get("files")
        if replaced or about.get("format") != CACHE_FORMAT:
            unused.append(place)
    return unused


def _may_be_removed(cache, unused):
    """A line on unused entries. They stay: a training elsewhere may still read them."""
    size = sum(path.stat().st_size for place in unused for path in place.iterdir())
    names = _some([place.name for place in unused])
    folders, are = ("folder", "is") if len(unused) == 1 else ("folders", "are")
    return (
        f"{cache}: {len(unused)} {folders} ({size / 1e9:.1f} GB) {are} of files that were "
        f"replaced, or of another version of minikits, and may be removed: {names}"
    )
