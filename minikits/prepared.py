"""One prepared case in the cache: under which name it is kept, how it is made, kept and loaded.

A case is prepared once. Its name follows from all that it is made of, so that of other files, or
with other numbers of the preparation, it is another."""

import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minikits.cache import identity, load_entry, read_description, save_entry
from minikits.doubts import doubts
from minikits.frames import check_same_grid
from minikits.layouts import some, visible
from minikits.nifti import read_labels, read_volume
from minikits.paper import CLASSES
from minikits.preprocessing import prepare_image, prepare_labels, resampled_shape
from minikits.processes import is_short_of_memory
from minikits.recipe import Recipe
from minikits.sampling import PreparedCase
from minikits.volumes import Volume

CACHE_FORMAT = 2  # raised when what is written to the cache changes
KEPT = ("image", "labels", *CLASSES[1:])  # the arrays of an entry of the cache
MOST_RESAMPLED_VOXELS = 500_000_000  # a body of 2 m x 0.5 m x 0.5 m at 1 mm: 1.5 GB as it is kept


@dataclass(frozen=True, eq=False)
class Entry:
    """A case in the cache: its folder there, and what its contents follow from."""

    id: str
    image: Path
    labels: Path
    files: list  # the `identity` of image and labels
    numbers: dict  # of the preparation, as floats
    affine: str | None  # options of `read_volume`
    assume_spacing: Sequence[float] | None
    place: Path

    @property
    def sources(self) -> list[str]:
        """Where image and labels lie, links followed."""
        return [str(self.image.resolve()), str(self.labels.resolve())]


@dataclass(frozen=True, eq=False)
class Made:
    """What is kept of a case, {name: array}, the PreparedCase's checksum, and lines on doubts."""

    arrays: dict[str, np.ndarray]
    checksum: str
    warnings: list[str]


@dataclass(frozen=True)
class Outcome:
    """What became of a case that was to be prepared: the shape that is kept, lines on doubts; or why
    it was refused."""

    shape: tuple[int, ...] = ()
    warnings: Sequence[str] = ()
    refused: str = ""


# --- under which name -----------------------------------------------------------------------------


def entry_of(
    cache: Path,
    id: str,
    image: Path,
    labels: Path,
    recipe: Recipe,
    *,
    affine: str | None = None,
    assume_spacing: Sequence[float] | None = None,
) -> Entry:
    """Where a case is kept: under its id and a sum of what it is made of. Paths are no part of it,
    so that data that were moved are found again. OSError where a file cannot be read."""
    files = [identity(image), identity(labels)]
    numbers = _numbers_of(recipe, assume_spacing)

    made_of = json.dumps([CACHE_FORMAT, id, files, numbers, affine])
    key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    place = cache / f"{id[:40]}-{key}"
    return Entry(id, image, labels, files, numbers, affine, assume_spacing, place)


def _numbers_of(recipe: Recipe, assume_spacing: Sequence[float] | None) -> dict:
    """The numbers of the preparation, all of them floats, so that 101 is 101.0."""
    numbers: dict[str, object] = {
        "spacing_mm": recipe.spacing_mm,
        "window_hu": recipe.window_hu,
        "mean_hu": recipe.mean_hu,
        "sd_hu": recipe.sd_hu,
    }
    if assume_spacing:
        numbers["assume_spacing"] = assume_spacing
    return {name: np.array(value, dtype=float).tolist() for name, value in numbers.items()}


# --- made -----------------------------------------------------------------------------------------


def make(entry: Entry, recipe: Recipe) -> Made:
    """What is kept of a case. ValueError or OSError, naming a file, where it cannot be used."""
    with _named_if_memory_runs_out(entry, "read"):
        scan, reference = _read_pair(entry, recipe)
        warnings = doubts(scan)
        checksum = _checksum_of(scan, reference, entry.numbers)

    with _named_if_memory_runs_out(entry, "resampled"):
        arrays = arrays_of(scan, reference, recipe)

    return Made(arrays, checksum, warnings)


