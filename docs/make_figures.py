"""Draws the figures of docs/walkthrough.md: python docs/make_figures.py

    python docs/make_figures.py scan window      # these two alone
    python docs/make_figures.py --run demo/runs/residual/fold0      # with the demo's network

All are of phantoms, with fixed seeds. Without `--run`, a small network is trained first for those
pictures that need one; that takes a minute or two on one core.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Sequence
from csv import DictReader
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

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
from minikits.checkpoints import load_checkpoint, load_network
from minikits.devices import pick_precision
from minikits.evaluation import kits_dice, score_case, summarise
from minikits.geometry import patch_to_case
from minikits.losses import downsampled, head_weights
from minikits.nifti import read_labels, read_volume
from minikits.paper import CLASSES, DEMO, PAPER
from minikits.phantoms import make_case, write_case
from minikits.prediction import FLIPS, importance_map, segment_volume, window_starts
from minikits.preprocessing import prepare_image, prepare_labels, resampled_shape
from minikits.recipe import Recipe
from minikits.resampling import axis_matrix, resample_labels
from minikits.sampling import PreparedCase, draw_batch, draw_start
from minikits.training import Progress, sgd, train_epoch, training_step
from minikits.unet import PreactivationBlock, ResidualBlock, build_unet, plain_block
from minikits.volumes import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Place = tuple[float, float]  # x, y

FOLDER = Path(__file__).parent / "figures"
WIDTH = 8  # inches
DPI = 150  # so that a figure is 1200 pixels wide
COLOURS = 100  # of a picture's palette, and as many greys
SOFT_TISSUE_HU = (-160, 300)  # black and white
KIDNEY, TUMOR, OTHER = "tab:cyan", "#ff3b30", "tab:orange"

CASE = 5  # the phantom of most figures: voxels of 3.00 x 2.03 mm
FINE, THICK = 2, 4  # two of other spacings: 2.00 x 1.83 mm and 5.00 x 2.10 mm
HELD_OUT = (40, 41, 42, 43, 44, 45)  # phantoms that nothing is trained on
MIRRORED = 44  # one of them

# a training of a minute or two on an idle core
SMALL = replace(
    DEMO,
    spacing_mm=(7.5, 6.0, 6.0),
    patch=(16, 32, 32),
    epochs=12,
    batches_per_epoch=50,
)
TRAINED_ON = range(16)


# --- what is drawn --------------------------------------------------------------------------------


@lru_cache
def phantom(number: int) -> tuple[Volume, Volume]:
    """Scan and labels of a phantom, written and read as files are."""
    with TemporaryDirectory() as folder:
        write_case(Path(folder), make_case([0, number]))
        scan = read_volume(Path(folder) / "imaging.nii.gz")
        labels = read_labels(Path(folder) / "segmentation.nii.gz")
    return scan, labels


@lru_cache
def prepared(number: int, recipe: Recipe) -> PreparedCase:
    """A phantom on the networks' grid."""
    scan, reference = phantom(number)
    image = prepare_image(scan, recipe)
    labels = prepare_labels(reference, recipe)
    foreground = tuple(np.flatnonzero(labels == value) for value in range(1, len(CLASSES)))
    return PreparedCase(
        f"phantom_{number:03d}",
        torch.from_numpy(image).half(),
        torch.from_numpy(labels),
        foreground,
    )


def place_of_most(mask: np.ndarray, axis: int) -> int:
    """The slice across an axis that holds the most of a mask (Z, Y, X)."""
    others = tuple({0, 1, 2} - {axis})
    return int(mask.sum(axis=others).argmax())


# --- how it is drawn ------------------------------------------------------------------------------


def new_figure(height: float) -> Figure:
    """An empty figure; height: in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["font.size"] = 10.5
    matplotlib.rcParams["axes.titlesize"] = 11
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """As a PNG of few colours, which is small: half of them greys, half of what is coloured."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08)
    picture = Image.open(buffer).convert("RGB")

    pixels = np.asarray(picture)
    coloured = pixels[np.ptp(pixels.astype(int), axis=2) > 8].reshape(1, -1, 3)
    greys = np.linspace(0, 255, COLOURS).astype(np.uint8)
    palette = np.repeat(greys, 3).tolist()
    if coloured.size:
        palette += Image.fromarray(coloured).quantize(COLOURS).getpalette()

    of_palette = Image.new("P", (1, 1))
    of_palette.putpalette(palette)
    indices = np.array(picture.quantize(palette=of_palette, dither=Image.Dither.NONE))
    indices[pixels.min(axis=2) == 255] = COLOURS - 1  # white stays white

    drawn = Image.fromarray(indices, "P")
    drawn.putpalette(palette)
    drawn.save(path, optimize=True)


def show(axes: Axes, plane: np.ndarray, spacing_mm: Sequence[float], **options: Any) -> None:
    """A plane of voxels in grey, each a rectangle of its size in mm."""
    options = {"cmap": "gray", "interpolation": "nearest", **options}
    axes.imshow(plane, aspect=spacing_mm[0] / spacing_mm[1], **options)
    axes.set(xticks=[], yticks=[])


def outline(axes: Axes, labels: np.ndarray, width: float = 1.3) -> None:
    """Contours of kidney (with its tumor) and tumor in a plane."""
    for region, colour in ((labels > 0, KIDNEY), (labels == 2, TUMOR)):
        if region.any():
            axes.contour(region, [0.5], colors=colour, linewidths=width)


