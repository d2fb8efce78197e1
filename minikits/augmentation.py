"""The eight transforms, in their order, in six pairs: change_x does, random_x draws and then calls change_x.

Images are tensors (Z, Y, X), normalised, floats (integers are taken as float32); labels integer tensors (Z, Y, X) of
any values; on any device. All that is drawn, the noise too, is drawn on the CPU: the same wherever a case lives. What a
change_x is given stays as it was. [paper 2.3] lists the transforms but mirroring, which is [author #61]."""

import math
from itertools import product
from operator import index

import numpy as np
import torch
import torch.nn.functional as F


def augment(image, labels, recipe, generator, *, start=(0, 0, 0), patch=None):
    """One augmented patch (Z, Y, X) of a whole case, cut or turned straight from it, so that a rotation brings in the
    patient: the one of size `patch` at voxel `start`, perhaps partly outside. Without `patch`, of a patch itself.
    Always in this order [nnU-Net v1 data_augmentation_moreDA.py:66]."""
    image, labels = random_geometry(image, labels, recipe, generator, start=start, patch=patch)
    image = random_noise(image, recipe, generator)
    image = random_brightness(image, recipe, generator)
    image = random_contrast(image, recipe, generator)
    image = random_gamma(image, recipe, generator, inverted=True)
    image = random_gamma(image, recipe, generator, inverted=False)
    return random_mirroring(image, labels, recipe, generator)


def random_geometry(image, labels, recipe, generator, *, start, patch):
    """Rotation about all three axes and scaling, each with its probability, in one resampling; else a plain cut."""
    angles, scale = (0.0, 0.0, 0.0), 1.0
    if _happens(recipe.rotation_probability, generator):
        limit = math.radians(recipe.rotation_degrees)
        angles = tuple(_uniform(-limit, limit, generator) for _ in range(3))
    if _happens(recipe.scaling_probability, generator):
        scale = _either_side_of_one(recipe.scaling_range, generator)
    return change_geometry(image, labels, angles, scale, start=start, patch=patch)


def change_geometry(image, labels, angles, scale, *, start=(0, 0, 0), patch=None):
    """A patch turned by `angles` (radians, about Z, Y, X) and scaled about its centre; scale above 1 zooms out.
    Linear; outside the case the image is 0 and the label background. Labels go through their 0/1 masks, the largest
    wins, whatever their values. nnU-Net v1 interpolates the image with a cubic spline, v2 linearly as here [ours:
    speed]. ValueError for an image and labels of two shapes, and for angles or a scale that turn nothing."""
    check_pair(image, labels)
    if len(angles) != 3 or not all(map(math.isfinite, angles)):
        raise ValueError(f"angles {tuple(angles)}, wanted three finite ones, in radians")
    _check_positive("scale", scale)
    patch = tuple(image.shape) if patch is None else tuple(patch)
    _check_box(image, start, patch)
    if not any(angles) and scale == 1:
        return cut(image, start, patch).float(), cut(labels, start, patch)
    turn = (_rotation(angles) * scale).T  # from the patch's centred voxels to the case's
    sides, first, shape = (
        torch.tensor(values, dtype=torch.float64) for values in (patch, start, image.shape)
    )
    half = (sides - 1) / 2
    centre, reach = first + half, turn.abs() @ half
    low = (
        (centre - reach).floor().clamp(torch.zeros(3), shape - 1)
    )  # one voxel at the edge for a patch wholly outside
    high = ((centre + reach).floor() + 2).clamp(low + 1, shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high))
    z, y, x = (
        turn[:, axis, None] * (torch.arange(side) - half[axis]) for axis, side in enumerate(patch)
    )  # (3, side)
    slices, plane = z + (centre - low)[:, None], (y[:, :, None] + x[:, None]).flatten(1)
    sampled, turned = _interpolated(
        image[box],
        labels[box],
        *(places.to(image.device, torch.float32) for places in (slices, plane)),
    )
    return sampled.view(patch), turned.view(patch).to(labels.dtype)


