"""From scans to masks: python predict.py --in scans/ --out masks/"""

import argparse
import json
import re
import signal
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from time import monotonic

import numpy as np
import torch
from torch import distributed

from minikits.cases import find_cases, training_cases
from minikits.checkpoints import find_checkpoints, load_checkpoint, load_network
from minikits.devices import claim_memory, join_processes, pick_device, pick_precision
from minikits.files import read_json, write_text
from minikits.paper import CLASSES, FOLDS
from minikits.prediction import predict_probabilities
from minikits.resampling import label_orders, labels_on_native_grid, prepare_image, resample
from minikits.volumes import MAX_VOXELS, doubts, read_volume, write_labels

SHARED = ("spacing_mm", "window_hu", "mean_hu", "sd_hu", "patch")  # what networks need in common to be averaged
Scan = namedtuple("Scan", "id path mask networks")  # mask: where it goes; networks: those to be averaged


def main():
    parser = argparse.ArgumentParser(description="Predict kidney (1) and tumor (2) masks of abdominal CT scans.")
    parser.add_argument("--in", dest="scans", type=Path, required=True, help="a scan, a folder of scans or of cases")
    parser.add_argument("--out", type=Path, required=True, help="folder for the masks")
    parser.add_argument("--model", type=Path, nargs="+", default=[Path("runs/residual")], help="run folders, averaged")
    parser.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS), metavar="N", help="only these folds")
    parser.add_argument("--no-mirroring", action="store_true", help="an eighth of the work, slightly less accurate")
    parser.add_argument("--probabilities", action="store_true", help="of kidney and tumor, into OUT/probabilities")
    parser.add_argument("--cross-validation", action="store_true", help="each case by networks that did not see it")
    parser.add_argument("--overwrite", action="store_true", help="predict scans again that have a mask")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--affine", choices=["sform", "qform"], help="which to take where they or pixdim differ")
    parser.add_argument("--assume-spacing", type=float, nargs=3, metavar=("Z", "Y", "X"), help="mm; axes as KiTS19's")
    parser.add_argument("--max-voxels", type=int, default=MAX_VOXELS, help="of a scan (default %(default)s)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, in all threads; masks appear whole
    try:
        failed = predict(arguments)
    except (ValueError, OSError) as error:
        failed = [error]
    parser.exit(2 if failed else 0, "".join(f"predict.py: {line}\n" for line in failed))


def predict(arguments):
    """Predicts every scan that has no mask yet, or this process's share; returns a line for each that failed."""
    device, (rank, world) = pick_device(arguments.device), join_processes(torch.device("cpu"))
    claim_memory(device)
    networks, recipe, about = load_networks(arguments)
    scans, path = find_scans(arguments, networks, recipe), arguments.out / "prediction.json"
    kept = {*arguments.out.glob("*.nii.gz")} - {scan.mask for scan in scans if arguments.overwrite}
    others = (read_json(path) if path.exists() else None) != about
    if kept and others:
        raise ValueError(f"{path}: the masks here are of other networks or options; choose another folder with --out")
    scans = sorted(scans, key=lambda scan: -scan.path.stat().st_size)[rank::world] if world > 1 else scans
    waiting = [scan for scan in scans if scan.mask not in kept]
    if done := len(scans) - len(waiting):
        print(f"{done} of {len(scans)} scans have a mask already; --overwrite predicts them again")
    for scan in waiting if others else ():  # theirs must not be taken for these networks' masks if this is killed
        scan.mask.unlink(missing_ok=True)
    write_text(path, json.dumps(about, indent=1))
    failed = predict_scans(waiting, recipe, arguments, device)
    if world > 1:
        distributed.barrier()  # torchrun stops all processes once one has failed
    return failed


def find_scans(arguments, networks, recipe):
    """A Scan for each image: to be averaged are all networks, or in cross-validation those not trained on the case."""
    crossed = arguments.cross_validation
    cases = training_cases(arguments.scans, recipe) if crossed else find_cases(arguments.scans)
    files = [path for case in cases for path in (case.image, case.labels) if path]
    if arguments.out.resolve() in {place for path in files for place in (path.parent.resolve(), path.resolve().parent)}:
        raise ValueError(f"{arguments.out}: scans or labels lie there; choose another folder for the masks with --out")
    scans = []
    for case in cases:
        kits19 = case.image and case.image.name.startswith("imaging.")  # its masks are named as the challenge wants
        name = re.sub(r"^case_(?=\d{5}$)", "prediction_", case.id) if kits19 else case.id
        suited = [network for network, seen in networks if not crossed or (seen and case.id not in seen)]
        scans += [Scan(case.id, case.image, arguments.out / f"{name}.nii.gz", suited)] if case.image else []
    if not scans:
        raise ValueError(f"{arguments.scans}: no scan found, only labels; wanted imaging.nii.gz or images/")
    if refused := [scan.id for scan in scans if not scan.networks]:
        print(f"{len(refused)} cases may have been seen by every network ({', '.join(refused[:5])}) and are left out")
    if len(refused) == len(scans):
        raise ValueError(f"{arguments.scans}: nothing is left to cross-validate; name other runs or folds")
    return [scan for scan in scans if scan.networks]


def predict_scans(scans, recipe, arguments, device):
    """Two threads take scans: one reads, prepares or writes its own while the device works for the other."""
    precision, device_free = pick_precision(arguments.precision, device), Lock()
    started, done = monotonic(), []

    def work(scan, failed=None):
        try:
            volume = read_volume(scan.path, affine=arguments.affine, assume_spacing=arguments.assume_spacing,
                                 max_voxels=arguments.max_voxels)
            print(*(f"warning: {doubt}\n" for doubt in doubts(volume)), end="", sep="", flush=True)
            image = prepare_image(volume, recipe)
            with device_free:
                probabilities = predict_probabilities(
                    scan.networks, image, recipe, not arguments.no_mirroring, device=device, precision=precision,
                    on_window=progress(scan.id))
            labels = labels_on_native_grid(probabilities, volume)
            for value, structure in list(enumerate(CLASSES))[1:] if arguments.probabilities else ():
                native = resample(probabilities[value].cpu(), labels.shape, label_orders(volume.spacing_mm))
                path = arguments.out / "probabilities" / scan.mask.name.replace(".nii", f"_{structure}.nii")
                write_labels(path, np.rint(255 * native), volume, slope=1 / 255)
            write_labels(scan.mask, labels, volume)
            kidney, tumor = (np.count_nonzero(labels == value) * np.prod(volume.spacing_mm) / 1000 for value in (1, 2))
            said = f"kidney {kidney:.0f} ml, tumor {tumor:.0f} ml"
        except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            said, failed = f"failed: {error}", str(error)
        done.append(scan)
        left = (monotonic() - started) / len(done) * (len(scans) - len(done))
        print(f"{scan.id}: {said} ({len(done)} of {len(scans)}, {left:.0f} s left)", flush=True)
        return failed

    with ThreadPoolExecutor(2) as threads:
        return [failed for failed in threads.map(work, scans) if failed]


def load_networks(arguments):
    """([(network, ids it was trained on)], the recipe they share, what prediction.json says of them).
    Refuses networks that see images differently. They stay in the computer's memory, and go to the device in turn."""
    networks, about, recipe = [], [], None
    for path in [path for run in arguments.model for path in find_checkpoints(run, arguments.folds)]:
        checkpoint = load_checkpoint(path)
        recipe = recipe or checkpoint["recipe"]
        for name in SHARED:
            if (ours := getattr(checkpoint["recipe"], name)) != (theirs := getattr(recipe, name)):
                raise ValueError(f"{path}: {name} is {ours}, but {theirs} in the first; average networks of one recipe")
        networks.append((load_network(checkpoint, path).eval(), checkpoint["cases"]["train"]))
        about.append({name: checkpoint.get(name) for name in ("arch", "fold", "seed", "epoch")})
        about[-1]["weights"] = f"{sum(v.double().sum().item() for v in checkpoint['network'].values()):.12g}"  # which
        print(f"{path}: {', '.join(f'{name} {value}' for name, value in about[-1].items())}")
    return networks, recipe, {
        "networks": about, "mirroring": not arguments.no_mirroring, "precision": arguments.precision,
        "cross_validation": arguments.cross_validation,
        "trained_on": [] if arguments.cross_validation else sorted({id for _, seen in networks for id in seen})}


def progress(what):
    """Writes, on a terminal, the windows done and the time left."""
    began = monotonic()
    def show(done, total):
        left = (monotonic() - began) / done * (total - done)
        print(f"\r{what}: {100 * done / total:.0f}% of {total} windows, {left:.0f} s left ", end="\r", flush=True)
    return show if sys.stdout.isatty() else None


if __name__ == "__main__":
    main()
