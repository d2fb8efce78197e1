"""Import of networks that nnU-Net v1 trained: python -m minikits.nnunet FILE.model

Its networks are ours, so its weights are taken one by one, in the order of the forward pass.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from minikits.checkpoints import load_network, load_plain, save_checkpoint
from minikits.files import read_json, typed_path
from minikits.paper import ARCHITECTURES, recipe_from
from minikits.unet import build_unet

# nnU-Net v1's weights, in the order of ours: how their names begin. Within a group both follow the forward pass.
DECODER = (
    "decoder.tus",
    "decoder.stages",
    "decoder.deep_supervision_outputs",
    "decoder.segmentation_output",
)
NNUNET_ORDER = {
    "plain": ("conv_blocks_context", "tu", "conv_blocks_localization", "seg_outputs"),
    "residual": ("encoder", *DECODER),
    "preactivation": ("encoder", "norm_nonlins", *DECODER),
}
GEOMETRY = (
    "spacing_mm",
    "patch",
    "window_hu",
    "mean_hu",
    "sd_hu",
)  # what a network's weights do not tell


def import_nnunet(path, arch, geometry, out):
    """Writes nnU-Net v1's checkpoint `path` (`.model`; the pickle beside it is not read) as one of ours: its Recipe.
    geometry: a dictionary of GEOMETRY as the network was trained and, if its axes were not Z Y X, "axes": "ZXY"; the
    weights tell the rest but the nonlinearities. ValueError where anything does not fit; nothing is written then."""
    geometry = {"axes": "ZYX", **(geometry if isinstance(geometry, dict) else {})}
    axes, missing = geometry.pop("axes"), [name for name in GEOMETRY if name not in geometry]
    if missing or sorted(str(axes)) != ["X", "Y", "Z"]:
        raise ValueError(
            f"geometry: no {', '.join(missing) or 'axes like ZXY'} in it; wanted {', '.join(GEOMETRY)} as "
            f"the network was trained, and its axes if not ZYX; found {axes!r}"
        )
    if out.exists():
        raise ValueError(f"{out}: exists already; choose another --out")
    weights, structure, epoch = _read_nnunet(Path(path), arch)
    recipe = recipe_from({**structure, **geometry}, source=str(path))
    turn = [axes.index(axis) for axis in "ZYX"]
    recipe = replace(
        recipe,
        stage_strides=tuple(tuple(stride[axis] for axis in turn) for stride in recipe.strides),
        **{
            name: tuple(getattr(recipe, name)[axis] for axis in turn)
            for name in ("spacing_mm", "patch")
        },
    )
    with torch.device("meta"):
        ours = build_unet(arch, recipe).state_dict()
    if len(weights) != len(ours):
        raise ValueError(
            f"{path}: holds {len(weights)} weights, wanted {len(ours)} of a {arch} network of its strides"
        )
    turned = [
        value.permute(0, 1, *(2 + axis for axis in turn)).contiguous() if value.ndim == 5 else value
        for value in weights
    ]
    content = {
        "arch": arch,
        "recipe": asdict(recipe),
        "fold": "imported",
        "cases": {"train": [], "validation": []},
        "seed": 0,
        "epoch": epoch,
        "log": [],
        "optimizer": {},
        "network": dict(zip(ours, turned)),
    }
    load_network({**content, "recipe": recipe}, path)
    save_checkpoint(out, **content)
    return recipe


def _read_nnunet(path, arch):
    """(the weights in the order of ours, the recipe's fields that they tell, epochs trained)."""
    numbers = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8"))] + [
        (np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar")
        for core in ("core", "_core")
    ]
    with torch.serialization.safe_globals(numbers):  # nnU-Net keeps its losses as numpy's scalars
        content = load_plain(path, {"state_dict": dict}, "nnU-Net v1")
    theirs = {
        name: value for name, value in content["state_dict"].items() if ".all." not in name
    }  # those come twice
    if not all(isinstance(value, torch.Tensor) for value in content["state_dict"].values()):
        raise ValueError(
            f"{path}: its state_dict holds more than tensors; wanted a checkpoint of nnU-Net v1"
        )
    groups = [
        [name for name in theirs if name.startswith(f"{prefix}.")] for prefix in NNUNET_ORDER[arch]
    ]
    if not all(groups) or sum(map(len, groups)) < len(theirs):
        raise ValueError(
            f"{path}: holds {', '.join(sorted({name.split('.')[0] for name in theirs}))}, wanted "
            f"{', '.join(NNUNET_ORDER[arch])} of a {arch} network; is it of another architecture?"
        )
    if arch == "preactivation":
        groups[1].sort(
            key=lambda name: -int(name.split(".")[1])
        )  # their skips count from the top, ours from below
    up = [value.shape for name, value in theirs.items() if name.startswith(("tu.", "decoder.tus."))]
    fields = {
        "stage_strides": [(1, 1, 1), *(tuple(shape[2:]) for shape in reversed(up))],
        f"{'plain' if arch == 'plain' else 'residual'}_features": up[-1][1],
        "max_features": up[0][0],
        "residual_blocks": [
            sum(
                name.startswith(f"encoder.stages.{stage}.") and name.endswith(".conv1.weight")
                for name in theirs
            )
            or 1
            for stage in range(len(up) + 1)
        ],
    }
    epoch = content.get("epoch")
    return (
        [theirs[name] for group in groups for name in group],
        fields,
        epoch if type(epoch) is int else 0,
    )


def main():
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
        recipe = import_nnunet(
            arguments.model, arguments.arch, read_json(arguments.geometry), arguments.out
        )
    except (ValueError, OSError) as error:
        parser.exit(2, f"nnunet: {error}\n")
    print(
        f"{arguments.out}: strides {recipe.strides}; {'Leaky' * (arguments.arch == 'plain')}ReLU taken for granted"
    )


if __name__ == "__main__":
    main()
