"""A folder of masks: of which scans and networks they are, as its prediction.json says.

A mask that is there already is not predicted again; so it has to be known what it is of. For each
mask prediction.json keeps the case, the numbers of the networks behind it, how its scan was read,
and what scan and mask looked like (bytes, time of change, a sum of the contents). While a run goes
on a hidden note beside each of its masks says so; the next run takes those of one that was killed.
A file of which neither says anything may be anybody's."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minikits.cases import FOLDERS, kits19_kind, nifti_name
from minikits.files import claim, place_beside, read_json, remove_leftovers, write_text
from minikits.paper import CLASSES

RECORD = "prediction.json"
CHANGES_MASKS = ("networks", "mirroring", "precision", "cross_validation")  # never mixed
READING = ("affine", "assume_spacing")  # change the mask of a scan that needs them; kept for each


@dataclass(frozen=True)
class Scan:
    """A scan to predict, where its mask goes, and the numbers of the networks to be averaged."""

    id: str
    path: Path
    mask: Path
    networks: tuple[int, ...]

    @property
    def probabilities(self) -> dict[str, Path]:
        """Where those of each structure go: OUT/probabilities/NAME_kidney.nii.gz."""
        stem = self.mask.name.removesuffix(".nii.gz")
        folder = self.mask.parent / "probabilities"
        return {structure: folder / f"{stem}_{structure}.nii.gz" for structure in CLASSES[1:]}


@dataclass(frozen=True)
class Decision:
    """What becomes of a scan; entry is what prediction.json says of it from now on."""

    scan: Scan
    entry: dict
    wanted: bool = True  # it is to be predicted
    outdated: bool = False  # what lies there is of another scan or other networks: removed first
    edited: bool = False  # its mask was changed since it was predicted, and stays
    lacking: bool = False  # it has a mask, and no probabilities
    problem: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run is to do. waiting and edited hold names of masks."""

    waiting: set[str]  # to be predicted
    edited: set[str]  # stay as they are
    said: list[str]  # lines on what was found
    failed: list[str]  # lines
    record: dict  # what prediction.json holds


def plan_masks(
    out: Path, job: dict, scans: list[Scan], *, overwrite: bool = False, probabilities: bool = False
) -> Plan:
    """Takes the folder for this process, removes masks that are of other scans or networks than the
    ones to come, and writes prediction.json, in this order: whenever it is killed, no mask passes
    for another's. job: CHANGES_MASKS, READING, and what else prediction.json is to say.
    ValueError, with everything as it was, where scans, labels or other masks would be lost or mixed
    with these, or another process has the folder."""
    unprotected = claim(out, doing="predicts")
    remove_leftovers(out / "probabilities")
    earlier = _with_notes(out, read_record(out))
    _check_ours(out, earlier)
    replaced = {scan.mask.name for scan in scans if overwrite}
    remaining = {
        name: entry
        for name, entry in earlier["scans"].items()
        if name not in replaced and (out / name).exists()
    }
    differ = [name for name in CHANGES_MASKS if earlier.get(name) != job[name]]
    if differ and remaining:
        shown = [
            name if name == "networks" else f"{name} {earlier[name]}, now {job[name]}"
            for name in differ
        ]
        raise ValueError(
            f"{out / RECORD}: the masks here are of other networks or options "
            f"({'; '.join(shown)}); choose another folder with --out"
        )

    known = {} if differ else earlier["scans"]
    decisions = [
        _decide(scan, job, known.get(scan.mask.name), overwrite, probabilities) for scan in scans
    ]
    _check_reading(out, decisions, job)
    said = [f"warning: {unprotected}"] if unprotected else []
    said += _what_is_there(decisions)

    for decision in decisions:
        if decision.outdated:
            decision.scan.mask.unlink(missing_ok=True)
            for path in decision.scan.probabilities.values():
                path.unlink(missing_ok=True)
    entries = {**remaining, **{each.scan.mask.name: each.entry for each in decisions}}
    for name in earlier["scans"].keys() - entries.keys():  # whose mask somebody has deleted
        for path in Scan(name, Path(), out / name, ()).probabilities.values():
            path.unlink(missing_ok=True)
    record = _as_record(job, entries)
    write_text(out / RECORD, json.dumps(record, indent=1))
    _remove_notes(out)
    return Plan(
        waiting={each.scan.mask.name for each in decisions if each.wanted},
        edited={each.scan.mask.name for each in decisions if each.edited},
        said=said,
        failed=[each.problem for each in decisions if each.problem],
        record=record,
    )


