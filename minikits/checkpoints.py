"""Checkpoints: written whole or not at all; nothing in them can run. A run, begun or resumed.

A checkpoint is a dictionary of plain data and tensors. Which run it is of (a Run):
  arch, recipe (its fields), fold, seed, cases ({"train": ids, "validation": ids})
Where that stands:
  iteration (batches done); of the epoch it is in: loss_sum, seconds_computing, seconds_waiting
  network, optimizer, log (rows of log.csv)
How it came about (its Provenance), and what wrote it:
  departures ({"recipe", "run", "code"}: lines on what differs from the paper)
  environment (device, precision, versions)
  checksums ({id: of the case as it was prepared})
  ancestor (of a run that began with another network's weights; else None)
  training_ranges ({name: [least, most]} of the training cases, for minikits.familiar)
  minikits (the version that wrote it), format (of this dictionary)
Loading is torch's `weights_only=True`, with no way around it.
"""

import hashlib
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from minikits import __version__
from minikits.files import written_whole
from minikits.layouts import PHANTOM
from minikits.paper import ARCHITECTURES, recipe_from
from minikits.recipe import Recipe
from minikits.training import Progress, freeze_coarsest_head, sgd
from minikits.unet import build_unet, unet_of

FORMAT = 1
KEYS = {
    "format": int,
    "arch": str,
    "fold": str,
    "recipe": dict,
    "cases": dict,
    "seed": int,
    "network": dict,
    "optimizer": dict,
    "log": list,
}
ANCESTOR_KEYS = {
    "name": str,
    "weights": str,
    "trained_on": list,
    "cases_known": bool,
    "taken": int,
    "skipped": list,
}
DEMO_RUN = Path("demo/runs/residual")  # where `make demo` trains
FOLD_FOLDER = re.compile(r"fold(0|[1-9][0-9]*)")  # of one of several folds, as train.py names it

# what a checkpoint's pickle may call; torch allows more, with which a file can take any memory
CALLS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch DoubleStorage",
}


@dataclass(frozen=True)
class Ancestor:
    """The network whose weights a run began with: who it was, what of it was taken."""

    name: str  # "residual fold 0, epoch 1000"
    weights: str  # a sum of them
    trained_on: list[str]  # ids of the cases that they had seen by then
    cases_known: bool  # False for an imported network and for what descends from one
    taken: int  # tensors
    skipped: list[str]  # a line for each tensor that only one of both networks has


# --- writing --------------------------------------------------------------------------------------


def save_checkpoint(path: Path, **content: Any) -> None:
    """Writes one, whole or not at all. OSError, naming it, where the disk does not take it."""
    try:
        with written_whole(path) as file:
            torch.save({"format": FORMAT, "minikits": __version__, **content}, file)
    except (OSError, RuntimeError) as error:  # torch's writer tells a full disk by a RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        said = str(cause).splitlines()[0]
        raise OSError(
            f"{path}: cannot be written ({said}); is the disk full? What was there is as it was"
        ) from error


# --- reading --------------------------------------------------------------------------------------


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """What `save_checkpoint` wrote: tensors on the CPU, `recipe` as a Recipe, `ancestor` as an
    Ancestor or None. ValueError for what it did not write."""
    content = load_plain(Path(path), KEYS, "train.py", calls=CALLS)

    train_ids = content["cases"].get("train")
    are_ids = isinstance(train_ids, list) and all(type(id) is str for id in train_ids)
    if content["format"] != FORMAT or content["arch"] not in ARCHITECTURES or not are_ids:
        raise ValueError(
            f"{path}: format {content['format']}, architecture {content['arch']!r}, "
            f"cases {train_ids!r:.50}; wanted format {FORMAT}, one of {', '.join(ARCHITECTURES)}, "
            "and a list of cases"
        )
    recipe = recipe_from(content["recipe"], source=path)
    iteration = _batches_done(content, recipe)
    if type(iteration) is not int:
        raise ValueError(f"{path}: holds no 'iteration' (int); wanted a checkpoint of train.py")
    ancestor = _ancestor_in(content, path)
    return {**content, "recipe": recipe, "iteration": iteration, "ancestor": ancestor}


