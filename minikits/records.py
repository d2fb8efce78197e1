"""prediction.json: of which scans and networks the masks beside it are.

For each mask it keeps the case, the numbers of the networks behind it, how its scan was read, and
what scan and mask looked like (bytes, time of change, a sum of the contents), and what was found of
it. While a run goes on a
hidden note beside each of its masks says so; the next run takes those of one that was killed."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from minikits.files import place_beside, read_json, write_text

RECORD = "prediction.json"
CHANGES_MASKS = ("networks", "mirroring", "precision", "cross_validation")  # never mixed
READING = ("affine", "assume_spacing")  # change the mask of a scan that needs them; kept for each


@dataclass(frozen=True)
class Job:
    """The networks and options of a run, as prediction.json has them."""

    networks: list[dict]  # what is known of each; the others refer to them by their numbers
    mirroring: bool
    precision: str  # float32 or bfloat16
    cross_validation: bool
    probabilities: bool
    affine: str | None
    assume_spacing: list[float] | None


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
    if not _is_record(record):
        raise ValueError(
            f"{path}: not as this predict.py writes it, perhaps another tool's; {advice}"
        )
    return record


def _is_record(record: object) -> bool:
    """Whether a value has the form of what this module writes into prediction.json."""
    if not isinstance(record, dict) or not {*CHANGES_MASKS, *READING, "scans"} <= record.keys():
        return False
    if not isinstance(record["scans"], dict):
        return False
    networks = record["networks"] if isinstance(record["networks"], list) else []
    return all(_is_entry(entry, len(networks)) for entry in record["scans"].values())


def _is_entry(entry: object, count: int) -> bool:
    """Whether a value has the form of what prediction.json keeps of a mask by some of `count`
    networks."""
    if not isinstance(entry, dict) or not isinstance(entry.get("case"), str):
        return False

    networks, mask = entry.get("networks"), entry.get("mask")
    if not isinstance(networks, list):
        return False
    for number in networks:
        if type(number) is not int or not 0 <= number < count:
            return False
    for told in (mask, entry.get("findings")):
        if told is not None and not isinstance(told, dict):
            return False
    return isinstance(entry.get("scan"), dict)


def as_record(job: Job, entries: dict[str, dict]) -> dict:
    """What prediction.json holds: the job, the scans, and trained_on, the ids that masks here are
    no held-out predictions of. In cross-validation these are the ids that the networks behind the
    masks were trained on, less those that have a mask: it was held out from its own."""
    used = set()
    for entry in entries.values():
        used.update(entry["networks"])
    trained_on = set()
    for number in used:
        trained_on.update(job.networks[number]["trained_on"])
    if job.cross_validation:
        trained_on -= {entry["case"] for entry in entries.values()}
    return {**asdict(job), "trained_on": sorted(trained_on), "scans": entries}


def write_record(out: Path, record: dict) -> None:
    """Writes prediction.json, whole or not at all."""
    write_text(out / RECORD, json.dumps(record, indent=1))


def keep_stamps(out: Path, record: dict, stamps: dict[str, dict]) -> None:
    """Adds to prediction.json what masks and scans look like, and what was found: {mask's name:
    {"scan", "mask", "findings"}}, or the notes of processes that gave no such."""
    noted = with_notes(out, record)["scans"]
    entries = {name: {**entry, **stamps.get(name, {})} for name, entry in noted.items()}
    write_record(out, {**record, "scans": entries})

    for name, entry in entries.items():
        note = _read_note(out / name)
        if note and note["mask"] == entry["mask"]:  # else another process is just writing the mask
            _note_of(out / name).unlink()


@contextmanager
def noted_mask(mask: Path, scan_stamp: dict, findings: dict | None = None) -> Iterator[Path]:
    """Where to write a mask, which is then put in its place. What it looks like, and what was found
    of it, is noted before it is there: whenever the run is killed, it is known which masks are its
    own."""
    folder = place_beside(mask)
    built = folder / mask.name
    try:
        yield built
        looks = stamp(built, contents=True)
        note = {"scan": scan_stamp, "mask": looks, "findings": findings}
        write_text(_note_of(mask), json.dumps(note))
        os.replace(built, mask)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _note_of(mask: Path) -> Path:
    return mask.with_name(f".{mask.name}.stamp")


def with_notes(out: Path, record: dict) -> dict:
    """The record, and in it what is noted of the masks that are still as they were written."""
    entries = {}
    for name, entry in record["scans"].items():
        entries[name] = {**entry, **_read_note(out / name)}
    return {**record, "scans": entries}


def _read_note(mask: Path) -> dict:
    """{"scan", "mask"}: what they look like, and "findings"; {} where nothing, or of another file,
    is noted."""
    try:
        note = read_json(_note_of(mask))
    except ValueError:
        return {}
    if not _is_note(note):
        return {}
    if not mask.exists() or not is_as_stamped(mask, note["mask"]):
        return {}
    return note


def _is_note(note: object) -> bool:
    """Whether a value has the form of a note."""
    if not isinstance(note, dict) or note.keys() | {"findings"} != {"scan", "mask", "findings"}:
        return False
    findings = note.get("findings")  # an earlier version noted none
    if findings is not None and not isinstance(findings, dict):
        return False
    return isinstance(note["scan"], dict) and isinstance(note["mask"], dict)


def remove_notes(out: Path) -> None:
    """All of them, where prediction.json tells of their masks and no process writes others."""
    for path in out.glob(".*.stamp"):
        path.unlink(missing_ok=True)


# --- whether a file was replaced ------------------------------------------------------------------


def stamp(path: Path, *, contents: bool = False) -> dict:
    """What tells whether a file was replaced: its bytes and time of change, and a sum if wanted."""
    status = path.stat()
    told: dict = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
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
