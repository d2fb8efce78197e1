"""What is wrong in a mask whose score is low, in words: which pieces are missed, which are false, and
whether borders are wrong besides.

A piece is what hangs together over faces, edges or corners of voxels; kidney counts with the tumor in
it, as in the score."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minikits.components import bounding_box, label_components
from minikits.evaluation import CaseScores, kits_dice
from minikits.lesions import LEAST_OVERLAP

LEAST_ML = 0.05  # less is 0.0 in what is said
BELOW = 0.8  # a Dice [ours]: of a mask that lacks a third of a structure, or has half as much again
MISSED_BELOW = 0.5  # of a kidney's voxels that are in the mask [ours]
SMALLEST_KIDNEY = 0.1  # of the largest one's voxels [ours]: less is a speck, and no kidney

KINDS = {  # what each word means
    "kidney missed": "a kidney of the reference of which the mask has less than half",
    "tumor missed": "a piece of the reference's tumor of which the mask's has less than a tenth",
    "false kidney": "a piece of the mask, with kidney in it, of which less than a tenth is right",
    "false tumor": "a piece of the mask's tumor of which less than a tenth is right",
    "kidney border": "were all these pieces right, the kidney's Dice would still be below the bound",
    "tumor border": "were all these pieces right, the tumor's Dice would still be below the bound",
}


@dataclass(frozen=True)
class Mistake:
    """What is wrong, in how many pieces and ml, and the slice (z) that has most of it. too_much_ml:
    how much of a border's ml is in the mask alone; the rest is in the reference alone."""

    kind: str
    pieces: int
    ml: float
    z: int
    too_much_ml: float | None = None

    def __str__(self) -> str:
        amount = f"{self.ml:.1f} ml"
        if self.pieces > 1:
            amount = f"{self.pieces} pieces, {amount}"
        if self.too_much_ml is not None:
            missed_ml = self.ml - self.too_much_ml
            amount = f"{missed_ml:.1f} ml missed, {self.too_much_ml:.1f} ml too much"
        return f"{self.kind} ({amount}, slice {self.z})"

    @property
    def structure(self) -> str:
        """Whose mistake it is, "kidney" or "tumor"."""
        return "tumor" if "tumor" in self.kind else "kidney"


def is_below(scores: CaseScores, bound: float) -> bool:
    """Whether the Dice of kidney or of tumor is below the bound; a score of NaN is not."""
    return scores.kidney < bound or scores.tumor < bound


def worst_first(cases: Sequence[CaseScores]) -> list[CaseScores]:
    """By the mean of kidney and tumor Dice, the lowest first; of a case that has one of them by that
    one; last those that have none. Where these are equal, in the order given.

    >>> from math import nan
    >>> cases = [CaseScores("a", 0.9, nan, nan), CaseScores("b", 0.9, 0.5, 0.7)]
    >>> [scores.case for scores in worst_first(cases)]
    ['b', 'a']
    """

    def place(scores):
        known = [score for score in (scores.kidney, scores.tumor) if not np.isnan(score)]
        return float(np.mean(known)) if known else np.inf

    return sorted(cases, key=place)


def find_mistakes(
    mask: np.ndarray, reference: np.ndarray, voxel_mm3: float, bound: float = BELOW
) -> list[Mistake]:
    """What is wrong in a mask beside its reference, (Z, Y, X) labels 0, 1, 2 each, by the rules of
    KINDS; the largest first.

    Borders are what is left: the pieces that are missed or false are made as in the reference, and
    the Dice is computed again. So a mask with a Dice below the bound has at least one mistake."""
    box = bounding_box((mask > 0) | (reference > 0))
    if box is None:
        return []
    mask, reference = mask[box], reference[box]

    pieces = {
        "kidney missed": unshared(without_specks(reference > 0), mask > 0, MISSED_BELOW),
        "tumor missed": unshared(reference == 2, mask == 2, LEAST_OVERLAP),
        "false kidney": touched(unshared(mask > 0, reference > 0, LEAST_OVERLAP), mask == 1),
        "false tumor": unshared(mask == 2, reference == 2, LEAST_OVERLAP),
    }
    borders = {}
    corrected = mask.copy()
    for region in pieces.values():
        corrected[region] = reference[region]
    kidney, tumor = kits_dice(corrected, reference)
    if kidney < bound:
        borders["kidney border"] = (corrected > 0) != (reference > 0)
    if tumor < bound:
        borders["tumor border"] = (corrected == 2) != (reference == 2)
    in_mask = {"kidney border": mask > 0, "tumor border": mask == 2}

    found = []
    for kind, region in (pieces | borders).items():
        if region.any():
            count = label_components(region)[1] if kind in pieces else 1
            ml = np.count_nonzero(region) * voxel_mm3 / 1000
            z = box[0].start + int(region.sum(axis=(1, 2)).argmax())
            too_much_ml = None
            if kind in borders:
                too_much = region & in_mask[kind]
                too_much_ml = np.count_nonzero(too_much) * voxel_mm3 / 1000
            found.append(Mistake(kind, count, ml, z, too_much_ml))
    return sorted(without_traces(found), key=lambda mistake: -mistake.ml)


def without_traces(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """The mistakes less those of 0.0 ml, where the same structure has a larger one; those of the
    kidney also beside the tumor's, since no kidney is so small."""
    explained = {mistake.structure for mistake in mistakes if mistake.ml >= LEAST_ML}
    if "tumor" in explained:
        explained.add("kidney")
    return [
        mistake
        for mistake in mistakes
        if mistake.ml >= LEAST_ML or mistake.structure not in explained
    ]


def without_specks(region: np.ndarray) -> np.ndarray:
    """(Z, Y, X) bools -> those pieces that have at least a tenth of the largest one's voxels."""
    pieces, sizes = _pieces_and_sizes(region)
    return _chosen(sizes >= SMALLEST_KIDNEY * sizes.max(), pieces, region)


def unshared(region: np.ndarray, other: np.ndarray, least: float) -> np.ndarray:
    """(Z, Y, X) bools -> those pieces of a region of whose voxels less than a share, `least`, are in
    the other region."""
    pieces, sizes = _pieces_and_sizes(region)
    shared = np.bincount(pieces[other], minlength=len(sizes))
    return _chosen(shared < least * sizes, pieces, region)


def touched(region: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(Z, Y, X) bools -> those pieces of a region that have a voxel of the other region."""
    pieces, sizes = _pieces_and_sizes(region)
    shared = np.bincount(pieces[other], minlength=len(sizes))
    return _chosen(shared > 0, pieces, region)


def _pieces_and_sizes(region):
    """Pieces as numbers from 1 (Z, Y, X), and how many voxels each has; 0 is none, of no voxels."""
    pieces, count = label_components(region)
    sizes = np.bincount(pieces[region], minlength=count + 1)
    return pieces, sizes


def _chosen(are_chosen, pieces, region):
    """The voxels of a region whose pieces are chosen, a bool for each number."""
    chosen = np.zeros(region.shape, dtype=bool)
    chosen[region] = are_chosen[pieces[region]]
    return chosen
