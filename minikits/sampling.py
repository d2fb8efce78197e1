"""A prepared case; random patches, the last of a batch on foreground; a batch by its number.

Every draw is a function of (seed, iteration, sample), and of whether it is augmented: of nothing
that ran before, and not of where the cases live."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
import torch

from minikits.augmentation import augment, cut_patch, generator_for
from minikits.paper import CLASSES
from minikits.recipe import Recipe

VALUES = range(len(CLASSES))  # of a prepared case's labels


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the networks' grid."""

    id: str
    image: torch.Tensor  # (Z, Y, X) float16, normalised
    labels: torch.Tensor  # (Z, Y, X) uint8
    foreground: tuple[np.ndarray, ...]  # flat indices of each structure's voxels
    # of the voxels that the case was made of and of how it was prepared, so that it is the same on
    # every computer; "" for a case that is not from the cache
    checksum: str = ""


def draw_batch(
    cases: list[PreparedCase],
    recipe: Recipe,
    seed: int,
    iteration: int,
    *,
    augmented: bool = True,
    samples: Iterable[int] | None = None,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 1, Z, Y, X) float32 images and (B, Z, Y, X) uint8 targets from prepared cases.

    Cases are drawn uniformly, with replacement, whatever was drawn before. What is read of them
    goes to `device` and is augmented there; without one, where the cases live. samples: which of
    the batch, default all. ValueError where there is no case, no sample, or a sample that is not
    one of the batch's."""
    samples = which_samples(samples, recipe.batch_size)
    if not cases:
        raise ValueError("no cases to draw a batch from, wanted at least one")

    first_forced = recipe.batch_size - recipe.foreground_samples  # the last ones are on foreground
    images, targets = [], []
    for sample in samples:
        generator = generator_for(seed, iteration, sample, augmented)
        case = cases[whole_number(0, len(cases) - 1, generator)]
        start = draw_start(case, recipe.patch, generator, forced=sample >= first_forced)

        if augmented:
            image, target = augment(
                case.image,
                case.labels,
                recipe,
                generator,
                start=start,
                patch=recipe.patch,
                device=device,
                values=VALUES,
            )
        else:
            image, target = cut_patch(case.image, case.labels, start, recipe.patch, device)
        images.append(image)
        targets.append(target)

    return torch.stack(images)[:, None], torch.stack(targets)


def which_samples(samples: Iterable[int] | None, batch_size: int) -> list[int]:
    """The samples asked for, None for all; ValueError for none, or one that a batch has not."""
    if samples is None:
        return list(range(batch_size))
    samples = [index(sample) for sample in samples]
    if not samples or min(samples) < 0 or max(samples) >= batch_size:
        raise ValueError(
            f"samples {samples} of a batch of {batch_size}, wanted some of 0 to {batch_size - 1}"
        )
    return samples


def draw_start(
    case: PreparedCase, patch: tuple[int, ...], generator: torch.Generator, *, forced: bool
) -> tuple[int, ...]:
    """The patch's first voxel, Z Y X. [nnU-Net v1 dataset_loading.py:204]

    Uniform among the patches inside the case; along an axis on which the case is smaller, the patch
    has the case in its middle and begins before it, at a negative voxel. Forced: centred on a
    random voxel of a random structure, if there is any, but not below the lowest of those starts;
    at the high edge it may overhang. ValueError for an empty patch or case."""
    size = tuple(case.labels.shape)
    if len(patch) != len(size) or min(*patch, *size) < 1:
        raise ValueError(
            f"{case.id}: patch {tuple(patch)} of a case {size}, "
            "wanted at least one voxel on each axis"
        )
    bounds = [bounds_of_start(side, length) for side, length in zip(size, patch)]

    structures = [voxels for voxels in case.foreground if len(voxels)]
    if not forced or not structures:
        return tuple(whole_number(lowest, highest, generator) for lowest, highest in bounds)

    voxels = structures[whole_number(0, len(structures) - 1, generator)]
    flat_index = voxels[whole_number(0, len(voxels) - 1, generator)]
    voxel = np.unravel_index(int(flat_index), size)

    start = []
    for place, length, (lowest, _) in zip(voxel, patch, bounds):
        centred = int(place) - length // 2
        start.append(max(lowest, centred))
    return tuple(start)


def bounds_of_start(side: int, length: int) -> tuple[int, int]:
    """The lowest and the highest first voxel of a patch of this length along a side of a case.

    A case of 10 voxels has the patch inside it:

    >>> bounds_of_start(side=10, length=4)
    (0, 6)

    One of 4 lies in the middle of a patch of 10, which begins 3 voxels before the case and ends 3
    behind it; one of 3 has two middles, with 4 or 3 of the patch's voxels before it:

    >>> bounds_of_start(side=4, length=10)
    (-3, -3)
    >>> bounds_of_start(side=3, length=10)
    (-4, -3)
    """
    if side >= length:
        return 0, side - length

    overhang = length - side  # the voxels of the patch that lie outside the case
    half_rounded_up = (overhang + 1) // 2
    half_rounded_down = overhang // 2
    return -half_rounded_up, -half_rounded_down


def fetch_ahead(
    draw: Callable, iterations: Iterable, device: torch.device | None = None
) -> Iterator:
    """draw(i) for each i in order; one thread draws the next while the current one is used.

    On a CPU it draws on one core: on several, it and the caller's step would wait for each other at
    every operation. On a GPU, `device`, a draw runs on a stream of its own, beside the caller's work.
    There draw(i) has to give a sequence of tensors; each may be used as soon as it is given."""
    stream = None
    if device is not None and device.type == "cuda":
        stream = torch.cuda.Stream(device)

    def draw_beside(iteration):
        # without a stream CUDA is not touched: to ask for none would start it all the same
        with torch.cuda.stream(stream) if stream else nullcontext():
            drawn = draw(iteration)
        event = stream.record_event() if stream else None
        return drawn, event

    cores = torch.get_num_threads()
    with ThreadPoolExecutor(max_workers=1) as thread:
        if stream is None:
            thread.submit(compute_on_one_core).result()
            torch.set_num_threads(cores)  # all later threads would compute on one as well

        pending = None
        for iteration in iterations:
            following = thread.submit(draw_beside, iteration)
            if pending:
                yield when_ready(*pending.result())
            pending = following
        if pending:
            yield when_ready(*pending.result())


def compute_on_one_core() -> None:
    """The thread that calls this computes on one core from now on."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # takes the number up: torch tells it to a thread that first asks


def when_ready(drawn: Any, event: torch.cuda.Event | None) -> Any:
    """What was drawn on another stream of a GPU, for use on the caller's."""
    if event is not None:
        here = torch.cuda.current_stream(drawn[0].device)
        here.wait_event(event)
        for part in drawn:
            part.record_stream(here)  # its memory is not given away while it is used here
    return drawn


def whole_number(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform in low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
