"""Several systems on the same cases: a figure of their scores and differences, and the cases on which
they differ most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minikits.evaluation import SCORES, CaseScores, ComparedPair, Comparison, values_of
from minikits.files import written_whole
from minikits.paper import CLASSES
from minikits.pictures import AXIAL, BLACK_AND_WHITE_HU, draw_panels, panel_of
from minikits.volumes import Volume

APART_AT_MOST = 5  # cases that are shown
PAIR_INCHES = 0.9  # of the figure's width, for each pair or system
DPI = 110


@dataclass(frozen=True)
class Apart:
    """A case on which systems differ: in which structure, and {name: its Dice there}, highest first;
    NaN where mask and reference have none of the structure."""

    case: str
    structure: str
    scores: dict[str, float]
    difference: float


def most_apart(systems: Mapping[str, Sequence[CaseScores]], cases: Sequence[str]) -> list[Apart]:
    """Those of the cases, APART_AT_MOST of them, in which the best and the worst Dice of kidney or
    tumor lie furthest apart; the furthest first. A structure that is in neither mask nor reference
    is right, and counts as a Dice of 1 here: another system may have found one. Cases in which all
    are equal are none."""
    by_case = {name: _by_case(scored) for name, scored in systems.items()}
    found = []
    for case in cases:
        of_case = {name: scored[case] for name, scored in by_case.items()}
        apart = [_apart_in(case, structure, of_case) for structure in CLASSES[1:]]
        widest = max(apart, key=lambda one: one.difference)
        if widest.difference > 0:
            found.append(widest)

    found.sort(key=lambda one: (-one.difference, one.case))
    return found[:APART_AT_MOST]


def _by_case(scored):
    return {scores.case: scores for scores in scored}


def _apart_in(case, structure, of_case):
    """How far systems, {name: scores}, are apart in one structure of a case."""
    scores = {name: getattr(one, structure) for name, one in of_case.items()}
    counted = {name: 1.0 if np.isnan(score) else score for name, score in scores.items()}
    highest_first = sorted(scores, key=lambda name: -counted[name])
    difference = counted[highest_first[0]] - counted[highest_first[-1]]
    return Apart(case, structure, {name: scores[name] for name in highest_first}, difference)


# --- the figure -----------------------------------------------------------------------------------


def draw_comparison(
    path: Path, systems: Mapping[str, Sequence[CaseScores]], comparison: Comparison
) -> None:
    """Above, each score by system: a box, and a line for each case. Below, for each pair of systems
    the difference of each case, their mean and its 95% interval."""
    from matplotlib.figure import Figure

    wider = max(len(systems), len(comparison.pairs))
    width = 3 * max(4.0, PAIR_INCHES * wider)
    figure = Figure(figsize=(width, 8.5), layout="constrained")
    above, below = figure.subplots(2, len(SCORES))
    for axes, score in zip(above, SCORES):
        _draw_systems(axes, score, _values_of_cases(systems, score, comparison.cases))
    for axes, score in zip(below, SCORES):
        _draw_differences(axes, score, systems, comparison)

    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=DPI)


def _values_of_cases(systems, score, cases):
    """{name: (N,) scores of these cases, in their order}."""
    values = {}
    for name, scored in systems.items():
        by_case = _by_case(scored)
        values[name] = values_of([by_case[case] for case in cases], score)
    return values


def _draw_systems(axes, score, values):
    places = range(1, len(values) + 1)
    lines = list(values.values())
    axes.plot(places, lines, "o-", color="0.7", markersize=3, linewidth=0.5)
    axes.boxplot([line[~np.isnan(line)] for line in lines], positions=list(places))
    _name_places(axes, list(values))
    axes.set(title=score, ylabel="Dice", ylim=(0, 1))


def _draw_differences(axes, score, systems, comparison):
    values = _values_of_cases(systems, score, comparison.cases)
    for place, pair in enumerate(comparison.pairs, 1):
        differences = values[pair.better] - values[pair.worse]
        spread = np.linspace(-0.15, 0.15, len(differences))  # so that equal ones can be told apart
        axes.plot(place + spread, differences, "o", color="0.7", markersize=3)
        _draw_interval(axes, place, getattr(pair, score))

    axes.axhline(0, color="0.3", linewidth=0.8)
    _name_places(axes, [_name_of(pair) for pair in comparison.pairs])
    axes.set(title=f"{score}: cases, mean, 95% interval", ylabel="difference of Dice")
    axes.set_xlim(0.5, len(comparison.pairs) + 0.5)


def _draw_interval(axes, place, found):
    """The mean as a point and its interval as a bar, where there are such."""
    axes.plot([place], [found.difference], "D", color="tab:orange", markersize=5, zorder=3)
    axes.plot([place, place], [found.low, found.high], color="tab:orange", linewidth=2.5, zorder=3)


def _name_of(pair: ComparedPair) -> str:
    return f"{pair.better}\n- {pair.worse}"


def _name_places(axes, names):
    """Names below the places 1, 2, ...; of any letters: a dollar begins no formula."""
    shown = [name.encode(errors="backslashreplace").decode() for name in names]
    axes.set_xticks(range(1, len(names) + 1), shown, fontsize=8, parse_math=False)


# --- a case's picture -----------------------------------------------------------------------------


def draw_apart(
    path: Path, image: Volume, reference: np.ndarray, masks: Mapping[str, np.ndarray]
) -> None:
    """The reference and beside it each mask, {name: (Z, Y, X)}, on the axial slice in which the masks
    differ in most voxels: image, with the outlines of kidney (cyan) and tumor (red)."""
    place = (slice_apart(list(masks.values())), 0, 0)
    panels = []
    for name, labels in {"reference": reference, **masks}.items():
        shown = name.encode(errors="backslashreplace").decode()
        panels.append(
            panel_of(
                AXIAL,
                image.voxels,
                image.spacing_mm,
                place,
                shown=BLACK_AND_WHITE_HU,
                labels=labels,
                title=f"{shown}, slice {place[0]}",
            )
        )
    draw_panels(path, [panels])


def slice_apart(masks: Sequence[np.ndarray]) -> int:
    """The z of the slice that has the most voxels in which not all masks (Z, Y, X) are equal."""
    is_apart = np.zeros(masks[0].shape, dtype=bool)
    for mask in masks[1:]:
        is_apart |= mask != masks[0]
    return int(is_apart.sum(axis=(1, 2)).argmax())
