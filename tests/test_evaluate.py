"""evaluate.py on tiny volumes: what is scored, what is named instead, and by-products that cost no
score."""

import csv
import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT

from minikits.evaluation import mean_interval
from minikits.nifti import write_image
from minikits.paper import PAPER
from minikits.volumes import KITS19_AFFINE

SPACING = (3.0, 1.5, 1.0)
AFFINE = KITS19_AFFINE * [*SPACING, 1]


def labels_of(kidney, tumor, shape=(3, 4, 5)):
    """So many voxels of kidney, then so many of tumor, in the order of memory."""
    voxels = np.zeros(shape, np.uint8)
    voxels.flat[:kidney] = 1
    voxels.flat[kidney : kidney + tumor] = 2
    return voxels


FULL, HALF, PLAIN = labels_of(6, 4), labels_of(2, 1), labels_of(6, 0)
# of HALF against FULL: 3 voxels, all of them kidney there, none tumor: kidney 2 * 3 / 13, tumor 0


def write_mask(path, voxels=FULL, affine=None, **header):
    """As `write_image`, or in another frame; fields of the header may be set after all else."""
    if affine is None and not header:
        write_image(path, voxels, SPACING)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, AFFINE if affine is None else affine, dtype=voxels.dtype)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def damage(path):
    path.write_bytes(path.read_bytes()[:-20])


def write_case(folder, id, labels=FULL, image=True):
    """A KiTS19 case."""
    write_image(folder / id / "segmentation.nii.gz", labels, SPACING)
    if image:
        voxels = np.linspace(-300, 300, labels.size).reshape(labels.shape).astype(np.int16)
        write_image(folder / id / "imaging.nii.gz", voxels, SPACING)


@pytest.fixture
def evaluate(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT)
    import evaluate

    monkeypatch.setattr(evaluate, "forgiving_output", lambda: None)  # pytest's own streams stay
    monkeypatch.setattr(evaluate.signal, "signal", lambda *_: None)  # and its Ctrl-C
    return evaluate


@pytest.fixture
def command(evaluate, monkeypatch, capsys):
    """Runs the script in this process; returns its output, both streams, if it ends with the status
    expected."""

    def command(*arguments, expect=0):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            evaluate.main()
        said = capsys.readouterr()
        assert ended.value.code == expect, said
        return said.out + said.err

    return command


@pytest.fixture
def run(command):
    """The same: run(masks, references, *options, out=report). masks: a folder, or a list of them."""

    def run(masks, references, *options, out=None, expect=0):
        folders = masks if isinstance(masks, list) else [masks]
        if out:
            options = (*options, "--out", out)
        return command("--pred", *folders, "--ref", references, *options, expect=expect)

    return run


@pytest.fixture
def three(tmp_path):
    """Masks a, b, c (flat) and their references in KiTS19's layout: right, half, a kidney without
    tumor."""
    for id, mask, reference in (("a", FULL, FULL), ("b", HALF, FULL), ("c", PLAIN, PLAIN)):
        write_mask(tmp_path / "masks" / f"{id}.nii.gz", mask)
        write_case(tmp_path / "data", id, reference)
    return tmp_path / "masks", tmp_path / "data"


def scores(printed):
    """{case or "mean": [kidney, tumor, composite] as printed} of every table, without the ends of
    intervals."""
    found = {}
    for line in printed.splitlines():
        words = line.split()
        are_scores = all(word == "-" or word.replace(".", "").isdigit() for word in words[1:])
        if len(words) == 4 and are_scores and not line.startswith(" "):
            found[words[0]] = words[1:]
    return found


def warnings(printed):
    return [line for line in printed.splitlines() if line.startswith("warning")]


def write_record(masks, **about):
    """prediction.json, as far as evaluate.py reads it."""
    (masks / "prediction.json").write_text(json.dumps({"trained_on": [], **about}))


def test_hand_worked_masks_are_scored_printed_and_written(run, three, tmp_path):
    masks, data = three

    printed = run(masks, data, out=tmp_path / "report")

    b = 6 / 13
    assert scores(printed) == {
        "a": ["100.00"] * 3,
        "b": [f"{100 * b:.2f}", "0.00", f"{50 * b:.2f}"],
        "c": ["100.00", "-", "-"],
        "mean": [f"{100 * (2 + b) / 3:.2f}", "50.00", f"{100 * (1 + b / 2) / 2:.2f}"],
    }
    low, high = mean_interval([1, b, 1])
    assert f"  95% from {100 * low:10.2f}          -          -\n" in printed
    assert f"  to      {100 * high:11.2f}          -          -\n" in printed
    assert printed.startswith(f"{masks} against {data}, 3 cases found\n")
    assert "warning" not in printed
    rows = list(csv.reader((tmp_path / "report" / "cases.csv").open()))
    assert rows == [
        ["case", "kidney", "tumor", "composite"],
        ["a", "1.0", "1.0", "1.0"],
        ["b", str(b), "0.0", str(b / 2)],
        ["c", "1.0", "nan", "nan"],
    ]
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["kidney"]["mean"] == pytest.approx((2 + b) / 3)
    assert summary["tumor"]["from"] is None
    assert summary["tumor"]["cases"] == 2
    assert summary["tumor"]["without_score"] == 1
    assert not (tmp_path / "report" / "comparison.json").exists()


def test_nothing_is_written_without_out(run, three, tmp_path):
    masks, data = three
    before = sorted(tmp_path.rglob("*"))

    run(masks, data)

    assert sorted(tmp_path.rglob("*")) == before


def test_a_challenge_mask_stands_for_its_case_and_other_names_stay(run, tmp_path):
    for name in ("prediction_00007", "prediction_a", "my_prediction_00008", "prediction_123456"):
        write_mask(tmp_path / "masks" / f"{name}.nii.gz")
    for id in ("case_00007", "prediction_a", "my_prediction_00008", "prediction_123456"):
        write_mask(tmp_path / "references" / f"{id}.nii.gz")

    printed = run(tmp_path / "masks", tmp_path / "references")

    wanted = {"case_00007", "prediction_a", "my_prediction_00008", "prediction_123456"}
    assert scores(printed).keys() == wanted | {"mean"}


