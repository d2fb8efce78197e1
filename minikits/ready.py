"""Networks made ready to predict: device, number format, form, windows at once, memory.

predict.py and minikits.segment take these same steps, so that their masks are the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from minikits.devices import (
    check_bfloat16,
    claim_memory,
    exact_float32,
    pick_device,
    pick_precision,
)
from minikits.ensemble import Member
from minikits.fast import for_prediction
from minikits.prediction import scan_bytes, segment_volume, suited_at_once, window_bytes
from minikits.prepared import check_resampled_size
from minikits.preprocessing import resampled_shape
from minikits.recipe import Recipe
from minikits.volumes import Volume


@dataclass(frozen=True, eq=False)
class Ready:
    """Networks in the form in which they predict, and where and how they do."""

    networks: list[nn.Module]
    recipe: Recipe
    device: torch.device
    precision: torch.dtype
    at_once: int  # windows that a network sees together
    memory: float  # bytes that the device has, beside networks that stay there


def set_up(device_name: str, precision_name: str) -> tuple[torch.device, torch.dtype]:
    """What computes, and in which number format; the names are those of the command line. Float32
    is exact from now on, in the whole process."""
    device = pick_device(device_name)
    precision = pick_precision(precision_name, device)
    torch.backends.cudnn.benchmark = True  # windows have one shape: a second of search in a run
    exact_float32()
    if device.type == "cuda" and precision == torch.bfloat16:
        check_bfloat16(device)
    return device, precision


def make_ready(
    members: Sequence[Member],
    recipe: Recipe,
    device: torch.device,
    precision: torch.dtype,
    *,
    largest: int,
    compiling: str,
    windows: int,
    say: Callable[[str], object],
) -> Ready:
    """The members' networks, as they predict so many windows in the shortest time.

    largest: bytes that the largest scan takes in memory, about. compiling, windows, say: those of
    `for_prediction`."""
    memory = keep_memory(device, members, recipe, precision, largest)
    archs = {member.arch for member in members}
    at_once = suited_at_once(archs, recipe, precision, device=device, memory=memory)
    networks = for_prediction(
        [member.network for member in members],
        compiling=compiling,
        windows=windows,
        at_once=at_once,
        device=device,
        precision=precision,
        say=say,
    )
    memory -= keep_on_device(networks, device, room=memory / 4)
    return Ready(networks, recipe, device, precision, at_once, memory)


def check_size(volume: Volume, ready: Ready) -> None:
    """Refuses, before it is tried, a scan that is too large at the recipe's spacing, or for the
    device's memory."""
    check_resampled_size(volume, ready.recipe)

    shape = resampled_shape(volume.voxels.shape, volume.spacing_mm, ready.recipe)
    needed = scan_bytes(shape, ready.recipe)
    if needed > ready.memory:
        raise ValueError(
            f"{volume.path}: has shape {shape} at the networks' spacing, which takes "
            f"{needed / 2**30:.1f} GiB; device {ready.device} has {ready.memory / 2**30:.1f}. Is "
            "its spacing right? --assume-spacing Z Y X (mm) gives another, --device another device"
        )


def labels_of(
    volume: Volume, ready: Ready, networks: Sequence[nn.Module], *, mirroring: bool, **options: Any
) -> np.ndarray:
    """(Z, Y, X) uint8 labels of a scan by some of the networks that are ready. options: further
    ones of `segment_volume`."""
    return segment_volume(
        volume,
        networks,
        ready.recipe,
        mirroring=mirroring,
        device=ready.device,
        precision=ready.precision,
        at_once=ready.at_once,
        **options,
    )


# --- how much memory there is ---------------------------------------------------------------------


def keep_memory(
    device: torch.device,
    members: Sequence[Member],
    recipe: Recipe,
    precision: torch.dtype,
    largest: int,
) -> float:
    """Bytes of memory that the device has. A CPU's is kept once taken, where there is plenty for a
    network, its windows and the largest scan (bytes)."""
    memory = claim_memory(device)
    window = max(window_bytes(member.arch, recipe, precision) for member in members)
    weights = max(weight_bytes(member.network) for member in members)
    needed = window + weights + largest
    if needed < memory:  # else a scan that finds none is named when its turn comes
        claim_memory(device, needed)
    return memory


def keep_on_device(networks: Sequence[nn.Module], device: torch.device, room: float) -> int:
    """Brings the networks to a GPU where `room` (bytes) holds all of them, and gives the bytes that
    they take there; else they stay, and each comes for its turn."""
    needed = sum(weight_bytes(network) for network in networks)
    if device.type == "cpu" or needed > room:
        return 0
    for network in networks:
        network.to(device)
    return needed


def weight_bytes(network: nn.Module) -> int:
    """What its weights take."""
    return sum(value.nbytes for value in network.parameters())
