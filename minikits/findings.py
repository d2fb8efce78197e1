"""Which cases of a data set stand out, and why, in plain words. Nothing here is an error: a person
looks at what is named and decides.

Every bound has a reason beside it. They were chosen so that few of KiTS19's 210 training cases are
named: a check that names every case is read by nobody."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minikits.doubts import LEAST_ACROSS_MM, MOST_ACROSS_MM, no_body_is_so_wide
from minikits.facts import CaseFacts, LabelFacts, Region
from minikits.layouts import some
from minikits.nifti import CYST
from minikits.paper import PAPER

# An adult's kidney has 100 to 250 ml, a shrunken one 30. What is smaller is a piece of one, or a
# stroke of the pen.
KIDNEY_ML = 20
# Strokes of a voxel or two lie about in most label maps, and weigh nothing in a training.
LOOSE_ML = 0.5
# A kidney that ends in the volume's last slice with less than this has lost its tip.
CUT_CM2 = 2.0
# Both kidneys of a patient, without the tumors, have 91 to 604 ml in 26 cases of KiTS19. With more
# than the upper bound something else was drawn too, such as a part of the spleen.
LEAST_KIDNEY_ML, MOST_KIDNEY_ML = 80, 800
# Beyond all others by this factor: spacings of one protocol differ by less, a wrong unit by more.
ALONE = 1.5
FEW_CASES = 5  # of fewer nobody can say what is usual
# The window of the paper leaves 0.5% of the foreground on each side. Ten times as much is drawn
# beside the organ, into fat or bone, or the contrast is another.
MOST_BEYOND_WINDOW = 0.05


@dataclass(frozen=True)
class Finding:
    """What a person should look at. kind: the key of what to do; place: a voxel (z, y, x) of it,
    for a picture."""

    kind: str
    told: str
    place: tuple[int, ...] | None = None


WHAT_TO_DO = {
    "unreadable": "convert or download those that cannot be read again; train.py refuses them too",
    "cyst": "if they are KiTS21's or KiTS23's, write them anew, a cyst as kidney or as you decide, by "
    "the lines of docs/using.md#what-comes-and-goes; of other data, look what 3 is; train.py refuses "
    "them as they are",
    "unmatched": "get what is missing: train.py wants an image for each label map",
    "labels": "look at the labels of those whose kidneys, tumors or pieces are named, in a viewer "
    "or on the page; correct them, or leave the case out with --folds",
    "cut": "a structure that is cut is no fault of the labels: keep it, unless much is missing",
    "spacing": "look up the spacing of those that stand alone; --assume-spacing gives another",
    "image": "look at the images that are doubted: python -m minikits.explain CASE",
    "hu": "look whether labels and image belong together, and at the contrast's phase",
    "twice": "remove one of two that are the same: in two folds, one would be scored by a network "
    "that has seen it",
}


def findings_of(cases: Sequence[CaseFacts]) -> dict[str, list[Finding]]:
    """{case id: what stands out} of the cases of a data set; no entry where nothing does."""
    some_image = any(facts.image for facts in cases)
    alone = alone_in(cases)
    twice = twice_in(cases)

    findings = {}
    for facts in cases:
        found = [Finding("cyst" if CYST in line else "unreadable", line) for line in facts.refused]
        if some_image and facts.labels and facts.image is None:
            found.append(Finding("unmatched", "labels, but no image"))
        found += [Finding("image", line) for line in facts.doubted]
        if facts.of_labels:
            found += findings_in_labels(facts.of_labels)
            found += findings_in_size(facts)
        found += findings_in_hu(facts)
        found += alone.get(facts.id, []) + twice.get(facts.id, [])
        if found:
            findings[facts.id] = found
    return findings


# --- of one case ----------------------------------------------------------------------------------


def kidneys_of(labels: LabelFacts) -> list[Region]:
    """The regions that are kidneys, with their tumors: of KIDNEY_ML or more, some of it kidney."""
    return [region for region in labels.regions if region.ml >= KIDNEY_ML and region.kidney_ml > 0]


def findings_in_labels(labels: LabelFacts) -> list[Finding]:
    """What stands out of one label map."""
    if not labels.regions:
        return [Finding("labels", "nothing is labelled")]

    found = []
    kidneys = kidneys_of(labels)
    if len(kidneys) != 2:
        shown = " and ".join(f"{region.ml:.0f}" for region in kidneys)
        told = f"{counted(len(kidneys), 'kidney')} found"
        if shown:
            told += f" ({shown} ml with tumor)"
        smallest = kidneys[-1] if kidneys else labels.regions[0]
        told += ", wanted 2"
        if len(kidneys) == 1:
            told += " (both may hang together, as a horseshoe kidney does)"
        found.append(Finding("labels", told, smallest.place))
    if not LEAST_KIDNEY_ML <= labels.kidney_ml <= MOST_KIDNEY_ML:
        told = (
            f"{labels.kidney_ml:.0f} ml of kidney without its tumors, wanted {LEAST_KIDNEY_ML} to "
            f"{MOST_KIDNEY_ML}"
        )
        found.append(Finding("labels", told, labels.regions[0].place))
    if labels.tumors == 0:
        found.append(Finding("labels", "no tumor is labelled", labels.regions[0].place))

    apart = [region for region in labels.regions if region.kidney_ml == 0]
    ml = sum(region.ml for region in apart)
    if ml >= LOOSE_ML:
        told = f"{ml:.1f} ml of tumor touch no kidney ({counted(len(apart), 'piece')})"
        found.append(Finding("labels", told, apart[0].place))

    pieces = [region for region in labels.regions if region not in kidneys + apart]
    ml = sum(region.ml for region in pieces)
    if ml >= LOOSE_ML:
        told = f"{ml:.1f} ml lie apart from the kidneys ({counted(len(pieces), 'piece')})"
        found.append(Finding("labels", told, pieces[0].place))

    for cut in labels.cuts:
        if cut.cm2 >= CUT_CM2:
            told = f"{cut.structure} is cut by {cut.side} ({cut.cm2:.1f} cm2 of it lie there)"
            found.append(Finding("cut", told, cut.place))
    return found


def findings_in_size(facts: CaseFacts) -> list[Finding]:
    """Whether slices are as wide as a body, where no image was doubted for it already."""
    rows_mm, columns_mm = np.multiply(facts.shape, facts.spacing_mm)[1:]
    if facts.image or not no_body_is_so_wide((rows_mm, columns_mm)):
        return []
    told = (
        f"slices of {rows_mm:.3g} x {columns_mm:.3g} mm, wanted {LEAST_ACROSS_MM} to "
        f"{MOST_ACROSS_MM} on each side"
    )
    return [Finding("spacing", told)]


def findings_in_hu(facts: CaseFacts) -> list[Finding]:
    """What stands out of the HU in kidney and tumor."""
    if facts.hu is None or facts.of_labels is None or not facts.of_labels.regions:
        return []
    darkest, brightest = PAPER.window_hu
    place = facts.of_labels.regions[0].place

    found = []
    if facts.hu.below > MOST_BEYOND_WINDOW:
        told = f"{facts.hu.below:.0%} of kidney and tumor are below {darkest:g} HU, as fat and air"
        found.append(Finding("hu", told, place))
    if facts.hu.above > MOST_BEYOND_WINDOW:
        told = f"{facts.hu.above:.0%} of kidney and tumor are above {brightest:g} HU, as bone"
        found.append(Finding("hu", told, place))
    if abs(facts.hu.mean - PAPER.mean_hu) > PAPER.sd_hu:
        told = (
            f"mean of kidney and tumor {facts.hu.mean:.0f} HU, wanted {PAPER.mean_hu:g} give or "
            f"take {PAPER.sd_hu:g}"
        )
        found.append(Finding("hu", told, place))
    return found


# --- beside the others ----------------------------------------------------------------------------


def alone_in(cases: Sequence[CaseFacts]) -> dict[str, list[Finding]]:
    """{case id: findings} of those whose spacing along an axis is smaller or larger than that of any
    other case by the factor ALONE."""
    read = [facts for facts in cases if facts.spacing_mm]
    found = {}
    if len(read) < FEW_CASES:
        return found

    for axis, name in enumerate("zyx"):
        ordered = sorted(read, key=lambda facts: facts.spacing_mm[axis])
        values = [facts.spacing_mm[axis] for facts in ordered]
        if values[1] > ALONE * values[0]:
            told = f"spacing {name} {values[0]:.3g} mm, the others' from {values[1]:.3g}"
            found.setdefault(ordered[0].id, []).append(Finding("spacing", told))
        if values[-1] > ALONE * values[-2]:
            told = f"spacing {name} {values[-1]:.3g} mm, the others' up to {values[-2]:.3g}"
            found.setdefault(ordered[-1].id, []).append(Finding("spacing", told))
    return found


def twice_in(cases: Sequence[CaseFacts]) -> dict[str, list[Finding]]:
    """{case id: findings} of cases whose image, or whose labels, are those of another."""
    images = {facts.id: facts.image_digest for facts in cases}
    labels = {facts.id: facts.of_labels.digest for facts in cases if facts.of_labels}

    found = {}
    for kind, digests in (("image", images), ("labels", labels)):
        for ids in _same(digests):
            for id in ids:
                others = [other for other in ids if other != id]
                told = f"the same {kind} as {some(others)}"
                found.setdefault(id, []).append(Finding("twice", told))
    return found


def _same(digests: dict[str, str | None]) -> list[list[str]]:
    """The ids of {case id: digest} that have the same, each group of two or more."""
    ids_by_digest = {}
    for id, digest in digests.items():
        if digest:
            ids_by_digest.setdefault(digest, []).append(id)
    return [ids for ids in ids_by_digest.values() if len(ids) > 1]


def stored_otherwise(cases: Sequence[CaseFacts]) -> tuple[str, str, list[str]] | None:
    """(how most label files are stored, how others are, ids of these), where fewer than a quarter
    are stored otherwise: they were written by another program, or at another time. None where all
    are alike, or no way is the usual one."""
    ways = [facts.stored for facts in cases if facts.stored]
    if not ways:
        return None
    usual = max(set(ways), key=ways.count)
    others = [facts for facts in cases if facts.stored and facts.stored != usual]
    if not others or len(others) * 4 >= len(ways):
        return None
    ways_of_others = sorted({facts.stored for facts in others})
    return usual, " or ".join(ways_of_others), [facts.id for facts in others]


def counted(count: int, noun: str) -> str:
    """ "1 kidney", "3 kidneys", "no kidney"."""
    if count == 0:
        return f"no {noun}"
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"
