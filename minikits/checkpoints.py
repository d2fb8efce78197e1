"""Checkpoints: written whole or not at all; nothing in them can run.

A checkpoint is a dictionary of plain data and tensors:
  arch, recipe (its fields), fold, seed, cases ({"train": ids, "validation": ids})
  checksums ({id: of the case as it was prepared})
  epoch (how many are done); of the next: batch, loss_sum, seconds_computing, seconds_waiting
  network, optimizer, log (rows of log.csv)
  departures ({"recipe", "run", "code"}: lines on what differs from the paper)
  environment (device, precision, versions)
  minikits (the version that wrote it), format (of this dictionary)
Loading is torch's `weights_only=True`, with no way around it.
"""

import pickletools
import re
import zipfile
from pathlib import Path

import torch

from minikits import __version__
from minikits.files import written_whole
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
            torch.save({"format": FORMAT, "minikits": __version__, **content}, file)
    except (OSError, RuntimeError) as error:  # torch's writer tells a full disk by a RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        said = str(cause).splitlines()[0]
        raise OSError(
            f"{path}: cannot be written ({said}); is the disk full? What was there is as it was"
        ) from error


def load_plain(path, keys, writer, names=None):
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
    content = load_plain(Path(path), KEYS, "train.py", NAMES)
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