@contextmanager
def _named_if_memory_runs_out(entry: Entry, doing: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_short_of_memory(error):
            raise
        raise ValueError(f"{entry.image}: memory ran out while it was {doing} ({error})") from None


def _read_pair(entry: Entry, recipe: Recipe) -> tuple[Volume, Volume]:
    """(image, labels) of a case, on one grid."""
    reading = {"affine": entry.affine, "assume_spacing": entry.assume_spacing}
    scan = read_volume(entry.image, **reading)
    check_resampled_size(scan, recipe)
    reference = read_labels(entry.labels, **reading)
    check_same_grid(scan, reference)
    return scan, reference


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


def arrays_of(scan: Volume, reference: Volume, recipe: Recipe) -> dict[str, np.ndarray]:
    """{name: array}: image and labels as the networks take them, and the places of each structure,
    flat indices."""
    image = np.ascontiguousarray(prepare_image(scan, recipe), dtype=np.float16)
    labels = np.ascontiguousarray(prepare_labels(reference, recipe))

    arrays = {"image": image, "labels": labels}
    for value, structure in enumerate(CLASSES[1:], 1):
        arrays[structure] = np.flatnonzero(labels == value).astype(np.int32)
    return arrays


def _checksum_of(scan: Volume, reference: Volume, numbers: dict) -> str:
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


# --- kept, and loaded -----------------------------------------------------------------------------


def make_and_keep(entry: Entry, recipe: Recipe) -> Outcome:
    """Makes a case and writes it to the cache, in whatever process: what it tells is small."""
    try:
        made = make(entry, recipe)
    except (ValueError, OSError) as error:
        return Outcome(refused=str(error))
    keep(entry, made)
    return Outcome(made.arrays["image"].shape, made.warnings)


def keep(entry: Entry, made: Made) -> None:
    """Writes an entry to the cache."""
    about = {
        "format": CACHE_FORMAT,
        "id": entry.id,
        "sources": entry.sources,
        "files": entry.files,
        "numbers": entry.numbers,
        "affine": entry.affine,
    }
    save_entry(entry.place, made.arrays, about, made.checksum)


def load_kept(entry: Entry, say: Callable[[str], None]) -> PreparedCase | None:
    """The case of an entry, or None where there is none yet. One that is damaged is removed, with a
    word."""
    if not entry.place.exists():
        return None
    try:
        return load(entry)
    except (ValueError, OSError) as error:
        say(f"warning: {error}; {entry.id} is prepared again")

    shutil.rmtree(entry.place, ignore_errors=True)
    if entry.place.exists():
        raise OSError(f"{entry.place}: is damaged and cannot be removed; remove it")
    return None


def load(entry: Entry) -> PreparedCase:
    """The case of an entry, memory-mapped. ValueError or OSError where an entry is not as it was written."""
    arrays, checksum = load_entry(entry.place, KEPT)
    foreground = tuple(arrays[structure].numpy().copy() for structure in CLASSES[1:])  # small
    return PreparedCase(entry.id, arrays["image"], arrays["labels"], foreground, checksum)


# --- of no more use -------------------------------------------------------------------------------


def line_on_unused(cache: Path, entries: Sequence[Entry]) -> str:
    """Names the folders of the cache that another version wrote, or whose files were replaced; ""
    where there are none. They stay: a training elsewhere may still read them."""
    used = {entry.place for entry in entries}
    files_now = {str(entry.sources): entry.files for entry in entries}
    unused = []
    for place in visible(cache):
        is_entry = (place / "image.npy").exists()
        if is_entry and place not in used and _is_outdated(place, files_now):
            unused.append(place)
    if not unused:
        return ""

    size = sum(path.stat().st_size for place in unused for path in place.iterdir())
    names = some([place.name for place in unused])
    folders, are = ("folder", "is") if len(unused) == 1 else ("folders", "are")
    return (
        f"{cache}: {len(unused)} {folders} ({size / 1e9:.1f} GB) {are} of files that were "
        f"replaced, or of another version of minikits, and may be removed: {names}"
    )


def _is_outdated(place: Path, files_now: dict[str, list]) -> bool:
    """Whether another version wrote an entry, or its files were replaced since.

    files_now: {sources: identities} of the cases that are there."""
    try:
        about = read_description(place)
    except ValueError:  # the first version wrote no description
        return True
    if about.get("format") != CACHE_FORMAT:
        return True

    sources = str(about.get("sources"))
    return sources in files_now and files_now[sources] != about.get("files")
