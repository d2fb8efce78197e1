"""python -m minikits.check: what is measured of a case, which cases stand out, and what is written."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import voxel_sizes

from minikits import check
from minikits.check import Checked
from minikits.facts import (
    LOWEST_HU,
    CaseFacts,
    Cut,
    Intensities,
    LabelFacts,
    Region,
    cuts_of,
    digest_of,
    facts_of,
    intensities,
    pooled,
    regions_of,
)
from minikits.findings import Finding, findings_of, kidneys_of, stored_otherwise
from minikits.nifti import read_labels, write_image
from minikits.reading import Reading

SPACING_MM = (5.0, 5.0, 5.0)  # a voxel is an eighth of a ml
ML = 0.125


# --- what is measured of labels -------------------------------------------------------------------


def test_regions_by_hand():
    """A kidney of 3 voxels with a tumor of 1 below it, a tumor of 1 apart, a piece of 1."""
    labels = np.zeros((3, 4, 9), np.uint8)
    labels[0, 0, 0:3] = 1
    labels[1, 1, 2] = 2
    labels[2, 3, 5] = 2
    labels[0, 3, 8] = 1

    regions = regions_of(labels, start=(10, 20, 30), ml_per_voxel=2.0)

    assert [(region.kidney_ml, region.tumor_ml) for region in regions] == [(6, 2), (2, 0), (0, 2)]
    assert regions[0].ml == 8
    assert regions[0].place == (10, 20, 32)  # the third of its four voxels
    assert regions[1].place == (10, 23, 38)
    assert regions[2].place == (12, 23, 35)


def test_a_region_lies_around_its_place():
    labels = (np.random.default_rng(0).random((9, 10, 11)) < 0.1).astype(np.uint8)

    for region in regions_of(labels, start=(0, 0, 0), ml_per_voxel=1.0):
        assert labels[region.place] == 1


def test_what_reaches_a_side_of_the_volume_is_cut():
    """Two voxels of kidney in the last slice, each 2 x 5 mm: 0.2 cm2; one of tumor in the first
    column, 10 x 2 mm."""
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[3, 2, 2:4] = 1
    labels[1, 2, 0] = 2

    cuts = cuts_of(labels, spacing_mm=(10.0, 2.0, 5.0))

    assert cuts == [
        Cut("kidney", "the bottom slice", pytest.approx(0.2), (3, 2, 3)),
        Cut("tumor", "the right edge", pytest.approx(0.2), (1, 2, 0)),
    ]


def test_each_side_has_its_name():
    """Axes as KiTS19's: Z from the head to the feet, Y from the front to the back, X from right to
    left."""
    sides = []
    for place in [(0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2)]:
        labels = np.zeros((3, 3, 3), np.uint8)
        labels[place] = 1
        (cut,) = cuts_of(labels, spacing_mm=(1.0, 1.0, 1.0))
        assert cut.place == place
        sides.append(cut.side)

    assert sides == [
        *("the top slice", "the bottom slice", "the front edge"),
        *("the back edge", "the right edge", "the left edge"),
    ]


def test_the_same_values_have_the_same_digest():
    voxels = np.arange(24).reshape(2, 3, 4)
    changed = voxels.copy()
    changed[1, 2, 3] += 1

    digest = digest_of(voxels.astype(np.int16))

    assert digest == digest_of(voxels.astype(np.float32))
    assert digest == digest_of(np.asfortranarray(voxels))
    assert digest != digest_of(changed)
    assert digest != digest_of(voxels.reshape(2, 4, 3))
    assert digest != digest_of(voxels, about=(0, 0, 0))


# --- what is measured of HU -----------------------------------------------------------------------


def test_intensities_are_those_of_kidney_and_tumor():
    image = np.array([[[-1000, -100, 0, 100, 400, 900]]])
    labels = np.array([[[0, 1, 1, 2, 2, 0]]])

    hu = intensities(image, labels)

    assert hu.mean == 100  # of -100, 0, 100, 400
    assert hu.sd == pytest.approx(np.sqrt((200**2 + 100**2 + 0 + 300**2) / 4))
    assert (hu.low, hu.high) == tuple(np.percentile([-100, 0, 100, 400], [0.5, 99.5]))
    assert (hu.below, hu.above) == (0.25, 0.25)  # -79 and 304 are the paper's window
    assert hu.histogram.sum() == 4
    assert hu.histogram[0 - LOWEST_HU] == 1


def test_a_case_without_foreground_has_no_intensities():
    assert intensities(np.ones((1, 2, 3)), np.zeros((1, 2, 3))) is None


def test_intensities_of_all_cases_weigh_each_voxel_the_same():
    generator = np.random.default_rng(0)
    cases = [generator.normal(mean, 50, size).round() for mean, size in [(40, 3000), (150, 900)]]
    measured = [intensities(case[None, None], np.ones((1, 1, len(case)))) for case in cases]

    together = pooled([hu.histogram for hu in measured])

    everything = np.concatenate(cases)
    assert together["mean"] == pytest.approx(everything.mean())
    assert together["sd"] == pytest.approx(everything.std())
    assert together["low"] == pytest.approx(np.percentile(everything, 0.5), abs=2)
    assert together["high"] == pytest.approx(np.percentile(everything, 99.5), abs=2)


# --- which cases stand out ------------------------------------------------------------------------


TWO_KIDNEYS = [Region(180.0, 20.0, (5, 6, 7)), Region(170.0, 0.0, (8, 9, 10))]


def labels_of(regions, *, tumors=1, cuts=(), digest=None):
    kidney_ml = sum(region.kidney_ml for region in regions)
    tumor_ml = sum(region.tumor_ml for region in regions)
    return LabelFacts(kidney_ml, tumor_ml, list(regions), tumors, list(cuts), digest)


def case_of(id="a", labels=None, **others):
    """A case of which nothing stands out, but for what is given."""
    facts = {"shape": (100, 512, 512), "spacing_mm": (3.0, 0.8, 0.8), "image": None}
    facts |= {"refused": [], "doubted": [], "labels": f"{id}/segmentation.nii.gz"}
    return CaseFacts(id, of_labels=labels or labels_of(TWO_KIDNEYS), **(facts | others))


def told_of(*cases):
    """{id: the lines on what stands out}"""
    found = findings_of(cases)
    return {id: [finding.told for finding in findings] for id, findings in found.items()}


def hu_of(*, mean=101.0, below=0.005, above=0.005):
    return Intensities(mean, 76.9, -79, 304, below, above, np.zeros(1))


def test_of_a_usual_case_nothing_stands_out():
    strokes = [Region(0.1, 0.0, (0, 0, 0)), Region(0.0, 0.1, (0, 0, 0))]
    tip = Cut("kidney", "the top slice", 0.4, (0, 0, 0))

    assert told_of(case_of()) == {}
    assert told_of(case_of(labels=labels_of(TWO_KIDNEYS + strokes, cuts=[tip]))) == {}
    assert told_of(case_of(image="a.nii", hu=hu_of())) == {}


@pytest.mark.parametrize(
    "regions, told",
    [
        ([], "nothing is labelled"),
        (
            TWO_KIDNEYS[:1],
            "1 kidney found (200 ml with tumor), wanted 2 (both may hang together, as a horseshoe",
        ),
        (
            [*TWO_KIDNEYS, Region(90.0, 0.0, (0, 0, 0))],
            "3 kidneys found (200 and 170 and 90 ml with tumor), wanted 2",
        ),
        ([Region(9.0, 0.0, (0, 0, 0))] * 10, "no kidney found, wanted 2"),
        (
            [*TWO_KIDNEYS, Region(0.0, 30.0, (1, 2, 3))],
            "30.0 ml of tumor touch no kidney (1 piece)",
        ),
        (
            [*TWO_KIDNEYS, Region(9.0, 0.0, (1, 2, 3))],
            "9.0 ml lie apart from the kidneys (1 piece)",
        ),
        ([Region(600.0, 0.0, (0, 0, 0))] * 2, "1200 ml of kidney without its tumors, wanted 80 to"),
        ([Region(30.0, 50.0, (0, 0, 0))] * 2, "60 ml of kidney without its tumors, wanted 80 to"),
    ],
)
def test_what_stands_out_of_labels(regions, told):
    found = told_of(case_of(labels=labels_of(regions)))

    assert any(line.startswith(told) for line in found["a"]), found


def test_a_case_without_tumor_stands_out():
    assert told_of(case_of(labels=labels_of(TWO_KIDNEYS, tumors=0))) == {
        "a": ["no tumor is labelled"]
    }


def test_a_kidney_that_is_all_but_eaten_up_is_a_kidney():
    labels = labels_of([Region(2.0, 400.0, (0, 0, 0)), Region(170.0, 0.0, (0, 0, 0))])

    assert len(kidneys_of(labels)) == 2
    assert told_of(case_of(labels=labels)) == {}


def test_a_structure_that_is_cut_stands_out_from_two_square_centimetres_on():
    cut = Cut("tumor", "the bottom slice", 8.04, (99, 1, 2))

    (finding,) = findings_of([case_of(labels=labels_of(TWO_KIDNEYS, cuts=[cut]))])["a"]

    assert finding.told == "tumor is cut by the bottom slice (8.0 cm2 of it lie there)"
    assert finding.place == (99, 1, 2)


def test_hu_that_are_not_those_of_kidneys_stand_out():
    in_fat = case_of("fat", image="x", hu=hu_of(below=0.3))
    in_bone = case_of("bone", image="x", hu=hu_of(above=0.2))
    pale = case_of("pale", image="x", hu=hu_of(mean=20.0))

    assert told_of(in_fat, in_bone, pale) == {
        "fat": ["30% of kidney and tumor are below -79 HU, as fat and air"],
        "bone": ["20% of kidney and tumor are above 304 HU, as bone"],
        "pale": ["mean of kidney and tumor 20 HU, wanted 101 give or take 76.9"],
    }


def test_a_spacing_beyond_all_others_stands_out():
    """Ten times the usual, as of a file in other units; 5 mm beside 3 and 4 is nothing."""
    usual = [case_of(str(z), spacing_mm=(z, 0.8, 0.8)) for z in (1.0, 1.5, 3.0, 4.0, 5.0)]
    other = case_of("other", spacing_mm=(3.0, 0.8, 8.0), shape=(100, 512, 51))

    assert told_of(*usual) == {}
    assert told_of(*usual, other) == {"other": ["spacing x 8 mm, the others' up to 0.8"]}
    assert told_of(*usual[:3], other) == {}  # of four cases nobody can say what is usual


def test_slices_that_are_too_narrow_for_a_body_stand_out():
    assert told_of(case_of(shape=(100, 100, 512))) == {
        "a": ["slices of 80 x 410 mm, wanted 200 to 600 on each side"]
    }


def test_cases_that_are_the_same_name_each_other():
    cases = [
        case_of("a", image="x", image_digest="1", labels=None),
        case_of("b", image="x", image_digest="1", labels=labels_of(TWO_KIDNEYS, digest="2")),
        case_of("c", image="x", image_digest="3", labels=labels_of(TWO_KIDNEYS, digest="2")),
        case_of("d", image="x", image_digest="4", labels=labels_of(TWO_KIDNEYS, digest="5")),
    ]

    assert told_of(*cases) == {
        "a": ["the same image as b"],
        "b": ["the same image as a", "the same labels as c"],
        "c": ["the same labels as b"],
    }


def test_labels_without_image_stand_out_where_others_have_one():
    assert told_of(case_of("a"), case_of("b", image="x")) == {"a": ["labels, but no image"]}
    assert told_of(case_of("a"), case_of("b")) == {}


def test_what_is_refused_and_what_is_doubted_stands_out():
    refused = CaseFacts("a", None, None, ["a.nii: damaged"], [])

    assert told_of(refused, case_of("b", image="x", doubted=["b.nii: no HU"])) == {
        "a": ["a.nii: damaged"],
        "b": ["b.nii: no HU"],
    }


def test_label_files_that_are_stored_otherwise_are_named():
    usual = [case_of(str(number), stored="uint8, sform") for number in range(8)]
    other = case_of("other", stored="uint16, qform")

    assert stored_otherwise([*usual, other]) == ("uint8, sform", "uint16, qform", ["other"])
    assert stored_otherwise(usual) is None
    assert stored_otherwise([*usual[:3], other]) is None  # a quarter is no exception
    assert stored_otherwise([case_of()]) is None


def test_the_worst_cases_are_those_of_most_findings():
    cases = [case_of("usual"), case_of("once"), case_of("twice")]
    finding = Finding("hu", "mean of kidney and tumor 20 HU")

    checked = Checked(
        Path("data"), cases, {"once": [finding], "twice": [finding, finding]}, [], 1.0
    )

    assert [facts.id for facts in checked.worst] == ["twice", "once"]


# --- the command ----------------------------------------------------------------------------------


def kidneys_and_a_tumor(shape=(30, 60, 60)):
    """Two cubes of 216 ml, in the first of them a tumor of 1 ml."""
    labels = np.zeros(shape, np.uint8)
    labels[10:22, 20:32, 10:22] = 1
    labels[10:22, 20:32, 36:48] = 1
    labels[12:14, 22:24, 12:14] = 2
    return labels


def scan_of(labels, seed=0):
    """Air around a body of fat, bone, and kidneys of 101 HU."""
    noise = np.random.default_rng(seed).normal(0, 20, labels.shape)
    image = np.full(labels.shape, -1000.0)
    image[:, 4:56, 4:56] = -100
    image[:, 45:50, 25:35] = 300
    image[labels > 0] = 101
    return (image + noise).astype(np.int16)


def put_case(folder, labels, image=None, spacing_mm=SPACING_MM):
    if image is not None:
        write_image(folder / "imaging.nii.gz", image, spacing_mm)
    write_image(folder / "segmentation.nii.gz", labels, spacing_mm)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run(*arguments, expect=0): (what the command prints, its errors)."""
    monkeypatch.chdir(tmp_path)

    def of(*arguments, expect=0, jobs=1):
        monkeypatch.setattr("sys.argv", ["check", *map(str, arguments), "--jobs", str(jobs)])
        if expect == 0:
            check.main()
        else:
            with pytest.raises(SystemExit) as ended:
                check.main()
            assert ended.value.code == expect
        said = capsys.readouterr()
        return said.out, said.err

    return of


