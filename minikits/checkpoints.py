"""Checkpoints: written whole or not at all; nothing in them can run.

A checkpoint is a dictionary of plain data and tensors: arch, recipe (its fields), fold, cases ({"train": ids,
"validation": ids}), seed, epoch (how many are done), batch and loss_sum (of the next one), network, optimizer,
scaler, log (rows of log.csv), environment (versions). Loading is torch's `weights_only=True`, with no way around it.

    python -m minikits.checkpoints import-nnunet model_final_checkpoint.model --arch plain --geometry geometry.json \\
        --out runs/imported/fold0/checkpoint.pt
"""

import argparse
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from minikits.files import read_json, written_whole
from minikits.paper import ARCHITECTURES, recipe_from
from minikits.unet import build_unet

FORMAT = 1
KEYS = {"format": int, "arch": str, "recipe": dict, "cases": dict, "seed": int, "epoch": int, "network": dict,
        "optimizer": dict, "scaler": dict, "log": list}


def save_checkpoint(path, **content):
    with written_whole(path) as file:
        torch.save({"format": FORMAT, **content}, file)


def _plain_data(path, wanted):
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; wanted {wanted}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damage can surface anywhere in the reader
        raise ValueError(f"{path}: damaged, or holds more than plain tensors, which is not loaded; wanted "
                         f"{wanted}") from None


def load_checkpoint(path):
    """The dictionary, tensors on the CPU, `recipe` as a Recipe. ValueError for what `save_checkpoint` did not write."""
    path = Path(path)
    content = _plain_data(path, "a checkpoint that train.py wrote")
    for key, kind in KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(f"{path}: holds no {key!r} ({kind.__name__}); wanted a checkpoint that train.py wrote")
    if content["format"] != FORMAT or content["arch"] not in ARCHITECTURES:
        raise ValueError(f"{path}: format {content['format']}, architecture {content['arch']!r}; wanted "
                         f"{FORMAT} and one of {', '.join(ARCHITECTURES)}")
    content["recipe"] = recipe_from(content["recipe"], source=str(path))
    return content


