"""What scripts take alike from the command line: how files are read that `read_volume` would refuse,
and which recipe."""

import argparse
import re
from dataclasses import dataclass

from minikits.files import read_json, typed_path
from minikits.frames import SPACING_RANGE_MM
from minikits.nifti import MAX_VOXELS
from minikits.paper import DEMO, PAPER, recipe_from
from minikits.recipe import Recipe


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


def chosen_recipe(name: str) -> Recipe:
    """The paper's, the demo's, or the one in a JSON file."""
    if name == "paper":
        return PAPER
    if name == "demo":
        return DEMO
    return recipe_from(read_json(typed_path(name)), source=name)


def a_number(text: str) -> int:
    """A whole number of the command line, 1 or more."""
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: wanted a whole number, 1 or more")
    return int(text)
