"""A turned and scaled patch: for each voxel of it, where in the case to read, and what is there.

Each voxel of the patch has an offset from the patch's centre, in voxels. Turned and scaled, the
offset is a step in the case, from where the centre lies there:

    place in the case = centre + patch_to_case @ offset

`patch_to_case` is the matrix, `box_to_read` the part of the case where the places lie,
`places_to_read` the places, and `read_image_and_labels` reads there, linearly between voxels
(docs/figures/turned_patch.png shows all three).

All that decides where to read is computed on the computer, in numpy; the reading is done where the
volume is, on any device, without waiting for it. Places are in voxels, along Z, Y, X."""

import math
from collections.abc import Iterable
from operator import index

import numpy as np
import torch
import torch.nn.functional as F

from minikits.resampling import TIE


def patch_to_case(angles: tuple[float, ...], scale: float) -> np.ndarray:
    """(3, 3): from an offset in the patch to the step in the case, `matrix @ offset`.

    Scaled by 2, voxels that are neighbours in the patch are read 2 voxels apart: it zooms out.

    >>> patch_to_case((0.0, 0.0, 0.0), 2.0) @ [0, 0, 1]
    array([0., 0., 2.])

    Turned about Z by a quarter, what lies along Y in the patch is read along X.

    >>> (patch_to_case((math.pi / 2, 0.0, 0.0), 1.0) @ [0, 1, 0]).round().tolist()
    [0.0, 0.0, -1.0]
    """
    rotation = rotation_matrix(angles)
    return scale * rotation.T  # batchgenerators has offsets as rows, `offset @ rotation`