@pytest.fixture
def data(tmp_path):
    """Three cases: a usual one, the same again, and one with labels beside the kidneys."""
    labels = kidneys_and_a_tumor()
    put_case(tmp_path / "data" / "case_00001", labels, scan_of(labels))
    put_case(tmp_path / "data" / "case_00002", labels, scan_of(labels))
    shifted = np.roll(labels, 12, axis=1)
    put_case(tmp_path / "data" / "case_00023", shifted, scan_of(labels, seed=1))
    return tmp_path / "data"


def rows_of(path):
    with open(path) as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def test_a_folder_is_measured_told_and_written(run, data):
    pytest.importorskip("matplotlib")

    out, _ = run(data, "--out", "report")

    assert "case_00001: 30x60x60 of 5.00x5.00x5.00 mm, kidneys 215 + 216 ml, tumor 1.0 ml" in out
    assert "(3 of 3)" in out
    assert "3 cases in " in out and "3 with labels, 3 with an image" in out
    assert "left out of a training by the paper, and by train.py: case_00023\n" in out
    assert "  case_00001: the same image as case_00002; the same labels as case_00002\n" in out
    assert re.search(r"  case_00023: \d+% of kidney and tumor are below -79 HU, as fat", out)
    assert "remove one of two that are the same" in out
    assert "correct them, or leave the case out" not in out

    rows = rows_of("report/check.csv")
    assert list(rows) == ["case_00001", "case_00002", "case_00023"]
    assert rows["case_00001"]["kidneys"] == "2"
    assert float(rows["case_00001"]["tumor_ml"]) == 8 * ML
    assert float(rows["case_00001"]["mean_hu"]) == pytest.approx(101, abs=2)
    assert float(rows["case_00023"]["below_window"]) > 0.3
    assert rows["case_00002"]["stands_out"].startswith("the same image as case_00001")

    found = json.loads(Path("report/check.json").read_text())
    assert found["cases"] == 3
    assert {finding["kind"] for finding in found["findings"]["case_00001"]} == {"twice"}
    assert found["findings"]["case_00023"][0]["place"] is not None

    page = Path("report/index.html").read_text()
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert pictures == ["worst_01.png", "worst_02.png", "worst_03.png"]
    for name in pictures:
        assert Path("report", name).read_bytes()[:4] == b"\x89PNG"


