"""A turned and scaled patch: for each voxel of it, where in the case to read, and what is there.

All that decides where to read is computed on the computer, in numpy; the reading is done where the
volume is, on any device, without waiting for it. Places are in voxels, along Z, Y, X."""

import math
from collections.abc import Iterable
from operator import index

import numpy as np
import torch
import torch.nn.functional as F

from minikits.resampling import TIE


def rotation_matrix(angles: tuple[float, float, float]) -> np.ndarray:
    """(3, 3): about axis 0 (Z), then 1 (Y), then 2 (X), by angles in radians, as batchgenerators
    composes them: it multiplies places as rows, `places @ matrix`."""
    cz, cy, cx = np.cos(angles)
    sz, sy, sx = np.sin(angles)
    about_z = np.array([[1, 0, 0], [0, cz, -sz], [0, sz, cz]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[cx, -sx, 0], [sx, cx, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def patch_centre(start: tuple[int, ...], patch: tuple[int, ...]) -> np.ndarray:
    """(3,): where the middle of a patch lies that begins at voxel `start`; between two voxels
    where a side is even."""
    return np.array(start) + (np.array(patch) - 1) / 2


def box_around(
    turn: np.ndarray, start: tuple[int, ...], patch: tuple[int, ...], size: tuple[int, ...]
) -> tuple[slice, ...]:
    """The part of a case of this size that a turned patch may read, a slice for each axis: at least
    one voxel, at the case's edge where the patch lies outside.

    turn: (3, 3), from the patch's voxels, counted from its centre, to the case's."""
    centre = patch_centre(start, patch)
    reach = np.abs(turn) @ ((np.array(patch) - 1) / 2)  # of its corners, along the case's axes

    box = []
    for middle, far, side in zip(centre, reach, size):
        first = min(max(math.floor(middle - far), 0), side - 1)
        # of the last place the voxel above, and a slice ends behind it
        end = min(max(math.floor(middle + far) + 2, first + 1), side)
        box.append(slice(first, end))
    return tuple(box)


def places_to_read(
    turn: np.ndarray, centre: np.ndarray, patch: tuple[int, ...], device: torch.device
) -> list[torch.Tensor]:
    """Where each voxel of the patch is read: three float32 tensors of the patch's shape (Z, Y, X),
    the places along each axis of the volume.

    turn: as of `box_around`. centre: (3,), where the patch's centre lies in that volume."""
    offsets = []  # from the centre, along each axis of the patch
    for axis, side in enumerate(patch):
        shape = [1, 1, 1]
        shape[axis] = side
        along = torch.arange(side, dtype=torch.float64, device=device) - (side - 1) / 2
        offsets.append(along.view(shape))

    places = []  # computed in float64, rounded once for each axis of the patch
    for steps, middle in zip(turn.tolist(), centre.tolist()):
        parts = [step * offset for step, offset in zip(steps, offsets)]
        parts[0] = parts[0] + middle
        from_z, from_y, from_x = [part.float() for part in parts]
        places.append(from_z + (from_y + from_x))  # Y and X first: of a plane's size
    return places


def read_linearly(volumes: torch.Tensor, places: list[torch.Tensor]) -> torch.Tensor:
    """(C, Z, Y, X) floats, read at places of a patch's shape -> (C, Z, Y, X) of the patch. Linear
    between voxels; beyond the outermost it falls to 0 within one voxel."""
    sides = volumes.shape[1:]
    grid = [(2 * place + 1) / side - 1 for place, side in zip(places, sides)]  # -1, 1: the faces
    grid = torch.stack(grid[::-1], dim=-1)  # grid_sample wants X first
    return F.grid_sample(volumes[None], grid[None], align_corners=False)[0]


def read_labels_linearly(
    labels: torch.Tensor, places: list[torch.Tensor], values: Iterable[int]
) -> torch.Tensor:
    """(Z, Y, X) integer labels, read at places of a patch's shape: the label whose 0/1 mask, read
    linearly, is the largest; of equally large ones the lowest. Beyond the volume is background, 0.

    values: all that the labels may hold."""
    values = sorted({0, *values})
    masks = [(labels == value).float() for value in values if value != 0]
    read = list(read_linearly(torch.stack(masks), places)) if masks else []

    background = torch.ones_like(places[0])
    for mask in read:
        background = background - mask
    read.insert(values.index(0), background)

    largest = torch.stack(read).amax(dim=0)
    patch = torch.zeros_like(largest, dtype=labels.dtype)
    for value, mask in reversed(list(zip(values, read))):  # the lowest last: it keeps a tie
        as_large = mask > largest - TIE
        patch = patch.masked_fill(as_large, value)
    return patch


def cut(values: torch.Tensor, start: tuple[int, ...], patch: tuple[int, ...]) -> torch.Tensor:
    """The box of size `patch` at voxel `start` of (Z, Y, X) values, filled up with 0 where it lies
    outside, however far. ValueError for another number of axes, or an empty patch."""
    check_box(values, start, patch)

    margins = []
    for side, first, length in zip(values.shape, map(index, start), map(index, patch)):
        first = max(-length, min(first, side))  # wholly outside is 0, however far
        before, after = -first, first + length - side  # where negative, F.pad cuts off
        margins = [before, after, *margins]  # F.pad counts the last axis first
    return F.pad(values, margins)


def check_box(values: torch.Tensor, start: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """ValueError unless start and patch have a number for each axis, and the patch a voxel."""
    if not len(values.shape) == len(start) == len(patch) or min(patch) < 1:
        raise ValueError(
            f"patch {tuple(patch)} at {tuple(start)} of a volume {tuple(values.shape)}, "
            "wanted a start and at least one voxel for each of its axes"
        )