def note(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Text at a place of the axes, in parts of their width and height."""
    options = {"ha": "center", "va": "center", **options}
    axes.text(x, y, text, transform=axes.transAxes, **options)


def arrow(axes: Axes, start: Place, stop: Place, colour: str, **options: Any) -> None:
    """An arrow from one place to another, in the units of the data."""
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.8, **options}
    axes.annotate("", xy=stop, xytext=start, arrowprops=look)


# --- 1: a scan ------------------------------------------------------------------------------------


def draw_scan() -> Figure:
    """An axial and a coronal slice with contours, and a bar that tells HU."""
    scan, labels = phantom(CASE)
    z_mm, y_mm, x_mm = scan.spacing_mm
    z = place_of_most(labels.voxels == 2, axis=0)
    y = place_of_most(labels.voxels == 2, axis=1)

    figure = new_figure(3.9)
    left, right = figure.subplots(1, 2)
    darkest, brightest = SOFT_TISSUE_HU
    grey = {"vmin": darkest, "vmax": brightest}

    show(left, scan.voxels[z], (y_mm, x_mm), **grey)
    outline(left, labels.voxels[z])
    left.set_title(f"axial: slice {z} of {len(scan.voxels)}, seen from the feet")
    show(right, scan.voxels[:, y], (z_mm, x_mm), **grey)
    outline(right, labels.voxels[:, y])
    right.set_title("coronal: from the front")
    for axes in (left, right):
        note(axes, 0.035, 0.5, "R", color="white")
        note(axes, 0.965, 0.5, "L", color="white")

    bar = figure.colorbar(right.images[0], ax=[left, right], shrink=0.75, extend="both")
    names = {-100: "fat", 0: "water", 55: "muscle", 115: "liver", 190: "kidney", 300: "bone"}
    bar.set_ticks(list(names), labels=[f"{hu} {name}" for hu, name in names.items()])
    bar.ax.set_title("HU", loc="left")
    return figure


def draw_orientation() -> Figure:
    """A coronal slice as a file of another order stores it, and as it is read."""
    scan, labels = phantom(CASE)
    y = place_of_most(labels.voxels == 2, axis=1)
    grey = {"vmin": SOFT_TISSUE_HU[0], "vmax": SOFT_TISSUE_HU[1]}
    spacing_mm = (scan.spacing_mm[0], scan.spacing_mm[2])
    as_read = scan.voxels[:, y]
    as_stored = as_read[::-1, ::-1]  # of a file whose axes go to the right, the front and the head

    figure = new_figure(3.4)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    show(left, as_stored, spacing_mm, **grey)
    left.set_title("stored: i, j, k to R, A, S")
    show(middle, as_read, spacing_mm, **grey)
    middle.set_title("read: Z, Y, X to I, P, L")

    height, width = as_read.shape
    start = (0.1 * width, 0.12 * height)
    along, down = (0.42 * width, 0.12 * height), (0.1 * width, 0.55 * height)
    for axes, across_name, down_name in ((left, "i", "k"), (middle, "X", "Z")):
        arrow(axes, start, along, "yellow")
        arrow(axes, start, down, "yellow")
        axes.text(along[0], along[1], f" {across_name}", color="yellow", va="center", size=14)
        axes.text(down[0], down[1], down_name, color="yellow", ha="center", va="top", size=14)
    _draw_body(right)
    return figure


def _draw_body(axes):
    """A body from the front with the three arrows of the axes."""
    from matplotlib.patches import Circle, FancyBboxPatch

    axes.set(xlim=(-3.2, 11), ylim=(12, -0.6), xticks=[], yticks=[], aspect="equal")
    axes.axis("off")
    skin = {"facecolor": "#d9d9d9", "edgecolor": "grey"}
    axes.add_patch(Circle((4, 1), 0.9, **skin))
    box = "round,pad=0,rounding_size=0.4"
    parts = ((2.5, 2.1, 3, 4.6), (1.5, 2.3, 0.8, 4), (5.7, 2.3, 0.8, 4))
    legs = ((2.6, 6.8, 1.3, 4.6), (4.1, 6.8, 1.3, 4.6))
    for x, y, width, height in (*parts, *legs):
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=box, **skin))

    x, y = 4, 4
    arrow(axes, (x, y), (8.3, y), "tab:blue")
    axes.text(6.7, 3.6, "X: to the\npatient's left", color="tab:blue", va="bottom")
    arrow(axes, (x, y), (x, 9.6), "tab:green")
    axes.text(5.7, 9.4, "Z: to the feet", color="tab:green", va="center")
    axes.plot(x, y, "o", color="tab:purple", markersize=13, fillstyle="none", mew=2)
    axes.plot(x, y, "x", color="tab:purple", markersize=8, mew=2)
    axes.text(
        1.2, 3.6, "Y: to the back,\ninto the page", color="tab:purple", ha="right", va="bottom"
    )


# --- 2: the networks' grid ------------------------------------------------------------------------


def draw_spacing() -> Figure:
    """The same square of mm on two scans, before and after resampling."""
    figure = new_figure(6.4)
    rows = figure.subplots(2, 2)
    for row, number in zip(rows, (FINE, THICK)):
        scan, labels = phantom(number)
        case = prepared(number, PAPER)
        hu = case.image.numpy() * PAPER.sd_hu + PAPER.mean_hu

        shape = scan.voxels.shape
        new_shape = resampled_shape(shape, scan.spacing_mm, PAPER)
        name = "scan A" if number == FINE else "scan B"
        _draw_square(row[0], scan.voxels, labels.voxels, scan.spacing_mm, f"{name}, as it comes")
        # the new spacing, exactly: the same mm, shared out to a whole number of voxels
        extent_mm = np.multiply(shape, scan.spacing_mm)
        spacing_mm = extent_mm / new_shape
        _draw_square(row[1], hu, case.labels.numpy(), spacing_mm, f"{name}, resampled")
    return figure


def _draw_square(axes, hu, labels, spacing_mm, title):
    """A coronal square of 60 mm about the tumor."""
    z_mm, _, x_mm = spacing_mm
    z, y, x = (place_of_most(labels == 2, axis) for axis in range(3))
    high, wide = round(60 / z_mm), round(60 / x_mm)
    top, left = max(0, z - high // 2), max(0, x - wide // 2)
    square = (slice(top, top + high), y, slice(left, left + wide))

    show(axes, hu[square], (z_mm, x_mm), vmin=-79, vmax=304)
    outline(axes, labels[square], width=2)
    voxels = f"{high} x {wide} voxels of {z_mm:.2f} x {x_mm:.2f} mm"
    axes.set_title(f"{title}\n60 x 60 mm: {voxels}")


# --- 3: the window --------------------------------------------------------------------------------


def draw_window() -> Figure:
    """Histograms of HU with the window's bounds, and of what the networks get."""
    scan, labels = phantom(CASE)
    low, high = PAPER.window_hu
    figure = new_figure(5.6)
    upper, lower = figure.subplots(2, 1)

    bins = np.arange(-1024, 650, 8)
    parts = (
        ("all voxels", scan.voxels, "0.75"),
        ("kidney", scan.voxels[labels.voxels == 1], KIDNEY),
        ("tumor", scan.voxels[labels.voxels == 2], TUMOR),
    )
    for name, values, colour in parts:
        upper.hist(np.ravel(values), bins, color=colour, label=name, alpha=0.85)
    label = f"window, {low:g} to {high:g} HU"
    upper.axvspan(low, high, color="gold", alpha=0.25, label=label, zorder=0)
    upper.set(yscale="log", xlabel="HU", ylabel="voxels", title="a scan as it comes")
    upper.legend(loc="upper center", bbox_to_anchor=(0.37, 1))

    bins = (np.arange(-79, 312, 4) - PAPER.mean_hu) / PAPER.sd_hu
    for name, values, colour in parts:
        normalised = (np.clip(np.ravel(values), low, high) - PAPER.mean_hu) / PAPER.sd_hu
        lower.hist(normalised, bins, color=colour, label=name, alpha=0.85)
    below, above = np.mean(scan.voxels < low), np.mean(scan.voxels > high)
    bounds = [(bound - PAPER.mean_hu) / PAPER.sd_hu for bound in (low, high)]
    highest = lower.get_ylim()[1]
    lower.text(bounds[0] + 0.1, highest, f"{below:.0%} of all:\nair, lung, fat", va="top")
    lower.text(
        bounds[1] - 0.1, highest, f"{above:.1%} of all:\nbone, contrast", va="top", ha="right"
    )
    lower.set(
        yscale="log",
        xlabel="(clipped HU - 101) / 76.9",
        ylabel="voxels",
        title="what the networks get",
        ylim=(None, 4 * highest),
    )
    return figure


# --- 4: one matrix per axis -----------------------------------------------------------------------


def draw_resampling() -> Figure:
    """Matrices of an axis, and an edge of labels 0 and 2, by number and by masks."""
    figure = new_figure(6.6)
    above, below = figure.subfigures(2, 1, height_ratios=(1.05, 1))
    wanted = ((4, 2, 1, "linear, 4 to 2"), (3, 6, 1, "linear, 3 to 6"), (3, 6, 3, "cubic, 3 to 6"))
    for axes, (size, new_size, order, title) in zip(above.subplots(1, 3), wanted):
        _draw_matrix(axes, axis_matrix(size, new_size, order).numpy(), title)

    edge = np.array([0, 0, 0, 2, 2, 2])
    panels = below.subplots(1, 2)
    for axes, new_size, way in zip(panels, (9, 5), ("6 voxels to 9", "6 to 5")):
        _draw_edge(axes, edge, new_size, way)
    return figure


def _draw_matrix(axes, matrix, title):
    axes.imshow(matrix, cmap="RdBu_r", vmin=-1.2, vmax=1.2, aspect="equal")
    rows, columns = matrix.shape
    for row in range(rows):
        for column in range(columns):
            if matrix[row, column]:
                colour = "white" if abs(matrix[row, column]) > 0.8 else "black"
                axes.text(
                    column,
                    row,
                    f"{matrix[row, column]:.2f}",
                    ha="center",
                    va="center",
                    size=9,
                    color=colour,
                )
    axes.set(xlabel="old voxel", ylabel="new voxel", title=title)
    axes.set(xticks=range(columns), yticks=range(rows))


def _draw_edge(axes, labels, new_size, way):
    """Three rows of voxels: labels, these interpolated as numbers, and by masks."""
    matrix = axis_matrix(len(labels), new_size, 1).numpy()
    as_numbers = np.round(matrix @ labels).astype(int)
    by_masks = resample_labels(labels.reshape(1, 1, -1), (1, 1, new_size), 1).ravel()

    colours = ("white", KIDNEY, TUMOR)
    rows = (
        ("labels", labels),
        ("numbers,\nrounded", as_numbers),
        ("masks, the\nlargest", by_masks),
    )
    for row, (_, values) in enumerate(rows):
        side = len(labels) / len(values)
        for place, value in enumerate(values):
            box = {
                "width": 0.94 * side,
                "height": 0.7,
                "color": colours[value],
                "edgecolor": "grey",
            }
            axes.barh(row, box["width"], box["height"], place * side, color=box["color"], ec="grey")
            axes.text((place + 0.47) * side, row, str(value), ha="center", va="center", size=10)
    axes.set(xticks=[], yticks=range(3), yticklabels=[name for name, _ in rows], ylim=(2.5, -0.5))
    axes.set_title(f"background and tumor, {way}")
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False)


