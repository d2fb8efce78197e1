"""Which ids are trained on and which are held out."""

import dataclasses

import pytest
from sklearn.model_selection import KFold

from minikits.folds import excluded_ids, five_folds
from minikits.paper import PAPER

# The cases that nnU-Net v1 holds out in fold 0 of KiTS19's 206.
# fmt: off
FOLD_0 = [
    10, 14, 16, 17, 19, 20, 27, 28, 31, 48, 50, 53, 57, 58, 69, 70, 75, 87, 91, 96,
    101, 102, 112, 113, 118, 119, 123, 138, 139, 149, 150, 151, 154, 155, 164, 165, 166, 181, 183,
    196, 199, 206,
]
# fmt: on


def kits_ids():
    return [f"case_{n:05d}" for n in range(210) if n not in PAPER.excluded_cases]


def test_folds_are_nnunets():
    folds = five_folds(kits_ids())

    _, held_out_of_fold_0 = folds[0]
    assert held_out_of_fold_0 == [f"case_{n:05d}" for n in FOLD_0]
    assert [len(validation) for _, validation in folds] == [42, 41, 41, 41, 41]


@pytest.mark.parametrize("count", [5, 7, 23, 206])
def test_folds_equal_scikit_learns(count):
    ids = sorted(f"case_{n:05d}" for n in range(count))

    folds = five_folds(reversed(ids))

    wanted = KFold(5, shuffle=True, random_state=12345).split(ids)
    for (train, validation), (train_places, validation_places) in zip(folds, wanted):
        assert train == [ids[i] for i in train_places]
        assert validation == [ids[i] for i in validation_places]


def test_too_few_cases_for_five_folds():
    with pytest.raises(ValueError, match="4 cases found, wanted at least 5"):
        five_folds("abcd")
    with pytest.raises(ValueError, match="1 case found, wanted at least 5"):
        five_folds("a")


def test_the_cases_that_the_recipe_leaves_out_are_known_by_their_ids():
    all_in = dataclasses.replace(PAPER, excluded_cases=())

    assert excluded_ids(PAPER) == {"case_00023", "case_00068", "case_00125", "case_00133"}
    assert excluded_ids(all_in) == set()
