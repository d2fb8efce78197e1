"""A folder of cases: which there are, which fold, prepared once and kept on disk.

Two layouts: KiTS19's (`case_00000/imaging.nii.gz`, `segmentation.nii.gz`) and a flat pair of folders
(`images/NAME.nii.gz`, `labels/NAME.nii.gz`; a trailing `_0000` of an image's name is dropped)."""

import hashlib
import json
import os
import re
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from minikits.paper import CLASSES, FOLD_SEED, FOLDS
from minikits.resampling import prepare_image, prepare_labels
from minikits.volumes import check_same_grid, doubts, read_labels, read_volume

KITS19 = {"imaging": "image", "segmentation": "labels"}  # the files of a case's folder
FOLDERS = {"images": "image", "labels": "labels"}  # of the other layout
CACHE_FORMAT = 1  # raised when what is written to the cache changes


@dataclass(frozen=True)
class Case:
    """One case's files; either may be absent (None)."""
    id: str
    image: Path | None = None
    labels: Path | None = None


@dataclass(frozen=True)
class PreparedCase:
    """image (Z, Y, X) float16 normalised, labels (Z, Y, X) uint8; foreground: flat indices of each structure."""
    id: str
    image: torch.Tensor
    labels: torch.Tensor
    foreground: tuple


def nifti_name(path):
    """A scan's name without folder, `.nii`, `.nii.gz` and nnU-Net's `_0000`; None where it is no NIfTI file."""
    return (found := re.fullmatch(r"([^.].*?)(_0000)?\.nii(\.gz)?", path.name)) and found[1]


def find_cases(source):
    """The cases of a NIfTI file, a flat folder of them (all images), or a folder of either layout; sorted by id.
    FileNotFoundError where there is no `source`; ValueError where it has no case, or two files for the same."""
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder; wanted a scan, scans, or a KiTS19 folder")
    paths = sorted(source.iterdir()) if source.is_dir() else [source]
    flat = [path for path in paths if path.is_file() and nifti_name(path)]
    files = {}
    for path in flat or sorted(source.glob("*/*")):
        name, folder = nifti_name(path), Path(os.path.abspath(path)).parent.name
        kind = KITS19.get(name, "image" if flat else FOLDERS.get(folder))
        if name and kind:
            id = folder if name in KITS19 else name  # a file of KITS19 bears its folder's, even where it is the source
            if kind in files.setdefault(id, {}):
                raise ValueError(f"{path}: {files[id][kind].name} has the same name {id}; rename or remove one of them")
            files[id][kind] = path
    if not files:
        seen = ", ".join(path.name for path in paths[:5]) or "nothing"
        raise ValueError(f"{source}: no scans or cases found, wanted *.nii.gz, case_00000/imaging.nii.gz and "
                         f"segmentation.nii.gz, or images/ and labels/; found {seen}")
    return [Case(id, **found) for id, found in sorted(files.items())]


def training_cases(folder, recipe):
    """The labelled cases of a folder less those the recipe leaves out; refuses labels without an image."""
    left_out = {f"case_{number:05d}" for number in recipe.excluded_cases}
    cases = [case for case in find_cases(folder) if case.labels and case.id not in left_out]
    if missing := [case.id for case in cases if not case.image]:
        raise ValueError(f"{folder}: {len(missing)} labelled cases have no image ({', '.join(missing[:5])}); get them")
    if not cases:
        raise ValueError(f"{folder}: no labelled cases found, wanted case_00000/segmentation.nii.gz")
    return cases


def five_folds(case_ids):
    """Five (train, validation) pairs of sorted id lists; every id is in one validation list.
    The sorted ids are shuffled and cut into consecutive blocks, the longer ones first: scikit-learn's
    KFold(5, shuffle=True, random_state=12345), as nnU-Net v1 calls it."""
    ids = sorted(case_ids)
    if len(ids) < FOLDS:
        raise ValueError(f"{len(ids)} cases found, wanted at least {FOLDS} for {FOLDS} folds; use --fold all")
    blocks = np.array_split(np.random.RandomState(FOLD_SEED).permutation(ids), FOLDS)
    return [(sorted({*ids} - {*block}), sorted(block)) for block in map(np.ndarray.tolist, blocks)]


def prepare(folder, cache, recipe):
    """The PreparedCases of a folder's training cases, sorted by id, memory-mapped.
    What is not in `cache` yet is put there, a line each; again when a case's files (name, size, time of change) or the
    numbers of its preparation change. ValueError, once all are tried, for those that cannot be read, a line each."""
    kept = {case: Path(cache, _cache_name(case, recipe)) for case in training_cases(folder, recipe)}
    waiting, started, refused = [case for case in kept if not kept[case].exists()], time.monotonic(), []
    for number, case in enumerate(waiting, 1):
        try:
            scan, reference = read_volume(case.image), read_labels(case.labels)
            check_same_grid(scan, reference)
        except (ValueError, OSError) as error:
            refused.append(f"\n  {error}")
            continue
        try:
            shape = "x".join(map(str, _prepare_case(case.id, scan, reference, kept[case], recipe)))
        except OSError as error:
            raise OSError(f"{kept[case]}: cannot be written ({error}); is the disk full?") from None
        left = (time.monotonic() - started) / number * (len(waiting) - number)
        print(*(f"warning: {doubt}\n" for doubt in doubts(scan)), sep="", end=f"prepared {case.id} {shape} "
              f"({number} of {len(waiting)}, {left:.0f} s left)\n", flush=True)
    if refused:
        raise ValueError(f"{folder}: {len(refused)} of {len(kept)} cases cannot be used:{''.join(refused)}")
    return [_load(case.id, place) for case, place in kept.items()]


def _cache_name(case, recipe):
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in (case.image, case.labels)]
    told = json.dumps([CACHE_FORMAT, files, recipe.spacing_mm, recipe.window_hu, recipe.mean_hu, recipe.sd_hu])
    return f"{case.id}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _prepare_case(id, scan, reference, kept, recipe):
    """Resamples and keeps one case; its folder appears whole or not at all. Returns the shape."""
    image, labels = prepare_image(scan, recipe).astype(np.float16), prepare_labels(reference, recipe)
    foreground = {name: np.flatnonzero(labels == value).astype(np.int32) for value, name in enumerate(CLASSES) if value}
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{id}-", dir=kept.parent, ignore_cleanup_errors=True) as beside:
        for name, array in {"image": image, "labels": labels, **foreground}.items():
            np.save(Path(beside, f"{name}.npy"), array)
        os.chmod(beside, 0o755)  # it was made for its owner alone
        with suppress(OSError):  # another process may have been first, with the same result
            os.rename(beside, kept)
    return image.shape


def _load(id, kept):
    # mode "c": torch wants writable memory; nothing is written, and nothing would reach the file
    image, labels = (torch.from_numpy(np.load(kept / f"{name}.npy", mmap_mode="c")) for name in ("image", "labels"))
    return PreparedCase(id, image, labels, tuple(np.load(kept / f"{structure}.npy") for structure in CLASSES[1:]))
