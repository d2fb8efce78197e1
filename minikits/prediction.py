"""From a prepared image to probabilities: windows, Gaussian weights, mirroring, ensembles."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from minikits.paper import CLASSES, WINDOW_SD, WINDOW_STEP
from minikits.recipe import Recipe

FLIPS = [
    tuple(axis for axis in range(3) if flips[axis]) for flips in product((False, True), repeat=3)
]
# [ours: measured; the paper's plain network takes 1.7 GiB in bfloat16, 2.7 in float32]
FINEST_MAPS_ALIVE = 5
AT_ONCE = 2  # torch runs small convolutions of a single sample on CPUs by a path that is several times slower


@torch.inference_mode()
def predict_probabilities(
    networks: Sequence,
    image: np.ndarray | torch.Tensor,
    recipe: Recipe,
    mirroring: bool = True,
    *,
    device: torch.device | None = None,
    precision: torch.dtype = torch.float32,
    on_window: Callable | None = None,
) -> torch.Tensor:
    """Mean softmax of all networks: (Z, Y, X) normalised image -> (K, Z, Y, X) float32 on `device` (default: theirs).

    An image smaller than the patch is padded with 0 on both sides. precision: the convolutions' dtype. on_window(done,
    of) is told the windows done, in fractions where they are mirrored; what it raises ends the prediction. A network on
    another device comes for its turn and goes back, also when its turn fails; one in training mode gives its finest
    head. ValueError where probabilities come out as NaN or infinite."""
    device = device or _device_of(networks[0])
    image = torch.as_tensor(image).to(device, torch.float32)
    sides = _padding(image.shape, recipe.patch)
    padded = F.pad(image, sides)

    windows = _windows(padded.shape, recipe.patch)
    looks = list(product(windows, FLIPS if mirroring else FLIPS[:1]))
    weight = importance_map(recipe.patch).to(device)
    weights = torch.zeros(padded.shape, device=device)
    for window, _ in looks:
        weights[window] += weight

    total = torch.zeros(
        (len(CLASSES), *padded.shape), device=device
    )  # of all networks, each look weighted
    for turn, network in enumerate(networks):
        home = _device_of(network)
        try:
            network.to(device)
            for first in range(0, len(looks), AT_ONCE):
                group = looks[first : first + AT_ONCE]
                for (window, axes), seen in zip(group, _softmax(network, padded, group, precision)):
                    total[(slice(None), *window)] += weight * seen.flip([axis + 1 for axis in axes])
                if on_window:
                    done = turn + (first + len(group)) / len(looks)
                    on_window(done * len(windows), len(networks) * len(windows))
        finally:
            network.to(home)

    total /= weights * len(networks)
    probabilities = F.pad(total, [-side for side in sides])
    _check_finite(probabilities)
    return probabilities


def _softmax(network, padded, group, precision):
    """(looks, K, *patch) float32: what the network gives for these windows, each flipped along its axes."""
    x = torch.stack([padded[window].flip(axes) for window, axes in group])[:, None]
    with torch.autocast(x.device.type, precision, enabled=precision != torch.float32):
        logits = network(x)
    finest = logits[0] if isinstance(logits, (list, tuple)) else logits
    return finest.float().softmax(dim=1)


def _device_of(network):
    """Where a network's weights are; the CPU where it has none."""
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _padding(shape, patch):
    """What F.pad takes (the last axis first, before and behind) to bring a small image to the patch's size. Of an odd
    number of voxels the greater part lies behind [nnU-Net v1 pad_nd_image]."""
    sides = []
    for size, side in reversed(list(zip(shape, patch))):
        missing = max(side - size, 0)
        before = missing // 2
        sides += [before, missing - before]
    return sides


def _check_finite(probabilities):
    strange = probabilities.numel() - int(probabilities.isfinite().sum())
    if strange:
        raise ValueError(
            f"{strange} of {probabilities.numel()} probabilities are NaN or infinite, wanted 0 to 1; look "
            "for values that no CT has in the scan, and for damage in the networks' weights"
        )


def _windows(shape, patch):
    """The windows over an image at least as large as the patch: tuples of a slice per axis."""
    starts = product(*map(window_starts, shape, patch))
    return [
        tuple(slice(begin, begin + side) for begin, side in zip(start, patch)) for start in starts
    ]


def window_starts(size: int, patch: int) -> list[int]:
    """Where the windows of one axis begin: evenly spread, at most half a patch apart, [0] if one is enough."""
    if size <= patch:
        return [0]
    steps = int(np.ceil((size - patch) / (patch * WINDOW_STEP)))
    return [int(np.round((size - patch) / steps * step)) for step in range(steps + 1)]


def importance_map(patch: Sequence[int]) -> torch.Tensor:
    """Weight of each voxel of a window (Z, Y, X): a Gaussian about voxel patch // 2, largest 1, never 0."""
    weight = torch.ones((), dtype=torch.float64)
    for side in patch:
        distance = (torch.arange(side, dtype=torch.float64) - side // 2) / (side * WINDOW_SD)
        weight = weight[..., None] * torch.exp(-0.5 * distance**2)  # one axis more
    return weight.float()


def window_bytes(arch: str, recipe: Recipe, precision: torch.dtype) -> int:
    """About the memory that a network takes, beside its weights, for the windows that it sees at once: the skips that
    wait for the decoder, and what is alive about the finest stage, where a concatenation and its convolution meet."""
    features = recipe.features(arch)
    voxels = AT_ONCE * np.prod(recipe.patch)
    stages = []  # values of a feature map of each stage
    for maps, shrunk in zip(features, np.cumprod(recipe.strides, axis=0)):
        stages.append(maps * voxels / np.prod(shrunk))
    alive = sum(stages) + FINEST_MAPS_ALIVE * stages[0]
    return int(alive * precision.itemsize)


def scan_bytes(shape: Sequence[int], recipe: Recipe) -> int:
    """The memory that `predict_probabilities` takes for an image of this shape, beside the network: float32 image, the
    same padded, weights, and K probabilities, twice while the padding is cut off."""
    padded = [max(size, side) for size, side in zip(shape, recipe.patch)]
    arrays = 1 + 1 + 1 + 2 * len(CLASSES)
    return int(4 * arrays * np.prod(padded, dtype=float))
