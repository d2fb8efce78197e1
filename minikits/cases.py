"""A folder of cases: which there are, which are trained on, which fold; all of them prepared."""

import math
import re
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from minikits.files import holds_dicom, remove_leftovers
from minikits.folds import excluded_ids, five_folds, read_folds
from minikits.layouts import (
    CaseFile,
    Seen,
    check_description,
    id_of_labels,
    kits19_kind,
    look_into,
    nifti_name,
    some,
    visible,
)
from minikits.prepared import Entry, entry_of, line_on_unused, load, load_kept, make_and_keep
from minikits.processes import free_memory, map_of_processes
from minikits.recipe import Recipe
from minikits.sampling import PreparedCase

# of scans, as they are stored, for each process: some ten seconds of work, where a start takes two
BYTES_THAT_PAY = 200_000_000
BYTES_OF_A_PROCESS = 3 << 30  # of memory; 1059 slices of 512x512 took 1.3 GiB
MOST_BY_GUESS = 2  # where the system does not tell how much is free
DICOM = "DICOM is converted first, with dcm2niix: docs/using.md#what-comes-and-goes"


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
        return f"{found}, {len(self.left_out)} left out: {some(self.left_out)}"


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

    seen = look_into(source)
    _check_one_layout(source, seen)
    paths_by_id = _paths_by_id(seen.flat + seen.inside)
    if not paths_by_id:
        paths = visible(source)
        names = ", ".join(path.name for path in paths[:5]) or "nothing"
        if holds_dicom(source):
            names += f"; {DICOM}"
        raise ValueError(
            f"{source}: no scans or cases found, wanted *.nii.gz, "
            "case_00000/imaging.nii.gz and segmentation.nii.gz, or images/ and "
            f"labels/; found {names}{_also(seen.left_out)}"
        )

    cases = [Case(id, **paths) for id, paths in sorted(paths_by_id.items())]
    _check_masks_differ(source, cases)
    return Found(cases, seen.left_out)


def _check_one_layout(source: Path, seen: Seen) -> None:
    """Refuses files beside folders of cases."""
    if seen.flat and seen.inside:
        strays = ", ".join(file.path.name for file in seen.flat[:5])
        folders = sorted({file.path.parent.name for file in seen.inside})
        raise ValueError(
            f"{source}: {strays} beside folders of cases ({', '.join(folders[:3])}), wanted one "
            "layout; move one of both away"
        )


def _paths_by_id(files: list[CaseFile]) -> dict[str, dict[str, Path]]:
    """{id: {"image" or "labels": path}}; refuses two files of one kind for one case."""
    paths_by_id = {}
    for file in files:
        paths = paths_by_id.setdefault(file.id, {})
        if file.kind in paths:
            other = paths[file.kind].name
            raise ValueError(
                f"{file.path}: {other} has the same name {file.id}; rename or remove one of them"
            )
        paths[file.kind] = file.path
    return paths_by_id


def _check_masks_differ(source: Path, cases: list[Case]) -> None:
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


def _also(left_out: list[str]) -> str:
    """What was left out, to end the message of a refusal with."""
    if not left_out:
        return ""
    return f"; left out: {some(left_out)}"


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
    for path in visible(folder):
        name = nifti_name(path)
        if name is None:
            continue
        id = id_of_labels(name, ids)
        number = re.fullmatch(r"prediction_([0-9]{5})", id)
        if number and id not in ids:
            id = f"case_{number[1]}"
        if id in masks:
            raise ValueError(f"{path}: {masks[id].name} is a mask of {id} too; remove one of them")
        masks[id] = path
    if not masks:
        raise ValueError(f"{folder}: no masks found, wanted NAME.nii.gz or prediction_00000.nii.gz")
    return masks


# --- which of them train, and which fold ----------------------------------------------------------


def training_cases(folder: str | Path, recipe: Recipe) -> list[Case]:
    """The cases of `look_for_training_cases`, without what was left out."""
    return look_for_training_cases(folder, recipe).cases


def look_for_training_cases(folder: str | Path, recipe: Recipe) -> Found:
    """The labelled cases of a folder less those the recipe leaves out. ValueError where labels have
    no image, since without such a case the folds are others, where nothing is labelled, and where
    nnU-Net's dataset.json says that labels are others than here."""
    found = look_for_cases(folder)
    check_description(Path(folder))
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


# --- prepared once --------------------------------------------------------------------------------