# --- 5: where patches lie -------------------------------------------------------------------------


def draw_patches() -> Figure:
    """The centres of 200 patches, drawn uniformly and on foreground."""
    from matplotlib.patches import Rectangle

    case = prepared(CASE, DEMO)
    z_mm, _, x_mm = DEMO.spacing_mm
    half = np.array(DEMO.patch) // 2
    seen = case.image.float().clamp(-2, 1.5).mean(dim=1)

    figure = new_figure(4.0)
    for axes, forced in zip(figure.subplots(1, 2), (False, True)):
        show(axes, seen, (z_mm, x_mm), vmin=seen.min(), vmax=seen.quantile(0.995))
        outline(axes, case.labels.amax(dim=1).numpy(), width=2)
        centres = []
        for sample in range(200):
            start = draw_start(case, DEMO.patch, generator_for(0, sample), forced=forced)
            centres.append(start + half)
        z, _, x = np.transpose(centres)
        axes.plot(x, z, ".", color=OTHER, markersize=5, alpha=0.9)

        depth, _, width = DEMO.patch
        shown = z.argmax()
        corner = (x[shown] - width / 2 - 0.5, z[shown] - depth / 2 - 0.5)
        axes.add_patch(Rectangle(corner, width, depth, fill=False, ec="yellow", lw=2))
        axes.plot(x[shown], z[shown], "o", color="yellow", markersize=7)
        axes.set_title("on foreground" if forced else "anywhere")
        axes.set(xlim=(-6, seen.shape[1] + 5), ylim=(seen.shape[0] + 9, -4), facecolor="0.6")
    return figure


SQUARE = (1, 1)  # the proportions of a voxel
WHITE = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}


# --- 6: augmentation ------------------------------------------------------------------------------