def test_labels_alone_are_checked_and_hu_left_out(run, tmp_path):
    put_case(tmp_path / "data" / "case_00000", kidneys_and_a_tumor())

    out, _ = run("data")

    assert "HU in kidney and tumor: left out, since no case has an image\n" in out
    assert "no case stands out\n" in out
    assert rows_of("checked/check.csv")["case_00000"]["mean_hu"] == ""


def test_the_time_left_is_told_once_ten_cases_are_measured():
    files = [(str(number), None, None) for number in range(20)]
    said = []

    check.measured(files, Reading(), lambda facts_of, ids, *_: map(case_of, ids), said.append)

    assert said[8].endswith("(9 of 20)")
    assert re.search(r"\(10 of 20, \d+ s left\)$", said[9])


def test_hu_are_left_out_for_the_reason_that_there_is():
    damaged = CaseFacts("a", Path("image"), Path("labels"), ["labels: damaged"], [])
    no_labels = CaseFacts("b", Path("image"), None, [], [])
    empty = case_of("c", image="image", labels=labels_of([]))

    ends = []
    for cases in ([damaged, no_labels], [no_labels], [damaged, empty]):
        (line,) = check.lines_on_hu(cases)
        ends.append(line.partition("since ")[2])

    assert ends == [
        "no case with an image and labels can be used",
        "no case has an image and labels",
        "nothing is labelled",
    ]


