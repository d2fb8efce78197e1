"""Synthetic KiTS19 cases: contrast-enhanced abdominal CT in HU, so that everything runs without the data set.

    python -m minikits.phantoms --out data --cases 20
    python -m minikits.phantoms --out data --labels FOLDER    # kidneys and tumors of real label volumes

A score on phantoms says nothing about patients. Vessels, bowel and organs share the intensities of kidneys and tumors;
no threshold finds these. Places are mm (z, y, x) from the middle of both kidneys, to inferior, posterior and the left.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from minikits.cases import Found, look_for_cases
from minikits.files import forgiving_output, typed_path, typed_spacing
from minikits.nifti import read_labels, write_image

FAT_HU = -102
CASES_OF_A_SEED = 1000  # the names of the next seed's begin there


def make_case(seed, *, shape=None, spacing_mm=None, labels=None):
    """(image int16 in HU, labels uint8, spacing_mm); arrays (Z, Y, X). The same arguments give the same case.
    seed: an integer or a sequence of them. Without labels, kidneys and tumors are drawn, and shape and spacing
    where not given. With labels (0, 1, 2) and their spacing, the body is built around them; they come back as given."""
    random = np.random.default_rng(seed)
    if labels is None:
        spacing_mm = spacing_mm or (
            float(random.choice([2, 3, 3.75, 5])),
            *[float(random.uniform(1.7, 2.6))] * 2,
        )
        shape = shape or [
            int(mm / step) for mm, step in zip((random.uniform(200, 300), 360, 400), spacing_mm)
        ]
        labels = _draw_labels(random, shape, spacing_mm)
    found = np.argwhere(labels) if labels.any() else np.array([labels.shape]) // 2
    first, last = found.min(axis=0), found.max(axis=0)
    places = [
        (np.arange(n) - mid) * step
        for n, mid, step in zip(labels.shape, (first + last) / 2, spacing_mm)
    ]
    cortex_hu = random.uniform(140, 215)  # blood, liver, spleen and bowel come close to it
    image = np.full(labels.shape, FAT_HU, dtype=np.int16)
    _paint_body(random, image, places, (last - first) / 2 * spacing_mm, cortex_hu)
    box = tuple(
        slice(max(a - 8, 0), b + 9) for a, b in zip(first, last)
    )  # with the fat around the kidneys
    _paint_kidneys(random, image[box], labels[box], spacing_mm, cortex_hu)
    noise_sd = random.uniform(30, 72)  # the mean of 3 x 3 leaves a third of it
    for plane in image:  # as scanned: edges are blurred in the plane, and noise is correlated there
        noisy = torch.from_numpy(random.normal(plane, noise_sd))[None]
        plane[:] = (
            F.avg_pool2d(noisy, 3, 1, padding=1, count_include_pad=False)[0]
            .round()
            .clamp(-1024)
            .numpy()
        )
    return image, labels, tuple(spacing_mm)


def _paint(volume, places, ellipsoids):
    """Ellipsoids (centre, radii, value), one over the other, into an array (Z, Y, X) in place."""
    for centre, radii, value in ellipsoids:
        box = [
            slice(*np.searchsorted(mm, [c - r, c + r])) for mm, c, r in zip(places, centre, radii)
        ]
        squared = [((mm[s] - c) / r) ** 2 for mm, s, c, r in zip(places, box, centre, radii)]
        volume[tuple(box)][sum(np.ix_(*squared)) < 1] = value


def _draw_labels(random, shape, spacing_mm):
    """Two kidneys without their sinus and 0 to 2 tumors, each of three ellipsoids: uint8 (Z, Y, X)."""
    labels = np.zeros(shape, dtype=np.uint8)
    places = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm)]
    bearers = random.permutation([-1, 1])[: random.choice([0, 1, 2], p=[0.05, 0.8, 0.15])]
    for side in (-1, 1):
        centre = random.uniform((-15, -11, 56), (15, 11, 70)) - (
            8 * side,
            0,
            0,
        )  # the right one lies lower
        radii = random.uniform((30, 24, 24), (36, 29, 30))
        poles = (
            np.outer((-1, 0, 1), (22, 0, random.uniform(3, 8))) + centre
        )  # the upper one, to the spine
        parts = [(pole, radii * random.uniform(0.85, 1.05, size=3), 1) for pole in poles]
        parts += [(centre - (0, 0, 0.75 * radii[2]), radii * (0.75, 0.4, 0.75), 0)]
        if side in bearers:
            spot = centre + radii * random.uniform((-1.5, -0.7, 0.3), (1.5, 0.7, 1))
            size = random.uniform(14, 26)
            parts += [
                (random.normal(spot, size / 4), random.uniform(0.8, 1.1, size=3) * size, 2)
                for _ in range(3)
            ]
        _paint(labels[:, :, ::side], places, parts)  # the right half, mirrored
    return labels


def _paint_body(random, hu, places, reach, cortex_hu):
    """Everything but the kidneys, which reach so far from the middle, into fat, in place. (Z, Y, X)"""
    bowel = [
        (
            random.uniform((-60, -93, -105), (170, -13, 105)),
            random.uniform(12, 30, size=3),
            random.choice([cortex_hu, 25, 95, -700]) + random.uniform(-30, 40),
        )
        for _ in range(24)
    ]
    _paint(
        hu,
        places,
        [
            *bowel,
            *(((-190, -17, x), (110, 80, 65), -850) for x in (-70, 70)),  # lungs
            ((-75, -38, -75), (95, 80, 75), cortex_hu - random.uniform(20, 70)),  # liver
            ((-70, 2, 108), (50, 38, 26), cortex_hu - random.uniform(0, 45)),  # spleen
            *(
                ((0, -8, x), (900, 12, 12), cortex_hu + random.uniform(-30, 60)) for x in (-19, 9)
            ),  # cava, aorta
            *(
                ((60, y, x), (200, r, 24), 65) for x in (-37, 37) for y, r in [(23, 20), (63, 24)]
            ),  # psoas, back
            *(
                ((0, y, 0), (900, r, r), value)
                for y, r, value in [(25, 22, 220), (56, 13, 330), (55, 9, 30)]
            ),  # spine
        ],
    )
    z, y, x = np.ix_(*places)
    depth, width = np.maximum(random.uniform((104, 145), (126, 180)), np.add(reach[1:], (50, 45)))
    radius = np.hypot((y + 17) / depth, x / width)[0]  # (Y, X); 1 is the skin
    for rim, value in [(0.8, 65), (0.87, FAT_HU), (1, -1000)]:  # muscle, fat, air
        hu[:, radius > rim] = value
    # ribs run down and forward
    hu[(np.mod(z + 0.35 * y, 30) < 9) & (z < 20) & (abs(radius - 0.845) < 0.025)] = 330


def _paint_kidneys(random, hu, labels, spacing_mm, cortex_hu):
    """Kidneys, the fat around them and tumors in the box around the labels, in place. (Z, Y, X)"""
    cells = [max(2, round(n * step / 8)) for n, step in zip(labels.shape, spacing_mm)]  # of 8 mm
    means = F.adaptive_avg_pool3d(torch.from_numpy(labels > 0)[None].float(), cells)
    noise = torch.from_numpy(random.standard_normal((1, *cells), dtype=np.float32))
    depth, grain = F.interpolate(torch.stack([means, noise], 1), labels.shape, mode="trilinear")[
        0
    ].numpy()
    hu[(labels == 0) & (depth > 0.1)] = FAT_HU
    medulla = (depth > 0.9) & (grain > -0.4)
    hu[labels == 1] = cortex_hu - random.uniform(35, 100) * medulla[labels == 1]
    hu[labels == 2] = random.uniform(30, 95) + random.uniform(30, 60) * grain[labels == 2]


def main():
    forgiving_output()
    parser = command_line()
    arguments = parser.parse_args()
    try:
        failed = write_phantoms(arguments)
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


def write_phantoms(arguments: argparse.Namespace) -> list[str]:
    """Writes what the command line asks for; a line for each label volume that cannot be read.
    ValueError, before anything is written, for numbers that mean nothing."""
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
        )
    for number in range(arguments.cases or 10):
        name = f"phantom_{CASES_OF_A_SEED * arguments.seed + number:03d}"
        write_case(arguments.out / name, make_case([arguments.seed, number]))
    return []


def write_around_labels(
    out: Path,
    folder: Path,
    count: int | None,
    seed: int,
    *,
    affine: str | None = None,
    assume_spacing: tuple | None = None,
) -> list[str]:
    """A phantom around each label volume of a KiTS19 folder, or around the first `count` of them; a
    line for each that cannot be read. affine, assume_spacing: as `read_labels` takes them.
    ValueError where there is none, or where one would be written over."""
    found = look_for_cases(folder) if folder.exists() else Found([], [])
    labelled = [case for case in found.cases if case.labels]
    if not labelled:
        raise ValueError(f"{folder}: no label volumes found, wanted NAME/segmentation.nii.gz")
    if found.left_out:
        print(f"{folder}: {found.summary()}")
    if count and count > len(labelled):
        volumes = "label volume" if len(labelled) == 1 else "label volumes"
        print(f"{folder}: {len(labelled)} {volumes} found, of the {count} wanted")

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
        try:
            volume = read_labels(case.labels, affine=affine, assume_spacing=assume_spacing)
        except (ValueError, OSError) as error:
            failed.append(str(error))
            continue
        phantom = make_case([seed, number], labels=volume.voxels, spacing_mm=volume.spacing_mm)
        write_case(out / case.id, phantom)
    return failed


def write_case(folder: Path, case: tuple):
    """Writes what `make_case` gives as KiTS19 does, and prints a line."""
    image, labels, spacing_mm = case
    write_image(folder / "imaging.nii.gz", image, spacing_mm)
    write_image(folder / "segmentation.nii.gz", labels, spacing_mm)
    tumor = np.count_nonzero(labels == 2)
    print(f"{folder.name}: {labels.shape} voxels, {tumor} of tumor", flush=True)


if __name__ == "__main__":
    main()