def draw_augmentation() -> Figure:
    """Each transform: before, after, the difference, and what a first norm leaves of it."""
    image, labels = _patch_on_tumor(CASE, DEMO)
    torch.manual_seed(0)
    stem = build_unet("plain", DEMO).encoder[0][0][0][:2]  # its first convolution and norm
    z = image.shape[0] // 2
    turned = change_geometry(image, labels, (math.radians(25), 0, 0), 1.0)[0]
    zoomed = change_geometry(image, labels, (0.0, 0.0, 0.0), 1.4)[0]
    rows = (
        ("rotation\n25 degrees about Z", turned),
        ("scaling\n1.4: zooms out", zoomed),
        ("Gaussian noise\nsd 0.1", change_noise(image, 0.1, seed=0)),
        ("brightness\ntimes 1.25", change_brightness(image, 1.25)),
        ("contrast\ntimes 0.75", change_contrast(image, 0.75)),
        ("gamma, inverted\n1.5", change_gamma(image, 1.5, inverted=True)),
        ("gamma\n1.5", change_gamma(image, 1.5)),
        ("mirroring\nalong X", change_mirroring(image, labels, [2])[0]),
    )

    figure = new_figure(7.6)
    grid = figure.subplots(len(rows), 4)
    with torch.no_grad():
        maps_before = stem(image[None, None])[0, 0]
        for panels, (name, after) in zip(grid, rows):
            change_of_map = stem(after[None, None])[0, 0] - maps_before
            _draw_row(panels, [image[z], after[z], after[z] - image[z], change_of_map[z]])
            panels[0].set_ylabel(name, rotation=0, ha="right", va="center")
    titles = ("before", "after", "difference", "what the first norm\nleaves of it")
    for axes, title in zip(grid[0], titles):
        axes.set_title(title)
    return figure


def _draw_row(panels, planes):
    rows = slice(12, 36)  # of the plane's 48, so that the picture is not too high
    for axes, plane in zip(panels[:2], planes[:2]):
        show(axes, plane[rows], SQUARE, vmin=-2.34, vmax=2.64)
    for axes, plane in zip(panels[2:], planes[2:]):
        show(axes, plane[rows], SQUARE, vmin=-1, vmax=1, cmap="RdBu_r")
        note(axes, 0.97, 0.08, f"mean {plane.abs().mean():.2f}", ha="right", size=9, bbox=WHITE)


