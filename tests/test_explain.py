"""python -m minikits.explain: each stage's pictures and numbers, and what is refused."""

import dataclasses
import html
import re
import sys
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TINY
from nibabel.orientations import axcodes2ornt, ornt2axcodes, ornt_transform
from test_predict import put

from minikits import explain, stages
from minikits.augmentation import cut_patch
from minikits.ensemble import load_networks
from minikits.evaluation import kits_dice, score_case
from minikits.nifti import read_labels, read_volume, write_image
from minikits.phantoms import make_case
from minikits.pictures import AXIAL, CORONAL, SAGITTAL, in_plane, panel_of, projected
from minikits.prediction import segment_volume
from minikits.preprocessing import prepare_labels
from minikits.sampling import PreparedCase
from minikits.stages import (
    Subject,
    dice_in_words,
    drawn_starts,
    middle_of_most,
    same_place,
    shares_of,
)
from minikits.volumes import CANONICAL

pytest.importorskip("matplotlib")

SHAPE, SPACING_MM = (40, 64, 70), (5.0, 5.5, 5.5)
PNG = b"\x89PNG"


class Page(HTMLParser):
    """What stands on a page: {stage's title: {name: what is said of it}}, pictures, tags."""

    def __init__(self, text):
        super().__init__()
        self.stages, self.pictures, self.tags = {}, [], []
        self.attributes = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag == "img":
            self.pictures.append(dict(attributes))

    def handle_data(self, data):
        if self.tags[-1:] == ["h2"] and data.strip():
            self.numbers = self.stages.setdefault(data.partition(". ")[2], {})
        if self.tags[-1:] == ["th"] and data.strip():
            self.name = data
        if self.tags[-1:] == ["td"] and data.strip():
            self.numbers[self.name] = data

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")


def write_case(folder, image, labels, spacing_mm=SPACING_MM):
    write_image(folder / "imaging.nii.gz", image, spacing_mm)
    write_image(folder / "segmentation.nii.gz", labels, spacing_mm)
    return folder