def load_weights(network, checkpoint, path):
    """Puts a checkpoint's weights into a network built for it; refuses where names or shapes differ."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(getattr(value, "shape", ())) for name, value in checkpoint["network"].items()}
    differing = sorted(set(wanted.items()) ^ set(found.items()))
    if differing:
        name = differing[0][0]
        raise ValueError(f"{path}: weight {name} has shape {found.get(name, '(absent)')}, wanted "
                         f"{wanted.get(name, 'no such weight')} for the {checkpoint['arch']} network of its recipe")
    network.load_state_dict(checkpoint["network"])
    return network


def find_checkpoints(run, folds=None):
    """The checkpoints of a run folder (runs/residual holds fold0/checkpoint.pt, ...): all, or those of `folds`."""
    run = Path(run)
    found = sorted(run.glob("fold*/checkpoint.pt")) or sorted(run.glob("checkpoint.pt"))
    if folds is not None:
        found = [run / f"fold{fold}" / "checkpoint.pt" for fold in folds]
    if not found:
        raise FileNotFoundError(f"{run / 'fold0' / 'checkpoint.pt'}: no such checkpoint; wanted a run of train.py")
    return found


# nnU-Net v1's weights, in the order of ours: how their names begin. Within a group both follow the forward pass.
NNUNET_ORDER = {
    "plain": ("conv_blocks_context", "tu", "conv_blocks_localization", "seg_outputs"),
    "residual": ("encoder", "decoder.tus", "decoder.stages", "decoder.deep_supervision_outputs",
                 "decoder.segmentation_output")}
NNUNET_ORDER["preactivation"] = ("encoder", "norm_nonlins", *NNUNET_ORDER["residual"][1:])
GEOMETRY = ("spacing_mm", "patch", "window_hu", "mean_hu", "sd_hu")  # what a network's weights do not tell


def import_nnunet(path, arch, geometry, out):
    """Writes nnU-Net v1's checkpoint `path` (`.model`; the pickle beside it is not read) as one of ours: its Recipe.

    geometry: a dictionary of GEOMETRY as the network was trained and, if its axes were not Z Y X, "axes": "ZXY".
    The weights tell strides, features and blocks, but not nonlinearities: ReLU, LeakyReLU in the plain network.
    ValueError where anything is missing or does not fit; nothing is written then.
    """
    geometry, path, out = dict(geometry) if isinstance(geometry, dict) else {}, Path(path), Path(out)
    axes, missing = geometry.pop("axes", "ZYX"), [name for name in GEOMETRY if name not in geometry]
    if missing or sorted(str(axes)) != ["X", "Y", "Z"]:
        raise ValueError(f"geometry: {'no ' + ', '.join(missing) if missing else f'axes {axes!r}'}; wanted "
                         f"{', '.join(GEOMETRY)} as the network was trained, and axes like ZXY if not ZYX")
    if out.exists():
        raise ValueError(f"{out}: exists already; choose another --out")
    weights, epoch = _nnunet_weights(path, arch)
    recipe = recipe_from({**_structure(weights, arch, path), **geometry}, source=str(path))
    turn = [axes.index(axis) for axis in "ZYX"]
    recipe = replace(recipe, stage_strides=tuple(tuple(stride[axis] for axis in turn) for stride in recipe.strides), **{
        name: tuple(getattr(recipe, name)[axis] for axis in turn) for name in ("spacing_mm", "patch")})
    network = build_unet(arch, recipe)
    ours = network.state_dict()
    if len(weights) != len(ours):
        raise ValueError(f"{path}: holds {len(weights)} weights, wanted {len(ours)}; was it another network?")
    turned = [value.permute(0, 1, *(2 + axis for axis in turn)).contiguous() if value.ndim == 5 else value
              for value in weights.values()]
    content = {"arch": arch, "recipe": asdict(recipe), "fold": "imported", "cases": {"train": [], "validation": []},
               "seed": 0, "epoch": epoch, "log": [], "optimizer": {}, "scaler": {}, "network": dict(zip(ours, turned))}
    load_weights(network, content, path)
    save_checkpoint(out, **content)
    return recipe


def _nnunet_weights(path, arch):
    """({their name: tensor}, in the order of ours, epochs trained)."""
    numbers = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8"))] + [
        (np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals(numbers):  # nnU-Net keeps its losses as numpy's scalars
        content = _plain_data(path, "a checkpoint of nnU-Net v1")
    theirs = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(theirs, dict) or not all(isinstance(value, torch.Tensor) for value in theirs.values()):
        raise ValueError(f"{path}: holds no 'state_dict' of tensors; wanted a checkpoint of nnU-Net v1")
    names = [name for name in theirs if ".all." not in name]  # which are the same weights once more
    groups = [[name for name in names if name.startswith(f"{prefix}.")] for prefix in NNUNET_ORDER[arch]]
    if not all(groups) or sum(map(len, groups)) < len(names):
        found = sorted({name.split(".")[0] for name in names})
        raise ValueError(f"{path}: holds {found}, wanted {NNUNET_ORDER[arch]}; is it of another architecture?")
    if arch == "preactivation":
        groups[1].sort(key=lambda name: -int(name.split(".")[1]))  # their skips count from the top, ours from below
    epoch = content.get("epoch")
    return {name: theirs[name] for group in groups for name in group}, epoch if type(epoch) is int else 0


def _structure(weights, arch, path):
    """The recipe's fields that the weights tell."""
    up = [value.shape for name, value in weights.items() if name.startswith(("tu.", "decoder.tus."))]
    if any(len(shape) != 5 for shape in up):
        raise ValueError(f"{path}: a 2D network; wanted a 3D one")
    blocks = set(re.findall(r"encoder\.stages\.(\d+)\.convs\.(\d+)", " ".join(weights)))
    return {"stage_strides": [(1, 1, 1), *(tuple(shape[2:]) for shape in reversed(up))],
            f"{'plain' if arch == 'plain' else 'residual'}_features": up[-1][1], "max_features": up[0][0],
            "residual_blocks": [max(1, sum(s == str(stage) for s, _ in blocks)) for stage in range(len(up) + 1)]}


def main():
    parser = argparse.ArgumentParser(description="Use networks that nnU-Net v1 trained.")
    parser.add_argument("command", choices=["import-nnunet"])
    parser.add_argument("model", type=Path, help="a file *.model of nnU-Net v1")
    parser.add_argument("--arch", choices=ARCHITECTURES, required=True)
    parser.add_argument("--geometry", type=Path, required=True, help=f"JSON object of {', '.join(GEOMETRY)}")
    parser.add_argument("--out", type=Path, required=True, help="runs/imported/fold0/checkpoint.pt")
    arguments = parser.parse_args()
    try:
        recipe = import_nnunet(arguments.model, arguments.arch, read_json(arguments.geometry), arguments.out)
    except (ValueError, OSError) as error:
        parser.exit(2, f"checkpoints: {error}\n")
    print(f"{arguments.out}: {arguments.arch}, features {recipe.features(arguments.arch)}, strides {recipe.strides}; "
          f"{'LeakyReLU' if arguments.arch == 'plain' else 'ReLU'} is taken for granted, the weights do not tell")


if __name__ == "__main__":
    main()
