"""Import of networks that nnU-Net v1 trained: python -m minikits.nnunet FILE.model

Its networks are ours, so its weights are taken one by one, in the order of ours. A file `*.model`
holds a dictionary with `state_dict`; the pickle beside it (`*.model.pkl`) is not read.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from minikits.checkpoints import load_network, load_plain, save_checkpoint
from minikits.files import read_json, typed_path
from minikits.paper import ARCHITECTURES, recipe_from
from minikits.recipe import Recipe
from minikits.unet import build_unet

# How the names of its weights begin, in the order of ours; within a group both follow the forward
# pass.
DECODER = (
    "decoder.tus",
    "decoder.stages",
    "decoder.deep_supervision_outputs",
    "decoder.segmentation_output",
)
GROUPS = {
    "plain": ("conv_blocks_context", "tu", "conv_blocks_localization", "seg_outputs"),
    "residual": ("encoder", *DECODER),
    "preactivation": ("encoder", "norm_nonlins", *DECODER),
}
UPSAMPLING = {"plain": "tu", "residual": "decoder.tus", "preactivation": "decoder.tus"}

# what a network's weights do not tell
GEOMETRY = ("spacing_mm", "patch", "window_hu", "mean_hu", "sd_hu")


def import_nnunet(path: Path, arch: str, geometry: dict, out: Path) -> Recipe:
    """Writes nnU-Net v1's checkpoint `path` as one of ours, `out`; returns its recipe.

    geometry: a dictionary of GEOMETRY as the network was trained and, if its axes were not Z Y X,
    "axes": "ZXY" or the like. The weights tell the rest of the recipe. ValueError where anything
    does not fit; nothing is written then.
    """
    path = Path(path)
    axes, geometry = _checked_geometry(geometry)
    if out.exists():
        raise ValueError(f"{out}: exists already; choose another --out")

    named_weights, epoch = _read(path)
    weights = _in_our_order(named_weights, arch, path)
    structure = _structure(named_weights, arch)
    as_trained = recipe_from({**structure, **geometry}, source=str(path))

    turn = [axes.index(axis) for axis in "ZYX"]
    recipe = _turned_recipe(as_trained, turn)
    with torch.device("meta"):
        names = list(build_unet(arch, recipe).state_dict())
    if len(weights) != len(names):
        raise ValueError(
            f"{path}: holds {len(weights)} weights, wanted {len(names)} of a {arch} network of its "
            "strides"
        )

    turned = [_turned_weight(weight, turn) for weight in weights]
    content = {
        "arch": arch,
        "recipe": asdict(recipe),
        "fold": "imported",
        "cases": {"train": [], "validation": []},
        "seed": 0,
        "iteration": epoch * recipe.batches_per_epoch,
        "log": [],
        "optimizer": {},
        "network": dict(zip(names, turned)),
    }
    load_network({**content, "recipe": recipe}, path)  # refuses what does not fit
    save_checkpoint(out, **content)
    return recipe


def _checked_geometry(geometry):
    """(axes, the others): what the user says of how the network was trained."""
    others = dict(geometry) if isinstance(geometry, dict) else {}
    axes = others.pop("axes", "ZYX")
    missing = [name for name in GEOMETRY if name not in others]
    if missing or sorted(str(axes)) != ["X", "Y", "Z"]:
        raise ValueError(
            f"geometry: no {', '.join(missing) or 'axes like ZXY'} in it; wanted "
            f"{', '.join(GEOMETRY)} as the network was trained, and its axes if not ZYX; "
            f"found {axes!r}"
        )
    return axes, others


# --- the file -------------------------------------------------------------------------------------


def _read(path):
    """({name: weight}, how many epochs it was trained). What nnU-Net names twice comes once."""
    with torch.serialization.safe_globals(_numpy_scalars()):
        content = load_plain(path, {"state_dict": dict}, "nnU-Net v1")

    weights = content["state_dict"]
    if not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise ValueError(
            f"{path}: its state_dict holds more than tensors; wanted a checkpoint of nnU-Net v1"
        )
    named_once = {name: weight for name, weight in weights.items() if ".all." not in name}

    epoch = content.get("epoch")
    if type(epoch) is not int:
        epoch = 0
    return named_once, epoch


def _numpy_scalars():
    """What torch has to be allowed to load nnU-Net's list of losses, which are numpy's scalars."""
    scalar = np._core.multiarray.scalar
    scalars = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i8")]
    return [np.dtype, *kinds, *scalars]


def _in_our_order(weights, arch, path):
    """The weights as our network has them. ValueError for those of another architecture."""
    groups = {}
    for beginning in GROUPS[arch]:
        groups[beginning] = [name for name in weights if name.startswith(f"{beginning}.")]

    sizes = [len(names) for names in groups.values()]
    if 0 in sizes or sum(sizes) < len(weights):
        found = sorted({name.split(".")[0] for name in weights})
        raise ValueError(
            f"{path}: holds {', '.join(found)}, wanted {', '.join(GROUPS[arch])} of a {arch} "
            "network; is it of another architecture?"
        )

    if arch == "preactivation":  # its skips count from the top, ours from below
        groups["norm_nonlins"].sort(key=lambda name: int(name.split(".")[1]), reverse=True)
    return [weights[name] for names in groups.values() for name in names]


def _structure(weights, arch):
    """The fields of a recipe that the shapes of a network's weights tell."""
    upsampling = []  # shapes (features below, features, z, y, x), the coarsest first
    for name, weight in weights.items():
        if name.startswith(f"{UPSAMPLING[arch]}."):
            upsampling.append(weight.shape)
    strides = [(1, 1, 1)]
    for shape in reversed(upsampling):
        strides.append(tuple(shape[2:]))

    blocks = [_residual_blocks(weights, stage) for stage in range(len(strides))]
    first = "plain_features" if arch == "plain" else "residual_features"
    return {
        "stage_strides": strides,
        first: upsampling[-1][1],
        "max_features": upsampling[0][0],
        "residual_blocks": blocks,
    }