def rotation_matrix(angles: tuple[float, ...]) -> np.ndarray:
    """(3, 3): about axis 0 (Z), then 1 (Y), then 2 (X), by angles in radians, in the order in which
    batchgenerators multiplies them."""
    cz, cy, cx = np.cos(angles)
    sz, sy, sx = np.sin(angles)
    about_z = np.array([[1, 0, 0], [0, cz, -sz], [0, sz, cz]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[cx, -sx, 0], [sx, cx, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def patch_centre(start: tuple[int, ...], patch: tuple[int, ...]) -> np.ndarray:
    """(3,): where the middle of a patch lies that begins at voxel `start`; between two voxels
    where a side is even.

    >>> patch_centre(start=(0, 0, 10), patch=(1, 2, 3))
    array([ 0. ,  0.5, 11. ])
    """
    return np.array(start) + half_sides(patch)


def half_sides(patch: tuple[int, ...]) -> np.ndarray:
    """(3,): how far a patch's outermost voxels lie from its middle, centre to centre."""
    return (np.array(patch) - 1) / 2


def box_to_read(
    matrix: np.ndarray, start: tuple[int, ...], patch: tuple[int, ...], size: tuple[int, ...]
) -> tuple[slice, ...]:
    """The part of a case of this size that a turned patch reads, a slice for each axis.

    matrix: that of `patch_to_case`. A patch that is not turned reads its own voxels (and one more,
    whose weight is 0); turned by an eighth of a circle about Z, a square becomes a rhomb, which
    reaches farther along Y and X:

    >>> straight = patch_to_case((0.0, 0.0, 0.0), 1.0)
    >>> box_to_read(straight, start=(2, 10, 10), patch=(1, 11, 11), size=(5, 30, 30))
    (slice(2, 4, None), slice(10, 22, None), slice(10, 22, None))
    >>> turned = patch_to_case((math.pi / 4, 0.0, 0.0), 1.0)
    >>> box_to_read(turned, start=(2, 10, 10), patch=(1, 11, 11), size=(5, 30, 30))
    (slice(2, 4, None), slice(7, 24, None), slice(7, 24, None))
    """
    # Reach: how far the patch's farthest corner lies from its centre, along each axis of the case.
    # The patch's corners lie at offsets (+-z, +-y, +-x). Along an axis of the case, that corner
    # reaches farthest whose signs are those of the matrix: nothing cancels out.
    reach = np.abs(matrix) @ half_sides(patch)

    centre = patch_centre(start, patch)
    lowest, highest = centre - reach, centre + reach
    return tuple(map(slice_to_read, lowest, highest, size))


def slice_to_read(lowest: float, highest: float, side: int) -> slice:
    """The voxels of one axis that are needed to read it, linearly, at places from `lowest` to
    `highest`: those beside each place. At least one, the nearest, where all places lie outside.

    >>> slice_to_read(2.5, 4.5, side=10)  # voxels 2 to 5
    slice(2, 6, None)
    >>> slice_to_read(-3.5, 1.5, side=10)  # partly outside: voxels 0 to 2
    slice(0, 3, None)
    >>> slice_to_read(12.5, 14.5, side=10)  # outside: the last voxel
    slice(9, 10, None)
    """
    below = math.floor(lowest)
    above = math.floor(highest) + 1

    first = min(max(below, 0), side - 1)
    last = min(max(above, first), side - 1)
    return slice(first, last + 1)


def places_to_read(
    matrix: np.ndarray, centre: np.ndarray, patch: tuple[int, ...], device: torch.device
) -> list[torch.Tensor]:
    """Where each voxel of the patch is read: three float32 tensors of the patch's shape (Z, Y, X),
    the places along Z, Y and X of the volume.

    matrix: that of `patch_to_case`. centre: (3,), where the patch's centre lies in that volume.

    >>> z, y, x = places_to_read(2 * np.eye(3), np.full(3, 5), (1, 1, 3), torch.device("cpu"))
    >>> x.flatten().tolist()
    [3.0, 5.0, 7.0]
    """
    offsets = []
    for half in half_sides(patch).tolist():
        offsets.append(torch.arange(-half, half + 1, dtype=torch.float64, device=device))
    z, y, x = offsets
    z, y = z[:, None, None], y[:, None]  # of shapes (Z, 1, 1), (Y, 1) and (X)

    places = []
    for middle, (by_z, by_y, by_x) in zip(centre.tolist(), matrix.tolist()):
        # one part for each axis of the patch, rounded once; the sum of two has a plane's size
        from_z = (middle + by_z * z).float()
        from_y = (by_y * y).float()
        from_x = (by_x * x).float()
        places.append(from_z + (from_y + from_x))
    return places


def read_image_and_labels(
    image: torch.Tensor, labels: torch.Tensor, places: list[torch.Tensor], values: Iterable[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A float image and integer labels, (Z, Y, X) both, read at places of a patch's shape -> both
    of the patch. Beyond the volume the image is 0 and the label background, 0.

    A label between two voxels is that whose 0/1 mask, read linearly, is the largest. The masks are
    read with the image: where a place lies between the voxels is then worked out once for all.
    values: all that the labels may hold."""
    structures = sorted(set(values) - {0})
    masks = [labels == structure for structure in structures]
    volumes = torch.stack([image, *masks])  # floats, also the masks

    read = read_linearly(volumes, places)
    return read[0], label_of_largest(read[1:], structures, labels.dtype)


def read_linearly(volumes: torch.Tensor, places: list[torch.Tensor]) -> torch.Tensor:
    """(C, Z, Y, X) floats, read at places of a patch's shape -> (C, Z, Y, X) of the patch. Linear
    between voxels; beyond the outermost it falls to 0 within one voxel.

    >>> row = torch.tensor([10.0, 20.0]).reshape(1, 1, 1, 2)
    >>> x = torch.tensor([-0.5, 0.0, 0.5, 1.0]).reshape(1, 1, 4)
    >>> read_linearly(row, [0 * x, 0 * x, x]).flatten().tolist()
    [5.0, 10.0, 15.0, 20.0]
    """
    # For grid_sample an axis goes from -1, where its first voxel begins, to 1, where its last ends.
    sides = volumes.shape[1:]
    z, y, x = [(2 * place + 1) / side - 1 for place, side in zip(places, sides)]
    grid = torch.stack([x, y, z], dim=-1)  # in the order that it wants
    return F.grid_sample(volumes[None], grid[None], align_corners=False)[0]


def label_of_largest(
    masks: torch.Tensor, structures: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """(K, Z, Y, X) masks of K structures, between 0 and 1 -> (Z, Y, X): the label whose mask is the
    largest, of equally large ones the lowest. Background, 0, has what the others leave of 1.

    >>> kidney, tumor = torch.tensor([0.2, 0.5, 0.4]), torch.tensor([0.1, 0.5, 0.6])
    >>> label_of_largest(torch.stack([kidney, tumor]), [1, 2], torch.uint8).tolist()
    [0, 1, 2]
    """
    background = masks.new_ones(masks.shape[1:])
    for mask in masks:
        background = background - mask

    largest = background
    for mask in masks:
        largest = torch.maximum(largest, mask)

    mask_of = {0: background, **dict(zip(structures, masks))}
    labels = torch.zeros_like(background, dtype=dtype)
    for label in sorted(mask_of, reverse=True):  # the lowest last: it keeps a tie
        as_large = mask_of[label] > largest - TIE
        labels = labels.masked_fill(as_large, label)
    return labels


def cut(values: torch.Tensor, start: tuple[int, ...], patch: tuple[int, ...]) -> torch.Tensor:
    """The box of size `patch` at voxel `start` of (Z, Y, X) values, filled up with 0 where it lies
    outside, however far. ValueError for another number of axes, or an empty patch.

    >>> row = torch.tensor([1, 2, 3]).reshape(1, 1, 3)
    >>> cut(row, start=(0, 0, -1), patch=(1, 1, 3)).flatten().tolist()
    [0, 1, 2]
    >>> cut(row, start=(0, 0, 1), patch=(1, 1, 3)).flatten().tolist()
    [2, 3, 0]
    """
    check_box(values, start, patch)

    margins = []
    for side, first, length in zip(values.shape, map(index, start), map(index, patch)):
        first = max(-length, min(first, side))  # wholly outside: just beside the case

        # how many voxels of the patch lie before and after the case; less than 0: of the case
        # before and after the patch, which F.pad cuts off
        before = -first
        after = first + length - side
        margins = [before, after, *margins]  # F.pad counts the last axis first
    return F.pad(values, margins)


def check_box(values: torch.Tensor, start: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """ValueError unless start and patch have a number for each axis, and the patch a voxel."""
    if not len(values.shape) == len(start) == len(patch) or min(patch) < 1:
        raise ValueError(
            f"patch {tuple(patch)} at {tuple(start)} of a volume {tuple(values.shape)}, "
            "wanted a start and at least one voxel for each of its axes"
        )