@pytest.mark.parametrize("name", ["prediction_a", "prediction_00003"])
def test_masks_of_a_pair_of_folders_are_found_by_their_own_names(run, tmp_path, name):
    write_mask(tmp_path / "masks" / f"{name}.nii.gz")
    write_mask(tmp_path / "data" / "labels" / f"{name}.nii.gz")
    image = tmp_path / "data" / "images" / f"{name}_0000.nii.gz"
    write_image(image, FULL.astype(np.int16), SPACING)

    printed = run(tmp_path / "masks", tmp_path / "data")

    assert scores(printed)[name] == ["100.00"] * 3


@pytest.mark.parametrize("folder", ["masks", "references"])
def test_two_files_for_one_case_are_refused_by_name(run, tmp_path, folder):
    for place in ("masks", "references"):
        write_mask(tmp_path / place / "case_00001.nii.gz")
    write_mask(tmp_path / folder / "prediction_00001.nii.gz", HALF)

    said = run(tmp_path / "masks", tmp_path / "references", expect=2)

    assert "prediction_00001.nii.gz" in said
    assert "case_00001" in said
    assert said.count("\n") == 1


def test_the_labels_of_a_kits19_folder_can_be_scored_too(run, three):
    _, data = three

    printed = run(data, data)

    assert scores(printed)["b"] == ["100.00"] * 3


def test_a_mask_stored_in_another_orientation_on_the_same_grid_is_scored_as_it_lies(run, tmp_path):
    write_mask(tmp_path / "references" / "a.nii.gz", HALF)
    stored = nib.load(write_mask(tmp_path / "kits" / "a.nii.gz", FULL))
    (tmp_path / "masks").mkdir()
    nib.save(nib.as_closest_canonical(stored), tmp_path / "masks" / "a.nii.gz")

    printed = run(tmp_path / "masks", tmp_path / "references")

    assert scores(printed)["a"] == [f"{600 / 13:.2f}", "0.00", f"{300 / 13:.2f}"]


@pytest.mark.parametrize(
    "change, told",
    [
        ("cropped", "shape (2, 4, 5)"),
        ("moved", "lies up to 5 mm from"),
        ("turned", "lies up to"),
        ("another spacing", "lies up to"),
    ],
)
def test_a_mask_on_another_grid_has_no_score(run, tmp_path, change, told):
    write_mask(tmp_path / "references" / "a.nii.gz")
    write_mask(tmp_path / "references" / "b.nii.gz")
    write_mask(tmp_path / "masks" / "b.nii.gz")
    affine = AFFINE.copy()
    if change == "moved":
        affine[0, 3] += 5
    if change == "turned":
        affine[:, 1] *= -1
    if change == "another spacing":
        affine[:3, :3] *= 1.1
    write_mask(tmp_path / "masks" / "a.nii.gz", FULL[1:] if change == "cropped" else FULL, affine)

    said = run(tmp_path / "masks", tmp_path / "references", expect=2)

    assert scores(said).keys() == {"b", "mean"}
    assert "1 left out: a (cannot be scored)" in said
    assert f"evaluate.py: {tmp_path / 'masks' / 'a.nii.gz'}: " in said
    assert told in said


def test_every_damaged_mask_is_named_and_the_sound_ones_are_scored(run, three, tmp_path):
    masks, data = three
    damage(masks / "a.nii.gz")
    write_mask(masks / "b.nii.gz", np.full((3, 4, 5), 7, np.uint8))

    said = run(masks, data, out=tmp_path / "report", expect=2)

    assert "1 case found, 2 left out: a (cannot be scored), b (cannot be scored)" in said
    assert scores(said)["c"] == ["100.00", "-", "-"]
    errors = [line for line in said.splitlines() if line.startswith("evaluate.py: ")]
    assert len(errors) == 2
    assert "a.nii.gz: damaged" in errors[0]
    assert "b.nii.gz: label values 7" in errors[1]
    rows = list(csv.reader((tmp_path / "report" / "cases.csv").open()))
    assert [row[0] for row in rows] == ["case", "c"]
    assert [path.name for path in (tmp_path / "report" / "overlays").iterdir()] == ["c.png"]
    assert not warnings(said)  # of pictures left out


def test_a_mask_that_memory_does_not_take_is_named_and_the_others_are_scored(
    run, evaluate, three, monkeypatch
):
    masks, data = three
    read = evaluate.read_labels

    def short_of_memory(path, **options):
        if path == masks / "a.nii.gz":
            raise MemoryError
        return read(path, **options)

    monkeypatch.setattr(evaluate, "read_labels", short_of_memory)

    said = run(masks, data, expect=2)

    assert "a.nii.gz: not enough memory" in said
    assert scores(said).keys() == {"b", "c", "mean"}


def test_a_pair_that_memory_does_not_take_to_be_scored_is_named_too(
    run, evaluate, three, monkeypatch
):
    masks, data = three

    def short_of_memory(mask, *_):
        raise MemoryError

    monkeypatch.setattr(evaluate, "find_mistakes", short_of_memory)  # of b alone

    said = run(masks, data, out=masks.parent / "report", expect=2)

    assert f"evaluate.py: {masks / 'b.nii.gz'}: not enough memory to score it\n" in said
    assert scores(said).keys() == {"a", "c", "mean"}


def test_damaged_references_are_named_once_for_all_systems(run, three, tmp_path):
    masks, data = three
    for id in "abc":
        write_mask(tmp_path / "others" / f"{id}.nii.gz", HALF)
    damage(data / "a" / "segmentation.nii.gz")
    damage(masks / "a.nii.gz")

    said = run([masks, tmp_path / "others"], data, expect=2)

    errors = [line for line in said.splitlines() if line.startswith("evaluate.py: ")]
    assert len(errors) == 2
    assert str(masks / "a.nii.gz") in errors[0]
    assert "segmentation.nii.gz" in errors[1]
    assert "The 2 cases that all have, best first" in said


