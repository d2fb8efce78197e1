"""Synthetic KiTS19 cases: contrast-enhanced abdominal CT in HU, so that everything runs without the
data set.

    python -m minikits.phantoms --out data --cases 20
    python -m minikits.phantoms --out data --labels FOLDER    # kidneys and tumors of real label volumes

A score on phantoms says nothing about patients. Vessels, bowel and organs share the intensities of
kidneys and tumors; no threshold finds these. Places are mm (z, y, x) from the middle of both
kidneys, to inferior, posterior and the left.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from minikits.cases import Found, look_for_cases
from minikits.files import forgiving_output, typed_path, typed_spacing
from minikits.nifti import read_labels, write_image

AIR_HU = -1000
FAT_HU = -102
MUSCLE_HU = 65
BONE_HU = 330
CASES_OF_A_SEED = 1000  # the names of the next seed's begin there

Case = tuple[np.ndarray, np.ndarray, tuple[float, float, float]]


# --- a case ---------------------------------------------------------------------------------------


def make_case(
    seed: int | Sequence[int],
    *,
    shape: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    labels: np.ndarray | None = None,
) -> Case:
    """(image int16 in HU, labels uint8, spacing_mm); arrays (Z, Y, X). The same arguments give the
    same case.

    Without labels, kidneys and tumors are drawn, and shape and spacing where not given. With labels
    (0, 1, 2) and their spacing, the body is built around them; they come back as given.
    """
    random = np.random.default_rng(seed)
    if labels is None:
        spacing_mm = spacing_mm or _draw_spacing(random)
        shape = shape or _draw_shape(random, spacing_mm)
        labels = _draw_labels(random, shape, spacing_mm)
    assert spacing_mm is not None

    first, last = _ends_of(labels)
    middle = (first + last) / 2
    reach_mm = (last - first) / 2 * spacing_mm
    places = []
    for size, center, step in zip(labels.shape, middle, spacing_mm):
        places.append((np.arange(size) - center) * step)

    cortex_hu = random.uniform(140, 215)  # blood, liver, spleen and bowel come close to it
    image = np.full(labels.shape, FAT_HU, dtype=np.int16)
    _paint_body(random, image, places, reach_mm, cortex_hu)

    margin = 8  # voxels of fat around the kidneys
    box = tuple(slice(max(a - margin, 0), b + margin + 1) for a, b in zip(first, last))
    _paint_kidneys(random, image[box], labels[box], spacing_mm, cortex_hu)

    noise_sd = random.uniform(30, 72)  # the mean of 3 x 3 leaves a third of it
    for plane in image:
        plane[:] = _as_scanned(random, plane, noise_sd)

    z, y, x = spacing_mm
    return image, labels, (z, y, x)


def _draw_spacing(random):
    thickness = float(random.choice([2, 3, 3.75, 5]))
    in_plane = float(random.uniform(1.7, 2.6))
    return thickness, in_plane, in_plane


def _draw_shape(random, spacing_mm):
    size_mm = (random.uniform(200, 300), 360, 400)
    return [int(mm / step) for mm, step in zip(size_mm, spacing_mm)]


def _ends_of(labels):
    """The first and the last voxel (z, y, x) of what is labelled; the middle where nothing is."""
    found = np.argwhere(labels)
    if not labels.any():
        found = np.array([labels.shape]) // 2
    return found.min(axis=0), found.max(axis=0)


def _as_scanned(random, plane, noise_sd):
    """(Y, X) HU with noise. Edges are blurred in the plane, and noise is correlated there."""
    noisy = torch.from_numpy(random.normal(plane, noise_sd))[None]
    blurred = F.avg_pool2d(noisy, 3, 1, padding=1, count_include_pad=False)[0]
    return blurred.round().clamp(-1024).numpy()


# --- its parts ------------------------------------------------------------------------------------


def _paint(volume, places, ellipsoids):
    """Ellipsoids (centre, radii, value), one over the other, into an array (Z, Y, X) in place."""
    for centre, radii, value in ellipsoids:
        box, squared = [], []
        for mm, c, r in zip(places, centre, radii):
            start, stop = np.searchsorted(mm, [c - r, c + r])
            box.append(slice(start, stop))
            squared.append(((mm[start:stop] - c) / r) ** 2)

        inside = sum(np.ix_(*squared)) < 1
        volume[tuple(box)][inside] = value


def _draw_labels(random, shape, spacing_mm):
    """Two kidneys and 0 to 2 tumors: uint8 (Z, Y, X)."""
    labels = np.zeros(shape, dtype=np.uint8)
    places = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm)]
    sides = random.permutation([-1, 1])
    bearers = sides[: random.choice([0, 1, 2], p=[0.05, 0.8, 0.15])]
    for side in (-1, 1):
        lower = (8 * side, 0, 0)  # the right one lies lower
        centre = random.uniform((-15, -11, 56), (15, 11, 70)) - lower
        radii = random.uniform((30, 24, 24), (36, 29, 30))

        parts = _kidney(random, centre, radii)
        if side in bearers:
            parts += _tumor(random, centre, radii)
        _paint(labels[:, :, ::side], places, parts)  # the right half, mirrored
    return labels


def _kidney(random, centre, radii):
    """Three ellipsoids from the upper pole, which is nearer to the spine, to the lower; and the
    sinus, which is none of it."""
    poles = np.outer((-1, 0, 1), (22, 0, random.uniform(3, 8))) + centre
    parts = []
    for pole in poles:
        parts.append((pole, radii * random.uniform(0.85, 1.05, size=3), 1))
    sinus = (centre - (0, 0, 0.75 * radii[2]), radii * (0.75, 0.4, 0.75), 0)
    return [*parts, sinus]


def _tumor(random, centre, radii):
    """Three ellipsoids about a spot in or near the kidney."""
    spot = centre + radii * random.uniform((-1.5, -0.7, 0.3), (1.5, 0.7, 1))
    size = random.uniform(14, 26)
    parts = []
    for _ in range(3):
        place = random.normal(spot, size / 4)
        parts.append((place, random.uniform(0.8, 1.1, size=3) * size, 2))
    return parts


def _paint_body(random, hu, places, reach_mm, cortex_hu):
    """Everything but the kidneys, which reach so far from the middle, into fat, in place. (Z, Y, X)"""
    bowel = []
    for _ in range(24):
        place = random.uniform((-60, -93, -105), (170, -13, 105))
        radii = random.uniform(12, 30, size=3)
        filling = random.choice([cortex_hu, 25, 95, -700]) + random.uniform(-30, 40)
        bowel.append((place, radii, filling))

    organs = [((-190, -17, x), (110, 80, 65), -850) for x in (-70, 70)]  # lungs
    organs += [
        ((-75, -38, -75), (95, 80, 75), cortex_hu - random.uniform(20, 70)),  # liver
        ((-70, 2, 108), (50, 38, 26), cortex_hu - random.uniform(0, 45)),  # spleen
        ((0, -8, -19), (900, 12, 12), cortex_hu + random.uniform(-30, 60)),  # vena cava
        ((0, -8, 9), (900, 12, 12), cortex_hu + random.uniform(-30, 60)),  # aorta
    ]
    for x in (-37, 37):
        organs.append(((60, 23, x), (200, 20, 24), MUSCLE_HU))  # psoas
        organs.append(((60, 63, x), (200, 24, 24), MUSCLE_HU))  # back
    for y, radius, value in [(25, 22, 220), (56, 13, BONE_HU), (55, 9, 30)]:  # spine and its canal
        organs.append(((0, y, 0), (900, radius, radius), value))
    _paint(hu, places, [*bowel, *organs])

    z, y, x = np.ix_(*places)
    least = np.add(reach_mm[1:], (50, 45))
    depth, width = np.maximum(random.uniform((104, 145), (126, 180)), least)
    radius = np.hypot((y + 17) / depth, x / width)[0]  # (Y, X); 1 is the skin
    hu[:, radius > 0.8] = MUSCLE_HU
    hu[:, radius > 0.87] = FAT_HU
    hu[:, radius > 1] = AIR_HU

    run_down_and_forward = np.mod(z + 0.35 * y, 30) < 9
    ribs = run_down_and_forward & (z < 20) & (abs(radius - 0.845) < 0.025)
    hu[ribs] = BONE_HU


def _paint_kidneys(random, hu, labels, spacing_mm, cortex_hu):
    """Kidneys, the fat around them and tumors in the box around the labels, in place. (Z, Y, X)"""
    z, y, x = (max(2, round(n * step / 8)) for n, step in zip(labels.shape, spacing_mm))
    cells = (z, y, x)  # of 8 mm
    means = F.adaptive_avg_pool3d(torch.from_numpy(labels > 0)[None].float(), cells)
    noise = torch.from_numpy(random.standard_normal((1, *cells), dtype=np.float32))
    smooth = F.interpolate(torch.stack([means, noise], 1), labels.shape, mode="trilinear")
    depth, grain = smooth[0].numpy()

    kidney, tumor = labels == 1, labels == 2
    medulla = (depth > 0.9) & (grain > -0.4)
    hu[(labels == 0) & (depth > 0.1)] = FAT_HU
    hu[kidney] = cortex_hu - random.uniform(35, 100) * medulla[kidney]
    hu[tumor] = random.uniform(30, 95) + random.uniform(30, 60) * grain[tumor]


# --- the command ----------------------------------------------------------------------------------


def main() -> None:
    forgiving_output()
    parser = command_line()
    arguments = parser.parse_args()
    try:
        failed = write_phantoms(arguments, say=partial(print, flush=True))
    except (ValueError, OSError) as error:
        failed = [str(error)]
    except KeyboardInterrupt:
        parser.exit(130, "phantoms: stopped\n")
    if failed:
        parser.exit(2, "".join(f"phantoms: {line}\n" for line in failed))


def command_line() -> argparse.ArgumentParser:
    """The options: what to write, and how to read --labels where `read_labels` refuses them."""
    parser = argparse.ArgumentParser(description="Write synthetic KiTS19 cases.")
    parser.add_argument(
        "--out",
        type=typed_path,
        required=True,
        help="folder for NAME/imaging.nii.gz, segmentation.nii.gz",
    )
    parser.add_argument("--cases", type=int, help="how many (default 10, or all of --labels)")
    parser.add_argument("--seed", type=int, default=0, help="0 or more (default %(default)s)")
    parser.add_argument(
        "--labels",
        type=typed_path,
        help="folder of case_00000/segmentation.nii.gz to build bodies around",
    )
    parser.add_argument(
        "--affine",
        choices=["sform", "qform"],
        help="of --labels, which to take where they or pixdim differ",
    )
    parser.add_argument(
        "--assume-spacing",
        type=typed_spacing,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="of --labels, mm; axes as KiTS19's",
    )
    return parser


def write_phantoms(arguments: argparse.Namespace, say: Callable) -> list[str]:
    """Writes what the command line asks for, a line to `say` for each; returns a line for each label
    volume that cannot be read. ValueError, before anything is written, for numbers that mean
    nothing."""
    if arguments.cases is not None and arguments.cases < 1:
        raise ValueError(f"--cases {arguments.cases}: wanted 1 or more")
    if not arguments.labels and (arguments.cases or 0) > CASES_OF_A_SEED:
        raise ValueError(
            f"--cases {arguments.cases}: wanted {CASES_OF_A_SEED} at most, since those "
            "of the next --seed are named so that they follow"
        )
    if arguments.seed < 0:
        raise ValueError(f"--seed {arguments.seed}: wanted 0 or more")

    if arguments.labels:
        return write_around_labels(
            arguments.out,
            arguments.labels,
            arguments.cases,
            arguments.seed,
            affine=arguments.affine,
            assume_spacing=arguments.assume_spacing,
            say=say,
        )
    for number in range(arguments.cases or 10):
        name = f"phantom_{CASES_OF_A_SEED * arguments.seed + number:03d}"
        case = make_case([arguments.seed, number])
        say(write_case(arguments.out / name, case))
    return []


def write_around_labels(
    out: Path,
    folder: Path,
    count: int | None,
    seed: int,
    *,
    affine: str | None = None,
    assume_spacing: tuple | None = None,
    say: Callable,
) -> list[str]:
    """A phantom around each label volume of a KiTS19 folder, or around the first `count` of them, a
    line to `say` for each; returns a line for each that cannot be read. affine, assume_spacing: as
    `read_labels` takes them. ValueError where there is none, or where one would be written over."""
    found = look_for_cases(folder) if folder.exists() else Found([], [])
    labelled = [case for case in found.cases if case.labels]
    if not labelled:
        raise ValueError(f"{folder}: no label volumes found, wanted NAME/segmentation.nii.gz")
    if found.left_out:
        say(f"{folder}: {found.summary()}")
    if count and count > len(labelled):
        volumes = "label volume" if len(labelled) == 1 else "label volumes"
        say(f"{folder}: {len(labelled)} {volumes} found, of the {count} wanted")

    chosen = labelled[:count]
    for case in chosen:
        written = [out / case.id / name for name in ("imaging.nii.gz", "segmentation.nii.gz")]
        sources = [path.resolve() for path in (case.image, case.labels) if path]
        if any(path.resolve() in sources for path in written):
            raise ValueError(
                f"{out}: holds {case.id} of --labels, which would be written over; "
                "choose another --out"
            )

    failed = []
    for number, case in enumerate(chosen):
        assert case.labels is not None  # chosen for it
        try:
            volume = read_labels(case.labels, affine=affine, assume_spacing=assume_spacing)
        except (ValueError, OSError) as error:
            failed.append(str(error))
            continue
        phantom = make_case([seed, number], labels=volume.voxels, spacing_mm=volume.spacing_mm)
        say(write_case(out / case.id, phantom))
    return failed


def write_case(folder: Path, case: Case) -> str:
    """Writes what `make_case` gives as KiTS19 does; returns a line on it."""
    image, labels, spacing_mm = case
    write_image(folder / "imaging.nii.gz", image, spacing_mm)
    write_image(folder / "segmentation.nii.gz", labels, spacing_mm)
    tumor = np.count_nonzero(labels == 2)
    return f"{folder.name}: {labels.shape} voxels, {tumor} of tumor"


if __name__ == "__main__":
    main()
