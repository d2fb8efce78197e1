"""The eight transforms, in their order, in six pairs: change_x does, random_x draws and then calls change_x.

Images are float tensors (Z, Y, X), normalised; labels integer tensors (Z, Y, X); on any device. Draws come from a
CPU generator: the same on every device. [paper 2.3] lists the transforms but mirroring, which is [author #61]."""

import math
from itertools import product

import torch
import torch.nn.functional as F

from minikits.paper import CLASSES


def augment(image, labels, recipe, generator, *, start=(0, 0, 0), patch=None):
    """One augmented patch (Z, Y, X) of a whole case, cut or turned straight from it, so that a rotation brings in the
    patient: the one of size `patch` at voxel `start`, perhaps partly outside. Without `patch`, of a patch itself."""
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
    wins. nnU-Net v1 interpolates the image with a cubic spline, v2 linearly as here [ours: speed]."""
    patch = tuple(patch or image.shape)
    if not any(angles) and scale == 1:
        return cut(image, start, patch).float(), cut(labels, start, patch)
    turn = (_rotation(angles) * scale).T  # from the patch's centred voxels to the case's
    sides, first, shape = (torch.tensor(values, dtype=torch.float64) for values in (patch, start, image.shape))
    half = (sides - 1) / 2
    centre, reach = first + half, turn.abs() @ half
    low = (centre - reach).floor().clamp(torch.zeros(3), shape - 1)  # one voxel at the edge for a patch wholly outside
    high = ((centre + reach).floor() + 2).clamp(low + 1, shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high))
    z, y, x = (turn[:, axis, None] * (torch.arange(side) - half[axis]) for axis, side in enumerate(patch))  # (3, side)
    slices, plane = z + (centre - low)[:, None], (y[:, :, None] + x[:, None]).flatten(1)
    sampled, turned = _interpolated(image[box], labels[box], *(
        places.to(image.device, torch.float32) for places in (slices, plane)))
    return sampled.view(patch), turned.view(patch).to(labels.dtype)


def _interpolated(image, labels, slices, plane):
    """A patch (Z, N) of a box, outside which all is 0: its voxel n of slice z is at slices[:, z] + plane[:, n] there.
    On a CPU one slice at a time, which stays in its cache (against grid_sample: benchmarks/results/training_on_cpu.md).
    Label masks are interpolated only where the corners of a cell differ: elsewhere their label wins."""
    image, labels = (F.pad(values, (1, 2) * 3) for values in (image, labels))  # what lies outside is moved in there
    strides, last = image.stride(), torch.tensor(image.shape, device=image.device)[:, None] - 2
    image, labels = image.flatten(), labels.flatten()
    corners = [sum(s * up for s, up in zip(strides, ups)) for ups in product((0, 1), repeat=3)]
    seen = 2 ** labels.byte()  # by the corners of the cell that begins at a voxel: a bit for each label
    for stride in strides:
        seen = seen | F.pad(seen[stride:], (0, stride))

    def cells(places):
        places = torch.minimum((places + 1).clamp_(min=0), last)
        first = places.int()
        return (first * first.new_tensor(strides)[:, None]).sum(0, dtype=torch.int32), places - first

    def linear(values, inside):
        for t in inside.flip(0):  # X, Y, Z: of eight corners four, two, one
            values = [torch.lerp(a, b, t) for a, b in zip(values[::2], values[1::2])]
        return values[0]

    sampled = torch.empty(slices.shape[1], plane.shape[1], device=image.device)
    bits = torch.empty_like(sampled, dtype=torch.uint8)
    at_once = len(bits) if image.is_cuda else 1
    for rows in (slice(z, z + at_once) for z in range(0, len(bits), at_once)):
        cell, inside = cells((slices[:, rows, None] + plane[:, None]).flatten(1))
        eight = [image[corner:].index_select(0, cell).float() for corner in corners]
        sampled[rows] = linear(eight, inside).view_as(sampled[rows])
        bits[rows] = seen.index_select(0, cell).view_as(bits[rows])
    mixed = torch.arange(bits.numel(), device=image.device)  # on a GPU all: asking how many there are would stop it
    mixed = mixed if image.is_cuda else mixed[(bits & (bits - 1)).flatten() > 0]
    z, n = mixed // bits.shape[1], mixed % bits.shape[1]
    cell, inside = cells(slices[:, z] + plane[:, n])
    label = torch.arange(len(CLASSES), device=image.device)[:, None]
    eight = [(labels[corner:].index_select(0, cell) == label).float() for corner in corners]
    bits >>= 1  # where there is one label: its number
    bits[z, n] = linear(eight, inside).argmax(0).byte()
    return sampled, bits


def cut(values, start, patch):
    """The box of size `patch` at voxel `start` of (Z, Y, X) values, filled up with 0 where it lies outside."""
    sides = []
    for n, s, p in zip(values.shape, start, patch):
        s = max(-p, min(s, n))  # wholly outside is 0 however far
        sides = [-s, s + p - n, *sides]  # F.pad counts the last axis first; a negative side is cut off
    return F.pad(values, sides)


def random_noise(image, recipe, generator):
    if not _happens(recipe.noise_probability, generator):
        return image
    sd, seed = _uniform(*recipe.noise_sd, generator), int(torch.randint(2**62, (), generator=generator))
    return change_noise(image, sd, seed=seed)


def change_noise(image, sd, *, seed):
    """Adds Gaussian noise; the same seed gives the same noise on one kind of device."""
    generator = torch.Generator(image.device).manual_seed(seed)
    return image + sd * torch.randn(image.shape, generator=generator, device=image.device)


def random_brightness(image, recipe, generator):
    happens = _happens(recipe.brightness_probability, generator)
    return change_brightness(image, _uniform(*recipe.brightness_range, generator)) if happens else image


def change_brightness(image, factor):
    return image * factor


def random_contrast(image, recipe, generator):
    happens = _happens(recipe.contrast_probability, generator)
    return change_contrast(image, _either_side_of_one(recipe.contrast_range, generator)) if happens else image


def change_contrast(image, factor):
    """Stretches about the patch's mean, clipped to the range it had."""
    mean, low, high = image.mean(), image.min(), image.max()
    return (image - mean).mul_(factor).add_(mean).clamp_(low, high)


def random_gamma(image, recipe, generator, *, inverted):
    if _happens(recipe.inverted_gamma_probability if inverted else recipe.gamma_probability, generator):
        return change_gamma(image, _either_side_of_one(recipe.gamma_range, generator), inverted=inverted)
    return image


def change_gamma(image, gamma, *, inverted=False):
    """The patch, scaled to its own range, to the power gamma; its mean and sd are then restored.
    Inverted: the same of the negative image, and back. A constant patch stays as it is."""
    image = -image if inverted else image
    mean, sd, low = image.mean(), image.std(correction=0), image.min()
    span = image.max() - low
    bent = (image - low).div_(span + 1e-7).log_().mul_(gamma).exp_().mul_(span).add_(low)  # twice as fast as a power
    bent = bent.sub_(bent.mean()).div_(bent.std(correction=0) + 1e-8).mul_(sd).add_(mean)
    return bent.neg_() if inverted else bent


def random_mirroring(image, labels, recipe, generator):
    axes = [axis for axis in range(3) if _happens(recipe.mirroring_probability, generator)]
    return change_mirroring(image, labels, axes)


def change_mirroring(image, labels, axes):
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
