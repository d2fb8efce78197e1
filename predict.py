"""From scans to masks: python predict.py --in scans/ --out masks/"""

import argparse
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from time import monotonic

import numpy as np
import torch
from torch import distributed

from minikits.cases import Found
from minikits.devices import (
    doubt_about,
    is_out_of_memory,
    join_processes,
    note_signals,
    what_memory_lacked,
)
from minikits.doubts import doubts
from minikits.ensemble import Member, load_networks
from minikits.files import forgiving_output, typed_path, write_text
from minikits.masks import Plan, plan_masks
from minikits.nifti import MAX_VOXELS, read_volume, write_labels
from minikits.paper import CLASSES
from minikits.prediction import FLIPS
from minikits.preprocessing import label_orders
from minikits.reading import add_reading_options, chosen_reading
from minikits.ready import Ready, check_size, labels_of, make_ready, set_up
from minikits.records import Job, keep_stamps, noted_mask, read_record, stamp
from minikits.reports import as_csv
from minikits.resampling import resample
from minikits.scans import Scan, find_scans
from minikits.trust import entropy, findings_of, rows
from minikits.volumes import Volume

DEFAULT_RUN = Path("runs/residual")
WINDOWS_OF_THE_MEDIAN = 27  # of a scan of KiTS19's median shape, with the paper's patch
UNPACKED = 5  # bytes in memory that a byte of a compressed scan comes to, about


@dataclass(frozen=True, eq=False)
class Work:
    """What is the same for all scans of a run."""

    arguments: argparse.Namespace
    ready: Ready
    ranges: list[dict[str, list[float]]]  # what each network was trained on
    edited: set[str]  # names of masks that stay as they are
    stop: list[int]  # signals that were noted
    device_turn: Lock = field(default_factory=Lock)


class Stopped(Exception):
    """The run was told to stop, and left scans undone."""


def main() -> None:
    forgiving_output()
    arguments = parse_arguments()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends it at once, threads and all
    with note_signals() as noted:
        try:
            failed = predict(arguments, noted)
        except Stopped:
            sys.stderr.write("predict.py: stopped; run it again for the masks that are missing\n")
            sys.exit(128 + noted[0])
        except (ValueError, OSError) as error:
            failed = [str(error)]

    for line in failed:
        sys.stderr.write(f"predict.py: {line}\n")
    sys.exit(2 if failed else 0)


def predict(arguments: argparse.Namespace, noted: list[int]) -> list[str]:
    """Predicts every scan that has no mask yet, or this process's share of them; returns a line for
    each that failed. noted: signals that came in. Stopped where one left scans undone."""
    device, precision = set_up(arguments.device, arguments.precision)
    if doubt_about(device):
        say(doubt_about(device))
    rank, world = join_processes(torch.device("cpu"))

    runs = arguments.model or [DEFAULT_RUN]
    members, recipe, said = load_networks(runs, arguments.folds)
    crossed = arguments.cross_validation
    found, scans = find_scans(arguments.scans, arguments.out, members, recipe, crossed=crossed)
    job = as_job(arguments, members, precision)
    decide = partial(plan_masks, arguments.out, job, scans, overwrite=arguments.overwrite)
    plan = decided_by_first(rank, world, decide)
    if rank == 0:
        print(*said, found.summary(), *plan.said, sep="\n", flush=True)

    waiting = share_of(plan.waiting, rank, world)
    ready = make_ready(
        members,
        recipe,
        device,
        precision,
        largest=bytes_of_largest(scans),
        compiling=arguments.compile,
        windows=windows_of(waiting, mirroring=not arguments.no_mirroring),
        say=say,
    )
    ranges = [member.ranges for member in members]
    work = Work(arguments, ready, ranges, plan.edited, noted)
    if rank == 0:
        keep_table_if_possible(arguments.out)  # less the masks that are gone

    stamps = {}
    try:
        failed = predict_scans(waiting, work, stamps)
        stamps = gathered(stamps, world)  # torchrun stops all processes once one has failed
    finally:
        if rank == 0:
            keep_stamps_if_possible(arguments.out, plan.record, stamps)
            keep_table_if_possible(arguments.out)
    if rank != 0:
        return failed
    are_labelled = all(case.labels for case in found.cases)
    if crossed and are_labelled and not failed:
        say(f"what they score, worst cases first: {scoring_command(arguments, found)}")
    return plan.failed + failed


def predict_scans(scans: list[Scan], work: Work, stamps: dict[str, dict]) -> list[str]:
    """Two threads take scans: one reads, prepares or writes its own while the device works for the
    other. Scans that find no memory beside another's are tried once more, alone. Puts into `stamps`
    what prediction.json is to say of each mask; returns a line for each scan that failed. Stopped
    where the run was told to stop before all were done."""
    began = monotonic()
    done, crowded = [], []

    def attempt(scan: Scan, *, alone: bool = False) -> str | None:
        if work.stop:
            raise Stopped

        failed = None
        try:
            said, stamps[scan.mask.name] = predict_scan(scan, work)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if is_out_of_memory(error) and not alone and len(scans) > 1:
                crowded.append(scan)
                say(f"{scan.id}: no memory beside another scan; tried alone at the end")
                return None
            failed = failure(scan, error)
            said = f"failed: {failed}"

        done.append(scan)
        left = (monotonic() - began) / len(done) * (len(scans) - len(done))
        say(f"{scan.id}: {said} ({len(done)} of {len(scans)}, {left:.0f} s left)")
        return failed

    with ThreadPoolExecutor(2) as threads:
        tried = list(threads.map(attempt, scans))
    tried += [attempt(scan, alone=True) for scan in crowded]
    return [failed for failed in tried if failed]