def _batches_done(content, recipe):
    """The iteration of a checkpoint. Earlier ones counted epochs, and the batches of the next."""
    if "iteration" in content:
        return content["iteration"]
    epoch, batch = content.get("epoch"), content.get("batch", 0)
    if type(epoch) is not int or type(batch) is not int:
        return None
    return epoch * recipe.batches_per_epoch + batch


def _ancestor_in(content, path):
    """The Ancestor of a checkpoint, None where its weights were drawn."""
    found = content.get("ancestor")
    if found is None:
        return None
    if not _is_ancestor(found):
        raise ValueError(f"{path}: ancestor {found!r:.50}; wanted one as train.py --init writes it")
    return Ancestor(**found)


def _is_ancestor(found):
    if not isinstance(found, dict) or found.keys() != ANCESTOR_KEYS.keys():
        return False
    if not all(isinstance(found[key], kind) for key, kind in ANCESTOR_KEYS.items()):
        return False
    return all(isinstance(word, str) for word in found["trained_on"] + found["skipped"])


def cases_seen(checkpoint: Mapping[str, Any]) -> frozenset[str]:
    """The ids of all cases that its weights were trained on: by its run, and before that by the
    network that this began with."""
    seen = frozenset(checkpoint["cases"]["train"])
    if checkpoint["ancestor"]:
        seen |= frozenset(checkpoint["ancestor"].trained_on)
    return seen


def saw_phantoms_alone(train_ids: Sequence[str], ancestor: Ancestor | None) -> bool:
    """Whether weights were trained on phantoms and no other cases, by the cases' names."""
    seen = list(train_ids)
    if ancestor:
        if not ancestor.cases_known:
            return False
        seen += ancestor.trained_on
    return bool(seen) and all(id.startswith(PHANTOM) for id in seen)


def load_plain(
    path: Path, keys: Mapping[str, type], writer: str, *, calls: set[str] | None = None
) -> dict[str, Any]:
    """The dictionary in a file that `writer` wrote, with at least these keys; nothing in it can run.

    calls: all that its pickle may call, where torch's own list is too long. ValueError for a file
    that is damaged, holds anything else than plain tensors and data, or lacks a key.
    """
    wanted = f"wanted a checkpoint of {writer}"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {wanted}")

    try:
        if calls is not None:
            _check_archive(path, calls)
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


def _check_archive(path, calls):
    """ValueError for a zip archive that unpacks to more than its size or has a wrong checksum, none
    of which torch looks at, or whose pickles call anything else than `calls`."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError("larger than it is")
        if archive.testzip():
            raise ValueError("a checksum that does not fit")

        pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
        for name in pickles:
            for opcode, argument, _ in pickletools.genops(archive.read(name)):
                if opcode.name == "GLOBAL" and argument not in calls:
                    raise ValueError(f"calls {argument}")


def load_network(checkpoint: Mapping[str, Any], path: Path | str) -> torch.nn.Module:
    """The network of a checkpoint, on the CPU. ValueError, naming `path`, for weights whose names,
    shapes or values are not those of a network of its recipe."""
    # takes no memory, whatever the recipe says; to draw weights there, torch would load its compiler
    with torch.device("meta"):
        network = unet_of(checkpoint["arch"], checkpoint["recipe"])

    wanted = _shapes(network.state_dict())
    found = _shapes(checkpoint["network"])
    for name in sorted({**wanted, **found}, key=str):
        here, there = found.get(name, "absent"), wanted.get(name, "absent")
        if here != there:
            raise ValueError(
                f"{path}: weight {name} is {here}, wanted {there} for the {checkpoint['arch']} "
                "network of its recipe; the file is not what it says"
            )

    for weight in checkpoint["network"].values():
        if not weight.isfinite().all():
            raise ValueError(
                f"{path}: weights that are NaN or infinite; wanted finite ones, of another epoch "
                "or run"
            )

    network.load_state_dict(checkpoint["network"], assign=True)
    return network.to(torch.get_default_dtype())


def _shapes(weights):
    """{name: shape}; () for what is no tensor."""
    return {name: tuple(getattr(weight, "shape", ())) for name, weight in weights.items()}


def sum_of_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Sixteen letters that tell these weights from any others, wherever they lie."""
    total = hashlib.sha256()
    for name, value in sorted(weights.items()):
        total.update(name.encode())
        total.update(value.contiguous().numpy())
    return total.hexdigest()[:16]


