"""Random patches; those at the end of a batch, a third of it (half of the paper's two), lie on foreground.
Every draw is a function of (seed, iteration, sample), and of whether it is augmented: of nothing that ran before."""

from concurrent.futures import ThreadPoolExecutor
from operator import index

import numpy as np
import torch

from minikits.augmentation import augment, check_pair, cut, generator_for


def draw_batch(cases, recipe, seed, iteration, *, augmented=True, samples=None):
    """(B, 1, Z, Y, X) float32 images and (B, Z, Y, X) uint8 targets from PreparedCases, on the cases' device.
    Cases are drawn uniformly, with replacement, whatever was drawn before. samples: which of the batch, default all.
    ValueError where there is no case, no sample, or a sample that is not one of the batch's."""
    samples = range(recipe.batch_size) if samples is None else [index(sample) for sample in samples]
    if not cases:
        raise ValueError("no cases to draw a batch from, wanted at least one")
    if not samples or min(samples) < 0 or max(samples) >= recipe.batch_size:
        raise ValueError(
            f"samples {list(samples)} of a batch of {recipe.batch_size}, "
            f"wanted some of 0 to {recipe.batch_size - 1}"
        )
    drawn = []
    for sample in samples:
        generator = generator_for(seed, iteration, sample, augmented)
        case = cases[_integer(0, len(cases) - 1, generator)]
        check_pair(case.image, case.labels)
        forced = sample >= recipe.batch_size - recipe.foreground_samples
        start = draw_start(case, recipe.patch, generator, forced=forced)
        if augmented:
            drawn.append(
                augment(case.image, case.labels, recipe, generator, start=start, patch=recipe.patch)
            )
        else:
            drawn.append(
                (
                    cut(case.image, start, recipe.patch).float(),
                    cut(case.labels, start, recipe.patch),
                )
            )
    images, targets = zip(*drawn)
    return torch.stack(images)[:, None], torch.stack(targets)


def draw_start(case, patch, generator, *, forced):
    """The patch's first voxel, Z Y X. [nnU-Net v1 dataset_loading.py:204]
    Uniform among the patches inside the case. Forced: centred on a random voxel of a random structure, if there is any,
    clamped at the low edge alone. A smaller case lies in the patch's middle (an odd difference has two): negative."""
    size = tuple(case.labels.shape)
    if len(patch) != len(size) or min(*patch, *size) < 1:
        raise ValueError(
            f"{case.id}: patch {tuple(patch)} of a case {size}, "
            "wanted at least one voxel on each axis"
        )
    low = [min(0, (n - p) // 2) for n, p in zip(size, patch)]
    high = [n - p if n > p else -((p - n) // 2) for n, p in zip(size, patch)]
    present = [voxels for voxels in case.foreground if len(voxels)]
    if forced and present:
        voxels = present[_integer(0, len(present) - 1, generator)]
        voxel = np.unravel_index(int(voxels[_integer(0, len(voxels) - 1, generator)]), size)
        return tuple(max(lowest, int(v) - p // 2) for lowest, v, p in zip(low, voxel, patch))
    return tuple(_integer(*ends, generator) for ends in zip(low, high))


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
