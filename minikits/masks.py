"""A folder of masks: which are there already, and what becomes of each scan.

A mask that is there already is not predicted again; so it has to be known what it is of, which its
prediction.json says. A file of which that says nothing may be anybody's."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from minikits.files import claim, remove_leftovers
from minikits.layouts import FOLDERS, kits19_kind, nifti_name
from minikits.records import (
    CHANGES_MASKS,
    READING,
    RECORD,
    Job,
    as_record,
    is_as_stamped,
    read_record,
    remove_notes,
    stamp,
    with_notes,
    write_record,
)
from minikits.scans import Scan, probabilities_beside


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
    """What a run is to do."""

    waiting: list[Scan]  # to be predicted
    edited: set[str]  # names of masks that stay as they are, also where their scan is waiting
    said: list[str]  # lines on what was found
    failed: list[str]  # lines
    record: dict  # what prediction.json holds


def plan_masks(out: Path, job: Job, scans: list[Scan], *, overwrite: bool = False) -> Plan:
    """Takes the folder for this process, removes masks that are of other scans or networks than the
    ones to come, and writes prediction.json, in this order: whenever it is killed, no mask passes
    for another's. ValueError, with everything as it was, where scans, labels or other masks would
    be lost or mixed with these, or another process has the folder."""
    unprotected = claim(out, doing="predicts")
    remove_leftovers(out / "probabilities")
    earlier = with_notes(out, read_record(out))
    _check_ours(out, earlier)

    known = earlier["scans"]
    entries = {name: entry for name, entry in known.items() if (out / name).exists()}
    if overwrite:
        for scan in scans:
            entries.pop(scan.mask.name, None)

    differ = [name for name in CHANGES_MASKS if earlier.get(name) != getattr(job, name)]
    if differ:
        _check_none_is_mixed(out, earlier, job, differ, entries)
        known = {}

    decisions = [_decide(scan, job, known.get(scan.mask.name), overwrite) for scan in scans]
    _check_reading(out, decisions, job)
    said = _what_is_there(out, decisions)
    if unprotected:
        said.insert(0, f"warning: {unprotected}")

    for decision in decisions:
        entries[decision.scan.mask.name] = decision.entry
    deleted = earlier["scans"].keys() - entries.keys()  # by somebody, who left the probabilities
    _remove_stale(out, decisions, deleted)
    record = as_record(job, entries)
    write_record(out, record)
    remove_notes(out)

    return Plan(
        waiting=[decision.scan for decision in decisions if decision.wanted],
        edited={decision.scan.mask.name for decision in decisions if decision.edited},
        said=said,
        failed=[decision.problem for decision in decisions if decision.problem],
        record=record,
    )


# --- what becomes of one scan ---------------------------------------------------------------------


def _decide(scan: Scan, job: Job, earlier: dict | None, overwrite: bool) -> Decision:
    """The Decision on a scan. earlier: its entry, if that is of the same networks and options."""
    entry = _entry_before(scan, job)
    if earlier is None:
        return Decision(scan, entry, outdated=True)

    same_scan = is_as_stamped(scan.path, earlier["scan"])
    if same_scan:  # of which more is known than its new stamp says: the sum of its contents
        entry["scan"] = {**earlier["scan"], **entry["scan"]}

    if overwrite or not scan.mask.exists():
        outdated = not (same_scan and _is_read_so(earlier, job))
        if scan.mask.exists() and not outdated:  # it stays until the new one is there
            entry["mask"] = earlier["mask"]
            entry["findings"] = earlier.get("findings")
        return Decision(scan, entry, outdated=outdated)

    problem = _problem_of_mask(scan, earlier, same_scan)
    if problem:
        return Decision(scan, earlier, wanted=False, problem=problem)
    if not same_scan:
        return Decision(scan, entry, outdated=True)
    return _decide_on_its_mask(scan, job, {**earlier, "scan": entry["scan"]})


def _entry_before(scan: Scan, job: Job) -> dict:
    """What prediction.json says of a scan that is to be predicted."""
    return {
        "case": scan.id,
        "networks": list(scan.networks),
        "affine": job.affine,
        "assume_spacing": job.assume_spacing,
        "scan": stamp(scan.path),
        "mask": None,
        "findings": None,
    }


def _decide_on_its_mask(scan: Scan, job: Job, entry: dict) -> Decision:
    """The Decision on a scan whose mask is there: that stays, also where somebody changed it. The
    scan is predicted again where probabilities are wanted and lack."""
    edited = not is_as_stamped(scan.mask, entry["mask"])
    probabilities = scan.probabilities.values()
    lacking = job.probabilities and not all(path.exists() for path in probabilities)

    if lacking and not _is_read_so(entry, job):
        problem = (
            f"{scan.mask}: has no probabilities yet, and was made with {_reading_of(entry)}; "
            "give that again with --in this scan alone, or --overwrite"
        )
        return Decision(scan, entry, wanted=False, problem=problem)
    return Decision(scan, entry, wanted=lacking, edited=edited, lacking=lacking)


def _is_read_so(entry: dict, job: Job) -> bool:
    """Whether a mask's scan was read with the options of this run."""
    return all(entry.get(name) == getattr(job, name) for name in READING)


