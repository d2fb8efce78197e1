"""Which ids are trained on and which are held out: five folds, or those of a file."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from minikits.files import read_json
from minikits.paper import FOLD_SEED, FOLDS
from minikits.recipe import Recipe


def excluded_ids(recipe: Recipe) -> set[str]:
    """The ids, as KiTS19 has them, of the cases that the recipe leaves out."""
    return {f"case_{number:05d}" for number in recipe.excluded_cases}


def five_folds(case_ids: Collection[str]) -> list[tuple[list[str], list[str]]]:
    """Five (train, validation) pairs of sorted id lists; every id is in one validation list.

    The sorted ids are shuffled and cut into consecutive blocks, the longer ones first:
    scikit-learn's KFold(5, shuffle=True, random_state=12345), as nnU-Net v1 calls it."""
    ids = sorted(case_ids)
    if len(ids) < FOLDS:
        found = "case found" if len(ids) == 1 else "cases found"
        raise ValueError(
            f"{len(ids)} {found}, wanted at least {FOLDS} for {FOLDS} folds; use --fold all"
        )
    shuffled = np.random.RandomState(FOLD_SEED).permutation(ids)
    folds = []
    for block in np.array_split(shuffled, FOLDS):
        validation = sorted(block.tolist())
        train = sorted(set(ids) - set(validation))
        folds.append((train, validation))
    return folds


def read_folds(
    path: Path, known: Collection[str], recipe: Recipe
) -> tuple[list[tuple[list[str], list[str]]], list[str]]:
    """(folds, excluded) of a JSON list of objects, as nnU-Net's splits_final.json is one too.

    folds: (train, validation) pairs of sorted ids. excluded: ids in the file that the recipe leaves
    out; they are taken out of the folds. known: ids of the cases that are there; a ValueError names
    others, and what is in both halves of a fold."""
    left_out = excluded_ids(recipe)
    folds, excluded = [], set()
    for train, validation in _written_folds(path):
        excluded |= (train | validation) & left_out
        train, validation = train - left_out, validation - left_out

        unknown = (train | validation) - set(known)
        twice = train & validation
        if unknown or twice:
            shown = sorted(map(str, unknown or twice))[:5]
            raise ValueError(f"{path}: {shown} in a fold, wanted cases, once")
        if not train:
            raise ValueError(f"{path}: nothing to train on in a fold, wanted cases, once")
        folds.append((sorted(train), sorted(validation)))
    return folds, sorted(excluded)


def _written_folds(path: Path) -> list[tuple[set, set]]:
    """[({train ids}, {validation ids})] as the file has them; nnU-Net calls the second "val"."""
    folds = []
    try:
        for fold in read_json(path):
            validation = fold.get("validation", fold.get("val"))
            folds.append((set(fold["train"]), set(validation)))
    except (TypeError, KeyError, AttributeError):
        raise ValueError(
            f'{path}: wanted a JSON list of {{"train": [ids], "validation": [ids]}}'
        ) from None
    return folds
