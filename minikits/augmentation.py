"""The eight transforms, in their order, in six pairs: change_x does, random_x draws and calls it.

Images are tensors (Z, Y, X), normalised, floats (integers are taken as float32); labels integer
tensors (Z, Y, X) of any values. Where the image is turned, scaled or mirrored, labels move with it;
the other transforms leave them. All that is drawn, the noise too, is drawn on the CPU, and is the
same wherever a case lives and whatever device augments it. What a change_x is given stays as it
was. [paper 2.3] lists the transforms but mirroring, which is [author #61]."""

import math
from collections.abc import Iterable
from operator import index
from typing import Any

import numpy as np
import torch

from minikits.geometry import (
    box_to_read,
    check_box,
    cut,
    patch_centre,
    patch_to_case,
    places_to_read,
    read_image_and_labels,
)
from minikits.recipe import Recipe

Pair = tuple[torch.Tensor, torch.Tensor]  # image, labels


def augment(
    image: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    start: tuple[int, ...] = (0, 0, 0),
    patch: tuple[int, ...] | None = None,
    device: torch.device | None = None,
    values: Iterable[int] | None = None,
) -> Pair:
    """One augmented patch of a whole case: float32 image and labels, (Z, Y, X) both.

    The patch of size `patch` at voxel `start`, perhaps partly outside, is turned within the case,
    so that a rotation brings in the patient. Without `patch` the whole image is the patch. Only
    what is read of the case goes to `device`, where all else is done; without one, where the case
    lives.
    values: all that the labels may hold; without them, a device is asked and waited for.
    The order is always this one [nnU-Net v1 data_augmentation_moreDA.py:66]."""
    image, labels = random_geometry(
        image, labels, recipe, generator, start=start, patch=patch, device=device, values=values
    )
    image = random_noise(image, recipe, generator)
    image = random_brightness(image, recipe, generator)
    image = random_contrast(image, recipe, generator)
    image = random_gamma(image, recipe, generator, inverted=True)
    image = random_gamma(image, recipe, generator, inverted=False)
    return random_mirroring(image, labels, recipe, generator)


def random_geometry(
    image: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    **options: Any,
) -> Pair:
    """Rotation about all three axes and scaling, each with its probability, in one resampling; else
    a plain cut. options: as of `change_geometry`."""
    angles: tuple[float, ...] = (0.0, 0.0, 0.0)
    if happens(recipe.rotation_probability, generator):
        limit = math.radians(recipe.rotation_degrees)
        angles = tuple(uniform(-limit, limit, generator) for _ in range(3))

    scale = 1.0
    if happens(recipe.scaling_probability, generator):
        scale = either_side_of_one(recipe.scaling_range, generator)

    return change_geometry(image, labels, angles, scale, **options)


def change_geometry(
    image: torch.Tensor,
    labels: torch.Tensor,
    angles: tuple[float, ...],
    scale: float,
    *,
    start: tuple[int, ...] = (0, 0, 0),
    patch: tuple[int, ...] | None = None,
    device: torch.device | None = None,
    values: Iterable[int] | None = None,
) -> Pair:
    """A patch turned by `angles` (radians, about Z, Y, X) and scaled about its centre; scale above
    1 zooms out. start, patch, device and values are those of `augment`.

    Linear; outside the case the image is 0 and the label background. Labels go through their 0/1
    masks, the largest wins. nnU-Net v1 interpolates the image with a cubic spline, v2 linearly as
    here [ours: speed]. ValueError for an image and labels of two shapes, and for angles or a scale
    that turn nothing."""
    check_pair(image, labels)
    check_angles(angles)
    check_positive("scale", scale)
    patch = tuple(image.shape) if patch is None else tuple(patch)
    check_box(image, start, patch)

    if not any(angles) and scale == 1:
        return cut_patch(image, labels, start, patch, device)

    device = image.device if device is None else device
    matrix = patch_to_case(angles, scale)
    box = box_to_read(matrix, start, patch, image.shape)
    image = move(image[box], device).float()
    labels = move(labels[box], device)
    if values is None:
        values = labels.unique().tolist()

    centre = patch_centre(start, patch) - [side.start for side in box]  # within the box
    places = places_to_read(matrix, centre, patch, device)
    return read_image_and_labels(image, labels, places, values)