def keep_stamps(out: Path, record: dict, stamps: dict[str, dict]) -> None:
    """Adds to prediction.json what masks and scans look like: {mask's name: {"scan", "mask"}}, or
    the notes of processes that gave no such."""
    noted = _with_notes(out, record)["scans"]
    entries = {name: {**entry, **stamps.get(name, {})} for name, entry in noted.items()}
    write_text(out / RECORD, json.dumps({**record, "scans": entries}, indent=1))
    _remove_notes(out)


@contextmanager
def noted_mask(mask: Path, scan_stamp: dict) -> Iterator[Path]:
    """Where to write a mask, which is then put in its place. What it looks like is noted before it
    is there: whenever the run is killed, it is known which masks are its own."""
    folder = place_beside(mask)
    built = folder / mask.name
    try:
        yield built
        note = {"scan": scan_stamp, "mask": stamp(built, contents=True)}
        write_text(_note_of(mask), json.dumps(note))
        os.replace(built, mask)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _note_of(mask):
    return mask.with_name(f".{mask.name}.stamp")


def _with_notes(out, record):
    """The record, and in it what is noted of the masks that are still as they were written."""
    entries = {}
    for name, entry in record["scans"].items():
        entries[name] = {**entry, **_read_note(out / name)}
    return {**record, "scans": entries}


def _read_note(mask):
    """{"scan", "mask"}: what they look like; {} where nothing, or of another file, is noted."""
    try:
        note = read_json(_note_of(mask))
    except ValueError:
        return {}
    known = isinstance(note, dict) and note.keys() == {"scan", "mask"}
    known = known and isinstance(note["scan"], dict) and isinstance(note["mask"], dict)
    return note if known and mask.exists() and is_as_stamped(mask, note["mask"]) else {}


def _remove_notes(out):
    """Of masks that prediction.json tells of now."""
    for path in out.glob(".*.stamp"):
        path.unlink(missing_ok=True)


def read_record(out: Path) -> dict:
    """What an earlier run wrote into prediction.json; of none, no scans. ValueError for a file that
    is not as this module writes it."""
    path = out / RECORD
    if not path.exists() and not path.is_symlink():
        return {"scans": {}}

    advice = "move it away, or choose another folder with --out"
    try:
        record = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from None
    known = isinstance(record, dict) and {*CHANGES_MASKS, *READING, "scans"} <= record.keys()
    entries = record["scans"] if known else None
    networks = record["networks"] if known and isinstance(record["networks"], list) else []
    sound = isinstance(entries, dict) and all(
        _is_entry(entry, len(networks)) for entry in entries.values()
    )
    if not sound:
        raise ValueError(
            f"{path}: not as this predict.py writes it, perhaps another tool's; {advice}"
        )
    return record


def _is_entry(entry, count):
    """Whether a value has the form of what prediction.json keeps of a mask by some of `count`
    networks."""
    if not isinstance(entry, dict) or not isinstance(entry.get("case"), str):
        return False
    networks, scan, mask = (entry.get(name) for name in ("networks", "scan", "mask"))
    numbers = isinstance(networks, list) and all(
        type(number) is int and 0 <= number < count for number in networks
    )
    return numbers and isinstance(scan, dict) and isinstance(mask, (dict, type(None)))


def _as_record(job, entries):
    """What prediction.json holds: the job, the scans, and trained_on, the ids that masks here are
    no held-out predictions of. In cross-validation these are the ids that the networks behind the
    masks were trained on, less those that have a mask: it was held out from its own."""
    used = {number for entry in entries.values() for number in entry["networks"]}
    trained_on = {id for number in used for id in job["networks"][number]["trained_on"]}
    if job["cross_validation"]:
        trained_on -= {entry["case"] for entry in entries.values()}
    return {**job, "trained_on": sorted(trained_on), "scans": entries}


def _check_ours(out, record):
    """Refuses a folder with NIfTI files that prediction.json does not name: scans, or labels."""
    ours = set()
    for name in record["scans"]:
        scan = Scan(name, Path(), out / name, ())
        ours |= {scan.mask, *scan.probabilities.values()}

    for path in sorted([*out.glob("*"), *out.glob("*/*")]):
        folder = path.parent
        if not nifti_name(path) or path in ours:
            continue
        of_a_case = folder.name.lower() in FOLDERS or kits19_kind(path) is not None
        if of_a_case or folder in (out, out / "probabilities"):
            raise ValueError(
                f"{path}: lies in {out}, and its {RECORD} names no such mask; scans and labels are "
                "never replaced: choose another folder for the masks with --out"
            )


