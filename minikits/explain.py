"""One case through every stage of the method, as a page to look at:

    python -m minikits.explain data/case_00000
    python -m minikits.explain scan.nii.gz --labels mask.nii.gz --model runs/residual
    python -m minikits.explain --phantom 3

A folder of PNGs and index.html, which any browser shows: what was read of a scan, and what becomes of
it. Each stage calls the functions that training and prediction call, and shows what they gave.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from minikits.cases import look_for_cases
from minikits.devices import (
    is_out_of_memory,
    pick_device,
    what_memory_lacked,
)
from minikits.ensemble import Member, load_networks
from minikits.files import (
    folder_written_whole,
    forgiving_output,
    typed_path,
    write_text,
)
from minikits.frames import check_same_grid
from minikits.nifti import read_labels, read_volume
from minikits.pages import as_html, whole_page
from minikits.paper import CLASSES, DEMO, PAPER
from minikits.phantoms import make_case, write_case
from minikits.prepared import arrays_of, check_resampled_size
from minikits.reading import add_reading_options, chosen_reading
from minikits.recipe import Recipe
from minikits.reports import first_line, why_no_figures
from minikits.sampling import PreparedCase
from minikits.stages import STAGES, Stage, Subject, describe_prediction
from minikits.volumes import Volume

RECIPES = {"paper": PAPER, "demo": DEMO}


def explain(arguments: argparse.Namespace, say: Callable[[str], None]) -> Path:
    """Writes the folder of a case, whole or not at all, and gives its page; a line to `say` for each
    stage. ValueError or OSError where the case cannot be used, or the folder is there already."""
    check_drawing()
    case = find_case(arguments)
    members, recipe, said = chosen_networks(arguments)
    device = pick_device(arguments.device)
    out = arguments.out or Path("explained", case.id)

    with folder_written_whole(out) as folder:
        subject = read_subject(case, arguments, recipe, folder)
        for line in said:
            say(line)

        stages = []
        for describe in STAGES:
            stages.append(describe(subject, folder))
            say(stages[-1].title)
        if members:
            mirroring = not arguments.no_mirroring
            stages.append(
                describe_prediction(subject, folder, members, mirroring=mirroring, device=device)
            )
            say(stages[-1].title)
        write_text(folder / "index.html", page_of(subject, stages))
    return out / "index.html"


def check_drawing() -> None:
    """ValueError where there is no matplotlib."""
    why = why_no_figures()
    if why:
        raise ValueError(
            f"matplotlib draws the pictures, and cannot be imported ({first_line(why)}); "
            "python -m pip install matplotlib"
        )


# --- the case -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where a case lies. Without an image it is a phantom of this seed."""

    id: str
    image: Path | None
    labels: Path | None
    phantom: int = 0


def find_case(arguments: argparse.Namespace) -> Source:
    """The one case that the command line names; ValueError where that is none or several."""
    if (arguments.case is None) == (arguments.phantom is None):
        raise ValueError("wanted either a case or --phantom SEED")
    if arguments.phantom is not None:
        if arguments.phantom < 0:
            raise ValueError(f"--phantom {arguments.phantom}: wanted 0 or more")
        if arguments.labels:
            raise ValueError(f"--labels {arguments.labels}: a phantom has labels of its own")
        return Source(f"phantom_{arguments.phantom}", None, None, arguments.phantom)

    found = look_for_cases(arguments.case)
    if len(found.cases) > 1:
        raise ValueError(
            f"{arguments.case}: {found.summary()}; wanted one case: name one of them, "
            f"such as {found.cases[0].image or found.cases[0].labels}"
        )
    (case,) = found.cases
    if case.image is None:
        raise ValueError(f"{arguments.case}: labels, but no image; wanted a scan")
    return Source(case.id, case.image, arguments.labels or case.labels)


