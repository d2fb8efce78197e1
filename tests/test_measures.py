"""Surfaces, volumes and lesions of cases, and how evaluate.py tells them."""

import csv
import json
from math import isnan

import numpy as np
import pytest
from test_evaluate import FULL, PLAIN, SPACING, command, evaluate, run, scores, write_mask
from test_pages import Page

from minikits.evaluation import kits_dice
from minikits.measures import Wanted, lesion_table, lesions_of_case, measure, surface_tables
from minikits.nifti import read_labels

__all__ = ["command", "evaluate", "run"]  # fixtures


@pytest.fixture
def volumes(tmp_path):
    """volumes(voxels, ...) -> a Volume of each; a voxel has 3 x 1.5 x 1 mm."""

    def volumes(*all_voxels):
        found = []
        for number, voxels in enumerate(all_voxels):
            found.append(read_labels(write_mask(tmp_path / f"{number}.nii.gz", voxels)))
        return found

    return volumes


def tumor_at(*columns, shape=(3, 4, 12)):
    """A kidney that fills the second slice, with tumor at these x of its second row."""
    labels = np.zeros(shape, np.uint8)
    labels[1] = 1
    labels[1, 1, list(columns)] = 2
    return labels


def test_the_measures_of_one_case_by_hand(volumes):
    """The kidney is equal; the tumor's 2 voxels of 4.5 mm3 are one further, which is 1 mm."""
    mask, reference = volumes(tumor_at(3, 4), tumor_at(2, 3))

    found = measure("a", mask, reference, Wanted(hd95=True))

    assert found.case == "a"
    assert found.kidney_surface_dice == 1
    assert found.tumor_surface_dice == 1  # within KiTS23's 1.1498 mm
    assert found.kidney_ml == pytest.approx(48 * 4.5 / 1000)
    assert found.kidney_off_ml == 0
    assert found.tumor_ml == pytest.approx(2 * 4.5 / 1000)
    assert found.tumor_off_ml == pytest.approx(0)
    assert found.kidney_hd95_mm == 0
    assert found.tumor_hd95_mm == 1


def test_the_tolerances_are_each_structures_own(volumes):
    """Two columns are 2 mm: within KiTS21's 2.18 mm of the kidney, not within its 1.54 of the
    tumor, nor within KiTS23's of either."""
    one = np.zeros((3, 4, 12), np.uint8)
    one[1, 1:3, 2:5] = 2
    mask, reference = volumes(np.roll(one, 2, axis=2), one)

    by_kits21 = measure("a", mask, reference, Wanted(tolerances="kits21"))
    by_kits23 = measure("a", mask, reference, Wanted(tolerances="kits23"))

    assert by_kits21.kidney_surface_dice == 1
    assert by_kits21.tumor_surface_dice < 1
    assert by_kits23.kidney_surface_dice < 1
    assert isnan(by_kits23.tumor_hd95_mm)  # it was not asked for


def test_volumes_are_off_by_the_mask_less_the_reference(volumes):
    mask, reference = volumes(tumor_at(2, 3, 4), tumor_at(2))

    found = measure("a", mask, reference, Wanted())

    assert found.tumor_off_ml == pytest.approx(2 * 4.5 / 1000)


def test_a_structure_in_neither_has_the_protocols_score(volumes):
    mask, reference = volumes(np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8))

    kits19 = measure("a", mask, reference, Wanted(protocol="kits19"))
    kits23 = measure("a", mask, reference, Wanted(protocol="kits23"))

    assert isnan(kits19.kidney_surface_dice)
    assert isnan(kits19.tumor_surface_dice)
    assert kits23.kidney_surface_dice == kits23.tumor_surface_dice == 1
    assert np.isnan(kits_dice(mask.voxels, reference.voxels)).all()
    assert kits_dice(mask.voxels, reference.voxels, both_empty=1.0) == (1, 1)


