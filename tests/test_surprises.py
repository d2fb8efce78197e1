"""The scripts behind docs/surprises.md, at a small size, and that its figures are the results'."""

import importlib.util
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

from minikits.nifti import write_image
from minikits.paper import ARCHITECTURES
from minikits.phantoms import make_case, write_case

RESULTS = (ROOT / "benchmarks" / "results" / "surprises.md").read_text()
PAGE = (ROOT / "docs" / "surprises.md").read_text()


def script(name):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def brightness():
    return script("surprise_brightness")


@pytest.fixture(scope="module")
def labels():
    return script("surprise_labels")


@pytest.fixture(scope="module")
def looks():
    sys.path.insert(0, str(ROOT / "benchmarks"))  # for its neighbour
    return script("surprise_looks")


@pytest.fixture(scope="module")
def patch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, *TINY.patch, generator=generator, dtype=torch.float64)
    target = (torch.rand(1, *TINY.patch, generator=generator) * 3).to(torch.uint8)
    return image, target


# --- a brighter scan ------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["plain", "residual"])
def test_two_networks_see_no_factor_but_for_eps(arch, brightness, patch):
    image, target = patch
    network = brightness.random_network(arch, TINY)

    assert 0 < brightness.change_of_logits(network, image, 1.5) < 1e-4
    assert brightness.change_of_logits(brightness.without_eps(network), image, 1.5) < 1e-12
    assert brightness.voxels_changed(network, image, 1.5) < 1e-3
    assert brightness.change_of_gradients(network, image, target, 1.5) < 1e-3


def test_times_two_without_a_bias_is_the_same_to_the_bit(brightness, patch):
    network = brightness.without_eps(brightness.random_network("residual", TINY))

    assert brightness.change_of_logits(network, patch[0], 2.0) == 0


def test_the_preactivation_network_sees_it(brightness, patch):
    image, target = patch
    network = brightness.random_network("preactivation", TINY)

    assert brightness.change_of_logits(network, image, 1.5) > 0.01
    assert brightness.change_of_gradients(network, image, target, 1.5) > 0.01


def test_contrast_is_seen_at_the_rim_and_where_it_clips(brightness, patch):
    network = brightness.random_network("plain", TINY)

    percent = [float(cell.rstrip("%")) for cell in brightness.contrast_row(network, patch[0], 1.25)]

    everywhere, inside, clipped, clipped_inside = percent
    assert brightness.contrast_row(network, patch[0], 1.0) == ["0.0%"] * 4
    assert inside < everywhere
    assert clipped > 0 and clipped_inside > 0


def test_no_weight_is_0_so_that_nothing_cancels_by_itself(brightness):
    for arch in ARCHITECTURES:
        for name, weight in brightness.random_network(arch, TINY).named_parameters():
            assert weight.abs().min() > 0, name


def test_the_patch_of_the_phantom_holds_a_kidney(brightness):
    image, target = brightness.patch_of_phantom(TINY)

    assert image.shape == (1, 1, *TINY.patch)
    assert target.shape == (1, *TINY.patch)
    assert (target > 0).any()


# --- perfect labels -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two cases of labels alone."""
    folder = tmp_path_factory.mktemp("labels")
    for seed in (3, 5):
        _, labels, spacing_mm = make_case(seed, shape=(30, 64, 70), spacing_mm=(6.0, 5.5, 5.5))
        write_image(folder / f"case_{seed}" / "segmentation.nii.gz", labels, spacing_mm)
    return folder


def test_at_their_own_spacing_labels_come_back_as_they_were(labels, folder):
    recipe = replace(TINY, spacing_mm=(6.0, 5.5, 5.5))

    scores = [score for score, _ in labels.scores_of(folder, recipe)]

    assert [score.case for score in scores] == ["case_3", "case_5"]
    assert all(score.kidney == 1 for score in scores)