def test_one_case_is_one_case():
    checked = Checked(Path("data"), [case_of()], {"a": [Finding("hu", "pale")]}, [], 1.0)

    lines = check.summary_of(checked)

    assert lines[1].startswith("1 case in 1 s")
    assert "1 of 1 case stands out:" in lines


def test_processes_give_what_one_gives(run, data):
    one, _ = run(data, "--out", "one", "--worst", 1)

    several, _ = run(data, "--out", "several", "--worst", 1, jobs=2)

    assert Path("one/check.csv").read_text() == Path("several/check.csv").read_text()
    assert Path("one/check.json").read_text() == Path("several/check.json").read_text()
    without_times = [
        re.sub(r"\d+ s\b", "", text).replace("several", "one") for text in (one, several)
    ]
    assert without_times[0] == without_times[1]


def test_a_case_that_cannot_be_read_is_named_and_the_others_go_on(run, data):
    (data / "case_00001" / "segmentation.nii.gz").write_bytes(b"nothing")
    other = np.zeros((30, 60, 59), np.uint8)
    put_case(data / "case_00002", other)

    out, err = run(data, expect=2)

    assert err == "check: some cases cannot be read, or not be used\n"
    assert re.search(r"case_00001: \S+segmentation.nii.gz: ", out)
    assert re.search(r"case_00002: \S+: shape ", out)
    assert "case_00023: 30x60x60" in out
    assert "convert or download those that cannot be read again" in out