def _patch_on_tumor(number, recipe):
    """A patch of a prepared case with the middle of its tumor in its middle: floats and labels."""
    case = prepared(number, recipe)
    middle = torch.argwhere(case.labels == 2).float().mean(dim=0).round().int().tolist()
    start = [place - side // 2 for place, side in zip(middle, recipe.patch)]
    image, labels = cut_patch(case.image, case.labels, tuple(start), recipe.patch, None)
    return image.float(), labels


def draw_turned_patch() -> Figure:
    """Where a turned patch reads, and what a turn in voxels is in mm."""
    figure = new_figure(3.9)
    left, middle, right = figure.subplots(1, 3, width_ratios=(0.75, 1.2, 1.2))
    side, size, start = 7, 16, 5
    offsets = np.arange(side) - (side - 1) / 2
    matrix = patch_to_case((math.radians(25), 0.0, 0.0), 1.2)[1:, 1:]  # of Y and X
    centre = start + (side - 1) / 2
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    place_y, place_x = centre + np.tensordot(matrix, np.stack([y, x]), axes=1)

    _draw_grid(left, side, "the patch")
    left.plot(*np.meshgrid(range(side), range(side)), ".", color="tab:blue", markersize=7)
    left.plot(5, 1, "o", color=TUMOR, markersize=10)
    _draw_grid(middle, size, "the case: where each is read")
    middle.plot(place_x, place_y, ".", color="tab:blue", markersize=7)
    middle.plot(place_x[1, 5], place_y[1, 5], "o", color=TUMOR, markersize=10)
    _draw_box(
        middle, np.floor([place_x.min(), place_y.min()]), np.ceil([place_x.max(), place_y.max()])
    )
    _draw_stretch(right)
    return figure


def _draw_grid(axes, size, title):
    """So many voxels squared."""
    edges = np.arange(size + 1) - 0.5
    axes.hlines(edges, edges[0], edges[-1], color="0.8", lw=0.8)
    axes.vlines(edges, edges[0], edges[-1], color="0.8", lw=0.8)
    axes.set(aspect="equal", title=title, xticks=[], yticks=[], ylim=(size - 0.4, -0.6))
    axes.spines[:].set_visible(False)


def _draw_box(axes, lowest, highest):
    """The voxels from the lowest to the highest (x, y), which are read."""
    from matplotlib.patches import Rectangle

    width, height = highest - lowest + 1
    axes.add_patch(Rectangle(lowest - 0.5, width, height, fill=False, ec=OTHER, lw=2.5))
    axes.text(lowest[0] - 0.4, lowest[1] - 0.8, "the box that is cut out", color=OTHER, va="bottom")


def _draw_stretch(axes):
    """In mm, what 30 degrees about X make of 60 mm along Y and of 60 mm along Z."""
    to_mm = np.array(PAPER.spacing_mm)
    matrix = patch_to_case((0.0, 0.0, math.radians(30)), 1.0)
    for axis, name, colour in ((1, "along Y", "tab:blue"), (0, "along Z", "tab:green")):
        before_mm = np.zeros(3)
        before_mm[axis] = 60
        after_mm = to_mm * (matrix @ (before_mm / to_mm))
        length = np.linalg.norm(after_mm)
        axes.plot((0, before_mm[1]), (0, before_mm[0]), "--", color=colour, lw=2)
        arrow(axes, (0, 0), (after_mm[1], after_mm[0]), colour, linewidth=2.5)
        text = f"60 mm {name} become {length:.0f}"
        axes.text(-38, -12 - 12 * axis, text, color=colour)
    axes.set(xlim=(-42, 82), ylim=(68, -40), aspect="equal", title="30 degrees about X, in mm")
    axes.set(xlabel="Y, mm", ylabel="Z, mm")


# --- 7: the network -------------------------------------------------------------------------------


def shapes_of(network: torch.nn.Module, image: torch.Tensor) -> dict[str, tuple]:
    """{name of a module: the shape (C, Z, Y, X) of what it gave} of one run of a network."""
    shapes, hooks = {}, []

    def remember(name, module, given, gave):
        if isinstance(gave, torch.Tensor):
            shapes[name] = tuple(gave.shape[1:])

    for name, module in network.named_modules():
        hooks.append(module.register_forward_hook(partial(remember, name)))
    network(image)
    for hook in hooks:
        hook.remove()
    return shapes


def draw_network(arch: str) -> Figure:
    """The U of a network, with the shapes that a run of it gave."""
    figure = new_figure(6.4)
    _draw_u(figure.subplots(), arch)
    return figure


def _draw_u(axes, arch):
    with torch.device("meta"):  # shapes without numbers
        network = build_unet(arch, PAPER)
        shapes = shapes_of(network, torch.zeros(1, 1, *PAPER.patch))
    weights = sum(parameter.numel() for parameter in network.parameters())

    stages = len(network.encoder)
    _draw_maps(axes, 0, -0.9, (1, *PAPER.patch), "white", "image")
    arrow(axes, (0, -0.6), (0, -0.3), "grey")
    axes.text(0.2, -0.47, "-".join(layers_of(network.stem)), va="center", size=9)
    for stage in range(stages):
        x = 0.62 * stage
        blocks = _contents(network.encoder[stage])
        _draw_maps(axes, x, stage, shapes[f"encoder.{stage}"], "#cfe3f5", blocks)
        if stage:
            arrow(axes, (x - 0.62, stage - 0.66), (x - 0.2, stage - 0.34), "tab:blue")
            stride = " ".join(map(str, PAPER.strides[stage]))
            axes.text(
                x - 0.75, stage - 0.5, stride, ha="right", va="center", size=8.5, color="tab:blue"
            )

    weights_of_heads = head_weights(stages - 1)
    for step in range(stages - 1):  # coarsest first
        stage = stages - 2 - step
        x = 9.6 - 0.62 * stage
        blocks = _contents(network.decoder[step])
        _draw_maps(axes, x, stage, shapes[f"decoder.{step}"], "#d8efd3", blocks)
        across = (0.62 * stage + 1.45, x - 1.45)
        arrow(axes, (across[0], stage), (across[1], stage), "0.6", linestyle="dotted")
        on_the_way = "-".join(layers_of(network.skips[step]))
        axes.text(sum(across) / 2, stage - 0.08, on_the_way, ha="center", va="bottom", size=9)
        below = (x - 0.62, stage + 0.7) if step else (0.62 * (stages - 1) + 1.2, stages - 1)
        arrow(axes, below, (x, stage + 0.33) if not step else (x - 0.2, stage + 0.33), "tab:green")
        share = Fraction(weights_of_heads[stage]).limit_denominator(99)
        axes.text(x + 1.5, stage, f"logits, weight {share}", va="center", size=9, color=TUMOR)
    axes.set(xlim=(-1.5, 13.4), ylim=(stages - 0.4, -1.4), xticks=[], yticks=[])
    axes.set_title(f"{arch}: {weights:,} weights")
    axes.axis("off")


def _draw_maps(axes, x, y, shape, colour, contents):
    """A box for the maps that a stage gives."""
    maps, *sides = shape
    size = " x ".join(map(str, sides))
    axes.text(
        x,
        y,
        f"{maps} x {size}\n{contents}",
        ha="center",
        va="center",
        size=9,
        bbox={"boxstyle": "round,pad=0.3", "facecolor": colour, "edgecolor": "grey"},
    )


def _contents(stage):
    """What a stage is made of, in words."""
    blocks = len(stage)
    if isinstance(stage[0], ResidualBlock):
        return f"{blocks} residual block{'s' * (blocks > 1)}"
    if isinstance(stage[0], PreactivationBlock):
        return f"{blocks} pre-act. block{'s' * (blocks > 1)}"
    convolutions = sum(isinstance(module, torch.nn.Conv3d) for module in stage.modules())
    negative = any(isinstance(module, torch.nn.LeakyReLU) for module in stage.modules())
    name = "conv-IN-LReLU" if negative else "conv-IN-ReLU"
    return f"{convolutions} {name}"


NAMES = {"Conv3d": "conv 3x3x3", "InstanceNorm3d": "IN", "ReLU": "ReLU", "LeakyReLU": "LReLU"}


def layers_of(module: torch.nn.Module) -> list[str]:
    """The names of a module's layers, in the order in which they stand."""
    names = []
    for layer in module.modules():
        kind = type(layer).__name__
        if kind in NAMES:
            names.append(
                "conv 1x1x1" if getattr(layer, "kernel_size", 0) == (1, 1, 1) else NAMES[kind]
            )
    return names


def draw_blocks() -> Figure:
    """The three blocks, of the modules that they are made of; both skips of the two that have one."""
    figure = new_figure(4.6)
    panels = figure.subplots(1, 3)
    plain = plain_block(24, 48, (2, 2, 2))
    residual = ResidualBlock(24, 48, (2, 2, 2))
    preactivation = PreactivationBlock(24, 48, (2, 2, 2))
    assert residual.skip is not None and preactivation.skip is not None
    first, body = layers_of(preactivation.activation), layers_of(preactivation.body)

    _draw_block(panels[0], "plain", layers_of(plain))
    way = [*layers_of(residual.body), "+", "ReLU"]
    _draw_block(panels[1], "residual", way, layers_of(residual.skip), start=0)
    _draw_block(
        panels[2], "pre-activation", [*first, *body, "+"], layers_of(preactivation.skip), start=2
    )
    for axes in panels[1:]:
        note(
            axes,
            0.02,
            0.03,
            "x as it came, where\nthe shape stays",
            size=9,
            color="tab:blue",
            ha="left",
        )
        note(axes, 0.98, 0.03, "only where the\nshape changes", size=9, color=OTHER, ha="right")
    return figure


def _draw_block(axes, title, way, skip=(), start=0):
    """A column of layers. Right of it those of the skip where the shape changes, from behind layer
    `start` to the plus; left, dashed, that where it stays, from x."""
    look = {"ha": "center", "va": "center", "size": 10}
    colours = {"conv 3x3x3": "#cfe3f5", "conv 1x1x1": "#cfe3f5", "IN": "#fbe5c0", "+": "white"}
    box = {"boxstyle": "round,pad=0.3", "edgecolor": "grey"}

    axes.set(xlim=(-2, 2.8), ylim=(len(way) + 0.4, -1.2), xticks=[], yticks=[])
    axes.axis("off")
    axes.set_title(title)
    axes.text(0, -0.8, "x", **look)
    for place, name in enumerate(way):
        arrow(axes, (0, place - 0.72), (0, place - 0.3), "grey")
        face = colours.get(name, "#d8efd3")
        axes.text(0, place, name, **look, bbox={**box, "facecolor": face})
    if not skip:
        return

    plus = way.index("+")
    axes.plot((0, 1.8, 1.8), (start - 0.55, start - 0.55, plus), color=OTHER, lw=2, zorder=0)
    arrow(axes, (1.8, plus), (0.25, plus), OTHER)
    axes.plot((0, -1.4, -1.4), (-0.6, -0.6, plus), "--", color="tab:blue", lw=2, zorder=0)
    arrow(axes, (-1.4, plus), (-0.25, plus), "tab:blue")
    for step, name in enumerate(skip):
        axes.text(1.8, start + 1.2 + step, name, **look, bbox={**box, "facecolor": colours[name]})


# --- 8: the loss ----------------------------------------------------------------------------------


def draw_loss() -> Figure:
    """A target at each resolution with its weight, and Dice against one false voxel."""
    _, labels = _patch_on_tumor(CASE, PAPER)
    sides = np.array(PAPER.patch) // np.cumprod(PAPER.strides[:-1], axis=0)

    figure = new_figure(5.6)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    panels = upper.subplots(1, len(sides))
    z_mm, _, x_mm = PAPER.spacing_mm
    for axes, shape, weight in zip(panels, sides.tolist(), head_weights(len(sides))):
        target = downsampled(labels[None], shape)[0]
        share = Fraction(weight).limit_denominator(99)
        plane = target[:, shape[1] // 2]
        spacing_mm = (z_mm * 80 / shape[0], x_mm * 160 / shape[2])
        show(axes, plane, spacing_mm, cmap=_colours_of_labels(), vmin=0, vmax=2)
        axes.set_title(f"{' x '.join(map(str, shape))}\nweight {share}", size=10)

    axes = lower.subplots()
    sizes = np.geomspace(1, 1e5, 60).astype(int)
    for false, colour in ((1, "tab:blue"), (10, OTHER), (100, "tab:green")):
        dice = 2 * sizes / (2 * sizes + false)
        more = "one voxel more is" if false == 1 else f"{false} voxels more are"
        axes.semilogx(sizes, dice, color=colour, lw=2, label=f"and {more} called tumor")
    axes.plot(0.4, 0, "o", color="tab:blue", markersize=9)
    axes.text(0.4, 0.07, "no tumor\nthere: 0", ha="center")
    axes.set(xlim=(0.2, 1.2e5), ylim=(-0.08, 1.08), xlabel="voxels of the tumor, all of them found")
    axes.set(ylabel="Dice")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.4)
    return figure


def _colours_of_labels():
    from matplotlib.colors import ListedColormap

    return ListedColormap(["#202020", KIDNEY, TUMOR])


def draw_nearest() -> Figure:
    """Eight voxels of a target, and the four of a head at half its resolution."""
    figure = new_figure(2.3)
    axes = figure.subplots()
    target = torch.arange(8.0).reshape(1, 1, 1, -1)
    taken = downsampled(target, (1, 1, 4)).ravel().int().tolist()

    for voxel in range(8):
        colour = "#cfe3f5" if voxel in taken else "white"
        axes.barh(0, 0.96, 0.62, voxel + 0.02, color=colour, edgecolor="grey")
        axes.text(voxel + 0.5, 0, str(voxel), ha="center", va="center", size=13)
    for voxel, source in enumerate(taken):
        axes.barh(1.4, 1.92, 0.62, 2 * voxel + 0.04, color="#cfe3f5", edgecolor="grey")
        axes.plot(2 * voxel + 1, 1.09, "k|", markersize=10)
        axes.plot((2 * voxel + 1, 2 * voxel + 1), (-0.42, 1.09), ":", color="0.4")
        text = f"{voxel} takes {source}"
        axes.text(2 * voxel + 1, 1.4, text, ha="center", va="center", size=12)
        arrow(axes, (source + 0.4, 0.34), (2 * voxel + 1, 1.05), "tab:blue")
    axes.set(xlim=(-1.1, 8.1), ylim=(1.9, -0.5), xticks=[], yticks=[])
    axes.text(-0.1, 0, "target", ha="right", va="center")
    axes.text(-0.1, 1.4, "head", ha="right", va="center")
    axes.axis("off")
    return figure


# --- 9: training ----------------------------------------------------------------------------------


def draw_training() -> Figure:
    """One patch learnt by heart, and the learning rate."""
    figure = new_figure(3.6)
    left, right = figure.subplots(1, 2)

    losses, scored, kidney, tumor = _overfitted()
    left.plot(range(1, len(losses) + 1), losses, color="black", label="loss")
    left.plot(scored, kidney, color=KIDNEY, label="Dice of the kidney")
    left.plot(scored, tumor, color=TUMOR, label="Dice of the tumor")
    left.set(xlabel="step", title="one patch, learnt by heart", ylim=(-1.05, 1.6))
    left.axhline(-1, color="0.6", ls=":")
    left.legend(loc="center right")
    left.grid(alpha=0.4)

    epochs = np.arange(PAPER.epochs)
    rates = [PAPER.learning_rate_at(epoch) for epoch in epochs]
    right.plot(epochs, rates, color="black")
    right.plot((0, PAPER.epochs), (rates[0], 0), "--", color="0.6", label="a straight line")
    right.set(xlabel="epoch", title="learning rate: nnU-Net v1's")
    right.legend()
    right.grid(alpha=0.4)
    return figure


def _overfitted():
    """(losses of each step, steps that were scored, kidney Dice, tumor Dice) of one patch, twice in
    each batch, with nothing done to it."""
    image, labels = _patch_on_tumor(CASE, SMALL)
    images, targets = torch.stack([image, image])[:, None], torch.stack([labels, labels])
    torch.manual_seed(0)
    network = build_unet("residual", SMALL)
    optimizer = sgd(network, SMALL)

    losses, scored, kidney, tumor = [], [], [], []
    for step in range(120):
        loss = training_step(network, images, targets, optimizer, SMALL)
        losses.append(loss.item())
        if step % 5 == 0:
            with torch.no_grad():
                found = network(images)[0][0].argmax(dim=0)
            scores = kits_dice(found.numpy(), labels.numpy())
            scored.append(step + 1)
            kidney.append(scores[0])
            tumor.append(scores[1])
    return losses, scored, kidney, tumor


# --- a network that is trained --------------------------------------------------------------------


class Trained(NamedTuple):
    """A network, the recipe that it was trained by, and the rows of its log."""

    network: torch.nn.Module
    recipe: Recipe
    log: list[dict]


@lru_cache
def trained(run: Path | None) -> Trained:
    """Of a run folder, or else of a small training on phantoms."""
    if run:
        checkpoint = load_checkpoint(run / "checkpoint.pt")
        network = load_network(checkpoint, run / "checkpoint.pt").eval()
        with open(run / "log.csv", newline="") as file:
            log = [{name: float(value) for name, value in row.items()} for row in DictReader(file)]
        return Trained(network, checkpoint["recipe"], log)

    cases = [prepared(number, SMALL) for number in TRAINED_ON]
    held_out = [prepared(number, SMALL) for number in HELD_OUT]
    torch.manual_seed(0)
    network = build_unet("residual", SMALL)
    optimizer = sgd(network, SMALL)
    precision = pick_precision("auto", torch.device("cpu"))
    progress, log = Progress(), []
    for epoch in range(SMALL.epochs):
        draw = partial(draw_batch, cases, SMALL, 0)
        row = train_epoch(network, draw, optimizer, SMALL, epoch, progress, precision=precision)
        progress = Progress(progress.iteration)
        kidney, tumor = _patch_dice(network.eval(), held_out)
        log.append({**row, "patch_dice_kidney": kidney, "patch_dice_tumor": tumor})
        done = f"epoch {epoch + 1} of {SMALL.epochs}: loss {row['loss']:.3f}"
        print(f"{done}, patch Dice kidney {kidney:.2f} tumor {tumor:.2f}", flush=True)
    return Trained(network, SMALL, log)


@torch.no_grad()
def _patch_dice(network, cases):
    """(kidney, tumor) Dice of all voxels of some patches of these cases."""
    found, wanted = [], []
    for iteration in range(SMALL.validation_batches):
        images, targets = draw_batch(cases, SMALL, 1, iteration, augmented=False)
        found.append(network(images).argmax(dim=1))
        wanted.append(targets)
    return kits_dice(torch.cat(found).numpy(), torch.cat(wanted).numpy())


def draw_learning_curve(run: Path | None) -> Figure:
    """Loss, patch Dice and learning rate of each epoch."""
    log = trained(run).log
    epochs = [row["epoch"] for row in log]
    first_rate = log[0]["learning_rate"]

    figure = new_figure(3.9)
    axes = figure.subplots()
    axes.plot(epochs, [row["loss"] for row in log], color="black", label="loss")
    for name, colour in (("kidney", KIDNEY), ("tumor", TUMOR)):
        dice = [row[f"patch_dice_{name}"] for row in log]
        axes.plot(epochs, dice, color=colour, label=f"patch Dice of the {name}, held out")
    rates = [row["learning_rate"] / first_rate for row in log]
    axes.plot(epochs, rates, ":", color="0.4", label="learning rate / its first")
    axes.set(xlabel="epoch", ylim=(-1, 1.05))
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.37))
    axes.grid(alpha=0.4)
    return figure