# --- finding --------------------------------------------------------------------------------------


def find_checkpoints(run: Path | str, folds: Sequence[int | str] | None = None) -> list[Path]:
    """The checkpoints of a run folder (runs/residual holds fold0/checkpoint.pt, ...).

    folds: which, numbers or "all" (the network that train.py --fold all trained). None: all
    numbered ones, by their numbers; or foldall; or the folder's own checkpoint.pt. Other names
    (fold0_old, fold0.bak) are no folds. FileNotFoundError where nothing is found; ValueError for a
    fold named twice, and where folds has to choose between numbered ones and foldall.
    """
    run = Path(run)
    if folds:
        return _checkpoints_of([str(fold) for fold in folds], run)

    numbered = _numbered_checkpoints(run)
    of_all = run / "foldall" / "checkpoint.pt"
    if numbered and of_all.exists():
        numbers = " ".join(str(_number_of(path)) for path in numbered)
        raise ValueError(
            f"{run}: holds networks of single folds and one of all cases, which are not averaged "
            f"unless you say so; choose with --folds {numbers} or --folds all"
        )

    if numbered:
        return numbered
    for path in (of_all, run / "checkpoint.pt"):
        if path.exists():
            return [path]
    wanted = "wanted a run of train.py, or an imported network (docs/using.md), named by --model"
    if _numbered_checkpoints(DEMO_RUN):
        wanted += f"; the demo's: --model {DEMO_RUN}"
    raise FileNotFoundError(f"{run / 'fold0' / 'checkpoint.pt'}: no such checkpoint; {wanted}")


def _checkpoints_of(folds, run):
    twice = sorted({fold for fold in folds if folds.count(fold) > 1})
    if twice:
        raise ValueError(
            f"--folds {' '.join(folds)}: {', '.join(twice)} is named twice, and would count twice; "
            "name each fold once"
        )
    return [run / f"fold{fold}" / "checkpoint.pt" for fold in folds]


def _numbered_checkpoints(run):
    found = run.glob("fold*/checkpoint.pt")
    of_folds = [path for path in found if FOLD_FOLDER.fullmatch(path.parent.name)]
    return sorted(of_folds, key=_number_of)


def _number_of(checkpoint):
    return int(checkpoint.parent.name.removeprefix("fold"))


# --- a run, begun or resumed ----------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What makes a run this one and no other: a checkpoint of the same is resumed."""

    folder: Path
    arch: str
    recipe: Recipe
    fold: str
    seed: int
    train_ids: list[str]
    validation_ids: list[str]

    @property
    def checkpoint(self) -> Path:
        """Where its checkpoint lies."""
        return self.folder / "checkpoint.pt"

    def identity(self) -> dict:
        """The same, as a checkpoint has it."""
        return {
            "arch": self.arch,
            "recipe": asdict(self.recipe),
            "fold": self.fold,
            "seed": self.seed,
            "cases": {"train": self.train_ids, "validation": self.validation_ids},
        }


@dataclass(frozen=True)
class Provenance:
    """How a run's weights came about; kept for whoever audits its checkpoint."""

    departures: dict[str, list[str]]  # "recipe", "run", "code": lines on what is not the paper's
    environment: dict  # device, precision, versions
    checksums: dict[str, str]  # of each case, by its id, as it was prepared
    training_ranges: dict[str, list[float]]  # of the cases that are trained on
    ancestor: Ancestor | None = None  # None where the initial weights were drawn


