"""Random patches, the last third of a batch on foreground. Every draw is a function of (seed, iteration, sample)."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from minikits.augmentation import augment, cut


def draw_batch(cases, recipe, seed, iteration, *, augmented=True, samples=None):
    """(B, 1, Z, Y, X) float32 images and (B, Z, Y, X) uint8 targets from PreparedCases, on the cases' device.
    Cases are drawn uniformly, with replacement, whatever was drawn before. samples: which of the batch, default all."""
    drawn = []
    for sample in samples or range(recipe.batch_size):
        generator = generator_for(seed, iteration, sample, augmented)
        case = cases[_integer(0, len(cases) - 1, generator)]
        forced = sample >= recipe.batch_size - recipe.foreground_samples
        start = draw_start(case, recipe.patch, generator, forced=forced)
        if augmented:
            drawn.append(augment(case.image, case.labels, recipe, generator, start=start, patch=recipe.patch))
        else:
            drawn.append((cut(case.image, start, recipe.patch).float(), cut(case.labels, start, recipe.patch)))
    images, targets = zip(*drawn)
    return torch.stack(images)[:, None], torch.stack(targets)


def draw_start(case, patch, generator, *, forced):
    """The patch's first voxel, Z Y X. [nnU-Net v1 dataset_loading.py:204]
    Uniform among the patches inside the case. Forced: centred on a random voxel of a random structure, if there is any,
    clamped at the low edge alone. A smaller case lies in the patch's middle (an odd difference has two): negative."""
    size = case.labels.shape
    low = [min(0, (n - p) // 2) for n, p in zip(size, patch)]
    high = [n - p if n > p else -((p - n) // 2) for n, p in zip(size, patch)]
    present = [voxels for voxels in case.foreground if len(voxels)]
    if forced and present:
        voxels = present[_integer(0, len(present) - 1, generator)]
        voxel = np.unravel_index(int(voxels[_integer(0, len(voxels) - 1, generator)]), size)
        return tuple(max(lowest, int(v) - p // 2) for lowest, v, p in zip(low, voxel, patch))
    return tuple(_integer(*ends, generator) for ends in zip(low, high))


def generator_for(*key):
    """A CPU generator that depends on these non-negative integers alone."""
    state = np.random.SeedSequence([int(number) for number in key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def fetch_ahead(draw, iterations):
    """draw(i) for each i in order; one thread draws the next while the current one is used."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        drawn = (thread.submit(draw, iteration) for iteration in iterations)
        following = next(drawn, None)
        while following:
            current, following = following, next(drawn, None)
            yield current.result()


def _integer(low, high, generator):
    """Uniform in low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