@lru_cache
def predicted(number: int, run: Path | None) -> np.ndarray:
    """The mask of a held-out phantom on its own grid: each window once."""
    scan, _ = phantom(number)
    network, recipe, _ = trained(run)
    return segment_volume(scan, [network], recipe, mirroring=False)


# --- 10: windows ----------------------------------------------------------------------------------


def draw_windows() -> Figure:
    """Where windows lie, the sum of their weights, and how much of them is clipped: air, lung and fat."""
    case = prepared(FINE, DEMO)
    image = case.image.float()
    starts = [window_starts(size, side) for size, side in zip(image.shape, DEMO.patch)]
    corners = list(product(*starts))
    weight = importance_map(DEMO.patch)
    total = torch.zeros(image.shape)
    for start in corners:
        total[_window(start)] += weight

    figure = new_figure(6.6)
    (left, right), (below, other) = figure.subplots(2, 2)
    y = image.shape[1] // 2
    z_mm, _, x_mm = DEMO.spacing_mm
    show(left, image[:, y], (z_mm, x_mm), vmin=-2.34, vmax=2.64)
    _draw_rectangles(left, starts)
    counts = " x ".join(str(len(axis)) for axis in starts)
    left.set(xlim=(-3, image.shape[2] + 2), ylim=(image.shape[0] + 2, -3))
    left.set_title(f"{counts} windows; here those of a slice")

    show(right, total[:, y], (z_mm, x_mm), cmap="viridis")
    figure.colorbar(right.images[0], ax=right, shrink=0.8)
    right.set_title("their weights, added up")

    plane = weight[:, DEMO.patch[1] // 2]
    show(below, plane, (z_mm, x_mm), cmap="viridis")
    figure.colorbar(below.images[0], ax=below, shrink=0.8)
    below.set_title("the weights of one window")

    clipped = [_share_clipped(image[_window(start)]) for start in corners]
    of_patches = [_share_clipped(patch[0]) for patch in _training_patches(case)]
    bins = np.linspace(0, 1, 26)
    other.hist(of_patches, bins, density=True, color="0.7", label="100 patches of the training")
    other.hist(clipped, bins, density=True, histtype="step", lw=2, color=OTHER, label="the windows")
    other.set(xlabel="share of voxels at -79 HU: air, lung, fat", yticks=[], ylim=(0, 10))
    other.set_title("windows see more air, lung, fat")
    other.legend(loc="upper left", fontsize=9)
    return figure


def _draw_rectangles(axes, starts):
    """The windows of a coronal slice, a little apart so that none hides another."""
    from matplotlib.patches import Rectangle

    depth, _, width = DEMO.patch
    for place, (z, x) in enumerate(product(starts[0], starts[2])):
        shift = 0.35 * (place % 4)
        corner = (x - 0.5 + shift, z - 0.5 + shift)
        colour = f"C{place % 10}"
        axes.add_patch(Rectangle(corner, width - 1, depth - 1, fill=False, ec=colour, lw=1.8))


def _window(start):
    """The box of a window of the demo."""
    return tuple(slice(first, first + side) for first, side in zip(start, DEMO.patch))


def _share_clipped(image):
    lowest = (DEMO.window_hu[0] - DEMO.mean_hu) / DEMO.sd_hu
    return (image < lowest + 0.01).float().mean().item()


def _training_patches(case):
    """The images of 50 batches, without augmentation."""
    patches = []
    for iteration in range(50):
        images, _ = draw_batch([case], DEMO, 0, iteration, augmented=False)
        patches += list(images)
    return patches


# --- 11: mirror images ----------------------------------------------------------------------------


def draw_mirroring(run: Path | None) -> Figure:
    """The tumor's probability in the eight mirror images of a patch, and their mean."""
    network, recipe, _ = trained(run)
    image, labels = _patch_on_tumor(MIRRORED, recipe)
    maps = []
    with torch.no_grad():
        for axes in FLIPS:
            probabilities = network(image.flip(axes)[None, None])[0].softmax(dim=0)
            maps.append(probabilities[2].flip(axes))
    maps.append(torch.stack(maps).mean(dim=0))
    titles = [_name_of_flip(axes) for axes in FLIPS] + ["mean of the eight"]

    figure = new_figure(2.7)
    y = place_of_most(labels.numpy() == 2, axis=1)
    z_mm, _, x_mm = recipe.spacing_mm
    grid = figure.subplots(2, 5).ravel()
    show(grid[0], image[:, y], (z_mm, x_mm), vmin=-2.34, vmax=2.64)
    outline(grid[0], labels[:, y].numpy(), width=2)
    grid[0].set_title("image, reference", size=10)
    for axes, chances, title in zip(grid[1:], maps, titles):
        show(axes, chances[:, y], (z_mm, x_mm), cmap="magma", vmin=0, vmax=1)
        outline(axes, labels[:, y].numpy())
        axes.set_title(title, size=10)
    bar = figure.colorbar(grid[1].images[0], ax=list(grid), shrink=0.8)
    bar.set_label("probability of tumor")
    return figure


def _name_of_flip(axes):
    if not axes:
        return "as it is"
    return "mirrored: " + " ".join("ZYX"[axis] for axis in axes)


# --- 12: scores -----------------------------------------------------------------------------------


def draw_scores(run: Path | None) -> Figure:
    """A dot for each case, means with intervals, and the worst slice of the tumor found worst."""
    scored = {}
    for number in HELD_OUT:
        reference = phantom(number)[1].voxels
        scored[number] = score_case(f"phantom {number}", predicted(number, run), reference)
    summary = summarise(list(scored.values()))

    figure = new_figure(3.9)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for place, (name, colour) in enumerate((("kidney", KIDNEY), ("tumor", TUMOR))):
        dice = [getattr(scores, name) for scores in scored.values()]
        places = np.linspace(place - 0.15, place + 0.15, len(dice))
        left.plot(places, dice, "o", color=colour)
        found = summary[name]
        left.plot((place + 0.3, place + 0.3), (found.low, found.high), color="black", lw=2)
        left.plot(place + 0.3, found.mean, "D", color="black", markersize=7)
    left.set(xticks=(0, 1), xticklabels=("kidney", "tumor"), ylim=(-0.02, 1.02), ylabel="Dice")
    left.set_title(f"{len(scored)} cases: dots, mean, 95% interval")
    left.grid(axis="y", alpha=0.4)

    with_tumor = []
    for where, number in zip(places, HELD_OUT):
        if (phantom(number)[1].voxels == 2).any():
            with_tumor.append(number)
        elif scored[number].tumor == 0:
            left.text(where + 0.06, 0, "none there, one claimed", size=9, ha="right", va="bottom")
    worst = min(with_tumor, key=lambda number: scored[number].tumor)
    _draw_errors(right, worst, run)
    right.set_title(f"the tumor found worst: Dice {scored[worst].tumor:.2f}")
    return figure


def _draw_errors(axes, number, run):
    """The slice with the most wrong voxels. Reference: outlined. Blue: less is found than there is,
    nothing or kidney where a tumor is. Yellow: more."""
    scan, reference = phantom(number)
    mask = predicted(number, run)
    z = place_of_most(mask != reference.voxels, axis=0)
    _, y_mm, x_mm = scan.spacing_mm
    show(axes, scan.voxels[z], (y_mm, x_mm), vmin=SOFT_TISSUE_HU[0], vmax=SOFT_TISSUE_HU[1])
    outline(axes, reference.voxels[z], width=1.8)
    colours = np.zeros((*mask[z].shape, 4))
    wrong = mask[z] != reference.voxels[z]
    colours[wrong & (mask[z] < reference.voxels[z])] = (0.2, 0.4, 1, 0.75)
    colours[wrong & (mask[z] > reference.voxels[z])] = (1, 0.85, 0, 0.75)
    axes.imshow(colours, aspect=y_mm / x_mm, interpolation="nearest")


def draw_overlays(run: Path | None) -> Figure:
    """The slice with the most wrong voxels of four cases."""
    figure = new_figure(6.4)
    for axes, number in zip(figure.subplots(2, 2).ravel(), HELD_OUT):
        _draw_errors(axes, number, run)
        kidney, tumor = kits_dice(predicted(number, run), phantom(number)[1].voxels)
        axes.set_title(f"Dice of kidney {kidney:.2f}, tumor {tumor:.2f}")
    return figure


FIGURES = {
    "scan": draw_scan,
    "orientation": draw_orientation,
    "spacing": draw_spacing,
    "window": draw_window,
    "resampling": draw_resampling,
    "patches": draw_patches,
    "augmentation": draw_augmentation,
    "turned_patch": draw_turned_patch,
    "network_plain": partial(draw_network, "plain"),
    "network_residual": partial(draw_network, "residual"),
    "network_preactivation": partial(draw_network, "preactivation"),
    "blocks": draw_blocks,
    "loss": draw_loss,
    "nearest": draw_nearest,
    "training": draw_training,
    "windows": draw_windows,
}
OF_A_NETWORK = {
    "learning_curve": draw_learning_curve,
    "mirroring": draw_mirroring,
    "scores": draw_scores,
    "overlays": draw_overlays,
}


# --- the command ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of docs/walkthrough.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of figures; default all")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--run", type=Path, help="a run folder, whose network and log are drawn")
    arguments = parser.parse_args()
    every = [*FIGURES, *OF_A_NETWORK]
    unknown = set(arguments.names) - set(every)
    if unknown:
        parser.error(f"no figure {', '.join(unknown)}; there are {', '.join(every)}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or every:
        if name in FIGURES:
            figure = FIGURES[name]()
        else:
            figure = OF_A_NETWORK[name](arguments.run)
        path = arguments.out / f"{name}.png"
        save(figure, path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