def prepare(
    folder: str | Path,
    cache: str | Path,
    recipe: Recipe,
    *,
    affine: str | None = None,
    assume_spacing: Sequence[float] | None = None,
    jobs: int = 1,
    stop: Callable[[], bool] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[PreparedCase] | None:
    """The PreparedCases of a folder's training cases, sorted by id, memory-mapped, no file open.

    What is not in `cache` yet is put there; again when a case's files (size, time of change, last
    bytes) or the numbers of its preparation change, and where what is kept is damaged. affine,
    assume_spacing: for files that `read_volume` would refuse. jobs: in how many processes at most;
    more than one need a script that begins with `if __name__ == "__main__"`. stop: says whether to
    stop; asked before each case, and the result is None then. say: is given a line for each case
    that is prepared, and warnings. ValueError, once all were tried, for the cases that cannot be
    used, a line each; at once where a process was killed."""
    say = say or _in_silence
    stop = stop or _never
    cache = Path(cache)
    remove_leftovers(cache)
    reading = {"affine": affine, "assume_spacing": assume_spacing}

    cases = training_cases(folder, recipe)
    entries, refused = _entries_of(cases, cache, recipe, reading)

    prepared, waiting = {}, []
    for entry in entries:
        if stop():
            return None
        kept = load_kept(entry, say)
        if kept is None:
            waiting.append(entry)
        else:
            prepared[entry.id] = kept

    done = _prepare_waiting(waiting, recipe, jobs, stop, say)
    if done is None:
        return None
    made, refused_now = done
    prepared.update(made)
    refused.extend(refused_now)

    if refused:
        lines = "".join(f"\n  {reason}" for reason in refused)
        raise ValueError(f"{folder}: {len(refused)} of {len(cases)} cases cannot be used:{lines}")
    unused = line_on_unused(cache, entries)
    if unused:
        say(unused)
    return [prepared[entry.id] for entry in entries]


def _prepare_waiting(
    waiting: list[Entry],
    recipe: Recipe,
    jobs: int,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> tuple[dict[str, PreparedCase], list[str]] | None:
    """Prepares cases, in order: ({id: case}, a line for each that is refused), or None where it was
    told to stop. ValueError where a process was killed."""
    prepared, refused = {}, []
    started = time.monotonic()
    with closing(_outcomes(waiting, recipe, jobs)) as outcomes:
        for number, entry in enumerate(waiting, 1):
            if stop():
                return None
            try:
                outcome = next(outcomes)
            except BrokenExecutor:
                if stop():  # the signal reached these processes too
                    return None
                raise ValueError(
                    "a process that prepared cases was killed, for want of memory? --jobs 1 takes "
                    "the least, and what is prepared stays"
                ) from None
            if outcome.refused:
                refused.append(outcome.refused)
                continue
            prepared[entry.id] = load(entry)

            seconds_each = (time.monotonic() - started) / number
            left = seconds_each * (len(waiting) - number)
            for warning in outcome.warnings:
                say(f"warning: {warning}")
            shape = "x".join(map(str, outcome.shape))
            say(f"prepared {entry.id} {shape} ({number} of {len(waiting)}, {left:.0f} s left)")
    return prepared, refused


def _outcomes(waiting, recipe, jobs):
    """The Outcome of each entry, in order, as they come."""
    jobs = min(jobs, processes_that_pay(waiting))
    with map_of_processes(jobs) as mapped:
        yield from mapped(make_and_keep, waiting, repeat(recipe))


def processes_that_pay(waiting: Sequence[Entry], *, memory: float | None = None) -> int:
    """In how many processes to prepare cases: 1 where starting more takes longer than it saves, and
    no more than `memory`, default all that is free, has room for."""
    if memory is None:
        memory = free_memory()
    bytes_of_scans = sum(entry.files[0][0] for entry in waiting)
    by_work = bytes_of_scans // BYTES_THAT_PAY
    by_memory = MOST_BY_GUESS if memory == math.inf else memory / BYTES_OF_A_PROCESS
    return int(max(1, min(by_work, by_memory, len(waiting))))


def _entries_of(
    cases: list[Case], cache: Path, recipe: Recipe, reading: dict
) -> tuple[list[Entry], list[str]]:
    """Under which names the cases are kept, and a line for each whose files cannot be read."""
    entries, refused = [], []
    for case in cases:
        assert case.image and case.labels  # as each training case has
        try:
            entries.append(entry_of(cache, case.id, case.image, case.labels, recipe, **reading))
        except OSError as error:
            refused.append(str(error))
    return entries, refused


def _in_silence(line: str) -> None:
    """What is told of the progress where nobody listens."""


def _never() -> bool:
    """Whether to stop where nobody is asked."""
    return False