def test_a_structure_in_one_scores_0_by_either_protocol(volumes):
    mask, reference = volumes(tumor_at(), tumor_at(2))

    for protocol in ("kits19", "kits23"):
        assert measure("a", mask, reference, Wanted(protocol=protocol)).tumor_surface_dice == 0
    assert kits_dice(mask.voxels, reference.voxels, both_empty=1.0) == (1, 0)


def test_tables_tell_what_was_computed(volumes):
    mask, reference = volumes(tumor_at(2, 3), tumor_at(2, 8))
    wanted = Wanted(hd95=True)

    surfaces = surface_tables([measure("a", mask, reference, wanted)], wanted)
    lesions = lesion_table([lesions_of_case("a", mask, reference)], wanted)

    assert "within 1.0331 mm of the kidney, 1.1498 mm of the tumor (kits23)" in surfaces
    assert "HD95" in surfaces
    assert "volumes, ml" in surfaces and "kidney + tumor" in surfaces
    assert surfaces.endswith("minus is too small")
    assert "HD95" not in surface_tables([measure("a", mask, reference, Wanted())], Wanted())
    assert lesions.splitlines()[1].split() == ["a", "1", "1", "0", "66.67"]
    assert lesions.splitlines()[2].split() == ["all", "1", "1", "0", "66.67"]
    assert lesions.splitlines()[3].startswith("found: 10% or more")


# --- evaluate.py ----------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """Masks a, b and their references: a tumor one column off, a kidney without tumor."""
    pairs = (("a", tumor_at(3, 4), tumor_at(2, 3)), ("b", PLAIN, PLAIN))
    for id, mask, reference in pairs:
        write_mask(tmp_path / "masks" / f"{id}.nii.gz", mask)
        write_mask(tmp_path / "references" / f"{id}.nii.gz", reference)
    return tmp_path / "masks", tmp_path / "references"


def test_surfaces_and_lesions_come_after_the_table_of_dice(run, two, tmp_path):
    dice_alone = run(*two)

    printed = run(*two, "--surface", "--lesions", out=tmp_path / "report")

    assert printed.startswith(dice_alone)
    surfaces = printed.removeprefix(dice_alone)
    assert surfaces.index("surface in %") < surfaces.index("volumes, ml")
    assert surfaces.index("volumes, ml") < surfaces.index("tumors one by one")
    assert scores(surfaces)["a"] == ["100.00"] * 3
    assert scores(surfaces)["b"] == ["100.00", "-", "-"]
    written = sorted(path.name for path in (tmp_path / "report").iterdir() if path.is_file())
    dice_files = {"cases.csv", "index.html", "summary.json"}
    assert set(written) == dice_files | {"lesions.csv", "surfaces.csv", "surfaces.json"}


def test_files_of_surfaces_and_lesions(run, two, tmp_path):
    run(*two, "--lesions", "--tolerances", "kits21", out=tmp_path / "report")  # so of surfaces

    rows = list(csv.DictReader((tmp_path / "report" / "surfaces.csv").open()))
    assert [row["case"] for row in rows] == ["a", "b"]
    assert rows[0]["tumor_surface_dice"] == "1.0"
    assert rows[1]["tumor_surface_dice"] == "nan"
    assert "kidney_hd95_mm" not in rows[0]
    about = json.loads((tmp_path / "report" / "surfaces.json").read_text())
    assert about["protocol"] == "kits19"
    assert about["tolerances_mm"]["tumor"] == pytest.approx(1.5363, abs=1e-4)
    assert about["surface_dice"]["tumor"]["cases"] == 1
    lesions = list(csv.DictReader((tmp_path / "report" / "lesions.csv").open()))
    assert [(row["case"], row["in"], row["shared"]) for row in lesions] == [
        ("a", "reference", "True"),
        ("a", "mask", "True"),
    ]
    assert lesions[0]["overlap"] == "0.5"


