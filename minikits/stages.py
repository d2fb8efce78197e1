"""The stages of one case, as a page shows them: each described by numbers and pictures.

A stage calls the functions that training and prediction call, draws what they gave into the page's
folder, and says what to look at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import radians
from pathlib import Path

import numpy as np
import torch
from nibabel.orientations import ornt2axcodes

from minikits.augmentation import (
    change_brightness,
    change_contrast,
    change_gamma,
    change_geometry,
    change_mirroring,
    change_noise,
    cut_patch,
    generator_for,
)
from minikits.devices import (
    exact_float32,
    pick_precision,
)
from minikits.doubts import doubts
from minikits.ensemble import Member
from minikits.evaluation import CaseScores, score_case
from minikits.losses import downsampled, head_weights
from minikits.paper import CLASSES
from minikits.pictures import (
    AXIAL,
    BLACK_AND_WHITE_HU,
    CORONAL,
    PLANES,
    Panel,
    draw_histograms,
    draw_panels,
    in_plane,
    panels_of,
    projected,
)
from minikits.prediction import FLIPS, importance_map, segment_volume, window_starts
from minikits.preprocessing import (
    image_orders,
    label_orders,
    labels_on_native_grid,
)
from minikits.recipe import Recipe
from minikits.reports import NO_SCORE
from minikits.sampling import PreparedCase, bounds_of_start, draw_batch, draw_start
from minikits.trust import unlike_training
from minikits.volumes import CANONICAL, Volume, canonical_axes_and_flips, orientation

PATCHES_DRAWN = 100  # of each kind, in the picture of where patches lie
BATCHES_DRAWN = 3
TWO_PLANES = (AXIAL, CORONAL)
ORDERS = {0: "nearest", 1: "linear", 3: "cubic"}


@dataclass(frozen=True, eq=False)
class Subject:
    """The case that is explained, and what its stages share."""

    id: str
    scan: Volume
    reference: Volume | None  # its labels
    prepared: PreparedCase  # without labels all of it is background
    recipe: Recipe
    seed: int

    @property
    def place(self) -> tuple[int, ...]:
        """The voxel of the scan through which planes are drawn."""
        if self.reference is None:
            return middle_of_most(np.zeros(self.scan.voxels.shape, dtype=np.uint8))
        return middle_of_most(self.reference.voxels)

    @property
    def outlines(self) -> np.ndarray | None:
        """Its labels on the scan's own grid."""
        return None if self.reference is None else self.reference.voxels

    @property
    def image(self) -> np.ndarray:
        """The scan on the networks' grid, in their units."""
        return self.prepared.image.float().numpy()

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Height and width of a pixel of an axial slice on the networks' grid."""
        _, y_mm, x_mm = self.recipe.spacing_mm
        return y_mm, x_mm

    @property
    def prepared_place(self) -> tuple[int, ...]:
        """The same place on the networks' grid."""
        return same_place(self.place, self.scan.voxels.shape, self.prepared.image.shape)

    @property
    def shown(self) -> tuple[float, float]:
        """The ends of the window, in the networks' units."""
        lowest, highest = self.recipe.window_hu
        mean, sd = self.recipe.mean_hu, self.recipe.sd_hu
        return (lowest - mean) / sd, (highest - mean) / sd


@dataclass(frozen=True)
class Stage:
    """What the page says of a stage: what to look at, numbers by their names, and pictures, a file's
    name and what is on it each."""

    title: str
    told: str
    numbers: list[tuple[str, str]]
    pictures: list[tuple[str, str]]


