"""minikits: the KiTS19-winning 3D U-Nets, from CT scan to kidney and tumor masks, to be read in an
afternoon. Each module imports only such as stand before it here; scripts import any.

Reading order, a patch's life: recipe, paper, volumes, resampling, preprocessing, geometry,
augmentation, sampling, unet, losses, training, train.py, prediction, components, evaluation,
files, frames, nifti, reading, doubts, familiar, trust, processes, cache, layouts, folds, prepared,
cases, checkpoints, ancestors, card, nnunet, ensemble, records, scans, masks, surfaces, lesions,
mistakes, pictures, comparisons, reports, measures, pages, predict.py, evaluate.py.
Beside it: devices, fast, ready, anatomy, phantoms (synthetic cases), facts, findings,
check (a data set before training), stages, explain (a case by stages).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__version__ = "0.1.0"


def segment(
    scan: str | Path | tuple[np.ndarray, np.ndarray],
    model: str | Path | Sequence[str | Path],
    *,
    folds: Sequence[int | str] | None = None,
    mirroring: bool = True,
    device: str = "auto",
    precision: str = "auto",
    **reading: Any,
) -> np.ndarray:
    """uint8 labels of a scan in HU, 0 background, 1 kidney, 2 tumor: those of predict.py.

    scan: the path of a NIfTI file, or (array, affine) as nibabel gives them: three axes in any
    order, and the (4, 4) affine from voxel to mm R A S. The labels have the shape and the axes of
    the array, or of the one in the file.
    model: a run folder, or several whose networks are averaged. folds, mirroring, device and
    precision are predict.py's options; reading those of `read_volume`, for a file alone.

    What predict.py refuses is a ValueError or OSError, what it doubts a UserWarning. As there,
    float32 is exact afterwards, in the whole process."""
    # late, since torch takes seconds to import
    from minikits.doubts import doubts
    from minikits.ensemble import load_networks
    from minikits.nifti import in_stored_axes, read_volume, volume_of_array
    from minikits.ready import check_size, labels_of, make_ready, set_up
    from minikits.trust import unlike_training

    if isinstance(scan, (str, Path)):
        volume = read_volume(scan, **reading)
    else:
        if reading:
            raise ValueError(f"{', '.join(reading)}: given with an array; wanted for a file alone")
        voxels, affine = scan
        volume = volume_of_array(voxels, affine)

    runs = [model] if isinstance(model, (str, Path)) else model
    members, recipe, said = load_networks([Path(run) for run in runs], folds)
    warned = [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]
    for line in warned + doubts(volume):
        warnings.warn(line, stacklevel=2)

    where, number_format = set_up(device, precision)
    ready = make_ready(
        members,
        recipe,
        where,
        number_format,
        largest=volume.voxels.nbytes,
        compiling="off",  # a scan does not earn back the minute that it takes
        windows=0,
        say=warnings.warn,
    )
    check_size(volume, ready)
    labels = labels_of(volume, ready, ready.networks, mirroring=mirroring)

    unlike = unlike_training(volume, labels, recipe, [member.ranges for member in members])
    for words in unlike or []:
        warnings.warn(f"{volume.path}: unlike the training data: {words}", stacklevel=2)
    return in_stored_axes(labels, volume)