def test_a_mask_and_its_reference_that_are_both_damaged_are_both_named(run, three):
    masks, data = three
    damage(masks / "a.nii.gz")
    damage(data / "a" / "segmentation.nii.gz")

    said = run(masks, data, expect=2)

    errors = [line for line in said.splitlines() if line.startswith("evaluate.py: ")]
    assert len(errors) == 2
    assert "a.nii.gz" in errors[0]
    assert "segmentation.nii.gz" in errors[1]


def test_nothing_but_damaged_masks_has_no_table(run, tmp_path):
    damage(write_mask(tmp_path / "masks" / "a.nii.gz"))
    write_mask(tmp_path / "references" / "a.nii.gz")

    said = run(tmp_path / "masks", tmp_path / "references", out=tmp_path / "r", expect=2)

    assert "0 cases found, 1 left out: a (cannot be scored)" in said
    assert "Dice in %" not in said
    assert not (tmp_path / "r").exists()


def test_what_lacks_its_counterpart_is_refused_or_named_and_counted(run, three):
    masks, data = three
    (masks / "a.nii.gz").unlink()
    write_mask(masks / "stranger.nii.gz")

    refused = run(masks, data, expect=2)

    assert "1 case has no reference (stranger), wanted one for each" in refused
    assert "--allow-missing" in refused
    assert refused.count("\n") == 1

    allowed = run(masks, data, "--allow-missing")

    assert "2 cases found, 2 left out: a (no mask), stranger (no reference)" in allowed
    assert scores(allowed).keys() == {"b", "c", "mean"}


def test_masks_of_other_cases_altogether_are_refused_also_where_some_may_be_missing(run, tmp_path):
    write_mask(tmp_path / "masks" / "a.nii.gz")
    write_mask(tmp_path / "references" / "z.nii.gz")

    for option in ([], ["--allow-missing"]):
        said = run(tmp_path / "masks", tmp_path / "references", *option, expect=2)
        assert "no case has a mask and a reference: masks of a, references of z" in said
        assert "rename each mask as its case is called, such as z.nii.gz" in said
        assert said.count("\n") == 1


def test_the_cases_that_the_paper_excludes_are_named_and_no_error(run, tmp_path):
    """A cross-validation has no masks of them."""
    excluded = [f"case_{number:05d}" for number in PAPER.excluded_cases]
    for id in ("case_00001", *excluded):
        write_case(tmp_path / "data", id, image=False)
    write_mask(tmp_path / "masks" / "prediction_00001.nii.gz")

    printed = run(tmp_path / "masks", tmp_path / "data")

    named = ", ".join(f"{id} (no mask; among the paper's excluded cases)" for id in excluded)
    assert f"1 case found, 4 left out: {named}" in printed
    assert scores(printed).keys() == {"case_00001", "mean"}


def test_an_excluded_case_that_has_a_mask_is_scored(run, tmp_path):
    write_case(tmp_path / "data", "case_00023", image=False)
    write_mask(tmp_path / "masks" / "prediction_00023.nii.gz")

    assert "case_00023" in scores(run(tmp_path / "masks", tmp_path / "data"))


def test_what_lies_among_the_references_and_is_none_is_named(run, three):
    masks, data = three
    (data / "d").mkdir()
    (data / "d" / "segmentation.nii.gz").symlink_to("nowhere.nii.gz")
    write_image(data / "e" / "imaging.nii.gz", FULL.astype(np.int16), SPACING)

    printed = run(masks, data)

    named = "d/segmentation.nii.gz (a link to nothing), e (no labels)"
    assert f"3 cases found, 2 left out: {named}" in printed

    write_mask(masks / "d.nii.gz")

    said = run(masks, data, expect=2)

    assert "1 case has no reference (d)" in said
    assert "left out: d/segmentation.nii.gz (a link to nothing)" in said


def test_what_lies_among_the_masks_and_is_none_is_named(run, three):
    """Another tool wrote one mask in a format of its own."""
    masks, data = three
    (masks / "d.mha").write_text("ObjectType = Image")
    (masks / "notes.txt").write_text("not meant as a mask")

    printed = run(masks, data)

    assert "3 cases found, 1 left out: d.mha (not *.nii or *.nii.gz)\n" in printed
    assert scores(printed).keys() == {"a", "b", "c", "mean"}


def test_a_mask_of_another_format_is_named_where_its_case_lacks_one(run, three):
    masks, data = three
    (masks / "a.nii.gz").rename(masks / "a.mha")

    said = run(masks, data, expect=2)

    assert "have no mask (a)" in said or "has no mask (a)" in said
    assert "; left out: a.mha (not *.nii or *.nii.gz); --allow-missing" in said


def test_what_lies_in_a_scored_kits19_folder_and_is_no_case_is_named(run, three):
    _, data = three
    (data / "d.mha").write_text("ObjectType = Image")

    printed = run(data, data)

    assert "3 cases found, 1 left out: d.mha (not *.nii or *.nii.gz)\n" in printed


def test_a_link_to_nothing_among_the_masks_counts_once(run, three):
    masks, data = three
    (masks / "b.nii.gz").unlink()
    (masks / "b.nii.gz").symlink_to("nowhere.nii.gz")

    said = run(masks, data, expect=2)

    assert "2 cases found, 1 left out: b (cannot be scored)\n" in said


def test_the_probabilities_beside_the_masks_are_not_left_out(run, three):
    masks, data = three
    write_mask(masks / "probabilities" / "a_kidney.nii.gz")

    assert "3 cases found\n" in run(masks, data)


def test_a_link_to_nothing_among_flat_references_is_named(run, three):
    masks, _ = three
    (masks / "z.nii.gz").symlink_to("nowhere.nii.gz")

    said = run(masks.parent / "masks", masks, expect=2)

    assert "z" in said
    assert "Traceback" not in said


def distort(path, kind):
    """Makes an image one that cannot be drawn, or not on its labels."""
    if kind == "damaged":
        damage(path)
    elif kind == "sform and qform differ":
        image = nib.load(path)
        moved = image.affine.copy()
        moved[0, 3] += 9
        image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, dtype=np.int16)
        image.set_sform(AFFINE, 2)
        image.set_qform(moved, 1)
        nib.save(image, path)
    else:
        write_image(path, np.zeros((2, 4, 5), np.int16), SPACING)