def middle_of_most(labels: np.ndarray) -> tuple[int, ...]:
    """(z, y, x): of each axis the plane that holds most of the tumor, of the kidneys where there is
    none; the middle where there are none of these.

    >>> labels = np.zeros((3, 4, 5), dtype=np.uint8)
    >>> middle_of_most(labels)
    (1, 2, 2)
    >>> labels[2, 3, 1:4] = 1
    >>> middle_of_most(labels)[:2]
    (2, 3)
    """
    region = labels == 2
    if not region.any():
        region = labels > 0
    if not region.any():
        return tuple(size // 2 for size in labels.shape)

    place = []
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        place.append(int(region.sum(axis=others).argmax()))
    return tuple(place)


def same_place(
    place: Sequence[int], shape: Sequence[int], new_shape: Sequence[int]
) -> tuple[int, ...]:
    """The voxel of another grid of the same body that holds the centre of a voxel.

    >>> same_place((0, 3, 3), shape=(4, 4, 4), new_shape=(4, 2, 8))
    (0, 1, 7)
    """
    there = []
    for voxel, size, new_size in zip(place, shape, new_shape):
        there.append(int((voxel + 0.5) * new_size / size))
    return tuple(there)


# --- what was read --------------------------------------------------------------------------------


def describe_reading(subject: Subject, folder: Path) -> Stage:
    """The scan as it was read: axes, frame, values, and what is doubtful."""
    scan, reference = subject.scan, subject.reference
    numbers = [
        ("file", f"{scan.path.name}, {scan.path.stat().st_size:,} bytes"),
        ("stored as", f"{scan.header.get_data_dtype()}, shape {by(scan.header.get_data_shape())}"),
        ("the file's axes run towards", " ".join(ornt2axcodes(orientation(scan.affine)))),
        ("turned to Z Y X, towards", f"{' '.join(ornt2axcodes(CANONICAL))} ({turned(scan)})"),
        ("shape", f"{by(scan.voxels.shape)} voxels"),
        ("spacing", f"{in_mm(scan.spacing_mm)} mm"),
        ("size", f"{by(np.round(np.multiply(scan.voxels.shape, scan.spacing_mm)))} mm"),
        ("frame", forms_of(scan)),
        ("first voxel lies at R A S", f"{in_mm(mm_of(scan, (0, 0, 0)))} mm"),
        ("last voxel lies at R A S", f"{in_mm(mm_of(scan, np.subtract(scan.voxels.shape, 1)))} mm"),
        ("values", f"{scan.voxels.min():g} to {scan.voxels.max():g} HU"),
    ]
    if reference is not None:
        numbers += numbers_of_labels(scan, reference)
    for doubt in doubts(scan) or ["none"]:
        numbers.append(("doubt", doubt.removeprefix(f"{scan.path}: ")))

    panels = panels_of(
        PLANES,
        scan.voxels,
        scan.spacing_mm,
        subject.place,
        shown=BLACK_AND_WHITE_HU,
        labels=subject.outlines,
    )
    draw_panels(folder / "scan.png", [panels])

    told = (
        "Is this your patient, upright, at the right proportions? The letters say which side is "
        "which: anterior, posterior, superior, inferior, and the patient's own left and right; the "
        "liver lies on the left of the picture, at R."
    )
    if reference is not None:
        told += " Outlines are the labels that were given."
    return Stage(
        "What was read",
        told,
        numbers,
        [("scan.png", "The scan in an axial, a coronal and a sagittal plane.")],
    )


def numbers_of_labels(scan: Volume, reference: Volume) -> list[tuple[str, str]]:
    """Of kidney and tumor the volume, and mean and standard deviation of their HU."""
    numbers = []
    for value, structure in enumerate(CLASSES[1:], 1):
        inside = scan.voxels[reference.voxels == value].astype(np.float64)
        ml = len(inside) * reference.voxel_mm3 / 1000
        said = f"{len(inside):,} voxels, {ml:.1f} ml"
        if len(inside):
            said += f", {inside.mean():.0f} HU on average, standard deviation {inside.std():.0f}"
        numbers.append((f"labels: {structure}", said))
    return numbers


def turned(scan: Volume) -> str:
    """ "Z is the file's axis 2, flipped; ...": what was done to the axes."""
    axes_and_flips = canonical_axes_and_flips(scan.affine)
    said = []
    for axis, name in enumerate("ZYX"):
        stored = int(np.flatnonzero(axes_and_flips[:, 0] == axis)[0])
        flipped = ", flipped" if axes_and_flips[stored, 1] < 0 else ""
        said.append(f"{name} is the file's axis {stored}{flipped}")
    return "; ".join(said)


def forms_of(scan: Volume) -> str:
    """The codes of the file's two frames, and the affine that was taken."""
    header = scan.header
    rows = "; ".join(in_mm(row) for row in scan.affine[:3])
    return f"sform code {header['sform_code']}, qform code {header['qform_code']}; affine {rows}"


def mm_of(scan: Volume, voxel: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where a voxel's centre lies, mm R A S."""
    return (scan.zyx_to_mm @ [*voxel, 1])[:3]


# --- the networks' grid ---------------------------------------------------------------------------


def describe_grid(subject: Subject, folder: Path) -> Stage:
    """Resampled, clipped to the window, normalised."""
    scan, recipe = subject.scan, subject.recipe
    image = subject.image
    below = np.count_nonzero(scan.voxels < recipe.window_hu[0]) / scan.voxels.size
    above = np.count_nonzero(scan.voxels > recipe.window_hu[1]) / scan.voxels.size
    lowest, highest = subject.shown

    numbers = [
        ("spacing", f"{in_mm(scan.spacing_mm)} -> {in_mm(recipe.spacing_mm)} mm"),
        ("shape", f"{by(scan.voxels.shape)} -> {by(image.shape)}"),
        ("image along Z, Y, X", in_words(image_orders(scan.spacing_mm))),
        ("labels along Z, Y, X", in_words(label_orders(scan.spacing_mm))),
        ("window", f"{recipe.window_hu[0]:g} to {recipe.window_hu[1]:g} HU"),
        ("clipped", f"{below:.1%} of the voxels from below, {above:.1%} from above"),
        ("normalised", f"(HU - {recipe.mean_hu:g}) / {recipe.sd_hu:g}"),
        ("values", f"{image.min():.2f} to {image.max():.2f} (of {lowest:.2f} to {highest:.2f})"),
        ("mean, standard deviation", f"{image.mean():.2f}, {image.std():.2f}"),
    ]
    if subject.reference is not None:
        numbers += numbers_there_and_back(subject, subject.reference)

    draw_histograms(folder / "histogram.png", scan.voxels, image, recipe.window_hu)
    draw_panels(
        folder / "grid.png", [native_panels(subject, subject.outlines), prepared_panels(subject)]
    )
    return Stage(
        "To the networks' grid",
        "All scans get one spacing, so that a kidney has about as many voxels in each. The window "
        "keeps soft tissue; what lies outside it becomes its nearest end.",
        numbers,
        [
            ("grid.png", "The scan in HU, and below it the same planes as the networks see them."),
            (
                "histogram.png",
                "How many voxels have which value, before and after; logarithmic. Of a CT in HU "
                "expect air at -1000, fat at about -100, soft tissue at 0 to 100.",
            ),
        ],
    )


def numbers_there_and_back(subject: Subject, reference: Volume) -> list[tuple[str, str]]:
    """What is left of the labels when they are taken to the networks' grid and back: no network
    that puts out labels there can score better on this case, or hardly."""
    labels = subject.prepared.labels
    numbers = []
    for value, structure in enumerate(CLASSES[1:], 1):
        voxels = int((labels == value).sum())
        ml = voxels * float(np.prod(subject.recipe.spacing_mm)) / 1000
        numbers.append((f"{structure} on this grid", f"{voxels:,} voxels, {ml:.1f} ml"))

    one_hot = torch.nn.functional.one_hot(labels.long(), len(CLASSES)).movedim(-1, 0)
    back = labels_on_native_grid(one_hot.float(), subject.scan)
    scores = score_case(subject.id, back, reference.voxels)
    numbers.append(("Dice of the labels there and back", dice_in_words(scores)))
    return numbers


def native_panels(subject: Subject, labels: np.ndarray | None, *, title: str = "") -> list[Panel]:
    """The scan's axial and coronal plane, in the window, with the outlines of labels."""
    scan = subject.scan
    return panels_of(
        TWO_PLANES,
        scan.voxels,
        scan.spacing_mm,
        subject.place,
        shown=subject.recipe.window_hu,
        labels=labels,
        title=title,
    )


def prepared_panels(subject: Subject) -> list[Panel]:
    """The same planes on the networks' grid."""
    return panels_of(
        TWO_PLANES,
        subject.image,
        subject.recipe.spacing_mm,
        subject.prepared_place,
        shown=subject.shown,
        labels=subject.prepared.labels.numpy(),
    )


# --- patches --------------------------------------------------------------------------------------


def describe_patches(subject: Subject, folder: Path) -> Stage:
    """Where training draws patches of this case, and how many of them hold a kidney or a tumor."""
    recipe, case = subject.recipe, subject.prepared
    size = tuple(case.image.shape)
    bounds = [bounds_of_start(side, length) for side, length in zip(size, recipe.patch)]
    patch_mm = np.round(np.multiply(recipe.patch, recipe.spacing_mm))
    numbers = [
        ("patch", f"{by(recipe.patch)} voxels, {by(patch_mm)} mm"),
        ("first voxels inside the case", ", ".join(f"{low} to {high}" for low, high in bounds)),
        (
            "of a batch",
            f"{recipe.foreground_samples} of {recipe.batch_size} samples on foreground",
        ),
    ]

    kinds = [(False, "anywhere")]
    if subject.reference is not None:
        kinds.append((True, "on foreground"))

    rows = []
    for forced, kind in kinds:
        starts = drawn_starts(subject, forced=forced)
        centres = np.array(starts) + np.array(recipe.patch) / 2
        rows.append(panels_of_centres(subject, centres, kind))
        if subject.reference is not None:
            shares = shares_of(case, starts, recipe.patch)
            numbers.append((f"{PATCHES_DRAWN} patches {kind}", shares))

    draw_panels(folder / "patches.png", rows)
    return Stage(
        "Where patches are drawn",
        "Networks train on patches. The first samples of a batch lie anywhere in the case; the "
        "last are centred on a voxel of a kidney or of a tumor, either as often as the other, "
        "however small it is. Red points are centres of patches.",
        numbers,
        [
            (
                "patches.png",
                "Centres of patches over the mean of all planes, each kind in a row.",
            )
        ],
    )


def drawn_starts(subject: Subject, *, forced: bool) -> list[tuple[int, ...]]:
    """The first voxels of so many patches, as training draws them."""
    starts = []
    for number in range(PATCHES_DRAWN):
        generator = generator_for(subject.seed, number, int(forced))
        start = draw_start(subject.prepared, subject.recipe.patch, generator, forced=forced)
        starts.append(start)
    return starts


def shares_of(case: PreparedCase, starts: Sequence[tuple[int, ...]], patch: tuple[int, ...]) -> str:
    """How many of these patches hold a voxel of each structure, in words."""
    holding = dict.fromkeys(CLASSES[1:], 0)
    for start in starts:
        _, labels = cut_patch(case.image, case.labels, start, patch)
        for value, structure in enumerate(CLASSES[1:], 1):
            holding[structure] += int((labels == value).any())
    return ", ".join(f"{count} hold {structure}" for structure, count in holding.items())


def panels_of_centres(subject: Subject, centres: np.ndarray, kind: str) -> list[Panel]:
    """Patches' centres on the mean of all axial planes, and of all coronal ones."""
    image = subject.image
    panels = []
    for panel, plane in zip(prepared_panels(subject), TWO_PLANES):
        mean = projected(panel, plane, image)
        points = in_plane(plane, centres)
        panels.append(replace(mean, points=points, title=f"{kind}: {plane.name}"))
    return panels


# --- augmentation ---------------------------------------------------------------------------------


def describe_augmentation(subject: Subject, folder: Path) -> Stage:
    """What each transform does to a patch of this case at the end of its range."""
    start = start_about(subject)
    before, labels = cut_patch(
        subject.prepared.image, subject.prepared.labels, start, subject.recipe.patch
    )
    z = subject.prepared_place[0] - start[0]

    numbers = [("patch", f"first voxel {by(start)}; {told_of(before, labels)}")]
    rows = []
    for name, image, image_labels in changed_patches(subject, start):
        numbers.append((name, told_of(image, image_labels)))
        rows.append(
            [
                patch_panel(subject, before[z], labels[z], "before"),
                patch_panel(subject, image[z], image_labels[z], name),
                difference_panel(subject, image[z] - before[z]),
            ]
        )
    draw_panels(folder / "augmentation.png", rows)

    draw_panels(folder / "batches.png", batch_panels(subject))
    return Stage(
        "What augmentation does",
        "Each transform by itself, at the end of its range: the same slice of the patch before, "
        "after, and the difference. Labels are turned and mirrored with the image, and nothing "
        "else changes them. Training draws some of them for each patch, most of them seldom.",
        numbers,
        [
            ("augmentation.png", "Each transform: before, after, difference (blue lower)."),
            (
                "batches.png",
                "What training draws of this case: a slice of each sample of "
                f"{BATCHES_DRAWN} batches, a batch in each column.",
            ),
        ],
    )


def start_about(subject: Subject) -> tuple[int, ...]:
    """The first voxel of the patch about the place that is shown, inside the case where that is
    large enough."""
    start = []
    for place, side, length in zip(
        subject.prepared_place, subject.prepared.image.shape, subject.recipe.patch
    ):
        lowest, highest = bounds_of_start(side, length)
        start.append(min(max(lowest, place - length // 2), highest))
    return tuple(start)


def changed_patches(
    subject: Subject, start: tuple[int, ...]
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, image, labels) of the patch at `start` after each transform."""
    recipe, case = subject.recipe, subject.prepared
    image, labels = cut_patch(case.image, case.labels, start, recipe.patch)
    degrees = recipe.rotation_degrees

    def moved(angles, scale):
        return change_geometry(
            case.image, case.labels, angles, scale, start=start, patch=recipe.patch
        )

    brightest, strongest = recipe.brightness_range[1], recipe.contrast_range[1]
    gamma, noisiest = recipe.gamma_range[1], recipe.noise_sd[1]
    zoom_in, zoom_out = recipe.scaling_range
    return [
        (f"rotation about Z, {degrees:g} degrees", *moved((radians(degrees), 0.0, 0.0), 1.0)),
        (f"rotation about X, {degrees:g} degrees", *moved((0.0, 0.0, radians(degrees)), 1.0)),
        (f"scaling, {zoom_in:g}", *moved((0.0, 0.0, 0.0), zoom_in)),
        (f"scaling, {zoom_out:g}", *moved((0.0, 0.0, 0.0), zoom_out)),
        (f"noise, sd {noisiest:g}", change_noise(image, noisiest, seed=subject.seed), labels),
        (f"brightness, times {brightest:g}", change_brightness(image, brightest), labels),
        (f"contrast, times {strongest:g}", change_contrast(image, strongest), labels),
        (f"gamma {gamma:g}, inverted", change_gamma(image, gamma, inverted=True), labels),
        (f"gamma {gamma:g}", change_gamma(image, gamma), labels),
        ("mirroring along X", *change_mirroring(image, labels, [2])),
    ]


def told_of(image: torch.Tensor, labels: torch.Tensor) -> str:
    """Range, mean and spread of a patch, and how many voxels its structures have, in words."""
    said = (
        f"{image.min():.2f} to {image.max():.2f}, mean {image.mean():.2f}, "
        f"sd {image.std(correction=0):.2f}"
    )
    for value, structure in enumerate(CLASSES[1:], 1):
        said += f"; {structure} {int((labels == value).sum()):,}"
    return said


def patch_panel(subject: Subject, image: torch.Tensor, labels: torch.Tensor, title: str) -> Panel:
    """A slice (Y, X) of a patch."""
    values = image.float().numpy()
    return Panel(values, subject.pixel_mm, subject.shown, title=title, labels=labels.numpy())


def difference_panel(subject: Subject, difference: torch.Tensor) -> Panel:
    """What a transform added to a slice (Y, X): blue is less, red more, white nothing."""
    most = max(0.1, float(difference.abs().max()))
    title = f"difference, up to {most:.2f}"
    return Panel(difference.numpy(), subject.pixel_mm, (-most, most), title=title, colours="bwr")


def batch_panels(subject: Subject) -> list[list[Panel]]:
    """A row for each sample of a batch, a column for each batch: what training draws."""
    recipe = subject.recipe
    rows: list[list[Panel]] = [[] for _ in range(recipe.batch_size)]
    for iteration in range(BATCHES_DRAWN):
        images, targets = draw_batch([subject.prepared], recipe, subject.seed, iteration)
        for sample, row in enumerate(rows):
            z = middle_of_most(targets[sample].numpy())[0]
            title = f"batch {iteration}, sample {sample}"
            row.append(patch_panel(subject, images[sample, 0, z], targets[sample, z], title))
    return rows


# --- resolutions ----------------------------------------------------------------------------------


def describe_resolutions(subject: Subject, folder: Path) -> Stage:
    """The stages of the networks, and the target that each head is compared with."""
    recipe, case = subject.recipe, subject.prepared
    _, labels = cut_patch(case.image, case.labels, start_about(subject), recipe.patch)
    shrunk = np.cumprod(recipe.strides, axis=0)
    shapes = [
        tuple(int(side) for side in np.array(recipe.patch) // by_stage) for by_stage in shrunk
    ]
    weights = head_weights(len(shapes) - 1)  # the bottleneck has no head

    numbers, panels = [], []
    for stage, shape in enumerate(shapes):
        voxel_mm = np.multiply(recipe.spacing_mm, shrunk[stage])
        maps = f"maps {recipe.features('plain')[stage]} or {recipe.features('residual')[stage]}"
        said = f"{by(shape)} voxels of {in_mm(voxel_mm)} mm, {maps}"
        if stage < len(weights):
            target = downsampled(labels[None], shape)[0]
            panels.append(target_panel(target, voxel_mm, weights[stage]))
            kidney, tumor = [int((target == value).sum()) for value in (1, 2)]
            said += f"; head of weight {weights[stage]:.3f}: kidney {kidney:,}, tumor {tumor:,}"
        numbers.append((f"stage {stage}", said))

    draw_panels(folder / "resolutions.png", [panels])
    return Stage(
        "What the networks see at each resolution",
        "Each stage of the encoder halves the patch along some axes. On the way up a head at each "
        "resolution is compared with the target there: a voxel of it has the label near the "
        "middle of what it covers, so that what is small goes missing.",
        numbers,
        [
            (
                "resolutions.png",
                "The target of each head, finest first: kidney green, tumor yellow.",
            )
        ],
    )


def target_panel(target: torch.Tensor, voxel_mm: np.ndarray, weight: float) -> Panel:
    """The slice of a (Z, Y, X) target that holds most."""
    z = middle_of_most(target.numpy())[0]
    title = f"{by(target.shape)}, weight {weight:.3f}"
    return Panel(
        target[z].numpy(),
        (voxel_mm[1], voxel_mm[2]),
        (0.0, 2.0),
        title=title,
        colours="viridis",
    )


# --- windows --------------------------------------------------------------------------------------


def describe_windows(subject: Subject, folder: Path) -> Stage:
    """Which windows of the case the networks see in a prediction."""
    patch = subject.recipe.patch
    size = [max(side, length) for side, length in zip(subject.prepared.image.shape, patch)]
    starts = [window_starts(side, length) for side, length in zip(size, patch)]
    count = len(list(product(*starts)))
    weight = importance_map(patch)

    numbers = [("image, filled up to a patch", by(size))]
    for name, of_axis in zip("ZYX", starts):
        numbers.append((f"windows along {name} begin at", ", ".join(map(str, of_axis))))
    numbers += [
        ("windows", f"{count}, seen {count * len(FLIPS)} times with their mirror images"),
        (
            "a voxel's weight",
            f"{weight.max():.3g} in the middle of a window, {weight.min():.2g} in its corner",
        ),
    ]

    panels = prepared_panels(subject)
    margins = [(length - side) // 2 for side, length in zip(subject.prepared.image.shape, size)]
    for number, plane in enumerate(TWO_PLANES):
        corners = [np.subtract(corner, margins) for corner in product(*starts)]
        places = in_plane(plane, np.array(corners))
        height, width = in_plane(plane, np.array([patch]))[0]
        boxes = [(row, column, height, width) for row, column in np.unique(places, axis=0)]
        panels[number] = replace(panels[number], boxes=boxes)
    panels.append(
        Panel(
            weight[len(weight) // 2].numpy(),
            subject.pixel_mm,
            (0.0, 1.0),
            title="weights of a window",
            colours="viridis",
        )
    )
    draw_panels(folder / "windows.png", [panels])
    return Stage(
        "The windows of a prediction",
        "A scan is larger than a patch: the networks see windows of it that overlap by half or "
        "more, and the middle of a window counts more than its rim.",
        numbers,
        [("windows.png", "The windows, and what the voxels of one weigh.")],
    )


# --- prediction -----------------------------------------------------------------------------------


def describe_prediction(
    subject: Subject,
    folder: Path,
    members: Sequence[Member],
    *,
    mirroring: bool = True,
    device: torch.device,
) -> Stage:
    """Probabilities, mask and, with labels, Dice: what predict.py gives for this scan."""
    scan, reference = subject.scan, subject.reference
    exact_float32()

    kept = []
    mask = segment_volume(
        scan,
        [member.network for member in members],
        subject.recipe,
        mirroring=mirroring,
        device=device,
        precision=pick_precision("auto", device),
        on_probabilities=lambda probabilities: kept.append(probabilities.cpu().numpy()),
    )
    (probabilities,) = kept

    mirrored = f"on: each window in {len(FLIPS)} mirror images" if mirroring else "off"
    numbers = [
        ("networks", ", ".join(f"{one.arch}, fold {one.fold}" for one in members)),
        ("mirroring", mirrored),
    ]
    for value, structure in enumerate(CLASSES[1:], 1):
        ml = np.count_nonzero(mask == value) * scan.voxel_mm3 / 1000
        highest = probabilities[value].max()
        numbers.append((structure, f"{ml:.1f} ml, highest probability {highest:.3f}"))
    if reference is not None:
        scores = score_case(subject.id, mask, reference.voxels)
        numbers.append(("Dice", dice_in_words(scores)))

    unlike = unlike_training(scan, mask, subject.recipe, [member.ranges for member in members])
    if unlike is None:
        unlike = ["not known: no network says what it was trained on"]
    for words in unlike or ["in nothing that is measured"]:
        numbers.append(("unlike the training data", words))
    if any(subject.id in member.trained_on for member in members):
        numbers.append(("doubt", f"a case named {subject.id} was trained on"))

    draw_panels(
        folder / "prediction.png",
        [
            probability_panels(subject, probabilities[1], "kidney"),
            probability_panels(subject, probabilities[2], "tumor"),
            native_panels(subject, mask, title="mask"),
        ],
    )
    return Stage(
        "Prediction",
        "The networks' probabilities on their grid, and the mask on the scan's own.",
        numbers,
        [
            (
                "prediction.png",
                "Probabilities of kidney and of tumor from 0 (dark) to 1, the reference outlined "
                "where there is one; below, the outlines of the mask.",
            )
        ],
    )


def probability_panels(subject: Subject, probabilities: np.ndarray, name: str) -> list[Panel]:
    """A structure's (Z, Y, X) probabilities in an axial and a coronal plane."""
    panels = panels_of(
        TWO_PLANES,
        probabilities,
        subject.recipe.spacing_mm,
        subject.prepared_place,
        shown=(0.0, 1.0),
        labels=subject.prepared.labels.numpy(),
        title=name,
    )
    return [replace(panel, colours="viridis") for panel in panels]


# --- words and numbers ----------------------------------------------------------------------------


def by(numbers: Sequence[float] | np.ndarray) -> str:
    """ "80 x 160 x 160" """
    return " x ".join(f"{number:g}" for number in numbers)


def in_mm(numbers: Sequence[float] | np.ndarray) -> str:
    """ "3.22 1.62 1.62": as many digits as mean something."""
    return " ".join(f"{number:.4g}" for number in numbers)


def in_words(orders: Sequence[int]) -> str:
    """Orders of interpolation."""
    return ", ".join(ORDERS[order] for order in orders)


def dice_in_words(scores: CaseScores) -> str:
    """ "kidney 98.16%, tumor 95.88%"; why there is none where there is none."""
    said = []
    for name in ("kidney", "tumor"):
        score = getattr(scores, name)
        said.append(f"{name} -, {NO_SCORE[name]}" if np.isnan(score) else f"{name} {score:.2%}")
    return ", ".join(said)


STAGES = (
    describe_reading,
    describe_grid,
    describe_patches,
    describe_augmentation,
    describe_resolutions,
    describe_windows,
)
