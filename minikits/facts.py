"""What can be measured of one case before a training: its files, its labels, its HU. Nothing is
judged here. numpy alone, so that many processes can do it at once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minikits.components import bounding_box, label_components
from minikits.doubts import doubts
from minikits.frames import check_same_grid
from minikits.nifti import read_labels, read_volume
from minikits.paper import CLASSES, PAPER
from minikits.reading import Reading
from minikits.volumes import Volume

# what is beyond counts as these: no foreground of a CT is, but for metal
LOWEST_HU, HIGHEST_HU = -1024, 3071
PERCENTILES = (0.5, 99.5)  # of the foreground: the paper's window
# the sides of a volume, by axis: its first plane, its last
SIDES = (
    ("the top slice", "the bottom slice"),
    ("the front edge", "the back edge"),
    ("the right edge", "the left edge"),
)


@dataclass(frozen=True)
class Region:
    """What hangs together of kidney and tumor, and one voxel (z, y, x) in the middle of it."""

    kidney_ml: float
    tumor_ml: float
    place: tuple[int, ...]

    @property
    def ml(self) -> float:
        """Both together."""
        return self.kidney_ml + self.tumor_ml


@dataclass(frozen=True)
class Cut:
    """A structure that reaches a side of the volume: how much of that plane it takes up."""

    structure: str
    side: str
    cm2: float
    place: tuple[int, ...]


@dataclass(frozen=True)
class LabelFacts:
    """Of a label map. digest: the same for the same voxels; None where nothing is labelled."""

    kidney_ml: float
    tumor_ml: float
    regions: list[Region]  # the largest first
    tumors: int  # components of the tumor's label
    cuts: list[Cut]
    digest: str | None


@dataclass(frozen=True, eq=False)
class Intensities:
    """HU in kidney and tumor. below, above: the shares beyond the paper's window. histogram: how
    many voxels have LOWEST_HU, the next, ... HIGHEST_HU."""

    mean: float
    sd: float
    low: float  # percentiles, as PERCENTILES has them
    high: float
    below: float
    above: float
    histogram: np.ndarray


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """Of a case; what its files do not tell is None, or empty. refused: why it cannot be used, a
    line each. doubted: what is suspect of its image. stored: how the labels' file has them."""

    id: str
    image: Path | None
    labels: Path | None
    refused: list[str]
    doubted: list[str]
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    stored: str = ""
    of_labels: LabelFacts | None = None
    hu: Intensities | None = None
    image_digest: str | None = None


def facts_of(id: str, image: Path | None, labels: Path | None, reading: Reading) -> CaseFacts:
    """The CaseFacts of a case, either of whose files may be absent."""
    scan, reference, refused = None, None, []
    try:
        if labels:
            reference = read_labels(labels, **vars(reading))
        if image:
            scan = read_volume(image, **vars(reading))
        if scan and reference:
            check_same_grid(scan, reference)
    except (ValueError, OSError) as error:
        refused.append(str(error))
    except MemoryError:
        refused.append(f"{id}: not enough memory to read it; --jobs 1 takes less")
    if refused:
        return CaseFacts(id, image, labels, refused, [])

    seen = scan or reference
    assert seen is not None  # a case has one of both files
    return CaseFacts(
        id,
        image,
        labels,
        refused,
        doubts(scan) if scan else [],
        shape=seen.voxels.shape,
        spacing_mm=seen.spacing_mm,
        stored=how_stored(reference) if reference else "",
        of_labels=label_facts(reference) if reference else None,
        hu=intensities(scan.voxels, reference.voxels) if scan and reference else None,
        image_digest=digest_of(scan.voxels) if scan else None,
    )


def how_stored(volume: Volume) -> str:
    """The type of a file's voxels and which frame it has: "uint8, sform"."""
    frames = []
    for name in ("sform", "qform"):
        if volume.header[f"{name}_code"] > 0:
            frames.append(name)
    return f"{volume.header.get_data_dtype()}, {' and '.join(frames) or 'no frame'}"


# --- labels ---------------------------------------------------------------------------------------