@pytest.mark.parametrize(
    "kind, told",
    [
        ("damaged", "damaged"),
        ("sform and qform differ", "mm apart"),
        ("another grid", "shape (2, 4, 5)"),
    ],
)
def test_an_image_that_cannot_be_used_costs_its_picture_alone(run, three, tmp_path, kind, told):
    masks, data = three
    sound = scores(run(masks, data))
    distort(data / "b" / "imaging.nii.gz", kind)

    assert scores(run(masks, data)) == sound

    printed = run(masks, data, out=tmp_path / "report")

    assert scores(printed) == sound
    assert "warning: 1 of 3 pictures left out: b (" in printed
    assert told in printed
    pictures = sorted(path.name for path in (tmp_path / "report" / "overlays").iterdir())
    assert pictures == ["a.png", "c.png"]


@pytest.fixture
def drawn(monkeypatch):
    """[figure] of what is saved."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig

    def saved(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    return figures


def test_a_picture_shows_the_slice_of_most_tumor_and_the_one_of_most_errors(run, tmp_path, drawn):
    reference, mask = np.zeros((2, 4, 6, 7), np.uint8)
    reference[0, 1:5, 1:5] = 1
    reference[1, 1:5, 1:5] = 1
    reference[1, 2:4, 2:4] = 2
    mask[:2] = reference[:2]
    mask[3, 1:4, 1:4] = 1  # where there is nothing
    write_case(tmp_path / "data", "a", reference)
    write_mask(tmp_path / "masks" / "a.nii.gz", mask)

    run(tmp_path / "masks", tmp_path / "data", out=tmp_path / "report")

    (figure,) = drawn
    image = np.linspace(-300, 300, reference.size).reshape(reference.shape).astype(np.int16)
    for axes, z, why in zip(figure.axes, (1, 3), ("most tumor", "most voxels wrong")):
        assert axes.get_title() == f"slice {z}: {why}"
        assert np.array_equal(axes.images[0].get_array(), image[z])
        assert axes.get_aspect() == SPACING[1] / SPACING[2]
    kidney = 2 * 32 / (32 + 41)
    assert figure.get_suptitle() == (
        f"a: Dice of kidney (cyan) {100 * kidney:.1f}, of tumor (red) 100.0; "
        "reference solid, prediction dashed"
    )
    left, right = (len(axes.collections) for axes in figure.axes)
    assert (left, right) == (4, 1)  # kidney and tumor of both; the mask's kidney alone
    ((_, dashes),) = figure.axes[1].collections[0].get_linestyle()
    assert dashes is not None  # a mask's line
    assert (tmp_path / "report" / "overlays" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_slice_is_drawn_some_slices_away_where_both_would_be_one(run, tmp_path, drawn):
    """Most tumor and most voxels wrong are in slice 3; slice 7 is four away, slice 8 is five."""
    reference = np.zeros((10, 6, 7), np.uint8)
    reference[2:9, 1:5, 1:5] = 1
    reference[3, 2:4, 2:4] = 2
    mask = np.where(reference == 2, 1, reference)
    mask[7, 1, 1:4] = 0
    mask[8, 1, 1:3] = 0
    write_case(tmp_path / "data", "a", reference)
    write_mask(tmp_path / "masks" / "a.nii.gz", mask)

    run(tmp_path / "masks", tmp_path / "data", out=tmp_path / "report")

    assert [axes.get_title() for axes in drawn[0].axes] == [
        "slice 3: most tumor, most voxels wrong",
        "slice 8: most wrong 5 slices away or more",
    ]


def test_letters_say_which_side_is_the_patients_right(run, tmp_path, drawn):
    write_case(tmp_path / "data", "a", FULL)
    write_mask(tmp_path / "masks" / "a.nii.gz", FULL)

    run(tmp_path / "masks", tmp_path / "data", out=tmp_path / "report")

    for axes in drawn[0].axes:
        first, second = axes.texts
        assert (first.get_text(), second.get_text()) == ("R", "L")
        assert first.get_position()[0] < 0.1 and second.get_position()[0] > 0.9
        assert first.get_transform() == axes.transAxes


def test_without_a_tumor_the_slice_of_most_kidney_is_drawn(run, tmp_path, drawn):
    write_case(tmp_path / "data", "a", PLAIN, image=False)
    write_mask(tmp_path / "masks" / "a.nii.gz", PLAIN)

    run(tmp_path / "masks", tmp_path / "data", out=tmp_path / "report")

    assert drawn[0].axes[0].get_title() == "slice 0: most kidney"
    assert "of tumor (red) -;" in drawn[0].get_suptitle()


def test_cases_below_the_bound_are_listed_and_drawn_worst_first(run, three, tmp_path, drawn):
    masks, data = three
    write_case(tmp_path / "data", "d", FULL)
    write_mask(masks / "d.nii.gz", PLAIN)

    printed = run(masks, data, out=tmp_path / "report")

    _, _, listed = printed.partition("2 of 4 cases have a Dice of kidney or tumor below 80.00, ")
    assert listed.splitlines() == [
        "worst first:",
        "b  kidney 46.15, tumor 0.00: kidney missed (0.0 ml, slice 0), "
        "tumor missed (0.0 ml, slice 0), false tumor (0.0 ml, slice 0)",
        "d  kidney 75.00, tumor 0.00: tumor missed (0.0 ml, slice 0)",  # with it both are right
    ]
    assert [figure.get_suptitle()[0] for figure in drawn] == ["b", "d", "a", "c"]
    page = (tmp_path / "report" / "index.html").read_text()
    places = [page.index(f'src="overlays/{id}.png"') for id in "bdac"]
    assert places == sorted(places)


def test_the_bound_can_be_chosen(run, three, tmp_path):
    """Kidney 2 * 9 / 19, tumor 2 * 3 / 7 of d."""
    masks, data = three
    write_case(tmp_path / "data", "d", FULL)
    write_mask(masks / "d.nii.gz", labels_of(6, 3))

    few = run(masks, data, "--below", "0.4", out=tmp_path / "report")
    more = run(masks, data, "--below", "0.9", out=tmp_path / "report")

    assert "1 of 4 cases has a Dice of kidney or tumor below 40.00, worst first:\nb  " in few
    _, _, listed = more.partition("2 of 4 cases have a Dice of kidney or tumor below 90.00")
    assert listed.splitlines()[2] == (
        "d  kidney 94.74, tumor 85.71: tumor border (0.0 ml missed, 0.0 ml too much, slice 0)"
    )


def test_good_masks_have_none_below_the_bound(run, three, tmp_path):
    _, data = three

    printed = run(data, data, out=tmp_path / "report")

    assert printed.endswith("0 of 3 cases have a Dice of kidney or tumor below 80.00\n")


def test_what_is_wrong_is_told_in_reports_alone(run, three):
    masks, data = three
    assert "missed" not in run(masks, data)


@pytest.mark.parametrize("shape", [(1, 9, 9), (9, 1, 9), (9, 9, 1), (1, 1, 1), (2, 2, 2)])
def test_volumes_of_one_voxel_in_a_direction_are_scored(run, tmp_path, shape):
    voxels = labels_of(1, 0, shape)
    write_case(tmp_path / "data", "a", voxels)
    write_mask(tmp_path / "masks" / "a.nii.gz", voxels)

    printed = run(tmp_path / "masks", tmp_path / "data", out=tmp_path / "report")

    assert scores(printed)["a"] == ["100.00", "-", "-"]
    is_drawn = (tmp_path / "report" / "overlays" / "a.png").exists()
    assert is_drawn == (min(shape[1:]) > 1)
    assert is_drawn or "1 of 1 pictures left out: a (slices of" in printed


def test_a_volume_that_is_all_kidney_is_drawn_without_contours(run, tmp_path, drawn, recwarn):
    write_case(tmp_path / "data", "a", np.ones((3, 4, 5), np.uint8))
    write_mask(tmp_path / "masks" / "a.nii.gz")

    run(tmp_path / "masks", tmp_path / "data", out=tmp_path / "report")

    assert len(drawn[0].axes[0].collections) == 2  # the mask's kidney and tumor
    assert not recwarn.list


@pytest.mark.parametrize("name", ["p$1_^$x", "two words", "a%b{c}\\d", "é", "-dash"])
def test_any_name_is_scored_and_drawn(run, tmp_path, name):
    write_case(tmp_path / "data", name)
    write_mask(tmp_path / "masks" / f"{name}.nii.gz")

    printed = run(tmp_path / "masks", tmp_path / "data", out=tmp_path / "report")

    assert "100.00" in printed
    assert "warning" not in printed
    assert (tmp_path / "report" / "overlays" / f"{name}.png").exists()


@pytest.mark.parametrize(
    "error",
    [
        ImportError("numpy.core.multiarray failed"),
        AttributeError("_ARRAY_API"),
        OSError("no font cache"),
        ModuleNotFoundError("No module named 'matplotlib'"),
        ImportError("compiled for another numpy\nTraceback of that\n"),
    ],
)
def test_matplotlib_that_cannot_be_imported_costs_the_pictures_alone(
    run, three, tmp_path, monkeypatch, error
):
    masks, data = three

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "matplotlib":
                raise error

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])

    printed = run(masks, data, out=tmp_path / "report")

    assert scores(printed)["a"] == ["100.00"] * 3
    told = str(error).splitlines()[0]
    assert warnings(printed) == [f"warning: no pictures: matplotlib cannot be imported ({told})"]
    assert "Traceback" not in printed
    written = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert written == ["cases.csv", "index.html", "summary.json"]
    assert "<img" not in (tmp_path / "report" / "index.html").read_text()


def test_an_error_of_many_lines_is_a_warning_of_one(run, evaluate, three, tmp_path, monkeypatch):
    masks, data = three

    def draw_overlay(path, *_):
        raise ValueError("\nno such letter\nx = $a\n    ^" if path.name == "a.png" else "")

    monkeypatch.setattr(evaluate, "draw_overlay", draw_overlay)

    printed = run(masks, data, out=tmp_path / "report")

    (warning,) = warnings(printed)
    assert warning == (
        "warning: 3 of 3 pictures left out: b (ValueError), a (no such letter), c (ValueError)"
    )
    assert printed.endswith(f"{warning}\n")


def test_a_name_that_matplotlib_cannot_write_is_a_warning_of_one_line(run, tmp_path, recwarn):
    """Two letters that its font lacks: it would warn of each, in two lines, with a line of ours."""
    write_case(tmp_path / "data", "患者")
    write_mask(tmp_path / "masks" / "患者.nii.gz")

    printed = run(tmp_path / "masks", tmp_path / "data", out=tmp_path / "report")

    (warning,) = warnings(printed)
    assert warning.startswith("warning: 1 of 1 pictures may lack something: 患者 (Glyph 24739 ")
    assert printed.endswith(f"{warning}\n")
    assert not recwarn.list
    assert (tmp_path / "report" / "overlays" / "患者.png").exists()


def test_scores_are_written_before_any_picture(run, evaluate, three, tmp_path, monkeypatch, capsys):
    """Whatever ends the process while it draws."""
    masks, data = three

    def ended(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "draw_overlay", ended)
    arguments = ["--pred", masks, "--ref", data, "--out", tmp_path / "report"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])

    with pytest.raises(KeyboardInterrupt):
        evaluate.main()

    assert scores(capsys.readouterr().out)["a"] == ["100.00"] * 3
    assert (tmp_path / "report" / "cases.csv").exists()
    assert (tmp_path / "report" / "summary.json").exists()


def test_a_report_that_cannot_be_written_is_a_warning_after_the_scores(run, three, tmp_path):
    masks, data = three
    (tmp_path / "file").write_text("in the way")
    sound = scores(run(masks, data))

    printed = run(masks, data, out=tmp_path / "file")

    assert scores(printed) == sound
    assert (tmp_path / "file").read_text() == "in the way"
    for name in ("cases.csv", "summary.json", "index.html"):
        assert f"warning: {tmp_path / 'file' / name}: not written (" in printed

    assert "warning: 3 of 3 pictures left out" in printed
    assert printed.index("mean") < printed.index("warning")


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2]",
        '{"trained_on": null}',
        '{"trained_on": {"a": 1}}',
        '{"trained_on": [1]}',
        "{}",
        '"a"',
        "null",
        '{"netw',
        "",
        "\xff",
        "[" * 100_000,
    ],
)
def test_a_prediction_json_of_another_tool_costs_no_score(run, three, content):
    masks, data = three
    (masks / "prediction.json").write_bytes(content.encode("latin-1"))

    printed = run(masks, data)

    assert scores(printed)["a"] == ["100.00"] * 3
    (warning,) = warnings(printed)
    assert "prediction.json: " in warning
    assert "whether the networks were trained on these cases is unknown" in warning


@pytest.mark.parametrize("crossed", [False, True])
def test_networks_that_were_trained_on_a_scored_case_are_a_warning(run, three, crossed):
    masks, data = three
    write_record(masks, cross_validation=crossed, trained_on=["a", "c", "elsewhere"])

    (warning,) = warnings(run(masks, data))

    assert warning == f"warning: {masks}: its networks were trained on 2 of these cases (a, c)"


@pytest.mark.parametrize("crossed", [False, True])
def test_networks_that_were_trained_on_other_cases_are_no_warning(run, three, crossed):
    masks, data = three
    write_record(masks, cross_validation=crossed, trained_on=["elsewhere"])

    assert not warnings(run(masks, data))


def test_a_training_case_is_known_by_its_mask_too(run, tmp_path):
    """Trained on images/prediction_00003, whose mask stands for case_00003 here."""
    for folder, name in (("masks", "prediction_00003"), ("references", "case_00003")):
        write_mask(tmp_path / folder / f"{name}.nii.gz")
    for id in ("prediction_00003", "case_00003"):
        write_record(tmp_path / "masks", trained_on=[id])
        printed = run(tmp_path / "masks", tmp_path / "references")
        assert "were trained on 1 of these cases (case_00003)" in printed


def test_unfinished_networks_are_a_warning(run, three):
    masks, data = three
    networks = [
        {"arch": "plain", "fold": "0", "epoch": 1000, "epochs": 1000},
        {"arch": "plain", "fold": "1", "epoch": 22, "epochs": 1000},
        {"arch": "plain", "fold": "2"},
        5,
    ]
    write_record(masks, networks=networks)

    (warning,) = warnings(run(masks, data))

    assert warning == (
        f"warning: {masks}: 1 of its networks was not trained to the end "
        "(plain fold 1: epoch 22 of 1000)"
    )


def test_two_unfinished_networks_were_not_trained_to_the_end(run, three):
    masks, data = three
    networks = [{"arch": "plain", "fold": fold, "epoch": 2, "epochs": 9} for fold in "01"]
    write_record(masks, networks=networks)

    (warning,) = warnings(run(masks, data))

    assert "2 of its networks were not trained to the end (plain fold 0: epoch 2 of 9, " in warning


def test_one_case_that_all_have_is_one(run, tmp_path):
    for folder in ("references", "one", "other"):
        write_mask(tmp_path / folder / "a.nii.gz")

    said = run([tmp_path / "one", tmp_path / "other"], tmp_path / "references")

    assert "\nThe 1 case that all have, best first" in said


def test_a_mask_that_prediction_json_does_not_name_is_a_warning(run, three):
    masks, data = three
    write_record(masks, networks=[], scans={"a.nii.gz": {}, "c.nii.gz": {}})

    (warning,) = warnings(run(masks, data))

    told = "prediction.json: says nothing of 1 of these masks (b.nii.gz); whether the networks"
    assert told in warning


def test_one_mask_file_is_scored_and_its_prediction_json_read(run, three):
    masks, data = three
    write_record(masks, trained_on=["b"])

    printed = run(masks / "b.nii.gz", data, "--allow-missing")

    assert "1 case found, 2 left out: a (no mask), c (no mask)" in printed
    assert "b" in scores(printed)
    assert "were trained on 1 of these cases (b)" in printed


def test_one_mask_and_one_reference_are_a_pair_whatever_they_are_called(run, tmp_path):
    write_case(tmp_path / "data", "a", FULL)
    write_mask(tmp_path / "masks" / "Mr Smith.nii.gz", HALF)
    reference = tmp_path / "data" / "a" / "segmentation.nii.gz"

    printed = run(tmp_path / "masks" / "Mr Smith.nii.gz", reference)

    assert f"Mr Smith.nii.gz is scored against {reference}, as a\n" in printed
    assert scores(printed)["a"] == scores(printed)["mean"]
    write_mask(tmp_path / "a.nii.gz", HALF)
    assert "one mask, one reference" not in run(tmp_path / "a.nii.gz", reference)


def test_the_image_beside_a_single_reference_is_drawn(run, tmp_path, drawn):
    write_case(tmp_path / "data", "a", FULL)
    write_mask(tmp_path / "a.nii.gz", HALF)

    run(tmp_path / "a.nii.gz", tmp_path / "data" / "a" / "segmentation.nii.gz", out=tmp_path / "r")

    shown = drawn[0].axes[0].images[0].get_array()
    image = np.linspace(-300, 300, FULL.size).reshape(FULL.shape).astype(np.int16)
    assert np.array_equal(shown, image[0])


def test_pictures_without_the_scan_are_named(run, three, tmp_path):
    masks, data = three
    (data / "b" / "imaging.nii.gz").unlink()

    printed = run(masks, data, out=tmp_path / "report")

    assert "drawn without the scan, which is not beside the reference: b\n" in printed


def test_masks_without_a_prediction_json_are_scored_without_a_word(run, three):
    masks, data = three
    assert not warnings(run(masks, data))


@pytest.mark.parametrize("which", ["mask", "reference", "image"])
def test_the_frame_can_be_chosen_for_masks_references_and_images(run, tmp_path, which):
    """pixdim of 1 mm beside the right sform, as some tools write it."""
    masks, data, out = tmp_path / "masks", tmp_path / "data", tmp_path / "report"
    write_case(data, "a")
    write_mask(masks / "a.nii.gz")
    path = {
        "mask": masks / "a.nii.gz",
        "reference": data / "a" / "segmentation.nii.gz",
        "image": data / "a" / "imaging.nii.gz",
    }[which]
    stored = nib.load(path)
    write_mask(path, np.asarray(stored.dataobj), pixdim=[1, 1, 1, 1, 0, 0, 0, 0])

    said = run(masks, data, out=out, expect=0 if which == "image" else 2)

    assert "pixdim" in said
    assert "--affine sform" in said
    assert ("mean" in said) == (which == "image")  # an image costs its picture alone
    for options in (["--affine", "sform"], ["--assume-spacing", 3, 1.5, 1]):
        printed = run(masks, data, *options, out=out)
        assert scores(printed)["a"] == ["100.00"] * 3
        assert not warnings(printed)


def test_the_limit_of_voxels_can_be_chosen(run, three):
    masks, data = three

    said = run(masks, data, "--max-voxels", 59, expect=2)

    assert "more than 59 voxels" in said
    assert "100.00" in run(masks, data, "--max-voxels", 60)


@pytest.mark.parametrize(
    "options, told",
    [
        (["--assume-spacing", "0", "1", "1"], "argument --assume-spacing: 0: wanted"),
        (["--affine", "pixdim"], "invalid choice"),
        (["--max-voxels", "-1"], "argument --max-voxels: -1: wanted a number of voxels, 1 or more"),
        (["--max-voxels", "0"], "argument --max-voxels: 0: wanted"),
        (["--below", "80"], "argument --below: 80: wanted a Dice, more than 0 and at most 1"),
        (["--below", "0"], "argument --below: 0: wanted"),
        (["--below", "nan"], "argument --below: nan: wanted"),
        (["--below", "low"], "argument --below: low: wanted"),
        (["--max-voxels", "all"], "argument --max-voxels: all: wanted"),
    ],
)
def test_options_that_cannot_be_are_refused(run, three, options, told):
    masks, data = three
    assert told in run(masks, data, *options, expect=2)


def test_several_systems_are_compared_on_what_all_have(run, three, tmp_path):
    masks, data = three
    for id in "abc":
        write_mask(tmp_path / "residual" / f"{id}.nii.gz", HALF)
    damage(tmp_path / "residual" / "b.nii.gz")

    said = run([masks, tmp_path / "residual"], data, out=tmp_path / "report", expect=2)

    assert "The 2 cases that all have, best first; p: sign flips, paired, Holm" in said
    compared = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert compared["ranking"] == ["masks", "residual"]
    assert compared["cases"] == ["a", "c"]
    assert said.index("  paper") > said.index("The 2 cases")
    assert "97.36      85.73      91.54" in said
    for name, cases in (("masks", ["a", "b", "c"]), ("residual", ["a", "c"])):
        rows = list(csv.reader((tmp_path / "report" / name / "cases.csv").open()))[1:]
        assert [row[0] for row in rows] == cases


def test_the_cases_on_which_systems_differ_most_are_listed_and_drawn(run, three, tmp_path, drawn):
    masks, data = three
    for id, mask in (("a", FULL), ("b", FULL), ("c", HALF)):
        write_mask(tmp_path / "other" / f"{id}.nii.gz", mask)

    printed = run([masks, tmp_path / "other"], data, out=tmp_path / "report")

    _, _, listed = printed.partition("Where they differ most")
    assert listed.splitlines() == [
        " (-: neither mask nor reference has any):",
        "b  tumor: other 100.00, masks 0.00",
        "c  tumor: masks -, other 0.00",  # one voxel of tumor, where there is none
    ]
    titles = [axes.get_title() for axes in drawn[-2].axes]
    assert titles == ["reference, slice 0", "other, slice 0", "masks, slice 0"]
    image = np.linspace(-300, 300, FULL.size).reshape(FULL.shape).astype(np.int16)
    assert np.array_equal(drawn[-2].axes[0].images[0].get_array(), image[0])
    report = tmp_path / "report"
    pictures = ["comparison.png", "differences/b.png", "differences/c.png"]
    assert (
        sorted(str(path.relative_to(report)) for path in report.glob("[cd]*/*.png")) == pictures[1:]
    )
    assert (report / pictures[0]).read_bytes().startswith(b"\x89PNG")
    page = (report / "index.html").read_text()
    assert [place for place in pictures if f'src="{place}"' in page] == pictures
    for name in ("masks", "other"):
        assert f'href="{name}/index.html"' in page
        assert (report / name / "index.html").exists()


def test_systems_that_agree_differ_nowhere(run, three, tmp_path):
    masks, data = three
    shutil.copytree(masks, tmp_path / "copy")

    printed = run([masks, tmp_path / "copy"], data, out=tmp_path / "report")

    assert printed.endswith("They score the same in each case\n")
    assert not (tmp_path / "report" / "differences").exists()


def test_without_out_systems_are_compared_and_nothing_is_written(run, three, tmp_path):
    masks, data = three
    for id in "abc":
        write_mask(tmp_path / "other" / f"{id}.nii.gz", FULL)
    before = sorted(tmp_path.rglob("*"))

    printed = run([masks, tmp_path / "other"], data)

    assert "b  tumor: other 100.00, masks 0.00\n" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_one_folder_that_cannot_be_scored_does_not_cost_the_others(run, three, tmp_path):
    masks, data = three
    write_mask(tmp_path / "lacking" / "a.nii.gz")
    (tmp_path / "none").mkdir()
    for id in "abc":
        write_mask(tmp_path / "good" / f"{id}.nii.gz", FULL)

    said = run([tmp_path / "lacking", tmp_path / "none", masks, tmp_path / "good"], data, expect=2)

    assert "lacking: 2 cases have no mask (b, c)" in said
    assert "none: no" in said
    assert "The 3 cases that all have" in said
    assert "good - masks" in said
    assert [line[:13] for line in said.splitlines()[-2:]] == ["evaluate.py: "] * 2


def test_a_folder_of_damaged_masks_alone_does_not_cost_the_others_their_comparison(
    run, three, tmp_path
):
    masks, data = three
    for id in "abc":
        write_mask(tmp_path / "good" / f"{id}.nii.gz", FULL)
        damage(write_mask(tmp_path / "damaged" / f"{id}.nii.gz", FULL))

    said = run([tmp_path / "damaged", masks, tmp_path / "good"], data, expect=2)

    assert "The 3 cases that all have" in said
    assert "good - masks" in said
    assert said.count("evaluate.py: ") == 3  # a line for each damaged mask


def test_systems_without_a_common_case_are_an_error_without_a_number(run, tmp_path):
    for id in "ab":
        write_mask(tmp_path / "references" / f"{id}.nii.gz")
        write_mask(tmp_path / f"masks_{id}" / f"{id}.nii.gz")

    said = run(
        [tmp_path / "masks_a", tmp_path / "masks_b"],
        tmp_path / "references",
        "--allow-missing",
        out=tmp_path / "report",
        expect=2,
    )

    assert "evaluate.py: --pred: no case is in all of them" in said
    assert "masks_a has a; masks_b has b" in said
    assert "nan" not in said
    assert scores(said)["a"] == ["100.00"] * 3
    assert not (tmp_path / "report" / "comparison.json").exists()
    assert (tmp_path / "report" / "masks_b" / "cases.csv").exists()


def test_folders_may_be_given_one_by_one(command, three, tmp_path):
    masks, data = three
    shutil.copytree(masks, tmp_path / "copy")

    printed = command("--pred", masks, "--pred", tmp_path / "copy", "--ref", data)

    assert "The 3 cases that all have" in printed


def test_the_page_of_the_working_folder_bears_its_name(run, three, tmp_path, monkeypatch):
    masks, data = three
    monkeypatch.chdir(masks)

    run(".", data, out=tmp_path / "report")

    assert "<h1>masks</h1>" in (tmp_path / "report" / "index.html").read_text()


def test_folders_of_one_name_are_refused(run, three, tmp_path):
    masks, data = three

    said = run([masks, tmp_path / "x" / "masks"], data, expect=2)

    assert "several folders of one name" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("missing", ["--pred", "--ref"])
def test_a_folder_that_is_not_there_is_an_error_of_one_line(run, three, tmp_path, missing):
    masks, data = three
    if missing == "--pred":
        masks = tmp_path / "nowhere"
    else:
        data = tmp_path / "nowhere"

    said = run(masks, data, expect=2)

    assert said.startswith("evaluate.py: ")
    assert "nowhere: no such file or folder" in said
    assert said.count("\n") == 1


def test_a_tilde_is_the_home_folder(command, three, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command("--pred=~/masks", "--ref=~/data", "--out=~/report")

    assert (tmp_path / "report" / "cases.csv").exists()


def test_names_that_cannot_be_printed_and_closed_streams_end_nothing(tmp_path):
    name = os.fsdecode(b"scan_\xfc")  # no UTF-8
    try:
        write_mask(tmp_path / "masks" / f"{name}.nii.gz")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    write_mask(tmp_path / "references" / f"{name}.nii.gz")
    command = [
        sys.executable,
        "evaluate.py",
        "--pred",
        tmp_path / "masks",
        "--ref",
        tmp_path / "references",
        "--out",
    ]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}

    done = subprocess.run(
        [*command, tmp_path / "report"], cwd=ROOT, capture_output=True, env=plain, timeout=200
    )
    closed = subprocess.run(
        [*command, tmp_path / "unseen"], cwd=ROOT, timeout=200, preexec_fn=lambda: os.close(1)
    )

    assert done.returncode == 0 and b"100.00" in done.stdout, done.stderr
    assert closed.returncode == 0
    for folder in ("report", "unseen"):
        assert b"scan_\xfc,1.0" in (tmp_path / folder / "cases.csv").read_bytes()


def test_a_picture_has_soft_tissues_window_and_its_titles_colours_and_lines(run, tmp_path, drawn):
    from matplotlib.colors import to_rgba

    reference = np.zeros((1, 6, 7), np.uint8)
    reference[0, 1:5, 1:5] = 1
    reference[0, 2:4, 2:4] = 2
    write_case(tmp_path / "data", "a", reference)
    write_mask(tmp_path / "masks" / "a.nii.gz", reference)

    run(tmp_path / "masks", tmp_path / "data", out=tmp_path / "report")

    axes = drawn[0].axes[0]
    assert axes.images[0].get_clim() == (-160, 300)
    colours = [tuple(each.get_edgecolor()[0]) for each in axes.collections]
    assert colours == [to_rgba("tab:cyan"), to_rgba("tab:red")] * 2
    solid = [each.get_linestyle()[0][1] is None for each in axes.collections]
    assert solid == [True, True, False, False]


def test_the_slice_of_most_kidney_is_drawn_where_the_mask_alone_has_a_tumor(run, tmp_path, drawn):
    write_case(tmp_path / "data", "a", PLAIN, image=False)
    write_mask(tmp_path / "masks" / "a.nii.gz", FULL)

    run(tmp_path / "masks", tmp_path / "data", out=tmp_path / "report")

    assert drawn[0].axes[0].get_title() == "slice 0: most kidney"


def test_a_network_that_lacks_one_epoch_is_unfinished(run, three):
    masks, data = three
    networks = [{"arch": "plain", "fold": "0", "epoch": 999, "epochs": 1000}]
    write_record(masks, networks=networks)

    assert "(plain fold 0: epoch 999 of 1000)" in run(masks, data)


def test_what_lies_among_flat_references_and_is_none_is_left_out_by_name(run, three, tmp_path):
    masks, _ = three
    shutil.copytree(masks, tmp_path / "flat")
    (tmp_path / "flat" / "z.nii.gz").symlink_to("nowhere.nii.gz")

    printed = run(masks, tmp_path / "flat")

    assert "3 cases found, 1 left out: z.nii.gz (a link to nothing)" in printed


def test_an_excluded_case_that_is_scored_is_not_left_out(run, tmp_path):
    write_case(tmp_path / "data", "case_00023", image=False)
    write_mask(tmp_path / "masks" / "prediction_00023.nii.gz")

    printed = run(tmp_path / "masks", tmp_path / "data")

    assert "1 case found" in printed
    assert "left out" not in printed