def _residual_blocks(weights, stage):
    """How many blocks a stage of the encoder has; 1, of no meaning, in a plain network."""
    start, end = f"encoder.stages.{stage}.", ".conv1.weight"
    count = sum(name.startswith(start) and name.endswith(end) for name in weights)
    return max(count, 1)


# --- axes -----------------------------------------------------------------------------------------


def _turned_recipe(recipe, turn):
    """The recipe of the same network with axes Z Y X; turn: where each of these is in the old."""

    def turned(values):
        return tuple(values[axis] for axis in turn)

    return replace(
        recipe,
        spacing_mm=turned(recipe.spacing_mm),
        patch=turned(recipe.patch),
        stage_strides=tuple(turned(stride) for stride in recipe.strides),
    )


def _turned_weight(weight, turn):
    """A kernel (out, in, *axes) with axes Z Y X; other weights as they are."""
    if weight.ndim != 5:
        return weight
    axes = [2 + axis for axis in turn]
    return weight.permute(0, 1, *axes).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description="Use networks that nnU-Net v1 trained.")
    parser.add_argument("model", type=typed_path, help="a file *.model of nnU-Net v1")
    parser.add_argument("--arch", choices=ARCHITECTURES, required=True)
    parser.add_argument(
        "--geometry", type=typed_path, required=True, help=f"JSON object of {', '.join(GEOMETRY)}"
    )
    parser.add_argument(
        "--out", type=typed_path, required=True, help="runs/imported/fold0/checkpoint.pt"
    )
    arguments = parser.parse_args()

    try:
        geometry = read_json(arguments.geometry)
        recipe = import_nnunet(arguments.model, arguments.arch, geometry, arguments.out)
    except (ValueError, OSError) as error:
        parser.exit(2, f"nnunet: {error}\n")

    activation = "LeakyReLU" if arguments.arch == "plain" else "ReLU"
    print(f"{arguments.out}: strides {recipe.strides}; {activation} taken for granted")


if __name__ == "__main__":
    main()