def read_subject(
    source: Source, arguments: argparse.Namespace, recipe: Recipe, folder: Path
) -> Subject:
    """The case as training reads and prepares it. A phantom's files are first written to the
    page's folder."""
    image, labels = source.image, source.labels
    if image is None:
        write_case(folder / source.id, make_case(source.phantom))
        image = folder / source.id / "imaging.nii.gz"
        labels = folder / source.id / "segmentation.nii.gz"

    reading = vars(chosen_reading(arguments))
    scan = read_volume(image, **reading)
    check_resampled_size(scan, recipe)
    reference = None
    if labels:
        reference = read_labels(labels, **reading)
        check_same_grid(scan, reference)

    prepared = prepared_case(source.id, scan, reference, recipe)
    return Subject(source.id, scan, reference, prepared, recipe, arguments.seed)


def prepared_case(id: str, scan: Volume, reference: Volume | None, recipe: Recipe) -> PreparedCase:
    """The case as the cache keeps it; without a reference all of it is background."""
    if reference is None:
        reference = replace(scan, voxels=np.zeros(scan.voxels.shape, dtype=np.uint8))
    arrays = arrays_of(scan, reference, recipe)
    image, labels = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["labels"])
    foreground = tuple(arrays[structure] for structure in CLASSES[1:])
    return PreparedCase(id, image, labels, foreground)


def chosen_networks(arguments: argparse.Namespace) -> tuple[list[Member], Recipe, list[str]]:
    """The networks of --model with their recipe and lines on them; without, no network and the
    recipe that is named."""
    if arguments.model:
        return load_networks(arguments.model)
    return [], RECIPES[arguments.recipe], []


# --- the page -------------------------------------------------------------------------------------


def page_of(subject: Subject, stages: Sequence[Stage]) -> str:
    """The text of the page: HTML without scripts, and without links to anything but its pictures."""
    parts = []
    for number, stage in enumerate(stages, 1):
        parts.append(f"<h2>{number}. {as_html(stage.title)}</h2>")
        parts.append(f'<p class="told">{as_html(stage.told)}</p>')
        parts.append("<table>")
        for name, said in stage.numbers:
            parts.append(f"<tr><th>{as_html(name)}</th><td>{as_html(said)}</td></tr>")
        parts.append("</table>")
        for picture, alt in stage.pictures:
            parts.append(f'<p>{as_html(alt)}<br>\n<img src="{picture}" alt="{as_html(alt)}"></p>')
    return whole_page(f"{subject.id}, stage by stage", parts)


# --- the command ----------------------------------------------------------------------------------


def main() -> None:
    forgiving_output()
    parser = command_line()
    arguments = parser.parse_args()
    try:
        page = explain(arguments, say=partial(print, flush=True))
    except KeyboardInterrupt:
        parser.exit(130, "explain: stopped\n")
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        parser.exit(2, f"explain: {refusal(error)}\n")
    print(page)


def refusal(error: Exception) -> str:
    """An error in a line. A RuntimeError that is not about memory is ours, and raised again."""
    if is_out_of_memory(error):
        return what_memory_lacked(error)
    if isinstance(error, RuntimeError):
        raise error
    return first_line(error)


def command_line() -> argparse.ArgumentParser:
    """The options: which case, how it is read, by which networks it is predicted."""
    parser = argparse.ArgumentParser(
        prog="python -m minikits.explain",
        description="One case through every stage of the method, as a page of pictures and numbers.",
    )
    add = parser.add_argument
    add("case", type=typed_path, nargs="?", help="a scan, or the folder of a KiTS19 case")
    add("--phantom", type=int, metavar="SEED", help="a synthetic case instead")
    add("--labels", type=typed_path, help="of a scan that lies apart from its labels")
    add("--out", type=typed_path, help="folder for the page (default explained/CASE)")
    add("--model", type=typed_path, nargs="+", help="run folders, to predict the case with")
    add("--recipe", choices=list(RECIPES), default="paper", help="without --model")
    add("--seed", type=int, default=0, help="of what is drawn (default %(default)s)")
    add("--no-mirroring", action="store_true", help="an eighth of the prediction's work")
    add("--device", default="auto", help="of the prediction: auto, cpu, cuda, cuda:1, ...")
    add_reading_options(parser, of="a scan")
    return parser


if __name__ == "__main__":
    main()
