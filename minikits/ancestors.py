"""A training that begins with another network's weights: what is taken, and what these have seen."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from minikits.checkpoints import (
    Ancestor,
    Run,
    cases_seen,
    load_checkpoint,
    load_network,
    sum_of_weights,
)
from minikits.layouts import some


def begin(
    network: torch.nn.Module, run: Run, checkpoint: dict, init: Path | None, say: Callable
) -> Ancestor | None:
    """The Ancestor of a run: the one that its checkpoint names, where it is resumed; else that of
    the checkpoint `init`, whose weights `network` gets. None where they are drawn.

    ValueError where nothing in `init` fits, and where a run is resumed that began otherwise."""
    if checkpoint:
        ancestor = checkpoint["ancestor"]
        if init:
            _check_same(run, ancestor, init)
            say(f"{init}: the run began with it, and goes on from its own checkpoint")
    elif init:
        ancestor = take_weights(network, load_checkpoint(init), init)
        say(f"{init}: {ancestor.taken} tensors taken, {len(ancestor.skipped)} skipped")
        for line in ancestor.skipped:
            say(f"  {line}")
    else:
        ancestor = None

    if ancestor:
        _warn(ancestor, run, say)
    return ancestor


def take_weights(
    network: torch.nn.Module, checkpoint: Mapping[str, Any], path: Path | str
) -> Ancestor:
    """Gives `network` each tensor of a checkpoint that has the name and the shape of one of its
    own; the others stay as they are. ValueError, naming `path`, where there is none."""
    ours = network.state_dict()
    theirs = load_network(checkpoint, path).state_dict()

    taken, skipped = [], []
    for name in sorted({**ours, **theirs}):
        here, there = _shape(ours, name), _shape(theirs, name)
        if here == there:
            taken.append(name)
        else:
            skipped.append(f"{name}: {there} there, {here} here")
    if not taken:
        raise ValueError(
            f"{path}: none of the {len(theirs)} tensors of this {checkpoint['arch']} network has "
            f"the name and shape of one here; the first differs by {skipped[0]}; "
            "wanted a network of the same --arch and like sizes"
        )

    for name in taken:
        ours[name].copy_(theirs[name])
    return Ancestor(
        name=_name(checkpoint),
        weights=sum_of_weights(theirs),
        trained_on=sorted(cases_seen(checkpoint)),
        cases_known=_cases_known(checkpoint),
        taken=len(taken),
        skipped=skipped,
    )


def departure(ancestor: Ancestor) -> str:
    """A line on what differs from the paper."""
    cases = f"trained on {len(ancestor.trained_on)} cases"
    if not ancestor.cases_known:
        cases = "trained on cases that it does not name"
    return (
        f"initial weights: {ancestor.taken} tensors ({len(ancestor.skipped)} skipped) from "
        f"{ancestor.name}, weights {ancestor.weights}, {cases} (paper: drawn at random)"
    )


def _shape(weights, name):
    return tuple(weights[name].shape) if name in weights else "absent"


def _name(checkpoint):
    """Who a network is, in words."""
    epoch = checkpoint["iteration"] // checkpoint["recipe"].batches_per_epoch
    return f"{checkpoint['arch']} fold {checkpoint['fold']}, epoch {epoch}"


def _cases_known(checkpoint):
    """Whether all cases are named that its weights were trained on. nnU-Net v1 names none."""
    if checkpoint["fold"] == "imported":
        return False
    ancestor = checkpoint["ancestor"]
    return ancestor is None or ancestor.cases_known


def _check_same(run, ancestor, init):
    """ValueError where a run that is resumed did not begin with these weights."""
    given = load_checkpoint(init)
    weights = sum_of_weights(load_network(given, init).state_dict())
    if ancestor is None or ancestor.weights != weights:
        began = ancestor.name if ancestor else "weights drawn at random"
        raise ValueError(
            f"{run.checkpoint}: began with {began}, not with {init}; resume without --init, or "
            "choose another --out"
        )


def _warn(ancestor, run, say):
    """Held-out cases that the weights have seen say nothing of what they would do elsewhere."""
    if not ancestor.cases_known:
        say(
            f"warning: {ancestor.name} does not name the cases that it was trained on; if held-out "
            "cases are among them, their scores are too good"
        )
    seen = sorted(set(ancestor.trained_on).intersection(run.validation_ids))
    if seen:
        cases = "case was" if len(seen) == 1 else "cases were"
        say(
            f"warning: {len(seen)} held-out {cases} trained on by {ancestor.name} ({some(seen)}): "
            "patch Dice is too good, and predict.py --cross-validation leaves them out"
        )
