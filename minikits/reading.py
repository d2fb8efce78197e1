"""How files are read that `read_volume` would refuse: the options of the command line for it, the
same for every script."""

import argparse
import re
from dataclasses import dataclass

from minikits.frames import SPACING_RANGE_MM
from minikits.nifti import MAX_VOXELS


@dataclass(frozen=True)
class Reading:
    """What `read_volume` and `read_labels` take, as `**vars(reading)`."""

    affine: str | None = None
    assume_spacing: list[float] | None = None
    max_voxels: int = MAX_VOXELS


def add_reading_options(parser: argparse.ArgumentParser, *, of: str) -> None:
    """Adds --affine, --assume-spacing and --max-voxels. of: "a scan", whose voxels are counted."""
    add_frame_options(parser)
    parser.add_argument(
        "--max-voxels",
        type=voxel_count,
        default=MAX_VOXELS,
        help=f"of {of} (default %(default)s)",
    )


def add_frame_options(parser: argparse.ArgumentParser, *, of: str = "") -> None:
    """Adds --affine and --assume-spacing. of: begins their help, where they are of some files
    only."""
    parser.add_argument(
        "--affine",
        choices=["sform", "qform"],
        help=f"{of}which to take where they or pixdim differ",
    )
    parser.add_argument(
        "--assume-spacing",
        type=typed_spacing,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help=f"{of}mm; axes as KiTS19's",
    )


def chosen_reading(arguments: argparse.Namespace) -> Reading:
    """The Reading that the options of `add_reading_options` ask for."""
    return Reading(arguments.affine, arguments.assume_spacing, arguments.max_voxels)


def typed_spacing(text: str) -> float:
    """A voxel's side of the command line, mm (argparse's type for --assume-spacing): argparse tells
    the user what is wrong with it."""
    smallest, largest = SPACING_RANGE_MM
    try:
        millimetres = float(text)
    except ValueError:
        millimetres = float("nan")
    if not smallest < millimetres < largest:  # NaN neither
        raise argparse.ArgumentTypeError(
            f"{text}: wanted a length in mm, more than {smallest:g} and less than {largest:g}"
        )
    return millimetres


def voxel_count(text: str) -> int:
    """A number of voxels of the command line (argparse's type)."""
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: wanted a number of voxels, 1 or more")
    return int(text)
