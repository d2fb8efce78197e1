"""Pictures of volumes and of numbers, each drawn into a PNG file; matplotlib is wanted.

A picture of volumes is a grid of panels. Each panel is a plane of a volume at its proportions in mm,
as a radiologist holds it: the front of the body up in an axial one, its head in the others, the
patient's right on the left. Kidneys are outlined in cyan, tumors in red."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minikits.files import written_whole

PANEL_INCHES = 2.7  # how wide a panel is, which is 432 dots
TALLEST = 2.0  # how much higher than wide it may be
DPI = 160
CYAN, RED = "#00c8d7", "#ff3b30"
BLACK_AND_WHITE_HU = (-160.0, 300.0)  # of soft tissue
MOST_BINS = 200  # of a histogram


@dataclass(frozen=True)
class Plane:
    """One of the three planes: the axis that it cuts, and what its edges are of the patient's."""

    name: str
    axis: int
    top: str
    bottom: str
    left: str
    right: str


AXIAL = Plane("axial", 0, top="A", bottom="P", left="R", right="L")
CORONAL = Plane("coronal", 1, top="S", bottom="I", left="R", right="L")
SAGITTAL = Plane("sagittal", 2, top="S", bottom="I", left="A", right="P")
PLANES = (AXIAL, CORONAL, SAGITTAL)


@dataclass(frozen=True, eq=False)
class Panel:
    """A (rows, columns) image, and what is drawn on it."""

    values: np.ndarray
    mm: tuple[float, float]  # a pixel's height and width
    shown: tuple[float, float]  # the values that are black and white, or the colours' ends
    title: str = ""
    colours: str = "gray"
    labels: np.ndarray | None = None  # 0, 1, 2; outlined
    plane: Plane | None = None  # whose letters stand at the edges
    points: np.ndarray | None = None  # (N, 2): row and column of each
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # row, column,
    # height, width


def panel_of(
    plane: Plane,
    voxels: np.ndarray,
    spacing_mm: Sequence[float],
    place: Sequence[int],
    *,
    shown: tuple[float, float],
    labels: np.ndarray | None = None,
    title: str = "",
) -> Panel:
    """A plane of (Z, Y, X) voxels through the voxel `place`, the labels' outlines on it."""
    axis = plane.axis
    cut = place[axis]
    row_mm, column_mm = [mm for number, mm in enumerate(spacing_mm) if number != axis]
    outlined = None if labels is None else labels.take(cut, axis)
    return Panel(
        voxels.take(cut, axis),
        (row_mm, column_mm),
        shown,
        title=title or f"{plane.name}, {'ZYX'[axis]} = {cut}",
        labels=outlined,
        plane=plane,
    )


def panels_of(
    planes: Sequence[Plane],
    voxels: np.ndarray,
    spacing_mm: Sequence[float],
    place: Sequence[int],
    *,
    shown: tuple[float, float],
    labels: np.ndarray | None = None,
    title: str = "",
) -> list[Panel]:
    """`panel_of` each of these planes."""
    panels = []
    for plane in planes:
        panel = panel_of(plane, voxels, spacing_mm, place, shown=shown, labels=labels, title=title)
        panels.append(panel)
    return panels


def projected(panel: Panel, plane: Plane, voxels: np.ndarray) -> Panel:
    """The panel with the mean along the plane's axis in place of one plane; without outlines."""
    mean = voxels.mean(axis=plane.axis, dtype=np.float32)
    return replace(panel, values=mean, labels=None, title=f"{plane.name}, mean of all planes")


def in_plane(plane: Plane, places: np.ndarray) -> np.ndarray:
    """(N, 3) places Z Y X -> (N, 2), their rows and columns in a plane.

    >>> in_plane(CORONAL, np.array([[5, 6, 7]])).tolist()
    [[5, 7]]
    """
    return np.delete(places, plane.axis, axis=1)


def draw_panels(path: Path, rows: Sequence[Sequence[Panel]]) -> None:
    """A grid of panels; rows may be of different lengths."""
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    heights = [max(_height_of(panel) for panel in row) for row in rows]
    width = PANEL_INCHES * columns
    height = PANEL_INCHES * sum(heights) + 0.35 * len(rows)

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(
        len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes_of_row, row in zip(grid, rows):
        for axes, panel in zip(axes_of_row, row):
            _draw_panel(axes, panel)
        for axes in axes_of_row[len(row) :]:
            axes.axis("off")
    _save(figure, path)


def _height_of(panel):
    """How high a panel is, where it is 1 wide."""
    rows, columns = panel.values.shape
    height = rows * panel.mm[0] / (columns * panel.mm[1])
    return min(height, TALLEST)


def _draw_panel(axes, panel):
    darkest, brightest = panel.shown
    aspect = panel.mm[0] / panel.mm[1]
    axes.imshow(
        panel.values,
        panel.colours,
        vmin=darkest,
        vmax=brightest,
        aspect=aspect,
        interpolation="nearest",
    )
    axes.set_title(panel.title, fontsize=8, parse_math=False)
    axes.set(xticks=[], yticks=[])

    if panel.labels is not None:
        _draw_outline(axes, panel.labels > 0, CYAN)  # the kidney with the tumor in it
        _draw_outline(axes, panel.labels == 2, RED)
    if panel.points is not None:
        axes.plot(panel.points[:, 1], panel.points[:, 0], ".", color=RED, markersize=3)
    for box in panel.boxes:
        _draw_box(axes, box)
    if panel.plane is not None:
        _write_letters(axes, panel.plane)


def _draw_outline(axes, region, colour):
    """Nothing where a region has no outline: none of it, all of it, or a plane one voxel thin."""
    if region.any() and not region.all() and min(region.shape) > 1:
        axes.contour(region, [0.5], colors=colour, linewidths=0.8)


def _draw_box(axes, box):
    from matplotlib.patches import Rectangle

    row, column, height, width = box
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="gold", linewidth=0.8))


def _write_letters(axes, plane):
    """Which edge is which of the patient's, in the corners of the plane's edges."""
    options: dict[str, Any] = {
        "transform": axes.transAxes,
        "color": "gold",
        "fontsize": 8,
        "ha": "center",
        "va": "center",
    }
    axes.text(0.5, 0.96, plane.top, **options)
    axes.text(0.5, 0.04, plane.bottom, **options)
    axes.text(0.04, 0.5, plane.left, **options)
    axes.text(0.96, 0.5, plane.right, **options)


def draw_histograms(
    path: Path, hu: np.ndarray, image: np.ndarray, window_hu: tuple[float, float]
) -> None:
    """How many voxels have which value: a scan's HU with the bounds of the window, and beside it the
    image that was made of it, in the networks' units."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), layout="constrained")
    before, after = figure.subplots(1, 2)
    _draw_histogram(before, hu)
    before.axvspan(*window_hu, color="gold", alpha=0.35)
    before.set(title="the scan, in HU; the window is yellow", xlabel="HU", ylabel="voxels")

    _draw_histogram(after, image)
    after.set(title="as the networks see it", xlabel="(HU - mean) / sd")
    _save(figure, path)


def _draw_histogram(axes, values):
    counts, edges = np.histogram(values, bins=MOST_BINS)
    axes.stairs(counts, edges, fill=True, color="tab:blue")
    axes.set(yscale="log")


def _save(figure, path):
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=DPI)