def _decide(scan, job, earlier, overwrite, probabilities):
    """The Decision on a scan. earlier: its entry, if that is of the same networks and options."""
    entry = {
        "case": scan.id,
        "networks": list(scan.networks),
        "affine": job["affine"],
        "assume_spacing": job["assume_spacing"],
        "scan": stamp(scan.path),
        "mask": None,
    }
    if earlier is None:
        return Decision(scan, entry, outdated=True)

    same_scan = is_as_stamped(scan.path, earlier["scan"])
    same_reading = all(earlier.get(name) == job[name] for name in READING)
    if same_scan:
        entry["scan"] = {**earlier["scan"], **entry["scan"]}
    if overwrite or not scan.mask.exists():
        outdated = not (same_scan and same_reading)
        if scan.mask.exists() and not outdated:  # it stays until the new one is there
            entry["mask"] = earlier["mask"]
        return Decision(scan, entry, outdated=outdated)

    if earlier["mask"] is None:
        problem = (
            f"{scan.mask}: lies there, but no run has finished it, so it may be somebody else's; "
            "move it away, or --overwrite predicts it again"
        )
        return Decision(scan, earlier, wanted=False, problem=problem)
    edited = not is_as_stamped(scan.mask, earlier["mask"])
    if not same_scan and edited:
        problem = (
            f"{scan.path}: was replaced since its mask was made, and {scan.mask} was "
            "changed since it was predicted; --overwrite predicts it again"
        )
        return Decision(scan, earlier, wanted=False, problem=problem)
    if not same_scan:
        return Decision(scan, entry, outdated=True)

    entry = {**earlier, "scan": entry["scan"]}
    lacking = probabilities and not all(path.exists() for path in scan.probabilities.values())
    if lacking and not same_reading:
        problem = (
            f"{scan.mask}: has no probabilities yet, and was made with {_reading_of(earlier)}; give "
            "that again with --in this scan alone, or --overwrite"
        )
        return Decision(scan, entry, wanted=False, problem=problem)
    return Decision(scan, entry, wanted=lacking, edited=edited, lacking=lacking)


def _reading_of(entry):
    """The options of the command line by which a mask's scan was read."""
    options = []
    if entry.get("affine"):
        options.append(f"--affine {entry['affine']}")
    if entry.get("assume_spacing"):
        options.append(f"--assume-spacing {' '.join(map(str, entry['assume_spacing']))}")
    return " ".join(options) or "no option"


def _check_reading(out, decisions, job):
    """Refuses masks that would stay although another --affine or --assume-spacing is given now.
    Where none is, those that were made with one stay: the option was for their scans alone."""
    for name in READING:
        if job[name] is None:
            continue
        others = [each.scan.mask.name for each in decisions if each.entry.get(name) != job[name]]
        if others:
            masks, were = ("mask", "was") if len(others) == 1 else ("masks", "were")
            raise ValueError(
                f"{out}: {len(others)} {masks} ({', '.join(others[:5])}) {were} made with another "
                f"--{name.replace('_', '-')}; give --in only the scans that want it, --overwrite, "
                "or another --out"
            )


def _what_is_there(decisions):
    """Lines on masks that there are already: how many stay, and which do not, and why."""
    staying = [each for each in decisions if not each.wanted and not each.problem]
    lines = []
    if staying:
        have = "has" if len(staying) == 1 else "have"
        lines.append(
            f"{len(staying)} of {len(decisions)} scans {have} a mask already; --overwrite "
            "predicts them again"
        )
    for each in decisions:
        mask = each.scan.mask
        if each.edited:
            lines.append(
                f"{mask}: was changed since it was predicted, and stays; --overwrite "
                "predicts it again"
            )
        elif each.outdated and mask.exists():
            lines.append(
                f"{mask}: is of other networks or options, or {each.scan.path} was "
                "replaced since; predicted again"
            )
        elif each.lacking:
            lines.append(f"{mask}: has no probabilities yet, and is predicted again for these")
    return lines


def stamp(path: Path, *, contents: bool = False) -> dict:
    """What tells whether a file was replaced: its bytes and time of change, and a sum if wanted."""
    status = path.stat()
    told = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    if contents:
        with open(path, "rb") as file:
            told["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return told


def is_as_stamped(path: Path, told: dict) -> bool:
    """Whether a file is the one that was stamped; copied, with another time, it is by its sum."""
    now = stamp(path)
    if now["bytes"] != told.get("bytes"):
        return False
    if now["modified_ns"] == told.get("modified_ns"):
        return True
    return stamp(path, contents=True)["sha256"] == told.get("sha256")
