"""From a scan to its mask: windows, Gaussian weights, mirroring, ensembles.

`segment_volume` is the way of a scan, `predict_probabilities` its middle: a window slides over the
prepared image, each network sees every window in all eight mirror images, and their softmax is
averaged, the middle of a window counting more than its rim."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from minikits.paper import CLASSES, WINDOW_SD, WINDOW_STEP
from minikits.preprocessing import labels_on_native_grid, prepare_image
from minikits.recipe import Recipe
from minikits.resampling import largest
from minikits.volumes import Volume

FLIPS = [(), (2,), (1,), (1, 2), (0,), (0, 2), (0, 1), (0, 1, 2)]  # axes of the 8 mirror images
# [ours: measured; the paper's plain network takes 1.7 GiB in bfloat16, 2.7 in float32]
FINEST_MAPS_ALIVE = 5
# A GPU takes more than `window_bytes` says: [ours: on an H200 four windows of the residual network
# took 3.6 GiB, of the fast form 6.5]
ROOMY = 3
AT_ONCE = 2  # on CPUs torch's small convolutions of one sample are several times slower than of two
# [ours: on an H200 a window of four takes 14.4 ms, of two 19.7, of one 29.7: results/gpu.md]
AT_ONCE_ON_GPU = 4


class Look(NamedTuple):
    """What a network sees at a time: a window of the image, mirrored along some of its axes."""

    window: tuple[slice, ...]
    axes: tuple[int, ...]


def segment_volume(
    volume: Volume,
    networks: Sequence[nn.Module],
    recipe: Recipe,
    *,
    mirroring: bool = True,
    device: torch.device | None = None,
    precision: torch.dtype = torch.float32,
    at_once: int = AT_ONCE,
    on_window: Callable | None = None,
    on_mask: Callable | None = None,
    on_probabilities: Callable | None = None,
    device_turn: AbstractContextManager | None = None,
) -> np.ndarray:
    """(Z, Y, X) uint8 labels of a scan in HU, on its own grid: 0 background, 1 kidney, 2 tumor.

    The networks, in eval mode, are of this recipe; device, precision, at_once, on_window and
    on_mask are those of `predict_probabilities`. on_probabilities is given what that returned,
    before it is gone.
    device_turn: a lock, held while the device works, for threads with a scan each. ValueError where
    probabilities come out as NaN or infinite."""
    image = prepare_image(volume, recipe)

    with device_turn or nullcontext():
        probabilities = predict_probabilities(
            networks,
            image,
            recipe,
            mirroring,
            device=device,
            precision=precision,
            at_once=at_once,
            on_window=on_window,
            on_mask=on_mask,
        )
        labels = labels_on_native_grid(probabilities, volume)
        if on_probabilities:
            on_probabilities(probabilities)
        del probabilities  # before the next scan's are computed

    return labels


@torch.inference_mode()
def predict_probabilities(
    networks: Sequence[nn.Module],
    image: np.ndarray | torch.Tensor,
    recipe: Recipe,
    mirroring: bool = True,
    *,
    device: torch.device | None = None,
    precision: torch.dtype = torch.float32,
    at_once: int = AT_ONCE,
    on_window: Callable | None = None,
    on_mask: Callable | None = None,
) -> torch.Tensor:
    """(Z, Y, X) normalised image -> (K, Z, Y, X) float32 on `device` (default: the networks'): the
    mean softmax of all networks. One network's own are those of a list that holds it alone.

    An image smaller than the patch is padded with 0 on both sides. precision: the convolutions'
    dtype. at_once: how many windows a network sees together. on_window(done, of) is told the
    windows done, in fractions where they are mirrored; what it raises ends the prediction.
    on_mask(mask) is given each network's own mask, (Z, Y, X) uint8, to rounding; the result is the
    same to the bit with it or without. A
    network on another device comes for its turn and goes back, also when its turn fails; one in
    training mode gives its finest head."""
    device = device or _device_of(networks[0])
    image = torch.as_tensor(image).to(device, torch.float32)
    sides = _padding(image.shape, recipe.patch)
    padded = F.pad(image, sides)

    windows = _windows(padded.shape, recipe.patch)
    flips = FLIPS if mirroring else [()]
    looks = [Look(window, axes) for window, axes in product(windows, flips)]
    weight = importance_map(recipe.patch).to(device)

    total = torch.zeros((len(CLASSES), *padded.shape), device=device)
    done = 0
    for network in networks:
        before = total.clone() if on_mask else None
        with _lent(network, device):
            for group in _groups(looks, at_once):
                _add_looks(total, network, padded, group, weight, precision)
                done += len(group)
                if on_window:
                    on_window(done / len(flips), len(networks) * len(windows))
        if on_mask and before is not None:
            on_mask(_own_mask(total, before, sides))
        del before  # it takes as much memory as the result will

    total /= _weight_of_looks(looks, weight, padded.shape) * len(networks)
    return F.pad(total, [-side for side in sides])


# --- windows and their weights --------------------------------------------------------------------


def window_starts(size: int, patch: int) -> list[int]:
    """Where the windows of one axis begin: evenly spread, no further apart than WINDOW_STEP of the
    patch, up to rounding; [0] if one is enough.

    >>> window_starts(size=100, patch=50)
    [0, 25, 50]
    >>> window_starts(size=110, patch=50)  # evenly spread, so 20 apart
    [0, 20, 40, 60]
    >>> window_starts(size=40, patch=50)
    [0]
    """
    if size <= patch:
        return [0]
    steps = int(np.ceil((size - patch) / (patch * WINDOW_STEP)))
    return [int(np.round((size - patch) / steps * step)) for step in range(steps + 1)]


def _windows(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[slice, ...]]:
    """The windows over an image at least as large as the patch: tuples of a slice per axis."""
    starts_of_axes = [window_starts(size, side) for size, side in zip(shape, patch)]

    windows = []
    for starts in product(*starts_of_axes):
        window = tuple(slice(start, start + side) for start, side in zip(starts, patch))
        windows.append(window)
    return windows


def importance_map(patch: Sequence[int]) -> torch.Tensor:
    """Weight of each voxel of a window (Z, Y, X): a Gaussian about voxel patch // 2, largest 1,
    never 0."""
    weight = torch.ones((), dtype=torch.float64)
    for side in patch:
        distance = (torch.arange(side, dtype=torch.float64) - side // 2) / (side * WINDOW_SD)
        weight = weight[..., None] * torch.exp(-0.5 * distance**2)  # one axis more
    return weight.float()


def _weight_of_looks(looks: list[Look], weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(Z, Y, X): the sum of the weights with which all looks of a network count at each voxel."""
    weights = torch.zeros(shape, device=weight.device)
    for look in looks:
        weights[look.window] += weight
    return weights


def _padding(shape: Sequence[int], patch: Sequence[int]) -> list[int]:
    """What F.pad takes (the last axis first, before and behind) to bring a small image to the
    patch's size. Of an odd number of voxels the greater part lies behind [nnU-Net v1
    pad_nd_image]."""
    sides = []
    for size, side in reversed(list(zip(shape, patch))):
        missing = max(side - size, 0)
        before = missing // 2
        sides += [before, missing - before]
    return sides


# --- one network ----------------------------------------------------------------------------------


def _own_mask(total: torch.Tensor, before: torch.Tensor, sides: list[int]) -> np.ndarray:
    """(Z, Y, X) uint8: the classes by what one network added to `total` (K, Z, Y, X), less the
    padding; a tie goes to any of them, as the differences are rounded. Slice by slice, since of all
    at once they would take much memory."""
    slices = []
    for now, then in zip(total.unbind(dim=1), before.unbind(dim=1)):
        slices.append(largest(now - then))
    mask = F.pad(torch.stack(slices), [-side for side in sides])
    return mask.cpu().numpy()


def _groups(looks: list[Look], at_once: int) -> list[list[Look]]:
    """The looks that a network sees at once; the last may be fewer."""
    return [looks[first : first + at_once] for first in range(0, len(looks), at_once)]


def _add_looks(
    total: torch.Tensor,
    network: nn.Module,
    padded: torch.Tensor,
    group: list[Look],
    weight: torch.Tensor,
    precision: torch.dtype,
) -> None:
    """Adds to `total` (K, Z, Y, X) what the network gives for these looks, turned back, weighted.
    Nothing here waits for the device: a GPU is given the next looks while it works on these."""
    softmax = _softmax_of_mirrored(network, padded, group, precision)
    for look, mirrored in zip(group, softmax):
        probabilities = mirrored.flip([axis + 1 for axis in look.axes])  # axis 0 is K
        part = total[:, *look.window]
        part += weight * probabilities


def _softmax_of_mirrored(
    network: nn.Module, padded: torch.Tensor, group: list[Look], precision: torch.dtype
) -> torch.Tensor:
    """(looks, K, *patch) float32: what the network gives for each look, mirrored as it is seen."""
    seen = [padded[look.window].flip(look.axes) for look in group]
    batch = torch.stack(seen)[:, None]  # (looks, 1, *patch)

    with torch.autocast(batch.device.type, precision, enabled=precision != torch.float32):
        logits = network(batch)

    finest = logits[0] if isinstance(logits, (list, tuple)) else logits
    return finest.float().softmax(dim=1)


@contextmanager
def _lent(network: nn.Module, device: torch.device) -> Iterator[None]:
    """The network is on `device` within the `with`; then it goes back, also when its turn fails."""
    home = _device_of(network)
    try:
        network.to(device)
        yield
    finally:
        network.to(home)


def _device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are; the CPU where it has none."""
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


# --- how much memory it takes ---------------------------------------------------------------------


def suited_at_once(
    archs: Iterable[str],
    recipe: Recipe,
    precision: torch.dtype,
    *,
    device: torch.device,
    memory: float,
) -> int:
    """How many windows the networks are to see at once: on a GPU AT_ONCE_ON_GPU where `memory`
    (bytes) has plenty for them, else half as many, or one."""
    if device.type == "cpu":
        return AT_ONCE

    at_once = AT_ONCE_ON_GPU
    while at_once > 1:
        needed = max(window_bytes(arch, recipe, precision, at_once=at_once) for arch in archs)
        if ROOMY * needed <= memory:
            break
        at_once //= 2
    return at_once


def window_bytes(
    arch: str, recipe: Recipe, precision: torch.dtype, *, at_once: int = AT_ONCE
) -> int:
    """About the memory that a network takes, beside its weights, for the windows that it sees at
    once: the skips that wait for the decoder, and what is alive about the finest stage, where a
    concatenation and its convolution meet."""
    features = recipe.features(arch)
    voxels = at_once * np.prod(recipe.patch)

    values = []  # of all feature maps of each stage
    for maps, shrunk in zip(features, np.cumprod(recipe.strides, axis=0)):
        values.append(maps * voxels / np.prod(shrunk))

    alive = sum(values) + FINEST_MAPS_ALIVE * values[0]
    return int(alive * precision.itemsize)


def scan_bytes(shape: Sequence[int], recipe: Recipe) -> int:
    """The memory that `predict_probabilities` takes for an image of this shape, beside the network:
    float32 image, the same padded, weights, and K probabilities, twice while the padding is cut
    off, and while a network adds to those of others."""
    padded = [max(size, side) for size, side in zip(shape, recipe.patch)]
    arrays = 1 + 1 + 1 + 2 * len(CLASSES)
    return int(4 * arrays * np.prod(padded, dtype=float))