def earlier_checkpoint(run: Run, resume: bool, say: Callable) -> dict:
    """The run's checkpoint, {} where there is none; ValueError where it may not be continued."""
    path = run.checkpoint
    if not path.exists():
        if resume:
            say(f"{run.folder}: no checkpoint to resume, the training begins")
        return {}
    if not resume:
        raise ValueError(f"{path}: this run exists; go on with --resume, or choose another --out")

    checkpoint = load_checkpoint(path)
    found = {**checkpoint, "recipe": asdict(checkpoint["recipe"])}
    for name, wanted in run.identity().items():
        if found[name] != wanted:
            raise ValueError(
                f"{path}: was trained with another {name}; resume with the same, or "
                "choose another --out"
            )
    return checkpoint


def start_or_resume(
    checkpoint: dict, run: Run, device: torch.device
) -> tuple[torch.nn.Module, torch.optim.Optimizer, Progress, list[dict]]:
    """(network, optimizer, Progress, log): new ones, or the checkpoint's."""
    if checkpoint:
        _check_iteration(checkpoint, run)
        network = load_network(checkpoint, run.checkpoint)
    else:
        torch.manual_seed(run.seed)  # of the initial weights; draws have their own generators
        network = build_unet(run.arch, run.recipe)

    network.to(device)
    freeze_coarsest_head(network)
    optimizer = sgd(network, run.recipe)
    if not checkpoint:
        return network, optimizer, Progress(), []

    optimizer.load_state_dict(checkpoint["optimizer"])
    progress = Progress(
        checkpoint["iteration"],
        checkpoint.get("loss_sum", 0.0),
        checkpoint.get("seconds_computing", 0.0),
        checkpoint.get("seconds_waiting", 0.0),
    )
    return network, optimizer, progress, checkpoint["log"]


def _check_iteration(checkpoint, run):
    """ValueError where the batches that are done are not those of the log and of one epoch more."""
    rows, in_an_epoch = len(checkpoint["log"]), run.recipe.batches_per_epoch
    done = checkpoint["iteration"] - rows * in_an_epoch
    if not 0 <= done <= in_an_epoch:
        raise ValueError(
            f"{run.checkpoint}: iteration {checkpoint['iteration']} with {rows} "
            f"rows of the log, wanted the one that follows from the other ("
            f"{in_an_epoch} batches an epoch); the file is not what it says"
        )


def save_run(
    run: Run,
    provenance: Provenance,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    log: list[dict],
) -> None:
    """Writes the run's checkpoint: which run it is, where it stands, how it came about."""
    save_checkpoint(
        run.checkpoint,
        **run.identity(),
        iteration=progress.iteration,
        loss_sum=progress.loss_sum,
        seconds_computing=progress.seconds_computing,
        seconds_waiting=progress.seconds_waiting,
        network=network.state_dict(),
        optimizer=optimizer.state_dict(),
        log=log,
        departures=provenance.departures,
        environment=provenance.environment,
        checksums=provenance.checksums,
        ancestor=asdict(provenance.ancestor) if provenance.ancestor else None,
        training_ranges=provenance.training_ranges,
    )


def check_unchanged(checkpoint: dict, checksums: dict[str, str], run: Run, say: Callable) -> None:
    """ValueError where a case that the checkpoint was trained on holds something else now."""
    before = checkpoint.get("checksums", {})
    changed = [
        name
        for name, checksum in sorted(before.items())
        if checksum and checksums.get(name, checksum) != checksum
    ]
    trained_on = [name for name in changed if name in checkpoint["cases"]["train"]]
    held_out = [name for name in changed if name in checkpoint["cases"]["validation"]]
    if trained_on:
        raise ValueError(
            f"{run.checkpoint}: was trained on another image or other labels of "
            f"{', '.join(trained_on)}; put those back, or train anew with another --out"
        )
    if held_out:
        say(
            f"warning: image or labels of {', '.join(held_out)}, held out, are not those of before;"
            " patch Dice goes on with these",
            flush=True,
        )


def main() -> None:
    """Says where the import of nnU-Net's networks is now."""
    raise SystemExit("minikits.checkpoints: nnU-Net's networks: python -m minikits.nnunet --help")


if __name__ == "__main__":
    main()