def _interpolated(image, labels, slices, plane):
    """A patch (Z, N) of a box, outside which all is 0: its voxel n of slice z is at slices[:, z] + plane[:, n] there.
    On a CPU one slice at a time, which stays in its cache (against grid_sample: benchmarks/results/training_on_cpu.md).
    Label masks are interpolated only where the corners of a cell differ: elsewhere their label wins."""
    image, labels = (
        F.pad(values, (1, 2) * 3) for values in (image, labels)
    )  # what lies outside is moved in there
    strides, last = image.stride(), torch.tensor(image.shape, device=image.device)[:, None] - 2
    image, labels = image.flatten(), labels.flatten()
    corners = [sum(s * up for s, up in zip(strides, ups)) for ups in product((0, 1), repeat=3)]
    lowest = highest = labels  # label of the corners of the cell that begins at a voxel
    for stride in strides:
        lowest = torch.minimum(lowest, F.pad(lowest[stride:], (0, stride)))
        highest = torch.maximum(highest, F.pad(highest[stride:], (0, stride)))
    differ = lowest != highest

    def cells(places):
        places = torch.minimum((places + 1).clamp_(min=0), last)
        first = places.int()
        return (first * first.new_tensor(strides)[:, None]).sum(
            0, dtype=torch.int32
        ), places - first

    def linear(values, inside):
        for t in inside.flip(0):  # X, Y, Z: of eight corners four, two, one
            values = [torch.lerp(a, b, t) for a, b in zip(values[::2], values[1::2])]
        return values[0]

    sampled = torch.empty(slices.shape[1], plane.shape[1], device=image.device)
    turned = torch.empty_like(sampled, dtype=labels.dtype)
    mixed = torch.empty_like(sampled, dtype=torch.bool)
    at_once = len(mixed) if image.is_cuda else 1
    for rows in (slice(z, z + at_once) for z in range(0, len(mixed), at_once)):
        cell, inside = cells((slices[:, rows, None] + plane[:, None]).flatten(1))
        eight = [image[corner:].index_select(0, cell).float() for corner in corners]
        sampled[rows] = linear(eight, inside).view_as(sampled[rows])
        turned[rows] = labels.index_select(0, cell).view_as(turned[rows])
        mixed[rows] = differ.index_select(0, cell).view_as(mixed[rows])
    # on a GPU all voxels: asking how many there are would stop it
    mixed = (
        torch.arange(mixed.numel(), device=image.device)
        if image.is_cuda
        else mixed.flatten().nonzero()[:, 0]
    )
    z, n = mixed // turned.shape[1], mixed % turned.shape[1]
    cell, inside = cells(slices[:, z] + plane[:, n])
    turned[z, n] = _largest_mask(
        torch.stack([labels[corner:].index_select(0, cell) for corner in corners]), inside
    )
    return sampled, turned


def _largest_mask(labels, inside):
    """The label whose linearly interpolated 0/1 mask is the largest, of those at the corners of a cell; of equally
    large ones the lowest. (8, M) labels in the order of `corners`, (3, M) places inside of the cells -> (M,) labels."""
    weights = [
        torch.stack([t if up else 1 - t for t, up in zip(inside, ups)]).prod(0)
        for ups in product((0, 1), repeat=3)
    ]
    masks = torch.zeros(labels.shape, device=labels.device)  # of each corner's label
    for label, weight in zip(labels, weights):
        masks += weight * (labels == label)
    winners = masks == masks.amax(0)
    return labels.where(winners, labels.amax(0)).amin(0)


def cut(values, start, patch):
    """The box of size `patch` at voxel `start` of (Z, Y, X) values, filled up with 0 where it lies outside."""
    _check_box(values, start, patch)
    sides = []
    for n, s, p in zip(values.shape, map(index, start), map(index, patch)):
        s = max(-p, min(s, n))  # wholly outside is 0 however far
        sides = [
            -s,
            s + p - n,
            *sides,
        ]  # F.pad counts the last axis first; a negative side is cut off
    return F.pad(values, sides)


def random_noise(image, recipe, generator):
    if not _happens(recipe.noise_probability, generator):
        return image
    sd, seed = (
        _uniform(*recipe.noise_sd, generator),
        int(torch.randint(2**62, (), generator=generator)),
    )
    return change_noise(image, sd, seed=seed)


def change_noise(image, sd, *, seed):
    """Adds Gaussian noise; the same seed gives the same noise on every device: it is drawn on the
    CPU. For the paper's patch that takes a core 16 ms (Intel Xeon), in one patch of ten."""
    if not 0 <= sd < math.inf:
        raise ValueError(f"noise of sd {sd}, wanted a finite one, not below 0")
    noise = torch.randn(image.shape, generator=generator_for(seed))
    return image + sd * noise.to(image.device)


def random_brightness(image, recipe, generator):
    happens = _happens(recipe.brightness_probability, generator)
    return (
        change_brightness(image, _uniform(*recipe.brightness_range, generator))
        if happens
        else image
    )


def change_brightness(image, factor):
    _check_positive("brightness", factor)
    return image * factor


def random_contrast(image, recipe, generator):
    happens = _happens(recipe.contrast_probability, generator)
    return (
        change_contrast(image, _either_side_of_one(recipe.contrast_range, generator))
        if happens
        else image
    )