def test_a_cyst_of_kits23_is_named_with_what_makes_it_kidney(run, tmp_path):
    labels = kidneys_and_a_tumor()
    labels[14, 24, 14] = 3
    put_case(tmp_path / "data" / "case_00000", labels)

    out, _ = run("data", expect=2)

    assert "label values 3 found" in out and "; 3 is a cyst in KiTS21 and KiTS23, and docs/" in out
    assert "  if they are KiTS21's or KiTS23's, write them anew, a cyst as kidney" in out
    assert "download" not in out


def test_without_matplotlib_the_page_has_no_pictures(run, data, monkeypatch):
    monkeypatch.setattr(check, "why_no_figures", lambda: "No module named 'matplotlib'")

    out, _ = run(data, "--out", "report")

    assert "no pictures: matplotlib cannot be imported (No module named 'matplotlib')\n" in out
    assert "<img" not in Path("report/index.html").read_text()


def test_the_worst_are_drawn_and_no_others(run, data):
    pytest.importorskip("matplotlib")

    run(data, "--out", "report", "--worst", 1)

    page = Path("report/index.html").read_text()
    assert re.findall(r'<img src="([^"]+)" alt="([^"]+)"', page) == [
        ("worst_01.png", "case_00001")  # two reasons, as the others, and it comes first
    ]