def _problem_of_mask(scan: Scan, earlier: dict, same_scan: bool) -> str:
    """Why a mask that is there can neither stay nor be predicted again; "" where it can."""
    if earlier["mask"] is None:
        return (
            f"{scan.mask}: lies there, but no run has finished it, so it may be somebody else's; "
            "move it away, or --overwrite predicts it again"
        )
    if not same_scan and not is_as_stamped(scan.mask, earlier["mask"]):
        return (
            f"{scan.path}: was replaced since its mask was made, and {scan.mask} was "
            "changed since it was predicted; --overwrite predicts it again"
        )
    return ""


def _reading_of(entry: dict) -> str:
    """The options of the command line by which a mask's scan was read."""
    options = []
    if entry.get("affine"):
        options.append(f"--affine {entry['affine']}")
    if entry.get("assume_spacing"):
        options.append(f"--assume-spacing {' '.join(map(str, entry['assume_spacing']))}")
    return " ".join(options) or "no option"


# --- what is refused, removed and said ------------------------------------------------------------


def _check_ours(out: Path, record: dict) -> None:
    """Refuses a folder with NIfTI files that prediction.json does not name: scans, or labels."""
    ours = set()
    for name in record["scans"]:
        mask = out / name
        ours |= {mask, *probabilities_beside(mask).values()}

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


def _check_none_is_mixed(
    out: Path, earlier: dict, job: Job, differ: list[str], remaining: dict
) -> None:
    """Refuses to put masks beside those that remain of other networks or options."""
    if not remaining:
        return
    shown = []
    for name in differ:
        if name == "networks":  # of which much is known
            shown.append(name)
        else:
            shown.append(f"{name} {earlier[name]}, now {getattr(job, name)}")

    raise ValueError(
        f"{out / RECORD}: the masks here are of other networks or options "
        f"({'; '.join(shown)}); choose another folder with --out"
    )


def _check_reading(out: Path, decisions: list[Decision], job: Job) -> None:
    """Refuses masks that would stay although another --affine or --assume-spacing is given now.
    Where none is, those that were made with one stay: the option was for their scans alone."""
    for name in READING:
        option = getattr(job, name)
        if option is None:
            continue
        others = [each.scan.mask.name for each in decisions if each.entry.get(name) != option]
        if others:
            masks, were = ("mask", "was") if len(others) == 1 else ("masks", "were")
            raise ValueError(
                f"{out}: {len(others)} {masks} ({', '.join(others[:5])}) {were} made with another "
                f"--{name.replace('_', '-')}; give --in only the scans that want it, --overwrite, "
                "or another --out"
            )


def _remove_stale(out: Path, decisions: list[Decision], deleted: Collection[str]) -> None:
    """Removes what is outdated, and the probabilities of masks that were deleted (names)."""
    for decision in decisions:
        if decision.outdated:
            decision.scan.mask.unlink(missing_ok=True)
            _remove_probabilities(decision.scan.mask)
    for name in deleted:
        _remove_probabilities(out / name)


def _remove_probabilities(mask: Path) -> None:
    for path in probabilities_beside(mask).values():
        path.unlink(missing_ok=True)


def _is_doubted(entry: dict) -> bool:
    """Whether the scan of a mask was doubted or unlike the training data, when it was predicted."""
    findings = entry.get("findings") or {}  # an earlier version's masks have none
    return bool(findings.get("doubts") or findings.get("unlike_training"))


def _what_is_there(out: Path, decisions: list[Decision]) -> list[str]:
    """Lines on masks that there are already: how many stay, how many of these are doubted, and
    which do not stay, and why."""
    staying = [each for each in decisions if not each.wanted and not each.problem]
    lines = []
    if staying:
        have = "has" if len(staying) == 1 else "have"
        lines.append(
            f"{len(staying)} of {len(decisions)} scans {have} a mask already; --overwrite "
            "predicts them again"
        )
    doubted = [each for each in staying if _is_doubted(each.entry)]
    if doubted:
        are = "is" if len(doubted) == 1 else "are"
        lines.append(
            f"warning: {len(doubted)} of these {are} doubted or unlike the training data: see the "
            f"columns doubts and unlike_training of {out / 'prediction.csv'}"
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
