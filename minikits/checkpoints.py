"""Checkpoints: written whole or not at all; nothing in them can run.

A checkpoint is a dictionary of plain data and tensors: arch, recipe (its fields), fold, cases ({"train": ids,
"validation": ids}), seed, epoch (how many are done), network, optimizer, scaler, log (the rows of log.csv),
environment (versions). Loading is torch's `weights_only=True`, with no way around it.
"""

from pathlib import Path

import torch

from minikits.files import written_whole
from minikits.paper import ARCHITECTURES, recipe_from

FORMAT = 1
KEYS = {"format": int, "arch": str, "recipe": dict, "cases": dict, "seed": int, "epoch": int, "network": dict,
        "optimizer": dict, "scaler": dict, "log": list}


def save_checkpoint(path, **content):
    with written_whole(path) as file:
        torch.save({"format": FORMAT, **content}, file)


def load_checkpoint(path):
    """The dictionary, tensors on the CPU, `recipe` as a Recipe. ValueError for what `save_checkpoint` did not write."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; train one with train.py")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage can surface anywhere in the reader
        raise ValueError(f"{path}: damaged, or holds more than plain tensors and data, which is not loaded "
                         f"({type(error).__name__}); wanted a checkpoint that train.py wrote") from None
    for key, kind in KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(f"{path}: holds no {key!r} ({kind.__name__}); wanted a checkpoint that train.py wrote")
    if content["format"] != FORMAT or content["arch"] not in ARCHITECTURES:
        raise ValueError(f"{path}: format {content['format']}, architecture {content['arch']!r}; wanted format "
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
        raise ValueError(f"{path}: weight {name} has shape {found.get(name)}, wanted {wanted.get(name)} for the "
                         f"{checkpoint['arch']} network of its recipe; the file is not what it says")
    network.load_state_dict(checkpoint["network"])
    return network


def find_checkpoints(run, folds=None):
    """The checkpoints of a run folder (runs/residual holds fold0/checkpoint.pt, ...): all, or those of `folds`."""
    run = Path(run)
    found = sorted(run.glob("fold*/checkpoint.pt")) or sorted(run.glob("checkpoint.pt"))
    if folds is not None:
        found = [run / f"fold{fold}" / "checkpoint.pt" for fold in folds]
    missing = [str(path) for path in found if not path.is_file()]
    if missing or not found:
        raise FileNotFoundError(f"{missing[0] if missing else run / 'fold0' / 'checkpoint.pt'}: no such checkpoint; "
                                "train one with train.py, or name another run with --model or --folds")
    return found
