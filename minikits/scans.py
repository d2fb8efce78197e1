"""Which scans there are to predict, by which networks, and where their masks go."""

import os
from dataclasses import dataclass
from pathlib import Path

from minikits.cases import Found, look_for_cases, look_for_training_cases, mask_name
from minikits.ensemble import Member
from minikits.layouts import FOLDERS
from minikits.paper import CLASSES
from minikits.recipe import Recipe

LONGEST_NAME = 230  # bytes of a mask's name, less .nii.gz and _entropy; file systems take 255


@dataclass(frozen=True)
class Scan:
    """A scan to predict, where its mask goes, and the numbers of the networks to be averaged."""

    id: str
    path: Path
    mask: Path
    networks: tuple[int, ...]

    @property
    def probabilities(self) -> dict[str, Path]:
        """Where those of each structure go, and how much they are in doubt."""
        return probabilities_beside(self.mask)


def probabilities_beside(mask: Path) -> dict[str, Path]:
    """{structure, or "entropy": its file} of a mask OUT/NAME.nii.gz: OUT/probabilities/
    NAME_kidney.nii.gz."""
    stem = mask.name.removesuffix(".nii.gz")
    folder = mask.parent / "probabilities"
    return {what: folder / f"{stem}_{what}.nii.gz" for what in (*CLASSES[1:], "entropy")}


def find_scans(
    source: Path, out: Path, members: list[Member], recipe: Recipe, *, crossed: bool = False
) -> tuple[Found, list[Scan]]:
    """What there is, and a Scan for each image. crossed: in cross-validation a case is predicted by
    the networks that held it out by name; one that none did is left out. ValueError where nothing
    is left, where cases would have unequal numbers of networks, and where masks would lie among
    scans or labels."""
    if crossed:
        found = look_for_training_cases(source, recipe)
    else:
        found = look_for_cases(source)
    _check_apart(source, out, found)

    cases, scans, left_out = [], [], list(found.left_out)
    for case in found.cases:
        name = mask_name(case)
        networks = _networks_for(case.id, members, crossed)
        if not case.image:
            left_out.append(f"{case.id} (labels, but no image)")
        elif not networks:
            left_out.append(f"{case.id} (held out from none of the networks)")
        elif len(os.fsencode(name)) > LONGEST_NAME:
            left_out.append(f"{case.id} (its mask's name would be too long)")
        else:
            cases.append(case)
            scans.append(Scan(case.id, case.image, out / f"{name}.nii.gz", networks))

    found = Found(cases, left_out)
    if not scans and crossed:
        raise ValueError(
            f"{source}: nothing is left to cross-validate; name other runs or folds, "
            f"or the cases as they were named in training; {found.summary()}"
        )
    if not scans:
        raise ValueError(f"{source}: no scan found, only labels; wanted imaging.nii.gz or images/")
    _check_alike(source, scans, members)
    return found, scans


def _networks_for(id: str, members: list[Member], crossed: bool) -> tuple[int, ...]:
    """The numbers of the networks that predict a case: all, or those that held it out."""
    numbers = range(len(members))
    if crossed:
        numbers = [number for number in numbers if id in members[number].held_out]
    return tuple(numbers)


def _check_apart(source: Path, out: Path, found: Found) -> None:
    """Refuses an --out that is no folder, or where scans or labels lie, or the folders of cases."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is no folder; choose another --out for the masks")

    places = {source.resolve()}
    for case in found.cases:
        for path in (case.image, case.labels):
            if path:
                places.add(path.parent.resolve())
                places.add(path.resolve().parent)  # where it is a link, where it leads

    above = out.resolve().parent
    given = source.resolve()
    whole_or_images = given == above or (given.parent == above and given.name.lower() in FOLDERS)
    beside_images = out.name.lower() in FOLDERS and whole_or_images
    if out.resolve() in places or beside_images:
        raise ValueError(
            f"{out}: scans or labels lie there; choose another folder for the masks with --out"
        )


def _check_alike(source: Path, scans: list[Scan], members: list[Member]) -> None:
    """Refuses scans that would not all be predicted by as many networks of the same architectures:
    their scores would not be of one method."""
    archs = {}
    for scan in scans:
        archs[scan.id] = sorted(members[number].arch for number in scan.networks)

    most = max(archs.values(), key=len)
    others = [f"{id} by {len(few)} ({', '.join(few)})" for id, few in archs.items() if few != most]
    if others:
        alike = len(scans) - len(others)
        held_out = "case was held out" if alike == 1 else "cases were held out"
        networks = "network" if len(most) == 1 else "networks"
        raise ValueError(
            f"{source}: {alike} {held_out} by {len(most)} {networks} "
            f"({', '.join(most)}), but {len(others)} by others: {', '.join(others[:5])}; name "
            "runs that have the same folds, or with --folds those that all of them have"
        )
