"""What lies in a folder of scans, and which of it is a file of which case.

Two layouts: KiTS19's (`case_00000/imaging.nii.gz`, `segmentation.nii.gz`) and a flat pair of
folders (`images/NAME.nii.gz`, `labels/NAME.nii.gz`, or nnU-Net's `imagesTr/` and `labelsTr/`; a
trailing `_0000` of an image's name is the channel that nnU-Net writes, and dropped). Hidden files
and folders belong to neither. All else that looks like a case is named, with why it is left out."""

import os
import re
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minikits.files import read_json

KITS19 = {"imaging": "image", "segmentation": "labels"}  # the files of a case's folder
FOLDERS = {  # of the other layout; the latter two are nnU-Net's
    "images": "image",
    "labels": "labels",
    "imagestr": "image",
    "labelstr": "labels",
}
OTHER_FORMATS = (".hdr", ".img", ".mgz", ".mha", ".mhd", ".nrrd")  # of volumes too
PHANTOM = "phantom_"  # how names of minikits.phantoms' cases begin
NAMED_AT_MOST = 20  # of what is left out, in one line
LEVELS_DOWN = 3  # how far down a folder without cases is searched for NIfTI files


@dataclass(frozen=True)
class CaseFile:
    """A file of a case: its id, "image" or "labels", and where it lies."""

    id: str
    kind: str
    path: Path


@dataclass(frozen=True)
class Seen:
    """What lies in a folder: files of cases beside each other, files of cases in its folders, and a
    line "NAME (why)" for whatever looks like one and is left out."""

    flat: list[CaseFile]
    inside: list[CaseFile]
    left_out: list[str]


# --- names ----------------------------------------------------------------------------------------


def nifti_name(path: Path) -> str | None:
    """A file's name without folder and `.nii` or `.nii.gz` (capitals too). None for a hidden file,
    and for one that is not named as NIfTI files are."""
    named = re.fullmatch(r"([^.].*?)\.nii(\.gz)?", path.name, re.IGNORECASE | re.DOTALL)
    if named is None:
        return None
    return named[1]


def kits19_kind(path: Path) -> str | None:
    """Of a file that is named as those of a KiTS19 case are "image" or "labels", else None."""
    name = nifti_name(path)
    if name is None:
        return None
    return KITS19.get(_without_channel(name).lower())


def id_of_labels(name: str, known: Collection[str]) -> str:
    """The case of a label file or mask of that name. What ends in `_0000` may be a case's own name,
    and is, where that is among the `known` ids; else it was copied from the image's name."""
    if name in known:
        return name
    return _without_channel(name)


def image_beside(labels: Path) -> Path | None:
    """The image in the folder of a file that is named as a KiTS19 case's labels are; None where
    there is none, and of any other path."""
    if kits19_kind(labels) != "labels" or not os.access(labels.parent, os.R_OK):
        return None
    for path in visible(labels.parent):
        if kits19_kind(path) == "image" and path.is_file():
            return path
    return None


def _without_channel(name: str) -> str:
    """An image's name without the `_0000` by which nnU-Net says that it is the first channel."""
    return name.removesuffix("_0000") or name


# --- a folder, and the folders in it --------------------------------------------------------------


def look_into(source: Path) -> Seen:
    """What lies in a folder of either layout, or of scans; a file by itself is all of it."""
    if not source.is_dir():
        name = nifti_name(source)
        flat = [_flat_file(source, name)] if name else []
        return Seen(flat, [], [])

    flat, inside, left_out, empty = [], [], [], []
    for path in visible(source):
        name, what = nifti_name(path), _what_is(path)
        if what == "folder":
            files, others = _look_into_folder(path)
            inside += files
            left_out += others
            if not files and not others:
                empty.append(f"{path.name} (neither imaging.nii.gz nor segmentation.nii.gz in it)")
        elif what == "file" and name:
            flat.append(_flat_file(path, name))
        else:
            left_out += _why_not(path, what, path.name)

    if inside:  # beside cases, any folder may be meant as one
        left_out += empty
    return Seen(flat, _with_labels_named_as_images(inside), left_out)


def _flat_file(path: Path, name: str) -> CaseFile:
    """A NIfTI file by itself or beside others: an image, or of the KiTS19 case that its folder is
    named after."""
    folder = Path(os.path.abspath(path)).parent.name
    kind = kits19_kind(path)
    if kind and folder:
        return CaseFile(folder, kind, path)
    return CaseFile(_without_channel(name), "image", path)


def visible(folder: Path) -> list[Path]:
    """The paths in a folder, sorted, less hidden ones; a file is its own."""
    if not folder.is_dir():
        return [folder]
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _look_into_folder(folder: Path) -> tuple[list[CaseFile], list[str]]:
    """Of images/, labels/ or a case's folder: the files of cases, and lines on what is left out."""
    try:
        paths = visible(folder)
    except OSError as error:
        return [], [f"{folder.name} (cannot be listed: {error.strerror})"]

    kind = FOLDERS.get(folder.name.lower())
    if kind:
        return _look_into_one_kind(paths, kind)
    return _look_into_case(folder, paths)