def test_the_page_has_a_column_for_each_further_number_of_a_case(run, two, tmp_path):
    """Of a: 48 and 2 voxels of 4.5 mm3, the tumor 1 mm off. b has no tumor."""
    run(*two, "--hd95", "--lesions", out=tmp_path / "report")

    page = Page((tmp_path / "report" / "index.html").read_text())

    rows = {row[0]: row[4:-1] for row in page.rows}
    assert rows["case"] == [
        *("kidney surface Dice", "tumor surface Dice"),
        *("kidney + tumor ml", "kidney + tumor off ml"),
        *("tumor ml", "tumor off ml", "kidney HD95 mm", "tumor HD95 mm"),
        *("tumors found", "tumors missed", "tumors false"),
    ]
    assert rows["a"] == ["100.00", "100.00", "0.2", "0.0", "0.0", "0.0", "0.0", "1.0", *"100"]
    assert rows["b"] == ["100.00", "-", "0.0", "0.0", "0.0", "0.0", "0.0", "-", *"000"]
    run(*two, "--surface", out=tmp_path / "surface")
    assert "HD95" not in (tmp_path / "surface" / "index.html").read_text()


def test_hd95_takes_long_so_each_case_is_said_as_it_comes(run, two):
    first, second, *_ = run(*two, "--hd95").splitlines()

    assert first.startswith("a: kidney 100.00, tumor 50.00 (1 of 2, ")
    assert second == "b: kidney 100.00, tumor - (2 of 2, 0 s left)"


def test_tables_of_an_earlier_run_are_named(run, two, tmp_path):
    """They may have taken hours, so they stay; but they are not of the masks of today."""
    out = tmp_path / "report"
    assert "warning" not in run(*two, "--surface", "--lesions", out=out)

    of_dice_alone = run(*two, out=out)
    of_lesions = run(*two, "--lesions", out=out)

    all_three = "surfaces.csv, surfaces.json, lesions.csv"
    assert f"warning: {out} still holds {all_three} of an earlier run" in of_dice_alone
    assert f"warning: {out} still holds surfaces.csv, surfaces.json of an earlier" in of_lesions
    assert (out / "surfaces.csv").exists()


def test_hd95_asks_for_surfaces(run, two, tmp_path):
    printed = run(*two, "--hd95", out=tmp_path / "report")

    assert "tumor HD95 mm" in printed
    rows = list(csv.DictReader((tmp_path / "report" / "surfaces.csv").open()))
    assert rows[0]["tumor_hd95_mm"] == "1.0"


def test_lesions_of_masks_without_any(run, tmp_path):
    write_mask(tmp_path / "masks" / "b.nii.gz", PLAIN)

    run(tmp_path / "masks", tmp_path / "masks", "--lesions", out=tmp_path / "report")

    header = (tmp_path / "report" / "lesions.csv").read_text()
    assert header.split() == ["case,in,ml,diameter_mm,overlap,shared"]


def test_by_kits23_a_structure_in_neither_scores_1_and_it_is_said(run, two, tmp_path):
    printed = run(*two, "--protocol", "kits23", "--surface", out=tmp_path / "report")

    assert "Protocol of KiTS23: a structure in neither mask nor reference scores 100" in printed
    dice, surfaces = printed.split("Surface Dice")
    assert scores(dice)["b"] == ["100.00"] * 3
    assert scores(surfaces)["b"] == ["100.00"] * 3
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["protocol"] == "kits23"
    assert summary["tumor"]["without_score"] == 0


def test_a_voxels_size_is_the_references(run, tmp_path):
    write_mask(tmp_path / "masks" / "a.nii.gz", FULL)

    run(tmp_path / "masks", tmp_path / "masks", "--surface", out=tmp_path / "report")

    (row,) = csv.DictReader((tmp_path / "report" / "surfaces.csv").open())
    assert float(row["kidney_ml"]) == pytest.approx(10 * np.prod(SPACING) / 1000)