def change_contrast(image, factor):
    """Stretches about the patch's mean, clipped to the range it had."""
    _check_positive("contrast", factor)
    image = _as_floats(image)
    mean, low, high = image.mean(), image.min(), image.max()
    return (image - mean).mul_(factor).add_(mean).clamp_(low, high)


def random_gamma(image, recipe, generator, *, inverted):
    if _happens(
        recipe.inverted_gamma_probability if inverted else recipe.gamma_probability, generator
    ):
        return change_gamma(
            image, _either_side_of_one(recipe.gamma_range, generator), inverted=inverted
        )
    return image


def change_gamma(image, gamma, *, inverted=False):
    """The patch, scaled to its own range, to the power gamma; its mean and sd are then restored.
    Inverted: the same of the negative image, and back. A constant patch stays as it is."""
    _check_positive("gamma", gamma)
    image = _as_floats(image)
    image = -image if inverted else image
    mean, sd, low = image.mean(), image.std(correction=0), image.min()
    span = image.max() - low
    bent = (
        (image - low).div_(span + 1e-7).log_().mul_(gamma).exp_().mul_(span).add_(low)
    )  # twice as fast as a power
    bent = bent.sub_(bent.mean()).div_(bent.std(correction=0) + 1e-8).mul_(sd).add_(mean)
    return bent.neg_() if inverted else bent


def random_mirroring(image, labels, recipe, generator):
    axes = [axis for axis in range(3) if _happens(recipe.mirroring_probability, generator)]
    return change_mirroring(image, labels, axes)


def change_mirroring(image, labels, axes):
    check_pair(image, labels)
    return image.flip(axes), labels.flip(axes)


def _rotation(angles):
    """(3, 3): about axis 0 (Z), then 1 (Y), then 2 (X), as batchgenerators composes them."""
    (cz, cy, cx), (sz, sy, sx) = ([f(angle) for angle in angles] for f in (math.cos, math.sin))
    about_z = torch.tensor([[1, 0, 0], [0, cz, -sz], [0, sz, cz]], dtype=torch.float64)
    about_y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]], dtype=torch.float64)
    about_x = torch.tensor([[cx, -sx, 0], [sx, cx, 0], [0, 0, 1]], dtype=torch.float64)
    return about_z @ about_y @ about_x


def _uniform(low, high, generator):
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _happens(probability, generator):
    return _uniform(0, 1, generator) < probability


def _either_side_of_one(bounds, generator):
    """Half of the draws below 1, half above, each uniform."""
    low, high = bounds
    return _uniform(low, 1, generator) if _happens(0.5, generator) else _uniform(1, high, generator)


def generator_for(*key: int) -> torch.Generator:
    """A CPU generator that depends on these whole numbers (0 to 2**64 - 1) alone, on all their bits.
    Of a seed torch's own seeding keeps 32 bits: among 500,000 streams two dozen pairs would be the
    same. Its generator is the Mersenne twister, which numpy has too: numpy seeds all of its words,
    and torch goes on with them."""
    numbers = [index(number) for number in key]
    if not all(0 <= number < 2**64 for number in numbers):
        raise ValueError(f"random numbers for {key}, wanted whole numbers from 0 to 2**64 - 1")

    halves = np.array([len(numbers), *numbers], dtype=np.uint64).view(np.uint32)
    words = np.random.MT19937(np.random.SeedSequence(halves)).state["state"]["key"]

    generator = torch.Generator()
    state = (
        generator.get_state()
    )  # bytes; 64 bits hold a word, the first three 64 are seed and place
    state.numpy().view(np.uint64)[3 : 3 + len(words)] = words
    return generator.set_state(state)


def _as_floats(image):
    return image if image.is_floating_point() else image.float()


def check_pair(image, labels):
    """ValueError unless image and labels have the same shape (Z, Y, X), of at least one voxel."""
    one, other = tuple(image.shape), tuple(labels.shape)
    if one != other or len(one) != 3 or 0 in one:
        raise ValueError(
            f"image {one} and labels {other}, wanted the same shape (Z, Y, X), not empty"
        )


def _check_box(values, start, patch):
    if not len(values.shape) == len(start) == len(patch) or min(patch) < 1:
        raise ValueError(
            f"patch {tuple(patch)} at {tuple(start)} of a volume {tuple(values.shape)}, "
            "wanted a start and at least one voxel for each of its axes"
        )


def _check_positive(name, value):
    if not 0 < value < math.inf:
        raise ValueError(f"{name} {value}, wanted a finite number above 0")
