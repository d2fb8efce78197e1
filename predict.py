"""From scans to masks: python predict.py --in scans/ --out masks/"""

import argparse
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch

from minikits.cases import find_cases
from minikits.checkpoints import find_checkpoints, load_checkpoint, load_weights
from minikits.devices import pick_device
from minikits.paper import FOLDS
from minikits.prediction import predict_volume
from minikits.unet import build_unet
from minikits.volumes import read_volume, write_labels

SHARED = ("spacing_mm", "window_hu", "mean_hu", "sd_hu", "patch")  # what networks need in common to be averaged


def main():
    parser = argparse.ArgumentParser(description="Predict kidney (1) and tumor (2) masks of abdominal CT scans.")
    parser.add_argument("--in", dest="scans", type=Path, required=True,
                        help="a scan, a folder of *.nii and *.nii.gz, or a KiTS19 folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the masks")
    parser.add_argument("--model", type=Path, nargs="+", default=[Path("runs/residual")],
                        help="run folders; all their folds are averaged")
    parser.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS), metavar="N", help="only these folds")
    parser.add_argument("--no-mirroring", action="store_true", help="an eighth of the work, slightly less accurate")
    parser.add_argument("--overwrite", action="store_true", help="predict scans again that have a mask")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    arguments = parser.parse_args()
    try:
        failed = predict(arguments)
    except (ValueError, OSError) as error:
        parser.exit(2, f"predict.py: {error}\n")
    if failed:
        parser.exit(2, "".join(f"predict.py: {line}\n" for line in failed))


def predict(arguments):
    """Predicts every scan that has no mask yet; returns a line for each that failed."""
    scans = [(case.id, case.image, arguments.out / mask_name(case.id, case.image))
             for case in find_cases(arguments.scans) if case.image]
    if not scans:
        raise ValueError(f"{arguments.scans}: no scan found, only labels; wanted imaging.nii.gz or images/")
    for _, path, mask in scans:
        if mask.resolve() == path.resolve():
            raise ValueError(f"{path}: its mask would replace it; choose another folder with --out")
    waiting = [scan for scan in scans if arguments.overwrite or not scan[-1].exists()]
    if len(waiting) < len(scans):
        print(f"{len(scans) - len(waiting)} of {len(scans)} scans have a mask already; --overwrite predicts them again")
    if not waiting:
        return []
    device = pick_device(arguments.device)
    networks, recipe = load_networks(arguments.model, arguments.folds, device)
    failed, started = [], time.monotonic()
    for number, (name, path, mask) in enumerate(waiting, 1):
        began, count = time.monotonic(), f"{number} of {len(waiting)}"
        try:
            volume = read_volume(path)
            labels = predict_volume(networks, volume, recipe, mirroring=not arguments.no_mirroring,
                                    on_window=progress(f"{name} ({count})"))
            write_labels(mask, labels, volume)
        except (ValueError, OSError) as error:
            failed.append(str(error))
            print(f"{name}: failed ({count}): {error}", flush=True)
            continue
        kidney, tumor = (np.count_nonzero(labels == value) * np.prod(volume.spacing_mm) / 1000 for value in (1, 2))
        left = (time.monotonic() - started) / number * (len(waiting) - number)
        print(f"{name}: kidney {kidney:.0f} ml, tumor {tumor:.0f} ml, "
              f"{time.monotonic() - began:.1f} s ({count}, {left:.0f} s left)", flush=True)
    return failed


def mask_name(name, path):
    """The scan's own name; for a KiTS19 case the one that the challenge takes."""
    kits = re.fullmatch(r"case_(\d{5})", name)
    return f"prediction_{kits[1]}.nii.gz" if kits and path.resolve().parent.name == name else f"{name}.nii.gz"


def load_networks(runs, folds, device):
    """Every network of the runs, and the recipe they share. Refuses networks that see images differently."""
    networks, recipe, first = [], None, None
    for path in [path for run in runs for path in find_checkpoints(run, folds)]:
        checkpoint = load_checkpoint(path)
        for name in SHARED if recipe else ():
            ours, theirs = getattr(checkpoint["recipe"], name), getattr(recipe, name)
            if ours != theirs:
                raise ValueError(f"{path}: {name} is {ours}, but {theirs} in {first}; average networks of one recipe")
        recipe, first = recipe or checkpoint["recipe"], first or path
        network = load_weights(build_unet(checkpoint["arch"], checkpoint["recipe"]), checkpoint, path)
        networks.append(network.eval().to(device, memory_format=torch.channels_last_3d))
        print(f"{path}: {checkpoint['arch']}, {checkpoint['epoch']} of {checkpoint['recipe'].epochs} epochs on "
              f"{len(checkpoint['cases']['train']) or 'unknown'} cases")
    return networks, recipe


def progress(what):
    """Writes, on a terminal, the windows done and the time left."""
    began = time.monotonic()

    def show(done, total):
        left = (time.monotonic() - began) / done * (total - done)
        print(f"\r{what}: {100 * done / total:.0f}% of {total} windows, {left:.0f} s left ", end="\r", flush=True)

    return show if sys.stdout.isatty() else None


if __name__ == "__main__":
    main()
