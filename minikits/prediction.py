"""From a prepared image to probabilities: windows, Gaussian weights, mirroring, ensembles."""

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from minikits.paper import CLASSES, WINDOW_SD, WINDOW_STEP

FLIPS = [tuple(axis for axis in range(3) if flips[axis]) for flips in product((False, True), repeat=3)]
AT_ONCE = 2  # torch runs small convolutions of a single sample on CPUs by a path that is several times slower


@torch.inference_mode()
def predict_probabilities(networks, image, recipe, mirroring=True, *, device=None, precision=torch.float32,
                          on_window=None):
    """Mean softmax of all networks: (Z, Y, X) normalised image -> (K, Z, Y, X) float32 on `device` (default: theirs).
    An image smaller than the patch is padded with 0 on both sides. precision: the convolutions' dtype. on_window(done,
    of) is told the windows done, in fractions where they are mirrored. A network on another device comes for its turn
    and goes back; one in training mode gives its finest head."""
    device = device or next((parameter.device for parameter in networks[0].parameters()), "cpu")
    image = torch.as_tensor(image).to(device, torch.float32)
    missing = [max(p - n, 0) for n, p in zip(image.shape, recipe.patch)]
    sides = [side for m in reversed(missing) for side in (m // 2, m - m // 2)]  # F.pad counts the last axis first
    padded = F.pad(image, sides)
    weight, weights = importance_map(recipe.patch).to(device), torch.zeros(padded.shape, device=device)
    total = torch.zeros((len(CLASSES), *padded.shape), device=device)
    windows = [tuple(slice(s, s + p) for s, p in zip(start, recipe.patch))
               for start in product(*map(window_starts, padded.shape, recipe.patch))]
    looks = list(product(windows, FLIPS if mirroring else FLIPS[:1]))
    for window, _ in looks:
        weights[window] += weight
    for turn, network in enumerate(networks):
        home = next(network.parameters(), image).device
        network.to(device)
        for first in range(0, len(looks), AT_ONCE):
            group = looks[first:first + AT_ONCE]
            x = torch.stack([padded[window].flip(axes) for window, axes in group])[:, None]
            with torch.autocast(x.device.type, precision, enabled=precision != torch.float32):
                logits = network(x)
            softmax = (logits[0] if isinstance(logits, (list, tuple)) else logits).float().softmax(dim=1)
            for (window, axes), seen in zip(group, softmax):
                total[(slice(None), *window)] += weight * seen.flip([axis + 1 for axis in axes])
            if on_window:
                on_window((turn + (first + len(group)) / len(looks)) * len(windows), len(networks) * len(windows))
        network.to(home)
    return F.pad(total.div_(weights * len(networks)), [-side for side in sides])


def window_starts(size, patch):
    """Where the windows of one axis begin: evenly spread, at most half a patch apart, [0] if one is enough."""
    if size <= patch:
        return [0]
    steps = int(np.ceil((size - patch) / (patch * WINDOW_STEP)))
    return [int(np.round((size - patch) / steps * step)) for step in range(steps + 1)]


def importance_map(patch):
    """Weight of each voxel of a window (Z, Y, X): a Gaussian about voxel patch // 2, largest 1, never 0."""
    weight = torch.ones((), dtype=torch.float64)
    for side in patch:
        distance = (torch.arange(side, dtype=torch.float64) - side // 2) / (side * WINDOW_SD)
        weight = weight[..., None] * torch.exp(-0.5 * distance**2)  # one axis more
    return weight.float()
