"""Checkpoints: written whole or not at all; nothing in them can run.

A checkpoint is a dictionary of plain data and tensors:
  arch, recipe (its fields), fold, seed, cases ({"train": ids, "validation": ids})
  checksums ({id: of the case as it was prepared})
  epoch (how many are done); of the next: batch, loss_sum, seconds_computing, seconds_waiting
  network, optimizer, log (rows of log.csv)
  departures ({"recipe", "run", "code"}: lines on what differs from the paper)
  environment (device, precision, versions)
Loading is torch's `weights_only=True`, with no way around it."""

import argparse
import pickletools
import re
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from minikits.files import read_json, typed_path, written_whole
from minikits.paper import ARCHITECTURES, recipe_from
from minikits.unet import build_unet

FORMAT = 1
KEYS = {
    "format": int,
    "arch": str,
    "fold": str,
    "recipe": dict,
    "cases": dict,
    "seed": int,
    "epoch": int,
    "network": dict,
    "optimizer": dict,
    "log": list,
}
FOLD_FOLDER = re.compile(r"fold(0|[1-9][0-9]*)")  # of one of several folds, as train.py names it
NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch DoubleStorage",
}


def save_checkpoint(path, **content):
    """Writes one, whole or not at all: OSError, naming it, where the disk does not take it."""
    try:
        with written_whole(path) as file:
            torch.save({"format": FORMAT, **content}, file)
    except (OSError, RuntimeError) as error:  # torch's writer tells a full disk by a RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        said = str(cause).splitlines()[0]
        raise OSError(
            f"{path}: cannot be written ({said}); is the disk full? What was there is as it was"
        ) from error


def _load(path, keys, writer, names=None):
    """The dictionary in a file that `writer` wrote, with at least these keys; nothing in it can run."""
    wanted = f"wanted a checkpoint of {writer}"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {wanted}")
    try:
        if (
            names
        ):  # all that it may call; torch allows more, which can take any memory, and checks no sums
            with zipfile.ZipFile(path) as file:
                odd = (
                    sum(entry.file_size for entry in file.infolist()) > path.stat().st_size
                    or file.testzip()
                )
                pickles = [
                    file.read(name) for name in file.namelist() if name.endswith(".pkl") and not odd
                ]
            calls = {
                name
                for each in pickles
                for code, name, _ in pickletools.genops(each)
                if code.name == "GLOBAL"
            }
            if odd or calls - names:
                raise ValueError
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage can surface anywhere in the reader
        raise ValueError(
            f"{path}: damaged, or holds more than plain tensors and data, which is not loaded "
            f"({type(error).__name__}); {wanted}"
        ) from None
    for key, kind in keys.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(f"{path}: holds no {key!r} ({kind.__name__}); {wanted}")
    return content


def load_checkpoint(path):
    """The dictionary, tensors on the CPU, `recipe` as a Recipe. ValueError for what `save_checkpoint` did not write."""
    content = _load(Path(path), KEYS, "train.py", NAMES)
    ids = content["cases"].get("train")
    named = isinstance(ids, list) and {*map(type, ids)} <= {str}
    if content["format"] != FORMAT or content["arch"] not in ARCHITECTURES or not named:
        raise ValueError(
            f"{path}: format {content['format']}, architecture {content['arch']!r}, cases {ids!r:.50}; "
            f"wanted format {FORMAT}, one of {', '.join(ARCHITECTURES)}, and a list of cases"
        )
    return {**content, "recipe": recipe_from(content["recipe"], source=path)}


def load_network(checkpoint, path):
    """The network of a checkpoint; refuses weights whose names, shapes or values are not those of its recipe's."""
    with torch.device("meta"):  # takes no memory, whatever the recipe says
        network = build_unet(checkpoint["arch"], checkpoint["recipe"])
    wanted, found = (
        {name: tuple(getattr(value, "shape", ())) for name, value in weights.items()}
        for weights in (network.state_dict(), checkpoint["network"])
    )
    for name in sorted({**wanted, **found}, key=str):
        here, there = found.get(name, "absent"), wanted.get(name, "absent")
        if here != there:
            raise ValueError(
                f"{path}: weight {name} is {here}, wanted {there} for the {checkpoint['arch']} network "
                "of its recipe; the file is not what it says"
            )
    if not all(value.isfinite().all() for value in checkpoint["network"].values()):
        raise ValueError(
            f"{path}: weights that are NaN or infinite; wanted finite ones, of another epoch or run"
        )
    network.load_state_dict(checkpoint["network"], assign=True)
    return network.to(torch.get_default_dtype())


def find_checkpoints(run: Path | str, folds: list | None = None) -> list[Path]:
    """The checkpoints of a run folder (runs/residual holds fold0/checkpoint.pt, ...), by their numbers.
    folds: which, numbers or "all" (the network that train.py --fold all trained). None: all numbered ones; or foldall,
    or the folder's own checkpoint.pt. Other names (fold0_old, fold0.bak) are no folds. FileNotFoundError where nothing
    is found; ValueError for a fold named twice, and where folds has to choose between numbered ones and foldall."""
    run = Path(run)
    if folds:
        names = [str(fold) for fold in folds]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"--folds {' '.join(names)}: {', '.join(twice)} is named twice, and would count twice; "
                "name each fold once"
            )
        return [run / f"fold{name}" / "checkpoint.pt" for name in names]

    numbered = [
        path for path in run.glob("fold*/checkpoint.pt") if FOLD_FOLDER.fullmatch(path.parent.name)
    ]
    numbered.sort(key=lambda path: int(path.parent.name.removeprefix("fold")))
    of_all = [path for path in [run / "foldall" / "checkpoint.pt"] if path.exists()]
    if numbered and of_all:
        numbers = " ".join(path.parent.name.removeprefix("fold") for path in numbered)
        raise ValueError(
            f"{run}: holds networks of single folds and one of all cases, which are not averaged unless "
            f"you say so; choose with --folds {numbers} or --folds all"
        )

    own = [path for path in [run / "checkpoint.pt"] if path.exists()]
    found = numbered or of_all or own
    if not found:
        raise FileNotFoundError(
            f"{run / 'fold0' / 'checkpoint.pt'}: no such checkpoint; wanted a run of train.py"
        )
    return found


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
        content = _load(path, {"state_dict": dict}, "nnU-Net v1")
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
    parser.add_argument("command", choices=["import-nnunet"])
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
        parser.exit(2, f"checkpoints: {error}\n")
    print(
        f"{arguments.out}: strides {recipe.strides}; {'Leaky' * (arguments.arch == 'plain')}ReLU taken for granted"
    )


if __name__ == "__main__":
    main()