def everything_in(folder):
    """{path: content} of all files of a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run(*arguments, expect=0): what the command prints, its error if it is refused."""
    monkeypatch.chdir(tmp_path)

    def of(*arguments, expect=0):
        monkeypatch.setattr("sys.argv", ["explain", *map(str, arguments)])
        if expect == 0:
            explain.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            explain.main()
        said = capsys.readouterr().err
        assert ended.value.code == expect
        assert said.startswith("explain: ") and said.count("\n") == 1
        return said

    return of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(image, labels) of a phantom, and the folder of its page, with a prediction."""
    folder = tmp_path_factory.mktemp("explain")
    image, labels, _ = make_case(3, shape=SHAPE, spacing_mm=SPACING_MM)
    assert (labels == 2).any()
    case = write_case(folder / "data" / "case_00210", image, labels)
    thin = {"spacing_z_mm": [1.0, 2.5], "spacing_y_mm": [0.5, 6.0]}
    put(folder / "runs" / "plain" / "fold0" / "checkpoint.pt", training_ranges=thin)
    before = everything_in(folder)

    with pytest.MonkeyPatch.context() as patched:
        places = ("--out", folder / "page", "--model", folder / "runs" / "plain")
        arguments = ("explain", case, *places, "--no-mirroring", "--device", "cpu")
        patched.setattr("sys.argv", list(map(str, arguments)))
        patched.setattr(stages, "pick_precision", lambda name, device: torch.float32)
        explain.main()

    assert {path: content for path, content in everything_in(folder).items() if path in before} == (
        before
    )  # inputs are never touched
    return image, labels, folder


@pytest.fixture(scope="module")
def page(made):
    return Page((made[2] / "page" / "index.html").read_text())


# --- each stage -----------------------------------------------------------------------------------


def test_every_stage_is_on_the_page_with_its_pictures(made, page):
    folder = made[2] / "page"

    assert list(page.stages) == [
        "What was read",
        "To the networks' grid",
        "Where patches are drawn",
        "What augmentation does",
        "What the networks see at each resolution",
        "The windows of a prediction",
        "Prediction",
    ]
    shown = [picture["src"] for picture in page.pictures]
    assert sorted([*shown, "index.html"]) == sorted(path.name for path in folder.iterdir())
    for name in shown:
        assert (folder / name).read_bytes().startswith(PNG)
    assert all(picture["alt"] for picture in page.pictures)


def test_the_page_has_no_scripts_and_no_links(made, page):
    text = (made[2] / "page" / "index.html").read_text()

    assert not {"script", "a", "link", "iframe", "form"} & set(page.tags)
    assert not {attribute for attribute in page.attributes if attribute.startswith("on")}
    assert "://" not in text


def test_what_was_read_is_told(made, page):
    image, labels, _ = made
    told = page.stages["What was read"]

    assert told["shape"] == "40 x 64 x 70 voxels"
    assert told["spacing"] == "5 5.5 5.5 mm"
    assert told["size"] == "200 x 352 x 385 mm"
    assert told["the file's axes run towards"] == "I P L"
    assert told["turned to Z Y X, towards"].startswith("I P L (Z is the file's axis 0;")
    assert told["values"] == f"{image.min()} to {image.max()} HU"
    assert told["first voxel lies at R A S"] == "0 0 0 mm"
    assert told["last voxel lies at R A S"] == "-379.5 -346.5 -195 mm"
    assert told["frame"].startswith("sform code 2, qform code 0; affine 0 0 -5.5 0;")
    for value, structure in ((1, "kidney"), (2, "tumor")):
        inside = image[labels == value]
        ml = len(inside) * 5 * 5.5 * 5.5 / 1000
        assert told[f"labels: {structure}"] == (
            f"{len(inside):,} voxels, {ml:.1f} ml, {inside.mean():.0f} HU on average, "
            f"standard deviation {inside.std():.0f}"
        )


def test_the_networks_grid_is_told(made, page):
    image, _, folder = made
    told = page.stages["To the networks' grid"]
    reference = read_labels(folder / "data" / "case_00210" / "segmentation.nii.gz")
    tumor = np.count_nonzero(prepare_labels(reference, TINY) == 2)

    # 40 * 5 / 8, 64 * 5.5 / 6 and 70 * 5.5 / 6, rounded
    assert told["shape"] == "40 x 64 x 70 -> 25 x 59 x 64"
    assert told["spacing"] == "5 5.5 5.5 -> 8 6 6 mm"
    assert told["image along Z, Y, X"] == "cubic, cubic, cubic"
    assert told["labels along Z, Y, X"] == "linear, linear, linear"
    assert told["clipped"] == (
        f"{(image < -79).mean():.1%} of the voxels from below, {(image > 304).mean():.1%} from above"
    )
    assert told["normalised"] == "(HU - 101) / 76.9"
    assert told["values"].endswith("(of -2.34 to 2.64)")
    assert told["tumor on this grid"] == f"{tumor:,} voxels, {tumor * 8 * 6 * 6 / 1000:.1f} ml"


def test_labels_there_and_back_are_scored(page):
    told = page.stages["To the networks' grid"]["Dice of the labels there and back"]
    kidney, tumor = map(float, re.findall(r"([\d.]+)%", told))

    assert 80 < kidney < 100
    assert 60 < tumor < 100


def test_patches_and_how_many_hold_a_structure_are_told(page):
    told = page.stages["Where patches are drawn"]

    assert told["patch"] == "16 x 32 x 32 voxels, 128 x 192 x 192 mm"
    assert told["first voxels inside the case"] == "0 to 9, 0 to 27, 0 to 32"  # of 25 x 59 x 64
    assert told["of a batch"] == "1 of 2 samples on foreground"
    assert re.fullmatch(r"\d+ hold kidney, \d+ hold tumor", told["100 patches anywhere"])
    assert re.fullmatch(r"\d+ hold kidney, \d+ hold tumor", told["100 patches on foreground"])


def test_all_patches_on_foreground_hold_it_of_others_few():
    labels = torch.zeros(8, 8, 400, dtype=torch.uint8)
    labels[2, 2, 200] = 2
    tumor = np.flatnonzero(labels == 2)
    case = PreparedCase("a", labels.half(), labels, (tumor[:0], tumor))
    recipe = dataclasses.replace(TINY, patch=(8, 8, 8))
    subject = Subject("a", None, None, case, recipe, seed=0)

    forced = drawn_starts(subject, forced=True)
    anywhere = drawn_starts(subject, forced=False)

    assert shares_of(case, forced, recipe.patch) == "0 hold kidney, 100 hold tumor"
    assert sum(193 <= x <= 200 for _, _, x in anywhere) < 10  # two of a hundred


def test_a_structure_is_held_by_the_patches_that_have_a_voxel_of_it():
    labels = torch.zeros(1, 1, 10, dtype=torch.uint8)
    labels[0, 0, 4], labels[0, 0, 9] = 1, 2
    case = PreparedCase("a", torch.zeros(1, 1, 10), labels, ())

    told = shares_of(case, [(0, 0, 0), (0, 0, 1), (0, 0, 8)], patch=(1, 1, 4))

    assert told == "1 hold kidney, 1 hold tumor"  # voxels 0 to 3, 1 to 4, 8 to 11


def test_augmentation_is_told_transform_by_transform(page):
    told = page.stages["What augmentation does"]
    lowest, highest = map(float, re.search(r"(-[\d.]+) to ([\d.]+)", told["patch"]).groups())
    structures = re.search(r"kidney [\d,]+; tumor [\d,]+", told["patch"])[0]

    assert list(told) == [
        "patch",
        "rotation about Z, 30 degrees",
        "rotation about X, 30 degrees",
        "scaling, 0.7",
        "scaling, 1.4",
        "noise, sd 0.1",
        "brightness, times 1.25",
        "contrast, times 1.25",
        "gamma 1.5, inverted",
        "gamma 1.5",
        "mirroring along X",
    ]
    brighter = f"{lowest * 1.25:.1f}"
    assert told["brightness, times 1.25"].startswith(brighter)
    assert told["contrast, times 1.25"].startswith(f"{lowest:.2f} to {highest:.2f}, ")
    for name, said in told.items():
        if not name.startswith(("rotation", "scaling")):
            assert structures in said


def test_scaled_structures_have_as_many_voxels_as_the_scale_says(page):
    told = page.stages["What augmentation does"]
    voxels = {}
    for name in ("patch", "scaling, 0.7", "scaling, 1.4"):
        voxels[name] = int(re.search(r"tumor ([\d,]+)", told[name])[1].replace(",", ""))

    assert voxels["scaling, 0.7"] == pytest.approx(voxels["patch"] / 0.7**3, rel=0.25)
    assert voxels["scaling, 1.4"] == pytest.approx(voxels["patch"] / 1.4**3, rel=0.25)


def test_each_resolution_is_told(made, page):
    told = page.stages["What the networks see at each resolution"]
    reference = read_labels(made[2] / "data" / "case_00210" / "segmentation.nii.gz")
    labels = torch.from_numpy(prepare_labels(reference, TINY))
    start = [int(side) for side in re.findall(r"-?\d+", first_voxel(page))]
    _, patch = cut_patch(torch.zeros(labels.shape), labels, tuple(start), TINY.patch)
    halved = patch[:, 1::2, 1::2]  # the first downsampling is in the plane alone

    assert list(told) == ["stage 0", "stage 1", "stage 2", "stage 3"]
    assert told["stage 0"].startswith(
        "16 x 32 x 32 voxels of 8 6 6 mm, maps 4 or 4; head of weight"
    )
    assert told["stage 1"] == (
        "16 x 16 x 16 voxels of 8 12 12 mm, maps 8 or 8; head of weight 0.333: "
        f"kidney {(halved == 1).sum():,}, tumor {(halved == 2).sum():,}"
    )
    assert "head of weight 0.000" in told["stage 2"]
    assert told["stage 3"] == "4 x 4 x 4 voxels of 32 48 48 mm, maps 8 or 8"


def first_voxel(page):
    """ "first voxel 1 x 2 x 3" of the patch that is shown."""
    return page.stages["What augmentation does"]["patch"].partition(";")[0]


def test_windows_are_told(page):
    told = page.stages["The windows of a prediction"]

    # of 25 x 59 x 64 voxels by windows of 16 x 32 x 32, at most half of that apart
    assert told["windows along Z begin at"] == "0, 4, 9"
    assert told["windows along Y begin at"] == "0, 14, 27"
    assert told["windows along X begin at"] == "0, 16, 32"
    assert told["windows"] == "27, seen 216 times with their mirror images"
    assert told["a voxel's weight"].startswith("1 in the middle of a window, ")


def test_the_prediction_is_that_of_the_networks(made, page):
    _, labels, folder = made
    scan = read_volume(folder / "data" / "case_00210" / "imaging.nii.gz")
    network = put(folder / "again" / "checkpoint.pt")
    mask = segment_volume(scan, [network], TINY, mirroring=False)
    kidney, tumor = kits_dice(mask, labels)
    told = page.stages["Prediction"]

    assert told["networks"] == "plain, fold 0"
    assert told["mirroring"] == "off"
    unlike = "spacing along Z, mm: 5, but 1 to 2.5 in training"
    assert told["unlike the training data"] == unlike
    assert told["Dice"] == f"kidney {kidney:.2%}, tumor {tumor:.2%}"
    ml = np.count_nonzero(mask == 2) * 5 * 5.5 * 5.5 / 1000
    assert told["tumor"].startswith(f"{ml:.1f} ml, highest probability ")
    assert "doubt" not in told


@pytest.mark.parametrize(
    "ranges, words",
    [
        ({}, "not known: no network says what it was trained on"),
        ({"spacing_z_mm": [1.0, 8.0]}, "in nothing that is measured"),
    ],
)
def test_a_case_that_is_not_known_to_be_unlike_the_training_has_a_line_too(tmp_path, ranges, words):
    put(tmp_path / "fold0" / "checkpoint.pt", training_ranges=ranges)
    members, recipe, _ = load_networks([tmp_path])
    write_image(tmp_path / "a.nii.gz", np.zeros((10, 20, 24), dtype=np.int16), (8.0, 6.0, 6.0))
    scan = read_volume(tmp_path / "a.nii.gz")
    prepared = explain.prepared_case("a", scan, None, recipe)
    subject = Subject("a", scan, None, prepared, recipe, 0)

    stage = stages.describe_prediction(subject, tmp_path, members, device=torch.device("cpu"))

    told = dict(stage.numbers)
    assert told["unlike the training data"] == words
    assert told["mirroring"] == "on: each window in 8 mirror images"


# --- whatever case --------------------------------------------------------------------------------


def test_a_phantom_is_explained_and_its_files_lie_beside_the_page(run, tmp_path):
    said = run("--phantom", 1, "--recipe", "demo")

    folder = tmp_path / "explained" / "phantom_1"
    assert said.splitlines()[-1] == "explained/phantom_1/index.html"
    image, labels, _ = make_case(1)
    assert np.array_equal(read_volume(folder / "phantom_1" / "imaging.nii.gz").voxels, image)
    told = Page((folder / "index.html").read_text()).stages
    assert told["What was read"]["labels: kidney"].startswith(f"{(labels == 1).sum():,} voxels")
    assert "Prediction" not in told


def test_the_same_body_in_another_orientation_gives_the_same_page(run, tmp_path):
    image, labels, _ = make_case(3, shape=(30, 40, 44), spacing_mm=(6.0, 8.0, 7.0))
    one = write_case(tmp_path / "one", image, labels, (6.0, 8.0, 7.0))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("imaging.nii.gz", "segmentation.nii.gz"):
        stored = nib.load(one / name)
        turn = ornt_transform(CANONICAL, axcodes2ornt("RSA"))
        stored.as_reoriented(turn).to_filename(other / name)

    run(one, "--recipe", "demo", "--out", "page_of_one")
    run(other, "--recipe", "demo", "--out", "page_of_other")

    told = Page((tmp_path / "page_of_one" / "index.html").read_text()).stages
    turned = Page((tmp_path / "page_of_other" / "index.html").read_text()).stages
    reading, turned_reading = told.pop("What was read"), turned.pop("What was read")
    assert turned == told
    assert turned_reading["the file's axes run towards"] == "R S A"
    assert turned_reading["turned to Z Y X, towards"] == (
        "I P L (Z is the file's axis 1, flipped; Y is the file's axis 2, flipped; "
        "X is the file's axis 0, flipped)"
    )
    for name in ("shape", "spacing", "first voxel lies at R A S", "labels: tumor"):
        assert turned_reading[name] == reading[name]
    for name in ("scan.png", "grid.png", "batches.png"):
        pictures = [tmp_path / page / name for page in ("page_of_one", "page_of_other")]
        assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_a_scan_without_labels_has_no_scores(run, tmp_path):
    image, labels, _ = make_case(3, shape=(30, 40, 44), spacing_mm=(6.0, 8.0, 7.0))
    write_case(tmp_path / "case", image, labels, (6.0, 8.0, 7.0))
    (tmp_path / "case" / "imaging.nii.gz").rename(tmp_path / "a_scan.nii.gz")

    run("a_scan.nii.gz", "--recipe", "demo")
    run(
        *("a_scan.nii.gz", "--labels", "case/segmentation.nii.gz"),
        *("--recipe", "demo", "--out", "with_labels"),
    )

    without = Page((tmp_path / "explained" / "a_scan" / "index.html").read_text()).stages
    with_labels = Page((tmp_path / "with_labels" / "index.html").read_text()).stages
    name = "Dice of the labels there and back"
    outlines = "Outlines are the labels that were given."
    assert outlines not in (tmp_path / "explained" / "a_scan" / "index.html").read_text()
    assert outlines in (tmp_path / "with_labels" / "index.html").read_text()
    assert name not in without["To the networks' grid"]
    assert name in with_labels["To the networks' grid"]
    assert "100 patches on foreground" not in without["Where patches are drawn"]
    assert "100 patches on foreground" in with_labels["Where patches are drawn"]


def test_what_is_doubtful_is_told(run, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (8, 30, 30)).astype(np.int16)
    write_image(tmp_path / "thin.nii.gz", image, (4.0, 8.0, 8.0))

    run("thin.nii.gz", "--recipe", "demo")

    text = (tmp_path / "explained" / "thin" / "index.html").read_text()
    doubts = re.findall(r"<th>doubt</th><td>(.*?)</td>", text)
    assert len(doubts) == 2
    assert "is this CT in HU?" in html.unescape(doubts[0])
    assert "covers 32 mm along Z" in doubts[1]


def test_a_name_that_looks_like_html_is_text(run, tmp_path):
    image = np.zeros((12, 30, 30), dtype=np.int16)
    write_image(tmp_path / "<b>a&b.nii.gz", image, (4.0, 8.0, 8.0))

    run("<b>a&b.nii.gz", "--recipe", "demo", "--out", "page")

    text = (tmp_path / "page" / "index.html").read_text()
    assert "<b>" not in text
    assert "<h1>&lt;b&gt;a&amp;b, stage by stage</h1>" in text


def test_options_for_files_that_would_be_refused_reach_the_reading(run, tmp_path):
    image = np.zeros((12, 30, 30), dtype=np.int16)
    write_image(tmp_path / "a.nii.gz", image, (4.0, 8.0, 8.0))
    stored = nib.load(tmp_path / "a.nii.gz")
    stored.set_qform(np.diag([3.0, 3.0, 3.0, 1.0]), 1)
    stored.to_filename(tmp_path / "b.nii.gz")

    assert "--affine" in run("b.nii.gz", expect=2)
    run("b.nii.gz", "--recipe", "demo", "--affine", "qform", "--out", "qform")
    run("b.nii.gz", "--recipe", "demo", "--assume-spacing", 5, 6, 7, "--out", "assumed")

    by_qform = Page((tmp_path / "qform" / "index.html").read_text()).stages["What was read"]
    assumed = Page((tmp_path / "assumed" / "index.html").read_text()).stages["What was read"]
    assert by_qform["spacing"] == "3 3 3 mm"
    assert assumed["spacing"] == "5 6 7 mm"
    assert "more than 100 voxels" in run("a.nii.gz", "--max-voxels", 100, expect=2)


# --- refusals -------------------------------------------------------------------------------------


def test_refusals_are_a_line_and_leave_nothing(run, tmp_path):
    image, labels, _ = make_case(3, shape=(12, 30, 30), spacing_mm=(6.0, 8.0, 8.0))
    one = write_case(tmp_path / "data" / "one", image, labels)
    write_case(tmp_path / "data" / "two", image, labels)
    write_case(tmp_path / "other", image, labels, (4.0, 5.0, 5.0))
    (tmp_path / "damaged.nii.gz").write_bytes(b"no scan")
    (tmp_path / "there").mkdir()
    before = everything_in(tmp_path)

    assert "either a case or --phantom" in run(expect=2)
    assert "either a case or --phantom" in run(one, "--phantom", 1, expect=2)
    assert "--phantom -1: wanted 0 or more" in run("--phantom", -1, expect=2)
    assert "a phantom has labels" in run("--phantom", 1, "--labels", one, expect=2)
    assert "2 cases found" in run(tmp_path / "data", expect=2)
    assert "no such file or folder" in run("absent", expect=2)
    assert "labels, but no image" in run(one / "segmentation.nii.gz", expect=2)
    assert "damaged.nii.gz" in run("damaged.nii.gz", expect=2)
    assert "wanted the same place" in run(
        one, "--labels", tmp_path / "other" / "segmentation.nii.gz", expect=2
    )
    assert "there: is there already" in run(one, "--out", "there", expect=2)
    assert "no such checkpoint" in run(one, "--model", "absent", expect=2)

    assert everything_in(tmp_path) == before
    assert not list(tmp_path.rglob(".*.part"))


def test_a_run_that_fails_halfway_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(subject, folder):
        assert (folder / "scan.png").exists()
        raise OSError("no space left on device")

    monkeypatch.setattr(explain, "STAGES", (*explain.STAGES[:1], fail))

    assert run("--phantom", 1, expect=2) == "explain: no space left on device\n"

    assert not list(tmp_path.rglob("*.*"))


def test_memory_that_runs_out_is_a_line(run, monkeypatch):
    def fail(subject, folder):
        raise MemoryError

    monkeypatch.setattr(explain, "STAGES", (fail,))

    assert "out of memory" in run("--phantom", 1, expect=2)


def test_an_error_of_ours_is_none_of_the_users(run, monkeypatch):
    def fail(subject, folder):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(explain, "STAGES", (fail,))

    with pytest.raises(RuntimeError, match="shapes"):
        run("--phantom", 1)


def test_without_matplotlib_a_line_says_what_to_do(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # its import fails

    said = run("--phantom", 1, expect=2)

    assert "matplotlib draws the pictures, and cannot be imported" in said
    assert "pip install matplotlib" in said
    assert not list(tmp_path.iterdir())


# --- places and panels ----------------------------------------------------------------------------


def test_the_planes_with_most_of_the_tumor_are_shown():
    labels = np.zeros((4, 5, 6), dtype=np.uint8)
    labels[0] = 1
    labels[2, 3, 1:3] = 2
    labels[1, 3, 1] = 2

    assert middle_of_most(labels) == (2, 3, 1)
    assert middle_of_most(np.minimum(labels, 1))[0] == 0
    assert middle_of_most(np.zeros((4, 5, 6))) == (2, 2, 3)


def test_the_same_place_is_in_the_voxel_that_holds_its_centre():
    assert same_place((0, 3, 9), (10, 10, 10), (5, 20, 10)) == (0, 7, 9)
    assert same_place((9, 9, 9), (10, 10, 10), (1, 3, 100)) == (0, 2, 95)


@pytest.mark.parametrize("plane", [AXIAL, CORONAL, SAGITTAL], ids=lambda plane: plane.name)
def test_the_letters_at_the_edges_are_those_of_the_axes(plane):
    towards = ornt2axcodes(CANONICAL)
    rows, columns = [axis for axis in range(3) if axis != plane.axis]
    opposite = dict(zip("RLAPSI", "LRPAIS"))

    assert (plane.bottom, plane.right) == (towards[rows], towards[columns])
    assert (plane.top, plane.left) == (opposite[plane.bottom], opposite[plane.right])


def test_a_panel_is_a_plane_at_its_proportions():
    voxels = np.arange(24).reshape(2, 3, 4)

    panel = panel_of(CORONAL, voxels, (5.0, 2.0, 1.0), (0, 1, 0), shown=(0, 1), labels=voxels)

    assert panel.values.tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]
    assert np.array_equal(panel.labels, panel.values)
    assert panel.mm == (5.0, 1.0)
    assert panel.title == "coronal, Y = 1"
    assert projected(panel, CORONAL, voxels).values.tolist() == voxels.mean(axis=1).tolist()
    assert in_plane(CORONAL, np.array([[7, 8, 9]])).tolist() == [[7, 9]]


def test_scores_that_do_not_exist_are_explained():
    nothing = np.zeros((2, 2, 2), dtype=np.uint8)
    scores = score_case("a", nothing, nothing)

    assert dice_in_words(scores).startswith("kidney -, neither mask nor reference has any kidney")