def test_from_a_coarse_grid_they_come_back_worse_and_masks_in_part_better(labels, folder):
    recipe = replace(TINY, spacing_mm=(15.0, 12.0, 12.0))

    certain = [score.kidney for score, _ in labels.scores_of(folder, recipe)]
    in_part = [score.kidney for score, _ in labels.scores_of(folder, recipe, labels.in_part)]

    for rough, fine in zip(certain, in_part):
        assert 0.6 < rough < fine < 1


def test_without_labels_a_line_says_what_is_wanted(labels, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["surprise_labels.py", "--labels", str(tmp_path / "absent")])

    with pytest.raises(SystemExit) as ended:
        labels.main()

    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("wanted KiTS19's cases, or label files in them\n")


def test_real_labels_come_back_as_the_results_say(labels, kits19, tmp_path):
    (tmp_path / "case_00075").symlink_to(kits19 / "case_00075")

    ((score, _),) = labels.scores_of(tmp_path, labels.PAPER)

    assert f"{100 * score.kidney:.2f}" == "98.36"
    assert f"{100 * score.tumor:.2f}" == "95.34"


# --- another look ---------------------------------------------------------------------------------


class MarksAir(torch.nn.Module):
    """Calls what lies at the window's lower bound kidney, and all else background."""

    def forward(self, image):
        air = (image < -2.3).float()
        return torch.cat([1 - air, air, 0 * air], dim=1)


def test_what_lies_in_air_is_deleted_and_nothing_else(looks, tmp_path):
    image = np.zeros((8, 24, 24), np.int16)
    image[:, :8] = -1000  # air, where nothing is
    image[:, 16:] = -100  # fat, which is a kidney by the reference
    reference = np.zeros(image.shape, np.uint8)
    reference[:, 16:] = 1
    write_case(tmp_path / "case_0", (image, reference, (5.0, 5.0, 5.0)))

    scores = looks.scores_of_looks(
        MarksAir(), tmp_path, replace(TINY, spacing_mm=(5.0, 5.0, 5.0), patch=(16, 16, 16))
    )

    assert scores["each window once"][0, 0] == pytest.approx(2 / 3)  # half of it too much
    assert scores["what lies in air deleted"][0, 0] == 1
    assert scores["with mirroring"][0, 0] == pytest.approx(2 / 3)
    assert scores["windows weighted alike"][0, 0] == pytest.approx(2 / 3)


def test_looks_are_compared_with_the_first(looks):
    scores = {
        looks.ONCE: np.array([[0.5, 0.25], [0.7, np.nan]]),
        "other": np.array([[0.6, 0.5], [0.8, np.nan]]),
    }

    lines = looks.table(scores).splitlines()

    assert lines[2] == "| each window once | 60.0 |  | 25.0 |  |"
    assert lines[3] == "| other | 70.0 | +10.0 | 50.0 | +25.0 |"


# --- the page -------------------------------------------------------------------------------------


def test_the_pages_figures_are_those_of_the_results():
    kidney, tumor, worst = re.search(
        r"perfect labels, there and back \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", PAGE
    ).groups()
    certain = re.search(r"the training target, certain \| (.+) \|\n", RESULTS)[1].split(" | ")
    in_part = re.search(r"how much of each voxel .+? \| (.+) \|\n", RESULTS)[1].split(" | ")

    assert [kidney, tumor, worst] == [certain[0], certain[1], certain[3]]
    assert f"kidney would come back with {in_part[0]}, tumor with {in_part[1]}" in PAGE
    assert "| pre-activation | 20% | 3.6% |" in PAGE
    assert re.search(r"\| preactivation \| 1\.5 \| 2e-01 \| .+ \| 3\.6% \|", RESULTS)
    for way in ("each window once", "with mirroring", "windows weighted alike", "what lies in air"):
        (row,) = re.findall(rf"^\| {way}.*$", RESULTS, re.MULTILINE)
        assert row in PAGE