def predict_scan(scan: Scan, work: Work) -> tuple[str, dict]:
    """Writes a scan's mask, unless one that was edited stays, and its probabilities if wanted.
    Returns what was found, in a line, and what prediction.json is to say of scan and mask."""
    volume, scan_stamp = read_scan(scan, work)
    doubted = doubts(volume)
    for doubt in doubted:
        say(f"warning: {doubt}")
    check_size(volume, work.ready)

    own_masks = []
    keep_probabilities = None
    if work.arguments.probabilities:
        keep_probabilities = partial(write_probabilities, scan, volume)

    labels = labels_of(
        volume,
        work.ready,
        [work.ready.networks[number] for number in scan.networks],
        mirroring=not work.arguments.no_mirroring,
        on_window=watch(scan.id, work.stop),
        on_mask=own_masks.append if len(scan.networks) > 1 else None,
        on_probabilities=keep_probabilities,
        device_turn=work.device_turn,  # one scan's probabilities at a time, until they are labels
    )

    ranges = [work.ranges[number] for number in scan.networks]
    found = findings_of(volume, labels, own_masks, work.ready.recipe, ranges, doubted)
    if found.unlike_training:
        say(f"warning: {scan.path}: unlike the training data: {'; '.join(found.unlike_training)}")

    findings = asdict(found)
    stamps = {"scan": scan_stamp, "findings": findings}
    if scan.mask.name not in work.edited:
        noted = noted_mask(scan.mask, scan_stamp, findings)
        with named_if_not_written(scan.mask), noted as built:
            write_labels(built, labels, volume)
        stamps["mask"] = stamp(scan.mask, contents=True)
    return found.line(), stamps


# --- what the command line says -------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description="Predict kidney (1) and tumor (2) masks of abdominal CT scans."
    )
    parser.add_argument(
        "--in",
        dest="scans",
        type=typed_path,
        required=True,
        help="a scan, a folder of scans or of cases",
    )
    parser.add_argument("--out", type=typed_path, required=True, help="folder for the masks")
    parser.add_argument(
        "--model",
        type=typed_path,
        nargs="+",
        action="extend",
        help=f"run folders, averaged (default {DEFAULT_RUN})",
    )
    parser.add_argument(
        "--folds",
        type=fold_name,
        nargs="+",
        action="extend",
        metavar="N",
        help="only these folds, numbers; or all, the network that saw all cases",
    )
    parser.add_argument(
        "--no-mirroring",
        action="store_true",
        help="an eighth of the work: each window once, not in all eight mirror images",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="of kidney and tumor, and their entropy, into OUT/probabilities",
    )
    parser.add_argument(
        "--cross-validation", action="store_true", help="each case by networks that held it out"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="predict scans again that have a mask"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ..., mps")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument(
        "--compile",
        choices=["auto", "on", "off"],
        default="auto",
        help="the networks by torch.compile; auto: on a GPU, where its minute is earned back",
    )
    add_reading_options(parser, of="a scan")
    return parser.parse_args()


def scoring_command(arguments: argparse.Namespace, found: Found) -> str:
    """The evaluate.py that compares the masks with the labels beside the scans, for a shell."""
    script = Path(sys.argv[0]).with_name("evaluate.py")
    words = ["python", script, "--pred", arguments.out, "--ref", arguments.scans, "--out", "report"]
    if found.left_out:
        words.append("--allow-missing")
    if arguments.affine:
        words += ["--affine", arguments.affine]
    if arguments.assume_spacing:
        words += ["--assume-spacing", *arguments.assume_spacing]
    if arguments.max_voxels != MAX_VOXELS:
        words += ["--max-voxels", arguments.max_voxels]
    return shlex.join([str(word) for word in words])


def fold_name(text: str) -> str:
    """A fold of the command line as train.py names it: "0", "12" or "all"."""
    if text == "all":
        return text
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text}: wanted a fold's number, 0 or more, or all")
    return str(int(text))


def as_job(arguments: argparse.Namespace, members: list[Member], precision: torch.dtype) -> Job:
    """What prediction.json says of this run, as JSON gives it back."""
    job = {
        "networks": [member.as_record() for member in members],
        "mirroring": not arguments.no_mirroring,
        "precision": str(precision).removeprefix("torch."),
        "cross_validation": arguments.cross_validation,
        "probabilities": arguments.probabilities,
        "affine": arguments.affine,
        "assume_spacing": arguments.assume_spacing,
    }
    return Job(**json.loads(json.dumps(job)))


# --- a scan's files and its line ------------------------------------------------------------------