def cut_patch(
    image: torch.Tensor,
    labels: torch.Tensor,
    start: tuple[int, ...],
    patch: tuple[int, ...],
    device: torch.device | None = None,
) -> Pair:
    """A patch of a case as it is, neither turned nor scaled: float32 image and labels, 0 where it
    lies outside the case. start, patch and device are those of `augment`."""
    check_pair(image, labels)
    device = image.device if device is None else device

    image = move(cut(image, start, patch), device)
    labels = move(cut(labels, start, patch), device)
    return image.float(), labels


def random_noise(image: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Noise of a random sd, with its probability."""
    if not happens(recipe.noise_probability, generator):
        return image
    sd = uniform(*recipe.noise_sd, generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    return change_noise(image, sd, seed=seed)


def change_noise(image: torch.Tensor, sd: float, *, seed: int) -> torch.Tensor:
    """Adds Gaussian noise; the same seed gives the same noise on every device: it is drawn on the
    CPU. For the paper's patch that takes a core 16 ms (Intel Xeon), in one patch of ten."""
    if not 0 <= sd < math.inf:
        raise ValueError(f"noise of sd {sd}, wanted a finite one, not below 0")
    noise = torch.randn(image.shape, generator=generator_for(seed))
    return image + sd * move(noise, image.device)


def random_brightness(
    image: torch.Tensor, recipe: Recipe, generator: torch.Generator
) -> torch.Tensor:
    """Brightness of a random factor, with its probability."""
    if not happens(recipe.brightness_probability, generator):
        return image
    return change_brightness(image, uniform(*recipe.brightness_range, generator))


def change_brightness(image: torch.Tensor, factor: float) -> torch.Tensor:
    """The image times a factor."""
    check_positive("brightness", factor)
    return image * factor


def random_contrast(
    image: torch.Tensor, recipe: Recipe, generator: torch.Generator
) -> torch.Tensor:
    """Contrast of a random factor, with its probability."""
    if not happens(recipe.contrast_probability, generator):
        return image
    return change_contrast(image, either_side_of_one(recipe.contrast_range, generator))


def change_contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Stretches about the patch's mean, clipped to the range it had.

    Of these the mean is 2, and nothing is below 0 or above 5:

    >>> change_contrast(torch.tensor([0.0, 1.0, 2.0, 5.0]), 0.5).tolist()
    [1.0, 1.5, 2.0, 3.5]
    >>> change_contrast(torch.tensor([0.0, 1.0, 2.0, 5.0]), 2.0).tolist()
    [0.0, 0.0, 2.0, 5.0]
    """
    check_positive("contrast", factor)
    image = as_floats(image)
    mean = image.mean()
    stretched = (image - mean) * factor + mean
    return stretched.clamp(image.min(), image.max())


def random_gamma(
    image: torch.Tensor, recipe: Recipe, generator: torch.Generator, *, inverted: bool
) -> torch.Tensor:
    """Gamma of a random exponent, with its probability, which is another one for the inverted."""
    probability = recipe.inverted_gamma_probability if inverted else recipe.gamma_probability
    if not happens(probability, generator):
        return image
    gamma = either_side_of_one(recipe.gamma_range, generator)
    return change_gamma(image, gamma, inverted=inverted)


def change_gamma(image: torch.Tensor, gamma: float, *, inverted: bool = False) -> torch.Tensor:
    """The patch, scaled to its own range, to the power gamma; its mean and sd are then restored.
    Inverted: the same of the negative image, and back. A constant patch stays as it is.

    0, 1, 2 are scaled to 0, 0.5, 1; squared, 0, 0.25, 1: the middle comes nearer to the lowest. Then
    the mean is 1 again and the sd 0.82:

    >>> change_gamma(torch.tensor([0.0, 1.0, 2.0]), 2.0)
    tensor([0.1994, 0.6797, 2.1209])
    """
    check_positive("gamma", gamma)
    image = as_floats(image)
    if inverted:
        image = -image

    low = image.min()
    span = image.max() - low
    from_0_to_1 = (image - low) / (span + 1e-7)
    powered = from_0_to_1**gamma * span + low

    standardised = (powered - powered.mean()) / (powered.std(correction=0) + 1e-8)
    restored = standardised * image.std(correction=0) + image.mean()
    if inverted:
        restored = -restored
    return restored


def random_mirroring(
    image: torch.Tensor, labels: torch.Tensor, recipe: Recipe, generator: torch.Generator
) -> Pair:
    """Each axis is turned around with the probability, by a draw of its own."""
    axes = [axis for axis in range(3) if happens(recipe.mirroring_probability, generator)]
    return change_mirroring(image, labels, axes)


def change_mirroring(image: torch.Tensor, labels: torch.Tensor, axes: list[int]) -> Pair:
    """Image and labels turned around along these axes."""
    check_pair(image, labels)
    return image.flip(axes), labels.flip(axes)


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A number between low and high."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def happens(probability: float, generator: torch.Generator) -> bool:
    """Whether something of this probability happens."""
    return uniform(0, 1, generator) < probability


def either_side_of_one(bounds: tuple[float, float], generator: torch.Generator) -> float:
    """Half of the draws below 1, half above, each uniform."""
    low, high = bounds
    if happens(0.5, generator):
        return uniform(low, 1, generator)
    return uniform(1, high, generator)


def generator_for(*key: int) -> torch.Generator:
    """A CPU generator that depends on these whole numbers (0 to 2**64 - 1) alone, on all their
    bits. Of a seed torch's own seeding keeps 32: among the 500,000 streams of the paper's training
    some two dozen pairs would be the same. Its generator is the Mersenne twister, which numpy has
    too: numpy seeds all of its words, and torch goes on with them."""
    numbers = [index(number) for number in key]
    if not all(0 <= number < 2**64 for number in numbers):
        raise ValueError(f"random numbers for {key}, wanted whole numbers from 0 to 2**64 - 1")

    halves = np.array([len(numbers), *numbers], dtype=np.uint64).view(np.uint32)
    words = np.random.MT19937(np.random.SeedSequence(halves)).state["state"]["key"]

    generator = torch.Generator()
    state = generator.get_state()  # bytes; 64 bits for each word, after three for seed and place
    state.numpy().view(np.uint64)[3 : 3 + len(words)] = words
    return generator.set_state(state)


def move(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The values on a device; what follows there waits for them, this process does not."""
    return values.to(device, non_blocking=True)


def as_floats(image: torch.Tensor) -> torch.Tensor:
    """Integers as float32; floats as they are."""
    return image if image.is_floating_point() else image.float()


def check_pair(image: torch.Tensor, labels: torch.Tensor) -> None:
    """ValueError unless image and labels have the same shape (Z, Y, X), of at least one voxel."""
    one, other = tuple(image.shape), tuple(labels.shape)
    if one != other or len(one) != 3 or 0 in one:
        raise ValueError(
            f"image {one} and labels {other}, wanted the same shape (Z, Y, X), not empty"
        )


def check_angles(angles: tuple[float, ...]) -> None:
    """ValueError unless there are three finite angles."""
    if len(angles) != 3 or not all(map(math.isfinite, angles)):
        raise ValueError(f"angles {tuple(angles)}, wanted three finite ones, in radians")


def check_positive(name: str, value: float) -> None:
    """ValueError unless the value is a finite number above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} {value}, wanted a finite number above 0")