def label_facts(labels: Volume) -> LabelFacts:
    """The LabelFacts of a label map."""
    voxels = labels.voxels
    box = bounding_box(voxels > 0)
    if box is None:
        return LabelFacts(0.0, 0.0, [], 0, [], None)

    inside = np.ascontiguousarray(voxels[box])
    start = [edge.start for edge in box]
    ml = labels.voxel_mm3 / 1000
    regions = regions_of(inside, start, ml)
    _, tumors = label_components(inside == 2)
    return LabelFacts(
        kidney_ml=sum(region.kidney_ml for region in regions),
        tumor_ml=sum(region.tumor_ml for region in regions),
        regions=regions,
        tumors=tumors,
        cuts=cuts_of(voxels, labels.spacing_mm),
        digest=digest_of(inside, about=(voxels.shape, start)),
    )


def regions_of(labels: np.ndarray, start: Sequence[int], ml_per_voxel: float) -> list[Region]:
    """The Regions of a label map (Z, Y, X), the largest first. start: the place of its first voxel
    in the whole of which it was cut."""
    components, count = label_components(labels > 0)
    places = np.nonzero(components)
    number = components[places] - 1
    is_tumor = labels[places] == 2

    voxels = np.bincount(number, minlength=count)
    tumor_voxels = np.bincount(number[is_tumor], minlength=count)
    by_region = np.argsort(number, kind="stable")  # each one's voxels in their order
    middle = np.cumsum(voxels) - voxels + voxels // 2

    regions = []
    for region in range(count):
        voxel = by_region[middle[region]]
        place = [int(axis[voxel]) + first for axis, first in zip(places, start)]
        tumor_ml = float(tumor_voxels[region] * ml_per_voxel)
        kidney_ml = float((voxels[region] - tumor_voxels[region]) * ml_per_voxel)
        regions.append(Region(kidney_ml, tumor_ml, tuple(place)))
    return sorted(regions, key=lambda region: region.ml, reverse=True)


def cuts_of(labels: np.ndarray, spacing_mm: Sequence[float]) -> list[Cut]:
    """Where kidney and tumor reach the sides of a label map (Z, Y, X)."""
    cuts = []
    for axis, sides in enumerate(SIDES):
        across = [mm for number, mm in enumerate(spacing_mm) if number != axis]
        for side, index in zip(sides, (0, labels.shape[axis] - 1)):
            plane = labels.take(index, axis)
            for value, structure in enumerate(CLASSES[1:], 1):
                found = np.argwhere(plane == value)
                if len(found) == 0:
                    continue
                middle = found[len(found) // 2].tolist()
                middle.insert(axis, index)
                cm2 = float(len(found) * across[0] * across[1] / 100)
                cuts.append(Cut(structure, side, cm2, tuple(middle)))
    return cuts


# --- voxels ---------------------------------------------------------------------------------------


def intensities(image: np.ndarray, labels: np.ndarray) -> Intensities | None:
    """The Intensities of an image (Z, Y, X) where its label map is not background; None where all
    of it is."""
    foreground = image[labels > 0].astype(np.float64)
    if len(foreground) == 0:
        return None

    low, high = np.percentile(foreground, PERCENTILES)
    darkest, brightest = PAPER.window_hu
    whole = np.clip(np.rint(foreground), LOWEST_HU, HIGHEST_HU).astype(int) - LOWEST_HU
    return Intensities(
        mean=float(foreground.mean()),
        sd=float(foreground.std()),
        low=float(low),
        high=float(high),
        below=float((foreground < darkest).mean()),
        above=float((foreground > brightest).mean()),
        histogram=np.bincount(whole, minlength=HIGHEST_HU - LOWEST_HU + 1),
    )


def pooled(histograms: Sequence[np.ndarray]) -> dict[str, float]:
    """{"mean", "sd", "low", "high"} of the voxels of all histograms together, each voxel to 1 HU."""
    counts = np.sum(histograms, axis=0)
    hu = np.arange(LOWEST_HU, HIGHEST_HU + 1)
    mean = np.average(hu, weights=counts)
    sd = np.sqrt(np.average((hu - mean) ** 2, weights=counts))

    shares = np.cumsum(counts) / counts.sum()
    low, high = [hu[np.searchsorted(shares, percent / 100)] for percent in PERCENTILES]
    return {"mean": float(mean), "sd": float(sd), "low": float(low), "high": float(high)}


def digest_of(voxels: np.ndarray, about: object = None) -> str:
    """16 letters, the same for the same values (Z, Y, X), in whatever type they are stored. about:
    what else is to be the same."""
    digest = hashlib.blake2b(repr((voxels.shape, about)).encode(), digest_size=8)
    for plane in voxels:
        digest.update(np.ascontiguousarray(plane, dtype=np.float32))
    return digest.hexdigest()