def read_scan(scan: Scan, work: Work) -> tuple[Volume, dict]:
    """The scan, and what its file looked like. ValueError for one that changed meanwhile."""
    before = stamp(scan.path)
    volume = read_volume(scan.path, **vars(chosen_reading(work.arguments)))
    read = stamp(scan.path, contents=True)
    if before != {name: read[name] for name in before}:
        raise ValueError(f"{scan.path}: was changed while it was read; run predict.py again")
    return volume, read


def write_probabilities(scan: Scan, volume: Volume, probabilities: torch.Tensor) -> None:
    """(K, Z, Y, X), resampled -> a file for each structure, and one of the entropy, on the scan's
    own grid: bytes, which the header's slope makes 0 to 1."""
    for what, path in scan.probabilities.items():
        if what == "entropy":
            coarse = entropy(probabilities)
        else:
            coarse = probabilities[CLASSES.index(what)]
        native = resample(
            coarse.cpu().numpy(), volume.voxels.shape, label_orders(volume.spacing_mm)
        )
        with named_if_not_written(path):
            write_labels(path, np.rint(255 * native), volume, slope=1 / 255)


@contextmanager
def named_if_not_written(path: Path) -> Iterator[None]:
    """A file that cannot be written is named, not the scan alone that it is of."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}); is the disk full?") from None


def failure(scan: Scan, error: Exception) -> str:
    """A scan's failure in a line that names its file. A RuntimeError that is not about memory is
    nothing that a scan can cause, and is raised again."""
    if is_out_of_memory(error):
        return (
            f"{scan.path}: {what_memory_lacked(error)}; is its spacing right? --assume-spacing "
            "Z Y X (mm) gives another, --device another device"
        )
    if isinstance(error, RuntimeError):
        raise error

    lines = str(error).splitlines()
    said = lines[0] if lines else type(error).__name__
    return said if said.startswith(str(scan.path)) else f"{scan.path}: {said}"


def say(line: str) -> None:
    """A line in one piece, since two threads speak."""
    print(f"{line}\n", end="", flush=True)


def watch(what: str, stop: list[int]) -> Callable[[float, int], None]:
    """A function that is told the windows done: it ends a run that was told to stop, and shows, on
    a terminal, the part that is done and the time left."""
    began = monotonic()
    shown = sys.stdout.isatty()

    def on_window(done: float, total: int) -> None:
        if stop:
            raise Stopped
        if shown:
            left = (monotonic() - began) / done * (total - done)
            print(
                f"\r{what}: {100 * done / total:.0f}% of {total} windows, {left:.0f} s left ",
                end="\r",
                flush=True,
            )

    return on_window


def bytes_of_largest(scans: list[Scan]) -> int:
    """About what the largest scan takes in memory."""
    return UNPACKED * max(scan.path.stat().st_size for scan in scans)


def windows_of(scans: list[Scan], *, mirroring: bool) -> int:
    """About how many windows networks are to see, mirrored ones counted: as if each scan were the
    data set's median."""
    networks = sum(len(scan.networks) for scan in scans)
    images = len(FLIPS) if mirroring else 1
    return networks * images * WINDOWS_OF_THE_MEDIAN


# --- several processes of one run (torchrun) ------------------------------------------------------


def decided_by_first(rank: int, world: int, decide: Callable[[], Plan]) -> Plan:
    """What `decide` gives on the first of `world` processes, on each of them. Where it refuses, all
    end, and the first says why."""
    if world == 1:
        return decide()

    answer, refusal = [None], None
    if rank == 0:
        try:
            answer = [decide()]
        except (ValueError, OSError) as error:
            refusal = error
    distributed.broadcast_object_list(answer)
    if refusal:
        raise refusal
    if answer[0] is None:
        sys.exit(2)
    return answer[0]


def share_of(scans: list[Scan], rank: int, world: int) -> list[Scan]:
    """Those that this process predicts; the largest first, where others wait for the last."""
    if world == 1:
        return scans
    scans = sorted(scans, key=lambda scan: scan.path.stat().st_size, reverse=True)
    return scans[rank::world]


def gathered(stamps: dict[str, dict], world: int) -> dict[str, dict]:
    """The entries of all processes, on each of them, once all have theirs."""
    if world == 1:
        return stamps
    parts: list[dict] = [{}] * world
    distributed.all_gather_object(parts, stamps)
    together = {}
    for part in parts:
        together.update(part)
    return together


def keep_stamps_if_possible(out: Path, record: dict, stamps: dict[str, dict]) -> None:
    """prediction.json says already what matters; that it cannot take more is a warning."""
    try:
        keep_stamps(out, record, stamps)
    except OSError as error:
        print(f"warning: {out}: prediction.json does not say how the masks look ({error})")


def keep_table_if_possible(out: Path) -> None:
    """prediction.csv says in a row a mask what prediction.json says; that it cannot be written is a
    warning. Where there is no mask yet, there is none."""
    path = out / "prediction.csv"
    of_masks = rows(read_record(out)["scans"])
    try:
        if of_masks:
            write_text(path, as_csv(of_masks))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        print(f"warning: {path}: not written ({error}); prediction.json says the same")


if __name__ == "__main__":
    main()
