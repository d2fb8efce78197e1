"""Synthetic KiTS19 cases: contrast-enhanced abdominal CT in HU, so that everything runs without the
data set.

    python -m minikits.phantoms --out data --cases 40
    python -m minikits.phantoms --out data --labels FOLDER    # kidneys and tumors of real label volumes

A score on phantoms says nothing about patients. Vessels, bowel and organs share the intensities of
kidneys and tumors; no threshold finds these. Places are mm (z, y, x) from the middle of both
kidneys, to inferior, posterior and the left.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from minikits.anatomy import (
    FAT_HU,
    WATER_HU,
    Part,
    bent,
    draw_bends,
    draw_body,
    paint,
    paint_body,
)
from minikits.cases import Found, look_for_cases
from minikits.files import forgiving_output, typed_path
from minikits.layouts import PHANTOM
from minikits.nifti import read_labels, write_image
from minikits.processes import cores, free_memory, map_of_processes
from minikits.reading import add_frame_options

CASES_OF_A_SEED = 1000  # the names of the next seed's begin there

CASES_THAT_PAY = 3  # [ours: a process takes 2 s to start, a case 0.7 s]
BYTES_OF_A_PROCESS = 1 << 30  # of memory [ours: measured, 0.4 GiB]

SLAB = 16  # slices that are painted at a time, so that memory does not grow with their number

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
    depth_mm = random.uniform(100, 126)  # half of it
    size_mm = np.array([depth_mm, depth_mm * random.uniform(1.2, 1.48)])
    if labels is None:
        spacing_mm = spacing_mm or _draw_spacing(random)
        shape = shape or _draw_shape(random, spacing_mm, size_mm)
        first, last = np.zeros(3), np.array(shape) - 1
    else:
        shape = labels.shape
        first, last = _ends_of(labels)
    assert spacing_mm is not None

    middle = (first + last) / 2
    axes = []
    for size, center, step in zip(shape, middle, spacing_mm):
        axes.append(((np.arange(size) - center) * step).astype(np.float32))
    bends = draw_bends(random, axes)
    if labels is None:
        labels = _draw_labels(random, axes, bends)
    else:
        reach_mm = (last - first)[1:] / 2 * spacing_mm[1:]
        size_mm = np.maximum(size_mm, np.add(reach_mm, (50, 45)))

    cortex_hu = random.uniform(165, 215)  # blood, spleen and bowel come close to it
    body = draw_body(random, axes, bends, size_mm, _middles_of(labels, axes), cortex_hu)
    noise_sd = random.uniform(10, 20)

    image = np.empty(shape, dtype=np.int16)
    slabs = [slice(start, start + SLAB) for start in range(0, len(image), SLAB)]
    for slab in slabs:
        image[slab] = paint_body(body, [axes[0][slab], axes[1], axes[2]])
    _paint_kidneys(random, image, labels, spacing_mm, cortex_hu)
    for slab in slabs:
        image[slab] = _as_scanned(random, image[slab], noise_sd)

    z, y, x = spacing_mm
    return image, labels, (z, y, x)


def _draw_spacing(random):
    thickness = float(random.choice([2, 3, 3.75, 5]))
    in_plane = float(random.uniform(1.7, 2.6))
    return thickness, in_plane, in_plane


def _draw_shape(random, spacing_mm, size_mm):
    """The field of view: the body, the board that it lies on, and some air."""
    depth_mm, width_mm = size_mm
    height_mm = random.uniform(200, 300)
    seen_mm = (height_mm, 2 * depth_mm + 55, 2 * width_mm + random.uniform(16, 40))
    return [int(mm / step) for mm, step in zip(seen_mm, spacing_mm)]


def _ends_of(labels):
    """The first and the last voxel (z, y, x) of what is labelled; the middle where nothing is."""
    found = np.argwhere(labels)
    if not labels.any():
        found = np.array([labels.shape]) // 2
    return found.min(axis=0), found.max(axis=0)


def _middles_of(labels, axes):
    """The middle (z, y, x) in mm of what is labelled right and left of the spine; of nothing none."""
    found = np.argwhere(labels)
    places = np.stack([axis[indices] for axis, indices in zip(axes, found.T)], axis=1)
    middles = []
    for side in (-1, 1):
        of_side = places[places[:, 2] * side > 0]
        if len(of_side):
            middles.append(of_side.mean(axis=0))
    return middles


def _as_scanned(random, hu, noise_sd):
    """(Z, Y, X) HU with edges as wide as a detector's pixel, and noise as filtered backprojection
    gives it: in each slice its spectrum is a ramp, up to where the kernel rolls off."""
    hu = torch.from_numpy(hu).float()
    blurred = F.avg_pool2d(hu, 3, 1, padding=1, count_include_pad=False)
    hu = (hu + blurred) / 2

    height, width = hu.shape[1:]
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    ramp = frequency * torch.exp(-((frequency / 0.36) ** 2))
    white = torch.from_numpy(random.standard_normal(hu.shape, dtype=np.float32))
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * ramp, (height, width))
    noise = noise_sd / noise.std() * noise
    return (hu + noise).round().clamp(-1024, 3000).numpy()


# --- kidneys --------------------------------------------------------------------------------------


def _draw_labels(random, axes, bends):
    """Two kidneys and 0 to 2 tumors: uint8 (Z, Y, X)."""
    places = bent(axes, bends)
    labels = np.zeros(places.z.shape, dtype=np.uint8)
    sides = random.permutation([-1, 1])
    bearers = sides[: random.choice([0, 1, 2], p=[0.05, 0.8, 0.15])]
    for side in (-1, 1):
        centre = random.uniform((-15, -11, 54), (15, 11, 68))
        centre[0] -= 8 * side  # the right one lies lower
        radii = random.uniform((30, 23, 23), (36, 28, 29))
        parts = _kidney(random, centre, radii)
        if side in bearers:
            parts += _tumor(random, centre, radii)
        for (z, y, x), part_radii, value in parts:
            paint(labels, places, [Part((z, y, x * side), part_radii, value)])
    return labels


def _kidney(random, centre, radii):
    """Ellipsoids (centre, radii, 1) from the upper pole, which is nearer to the spine, to the
    lower, and some of 0 for the sinus, which is none of it."""
    parts = []
    for share in np.linspace(-1, 1, 5):
        to_pole = (26 * share, -2 * share, 5 * share - 6 * share**2)
        pole = centre + np.array(to_pole)
        size = radii * (0.8, 1, 1) * (1 - 0.18 * share**2) * random.uniform(0.92, 1.06, size=3)
        parts.append((pole, size, 1))

    hilum = centre - (0, 3, 0.78 * radii[2])
    for _ in range(5):
        place = hilum + random.uniform((-13, -3, -4), (13, 3, 9))
        parts.append((place, random.uniform((5, 3.5, 6), (9, 6, 11)), 0))
    return parts


def _tumor(random, centre, radii):
    """Ellipsoids (centre, radii, 2) about a spot in or near the kidney."""
    spot = centre + radii * random.uniform((-1.5, -0.7, 0.2), (1.5, 0.6, 0.8))
    size = random.uniform(12, 25)
    parts = []
    for _ in range(5):
        place = random.normal(spot, size / 3)
        parts.append((place, random.uniform(0.7, 1.05, size=3) * size, 2))
    return parts


def _paint_kidneys(random, image, labels, spacing_mm, cortex_hu):
    """Kidneys, the fat around them and tumors into the image (Z, Y, X), in place."""
    first, last = _ends_of(labels)
    margin = 8  # voxels
    box = tuple(slice(max(a - margin, 0), b + margin + 1) for a, b in zip(first, last))
    labels, hu = labels[box], image[box]

    z, y, x = (max(2, round(n * step / 8)) for n, step in zip(labels.shape, spacing_mm))
    cells = (z, y, x)  # of 8 mm
    means = F.adaptive_avg_pool3d(torch.from_numpy(labels > 0)[None].float(), cells)
    noise = torch.from_numpy(random.standard_normal((1, *cells), dtype=np.float32))
    smooth = F.interpolate(torch.stack([means, noise], 1), labels.shape, mode="trilinear")
    depth, grain = smooth[0].numpy()

    outside = labels == 0
    fat_from = np.maximum(0.4 + 0.3 * grain, 0.1)
    hu[outside & (depth > fat_from)] = FAT_HU  # thick here, a line or nothing there
    sinus = outside & (depth > 0.5)
    hu[sinus & (grain > 0.15)] = WATER_HU + 8
    hu[sinus & (grain < -0.75)] = cortex_hu  # vessels

    kidney, tumor = labels == 1, labels == 2
    medulla = (depth > 0.9) & (grain > -0.3)
    contrast = random.uniform(15, 95)
    hu[kidney] = cortex_hu - contrast * medulla[kidney] + 5 * grain[kidney]

    inner_hu = random.uniform(-15, 45)
    hu[tumor] = random.uniform(35, 95) + inner_hu * (depth[tumor] > 0.95) + 35 * grain[tumor]


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
    add_frame_options(parser, of="of --labels, ")
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

    numbers = range(arguments.cases or 10)
    make = partial(make_and_write, arguments.out, arguments.seed)
    with map_of_processes(processes_that_pay(len(numbers))) as mapped:
        try:
            for line in mapped(make, numbers):
                say(line)
        except BrokenExecutor:
            in_a_row = 2 * CASES_THAT_PAY - 1
            raise ValueError(
                f"a process that made cases was killed, for want of memory? {in_a_row} cases and "
                "fewer are made one after the other"
            ) from None
    return []


def make_and_write(out: Path, seed: int, number: int) -> str:
    """Makes a case of a seed, writes it as KiTS19 does, and returns a line on it."""
    name = f"{PHANTOM}{CASES_OF_A_SEED * seed + number:03d}"
    return write_case(out / name, make_case([seed, number]))


def processes_that_pay(cases: int) -> int:
    """In how many processes to make so many cases: as many as there are cores, each of which has
    enough of them to do, and room."""
    return int(max(1, min(cores(), cases // CASES_THAT_PAY, free_memory() / BYTES_OF_A_PROCESS)))


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