def test_a_picture_that_fails_is_a_warning(run, data, monkeypatch):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(check, "draw_panels", fail)

    out, _ = run(data, "--out", "report")

    assert out.count("not drawn (no ink)") == 3


def test_options_for_files_that_would_be_refused_reach_the_reading(run, data):
    out, _ = run(data, "--assume-spacing", 4, 5, 6)
    assert "30x60x60 of 4.00x5.00x6.00 mm" in out

    out, _ = run(data, "--max-voxels", 1000, expect=2)
    assert out.count("more than 1000 voxels") >= 3


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["data", "--jobs", "0"], "0: wanted a whole number, 1 or more"),
        (["data", "--worst", "many"], "many: wanted a whole number, 1 or more"),
    ],
)
def test_what_is_refused(arguments, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check", *arguments])

    with pytest.raises(SystemExit) as ended:
        check.main()

    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_other_contrast_is_told_with_a_recipe_for_it(run, tmp_path):
    labels = kidneys_and_a_tumor()
    image = scan_of(labels)
    image[labels > 0] -= 60
    put_case(tmp_path / "data" / "case_00000", labels, image)

    out, _ = run("data")

    told = re.search(r"--recipe FILE with (\{.*\}) would", out)
    recipe = json.loads(told[1])
    assert recipe["mean_hu"] == pytest.approx(41, abs=2)
    assert recipe["sd_hu"] == pytest.approx(20, abs=2)
    assert recipe["window_hu"][0] < recipe["mean_hu"] < recipe["window_hu"][1]


# --- real labels ----------------------------------------------------------------------------------


def test_real_labels_of_two_kidneys_and_a_tumor(kits19):
    path = kits19 / "case_00023" / "segmentation.nii.gz"

    facts = facts_of("case_00023", None, path, Reading())

    volume = read_labels(path)
    ml = np.prod(voxel_sizes(volume.affine)) / 1000
    assert facts.stored == "uint16, qform"
    assert facts.of_labels.tumor_ml == pytest.approx((volume.voxels == 2).sum() * ml)
    assert facts.of_labels.kidney_ml == pytest.approx((volume.voxels == 1).sum() * ml)
    assert len(kidneys_of(facts.of_labels)) == 2
    assert findings_of([facts]) == {}