def _look_into_one_kind(paths: list[Path], kind: str) -> tuple[list[CaseFile], list[str]]:
    """Of images/ or labels/: each NIfTI file is a case's, and there is a line for each path that may
    be meant as one."""
    files, others, folders = [], [], []
    for path in paths:
        name, what = nifti_name(path), _what_is(path)
        if what == "file" and name:
            id = name if kind == "labels" else _without_channel(name)
            files.append(CaseFile(id, kind, path))
        elif what == "folder" and not name:
            folders.append(path)
        else:
            others += _why_not(path, what, _shown(path))

    for path in folders:
        others += _why_not_below(path)
    return files, others


def _look_into_case(folder: Path, paths: list[Path]) -> tuple[list[CaseFile], list[str]]:
    """Of a folder that may be a case's: its files, and at most one line."""
    files, others, folders = [], [], []
    for path in paths:
        name, kind, what = nifti_name(path), kits19_kind(path), _what_is(path)
        if what == "file" and kind:
            files.append(CaseFile(folder.name, kind, path))
        elif what == "file" and name:
            why = "neither imaging nor segmentation, nor in images/ or labels/"
            others.append(f"{_shown(path)} ({why})")
        elif what == "folder" and not name:
            folders.append(path)
        else:
            others += _why_not(path, what, _shown(path))

    if not files:  # what lies deeper in a case's folder is no case
        for path in folders:
            others += _why_not_below(path)
    if not files and nifti_name(folder):
        others = _why_not(folder, "folder", folder.name)
    if len(others) > 1:
        others = [f"{others[0]} and {len(others) - 1} more in {folder.name}"]
    return files, others


def _with_labels_named_as_images(files: list[CaseFile]) -> list[CaseFile]:
    """The files, those in labels/, which have their names for ids, with those of the images."""
    known = {file.id for file in files if file.kind == "image"}
    named = []
    for file in files:
        if FOLDERS.get(file.path.parent.name.lower()) == "labels":
            file = replace(file, id=id_of_labels(file.id, known))
        named.append(file)
    return named


# --- what a path is, and why it is left out -------------------------------------------------------


def _what_is(path: Path) -> str:
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


def _why_not(path: Path, what: str, shown: str) -> list[str]:
    """A line on a path that is no NIfTI file but may be meant as one; none for any other. It may be
    where its name says so, or where it cannot be seen what it is."""
    name = path.name.lower()
    is_seen = what in ("file", "folder", "neither a file nor a folder")
    if is_seen and ".nii" not in name and not name.endswith(OTHER_FORMATS):
        return []

    why = what
    if what == "file":
        why = "not *.nii or *.nii.gz"
    elif what == "folder":
        why = "a folder, wanted a file"
    return [f"{shown} ({why})"]


def _why_not_below(folder: Path) -> list[str]:
    """A line on a folder that holds a NIfTI file, or has a folder that does; none otherwise."""
    for place, folders, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        if depth + 1 < LEVELS_DOWN:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
        else:
            folders.clear()  # os.walk goes no deeper
        scans = sorted(name for name in names if nifti_name(Path(name)))
        if scans:
            first = Path(place, scans[0]).relative_to(folder)
            return [f"{_shown(folder)} (too deep, with {first} in it)"]
    return []


def _shown(path: Path) -> str:
    """A path in a folder that was looked into, as a line has it."""
    return f"{path.parent.name}/{path.name}"


def some(names: Sequence[str]) -> str:
    """Names in a line: all of a few, of many the first and how many more."""
    shown = ", ".join(names[:NAMED_AT_MOST])
    others = len(names) - NAMED_AT_MOST
    if others > 0:
        shown += f" and {others} more"
    return shown


# --- nnU-Net's dataset.json -----------------------------------------------------------------------


def check_description(folder: Path) -> None:
    """ValueError where the dataset.json of nnU-Net in a folder, if there is one, says that kidney is
    not 1 or tumor not 2, that there is a third structure, or that a case has several images."""
    path = folder / "dataset.json"
    if not path.is_file():
        return
    description = read_json(path)
    if not isinstance(description, dict):
        return

    channels = description.get("channel_names", description.get("modality", {}))
    if len(channels) > 1:
        raise ValueError(f"{path}: {len(channels)} images of a case, wanted one, a CT")

    for name, values in _described_labels(path, description.get("labels", {})):
        wanted = _wanted_value(name)
        is_another = wanted is not None and values[0] != wanted
        if is_another or values[-1] > 2:
            shown = ", ".join(map(str, values))
            raise ValueError(
                f"{path}: {name} has label {shown}, wanted 0 (background), 1 (kidney), 2 (tumor) "
                "and no others; write the label maps anew"
            )


def _described_labels(path: Path, labels: dict) -> list[tuple[str, list[int]]]:
    """(name, values in ascending order) of each label: nnU-Net v2 has {name: value}, or of a region
    {name: [values]}, nnU-Net v1 {"value": name}."""
    described = []
    try:
        for name, value in labels.items():
            if name.isdigit():
                name, value = value, int(name)
            values = value if isinstance(value, list) else [value]
            described.append((str(name), sorted(map(int, values))))
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{path}: labels {labels}, wanted {{name: value}}") from None
    return [(name, values) for name, values in described if values]


def _wanted_value(name: str) -> int | None:
    """The value that a label of this name has here, the lowest of a region (a kidney with its tumor
    is 1 and 2); None for a name that says nothing."""
    name = name.lower()
    if "tumor" in name or "tumour" in name:
        return 2
    if "kidney" in name:
        return 1
    if name == "background":
        return 0
    return None
