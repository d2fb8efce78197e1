"""The networks of one run or several that are averaged: who they are, and that they see alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from minikits.checkpoints import (
    cases_seen,
    find_checkpoints,
    load_checkpoint,
    load_network,
    saw_phantoms_alone,
    sum_of_weights,
)
from minikits.familiar import ranges_in
from minikits.recipe import Recipe

SHARED = ("spacing_mm", "window_hu", "mean_hu", "sd_hu", "patch")  # what averaged networks share


@dataclass(frozen=True, eq=False)
class Member:
    """A network of the ensemble, on the CPU and ready to predict, and who it is."""

    network: nn.Module
    arch: str
    fold: str
    seed: int
    epoch: int  # how many it was trained
    epochs: int | None  # how many it was to be trained, where that is known
    weights: str  # a sum of them
    trained_on: frozenset[str]  # ids of cases, those of ancestors (train.py --init) too
    held_out: frozenset[str]  # ids of cases that it did not see, by name
    ranges: dict[str, list[float]]  # of the cases it was trained on: minikits.familiar

    def as_record(self) -> dict:
        """What prediction.json says of it."""
        return {
            "arch": self.arch,
            "fold": self.fold,
            "seed": self.seed,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "weights": self.weights,
            "trained_on": sorted(self.trained_on),
            "held_out": sorted(self.held_out),
        }


def load_networks(
    runs: Sequence[Path], folds: Sequence[int | str] | None = None
) -> tuple[list[Member], Recipe, list[str]]:
    """The networks of these run folders, the recipe that they share, and lines on them. They stay
    in the computer's memory, and go to the device in turn. ValueError for networks that see images
    differently, and for one that comes twice, by whatever path."""
    members, recipe, lines = [], None, []
    path_of = {}  # by a network's weights
    for run in runs:
        found = find_checkpoints(run, folds)
        for path in found:
            checkpoint = load_checkpoint(path)
            recipe = recipe or checkpoint["recipe"]
            _check_alike(checkpoint["recipe"], recipe, path)

            member = _as_member(checkpoint, path)
            if member.weights in path_of:
                raise ValueError(
                    f"{path}: the same network as {path_of[member.weights]}, which would count "
                    "twice; name each network once"
                )
            path_of[member.weights] = path
            members.append(member)
            lines += _introduce(member, path)
            lines += _unknown_past(checkpoint, path)
            lines += _phantoms_alone(checkpoint, path)
        if not folds:
            lines += _strangers(run, found)
    assert recipe is not None  # each run has a checkpoint, or was refused
    return members, recipe, lines


def _check_alike(recipe: Recipe, first: Recipe, path: Path) -> None:
    """Refuses a network that sees images otherwise than the first."""
    for name in SHARED:
        ours, theirs = getattr(recipe, name), getattr(first, name)
        if ours != theirs:
            raise ValueError(
                f"{path}: {name} is {ours}, but {theirs} in the first; average "
                "networks of one recipe"
            )


def _as_member(checkpoint: dict, path: Path) -> Member:
    """The network of a checkpoint. A case that it names as held out, and that it or an ancestor was
    trained on, is the latter."""
    network = load_network(checkpoint, path).eval()
    imported = checkpoint["fold"] == "imported"  # how long it was to be trained is not known
    trained_on = cases_seen(checkpoint)
    held_out = checkpoint["cases"].get("validation")
    if not isinstance(held_out, list):
        held_out = []

    return Member(
        network,
        arch=checkpoint["arch"],
        fold=checkpoint["fold"],
        seed=checkpoint["seed"],
        epoch=checkpoint["iteration"] // checkpoint["recipe"].batches_per_epoch,
        epochs=None if imported else checkpoint["recipe"].epochs,
        weights=sum_of_weights(network.state_dict()),
        trained_on=trained_on,
        held_out=frozenset(id for id in held_out if isinstance(id, str)) - trained_on,
        ranges=ranges_in(checkpoint),
    )


def _introduce(member: Member, path: Path) -> list[str]:
    """A line on a network; one more where it was not trained to the end, and where its folder is
    named as another fold's."""
    lines = [
        f"{path}: arch {member.arch}, fold {member.fold}, seed {member.seed}, epoch "
        f"{member.epoch}, weights {member.weights}"
    ]
    if member.epochs is None:
        return lines

    if member.epoch < member.epochs:
        lines.append(
            f"warning: {path}: its training was stopped after {member.epoch} of "
            f"{member.epochs} epochs"
        )
    folder = path.parent.name
    if re.fullmatch("fold(all|[0-9]+)", folder) and folder != f"fold{member.fold}":
        lines.append(f"warning: {path}: lies in {folder}, but is of fold {member.fold}")
    return lines


def _unknown_past(checkpoint: dict, path: Path) -> list[str]:
    """A line where a network began with weights that do not name the cases they had seen."""
    ancestor = checkpoint["ancestor"]
    if ancestor is None or ancestor.cases_known:
        return []
    return [
        f"warning: {path}: began with {ancestor.name}, which does not name the cases that it was "
        "trained on; cases that it held out may be among them"
    ]


def _phantoms_alone(checkpoint: dict, path: Path) -> list[str]:
    """A line where a network has seen no patient."""
    if not saw_phantoms_alone(checkpoint["cases"]["train"], checkpoint["ancestor"]):
        return []
    return [f"warning: {path}: trained on phantoms alone: of no use on patients"]


def _strangers(run: Path, found: list[Path]) -> list[str]:
    """A line on the folders of a run that hold a network but are no folds: fold0_old, fold0.bak."""
    checkpoints = [path for path in run.glob("*/checkpoint.pt") if path not in found]
    if not checkpoints:
        return []
    names = ", ".join(sorted(path.parent.name for path in checkpoints))
    return [f"{run}: left out, since they are no folds: {names}"]
