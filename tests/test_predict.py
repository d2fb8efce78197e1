"""predict.py: which networks predict which scan, what its options reach, whose masks stay, and how
it is stopped."""

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, TORCHRUN, predict_volume, run_script

import predict
from minikits import prediction
from minikits.cases import five_folds
from minikits.checkpoints import find_checkpoints, save_checkpoint
from minikits.devices import exact_float32
from minikits.ensemble import load_networks
from minikits.evaluation import kits_dice
from minikits.fast import on_its_own
from minikits.files import claim, forgiving_output, typed_path
from minikits.nifti import read_labels, read_volume, write_image
from minikits.prediction import predict_probabilities, window_bytes
from minikits.preprocessing import label_orders, prepare_image
from minikits.ready import keep_memory, keep_on_device, set_up
from minikits.resampling import resample
from minikits.unet import build_unet

pytestmark = pytest.mark.usefixtures("no_scan_is_too_small")

SPACING = (8.0, 6.0, 6.0)  # of small scans: that of TINY, so that they are one window
QUICK = ("--no-mirroring", "--precision", "fp32", "--device", "cpu")


def put(path, arch="plain", fold="0", cases=((), ()), seed=0, **other):
    """A checkpoint of an untrained network whose last layer is loud enough for all three classes to
    win somewhere."""
    torch.manual_seed(seed)
    network = build_unet(arch, TINY)
    with torch.no_grad():
        network.heads[-1].weight.mul_(3)
    content = dict(
        arch=arch,
        recipe=asdict(TINY),
        fold=fold,
        seed=seed,
        epoch=2,
        log=[],
        optimizer={},
        cases=dict(zip(("train", "validation"), map(list, cases))),
        network=network.state_dict(),
    )
    save_checkpoint(path, **content | other)
    return network.eval()


def put_scan(path, seed=0, spacing_mm=SPACING, shape=(10, 20, 24)):
    voxels = np.random.default_rng(seed).integers(-400, 500, shape).astype(np.int16)
    write_image(path, voxels, spacing_mm)
    return path


@pytest.fixture
def here(monkeypatch):
    """predict.py in this process: here(*arguments, expect=0) gives its output, both streams. The
    folder is claimed for one run only, as if each had a process of its own."""
    monkeypatch.setattr(
        "minikits.masks.claim", lambda folder, doing: folder.mkdir(parents=True, exist_ok=True)
    )
    monkeypatch.setattr("minikits.ready.claim_memory", lambda device, needed=0: 2.0**34)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads of predict.py would each start a team

    def run(*arguments, expect=0):
        monkeypatch.setattr("sys.argv", ["predict.py", *map(str, arguments)])
        said = io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            pytest.raises(SystemExit) as ended,
        ):
            predict.main()
        assert (ended.value.code or 0) == expect, said.getvalue()
        return said.getvalue()

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)


@pytest.fixture
def scans(tmp_path):
    """Three small scans a, b, c."""
    for seed, name in enumerate("abc"):
        put_scan(tmp_path / "scans" / f"{name}.nii.gz", seed)
    return tmp_path / "scans"


@pytest.fixture
def run(tmp_path):
    """A run of one network, in runs/fold0; with it the network."""
    return tmp_path / "run", put(tmp_path / "run" / "fold0" / "checkpoint.pt")


SFORM_AND_SPACING = ["--affine", "sform", "--assume-spacing", "6.0", "5.0", "5.0"]


def quick(scans, masks, model):
    """Of the command line: as little work as there can be."""
    return ("--in", scans, "--out", masks, "--model", model, *QUICK)


def voxels_of(mask):
    return read_labels(mask).voxels


def wanted_mask(network, scan, **options):
    networks = network if isinstance(network, list) else [network]
    return predict_volume(networks, read_volume(scan), TINY, **{"mirroring": False, **options})


# --- which networks predict a case ----------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory):
    """(folder with plain/ and residual/ of folds 0 to 4, {(arch, fold): network}, the folds)."""
    out, networks = tmp_path_factory.mktemp("runs"), {}
    folds = five_folds([path.name for path in phantoms.iterdir()])
    for arch in ("plain", "residual"):
        for fold, cases in enumerate(folds):
            path = out / arch / f"fold{fold}" / "checkpoint.pt"
            networks[arch, fold] = put(path, arch, str(fold), cases, seed=10 * len(arch) + fold)
    return out, networks, folds


@pytest.fixture(scope="module")
def small(phantoms, tmp_path_factory):
    """A KiTS19 folder of small cases, named as the phantoms, of which `runs` has the folds."""
    out = tmp_path_factory.mktemp("small")
    for seed, path in enumerate(sorted(phantoms.iterdir())):
        put_scan(out / path.name / "imaging.nii.gz", seed)
        labels = np.random.default_rng(seed).integers(0, 3, (10, 20, 24)).astype(np.uint8)
        write_image(out / path.name / "segmentation.nii.gz", labels, SPACING)
    return out


def test_cross_validation_takes_the_networks_that_did_not_see_the_case(runs, small, tmp_path, here):
    out, networks, folds = runs
    arguments = ("--in", small, "--cross-validation", *QUICK, "--model")
    here(*arguments, out / "plain", "--out", tmp_path / "plain")
    here(*arguments, out / "plain", out / "residual", "--out", tmp_path / "ensemble")
    for fold, (_, validation) in enumerate(folds):
        for id in validation:
            scan = small / id / "imaging.nii.gz"
            for name, archs in (("plain", ["plain"]), ("ensemble", ["plain", "residual"])):
                wanted = wanted_mask([networks[arch, fold] for arch in archs], scan)
                found = voxels_of(tmp_path / name / f"{id}.nii.gz")
                assert np.array_equal(found, wanted)
                assert len(np.unique(wanted)) == 3
    printed = run_script(
        "evaluate.py",
        "--pred",
        tmp_path / "plain",
        tmp_path / "ensemble",
        "--ref",
        small,
        "--out",
        tmp_path / "report",
    )
    assert "were trained on" not in printed
    assert "97.34" in printed
    assert "97.43" in printed
    assert "(p " in printed
    compared = json.loads((tmp_path / "report" / "comparison.json").read_text())
    reference, mask = (
        read_labels(path).voxels
        for path in (
            small / "phantom_3" / "segmentation.nii.gz",
            tmp_path / "plain" / "phantom_3.nii.gz",
        )
    )
    assert f"{100 * kits_dice(mask, reference)[0]:.2f}" in printed
    assert sorted(compared["ranking"]) == ["ensemble", "plain"]
    assert (tmp_path / "report" / "plain" / "cases.csv").exists()


@pytest.fixture
def labelled(tmp_path):
    """A KiTS19 folder of five small cases c0 to c4."""
    for number in range(5):
        folder = tmp_path / "data" / f"c{number}"
        put_scan(folder / "imaging.nii.gz", number)
        write_image(folder / "segmentation.nii.gz", np.zeros((10, 20, 24), np.uint8), SPACING)
    return tmp_path / "data"


def put_folds(run, folds, arch="plain"):
    """Networks of folds {name: (trained on, held out)}, each of its own seed."""
    return {
        name: put(run / f"fold{name}" / "checkpoint.pt", arch, name, cases, seed)
        for seed, (name, cases) in enumerate(folds.items())
    }


def test_a_case_that_no_network_held_out_by_name_is_left_out(labelled, tmp_path, here):
    """c0 and c1 were held out; c2 was trained on; c3 and c4 are in no list, which does not say that
    they are unseen."""
    networks = put_folds(
        tmp_path / "run", {"0": (["c1", "c2"], ["c0"]), "1": (["c0", "c2"], ["c1"])}
    )

    said = here(*quick(labelled, tmp_path / "masks", tmp_path / "run"), "--cross-validation")

    assert "2 cases found, 3 left out" in said
    assert all(f"c{number} (held out from none of the networks)" in said for number in (2, 3, 4))
    assert sorted(path.name for path in (tmp_path / "masks").glob("*.gz")) == [
        "c0.nii.gz",
        "c1.nii.gz",
    ]
    for fold in "01":
        wanted = wanted_mask(networks[fold], labelled / f"c{fold}" / "imaging.nii.gz")
        assert np.array_equal(voxels_of(tmp_path / "masks" / f"c{fold}.nii.gz"), wanted)


@pytest.mark.parametrize(
    "folds, options",
    [
        (
            {"0": (["x1"], ["x0"]), "1": (["x0"], ["x1"])},
            (),
        ),  # the training cases under other names
        ({"all": (["c0", "c1", "c2", "c3", "c4"], [])}, ()),
        ({"all": ([], [])}, ()),  # nothing is known of it
        ({"0": (["c1"], ["c0"]), "all": ([], [])}, ("--folds", "all")),
        ({"0": (["c0"], ["c0"])}, ()),
    ],
)  # both trained on and held out
def test_cross_validation_without_a_held_out_case_is_refused(
    labelled, tmp_path, here, folds, options
):
    put_folds(tmp_path / "run", folds)

    said = here(
        *quick(labelled, tmp_path / "masks", tmp_path / "run"),
        "--cross-validation",
        *options,
        expect=2,
    )

    assert "nothing is left to cross-validate" in said
    assert "5 left out" in said
    assert not (tmp_path / "masks").exists()


def test_cases_of_unequal_numbers_of_networks_are_refused(labelled, tmp_path, here):
    both = {"0": (["c1"], ["c0"]), "1": (["c0"], ["c1"])}
    put_folds(tmp_path / "plain", both)
    put_folds(tmp_path / "residual", {"0": both["0"]}, "residual")
    arguments = (
        "--cross-validation",
        "--in",
        labelled,
        "--out",
        tmp_path / "masks",
        *QUICK,
        "--model",
        tmp_path / "plain",
        tmp_path / "residual",
    )

    (tmp_path / "residual" / "fold1").mkdir()  # it was only begun
    said = here(*arguments, expect=2)

    assert (
        "1 case was held out by 2 networks (plain, residual), but 1 by others: c1 by 1 (plain); name"
        in said
    )
    assert not (tmp_path / "masks").exists()
    assert "1 case found" in here(*arguments, "--folds", 0)


def test_cases_of_networks_of_different_architectures_are_refused(labelled, tmp_path, here):
    """As many networks for each case, but the scores would be of two methods."""
    put_folds(tmp_path / "plain", {"0": (["c1"], ["c0"])})
    put_folds(tmp_path / "residual", {"1": (["c0"], ["c1"])}, "residual")

    said = here(
        "--cross-validation",
        "--in",
        labelled,
        "--out",
        tmp_path / "masks",
        *QUICK,
        "--model",
        tmp_path / "plain",
        tmp_path / "residual",
        expect=2,
    )

    assert (
        "1 case was held out by 1 network (plain), but 1 by others: c1 by 1 (residual); name"
        in said
    )


def test_networks_may_be_named_one_by_one(labelled, tmp_path, here):
    """Each with an option of its own, as other tools want it: none takes another's place."""
    put_folds(tmp_path / "one", {"0": (["c1"], ["c0"])})
    put_folds(tmp_path / "two", {"0": (["c1"], ["c0"])}, "residual")
    one_by_one = ("--model", tmp_path / "one", "--model", tmp_path / "two")

    here("--in", labelled, "--out", tmp_path / "masks", *QUICK, *one_by_one)

    record = json.loads((tmp_path / "masks" / "prediction.json").read_text())
    assert len(record["networks"]) == 2


def test_a_name_too_long_for_a_mask_is_left_out_and_the_others_go_on(run, tmp_path, here):
    put_scan(tmp_path / "in" / "ok.nii.gz")
    put_scan(tmp_path / "in" / f"{'n' * 245}.nii")

    said = here(*quick(tmp_path / "in", tmp_path / "masks", run[0]))

    assert "1 case found, 1 left out" in said
    assert "(its mask's name would be too long)" in said
    assert (tmp_path / "masks" / "ok.nii.gz").exists()


def test_labels_beside_images_are_no_place_for_masks(run, tmp_path, here):
    put_scan(tmp_path / "in" / "images" / "a.nii.gz")

    said = here(*quick(tmp_path / "in", tmp_path / "in" / "labels", run[0]), expect=2)

    assert "scans or labels lie there" in said
    assert not (tmp_path / "in" / "labels").exists()


def test_probabilities_go_with_the_mask_that_was_deleted(run, tmp_path, here):
    for name in ("a", "b"):
        put_scan(tmp_path / "in" / f"{name}.nii.gz")
    arguments = quick(tmp_path / "in", tmp_path / "masks", run[0])
    here(*arguments, "--probabilities")
    (tmp_path / "in" / "a.nii.gz").unlink()
    (tmp_path / "masks" / "a.nii.gz").unlink()

    here(*arguments)
    here(*arguments)  # is not refused for files of its own

    left = {path.name for path in (tmp_path / "masks" / "probabilities").iterdir()}
    assert left == {"b_entropy.nii.gz", "b_kidney.nii.gz", "b_tumor.nii.gz"}


@pytest.mark.parametrize("numbers", [[5], [-1], [True], "0"])
def test_a_record_of_networks_that_are_not_there_is_refused(run, tmp_path, here, numbers):
    put_scan(tmp_path / "in" / "a.nii.gz")
    arguments = quick(tmp_path / "in", tmp_path / "masks", run[0])
    here(*arguments)
    record = json.loads((tmp_path / "masks" / "prediction.json").read_text())
    record["scans"]["a.nii.gz"]["networks"] = numbers
    (tmp_path / "masks" / "prediction.json").write_text(json.dumps(record))

    assert "not as this predict.py writes it" in here(*arguments, expect=2)


def test_an_empty_path_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="an empty path"):
        typed_path(" ")


def test_trained_on_is_what_the_networks_behind_the_masks_saw(labelled, tmp_path, here):
    """In cross-validation less what each mask's own networks held out."""
    put_folds(tmp_path / "run", {"0": (["c1", "c2"], ["c0"]), "1": (["c0", "c2", "far"], ["c1"])})
    given = ("--in", labelled, *QUICK, "--model", tmp_path / "run", "--out")

    here(*given, tmp_path / "all")
    here(*given, tmp_path / "crossed", "--cross-validation")
    here(*given, tmp_path / "one", "--cross-validation", "--folds", 0)

    told = {
        name: json.loads((tmp_path / name / "prediction.json").read_text())
        for name in ("all", "crossed", "one")
    }
    assert told["all"]["trained_on"] == ["c0", "c1", "c2", "far"]
    assert not told["all"]["cross_validation"]
    assert told["crossed"]["trained_on"] == ["c2", "far"]
    assert told["crossed"]["cross_validation"]
    assert told["one"]["trained_on"] == ["c1", "c2"]
    assert told["all"]["scans"]["c0.nii.gz"]["networks"] == [0, 1]
    assert told["crossed"]["scans"]["c1.nii.gz"]["networks"] == [1]
    assert [network["held_out"] for network in told["crossed"]["networks"]] == [["c0"], ["c1"]]
    assert [network["trained_on"] for network in told["crossed"]["networks"]] == [
        ["c1", "c2"],
        ["c0", "c2", "far"],
    ]


def test_the_keys_of_prediction_json_stay(scans, run, tmp_path, here):
    """evaluate.py and other people's scripts read it by these names."""
    folder, _ = run

    here(*quick(scans, tmp_path / "masks", folder))

    told = json.loads((tmp_path / "masks" / "prediction.json").read_text())

    assert list(told) == [
        *("networks", "mirroring", "precision", "cross_validation", "probabilities"),
        *("affine", "assume_spacing", "trained_on", "scans"),
    ]
    assert list(told["networks"][0]) == [
        *("arch", "fold", "seed", "epoch", "epochs", "weights", "trained_on", "held_out")
    ]
    assert set(next(iter(told["scans"].values()))) == {
        *("scan", "case", "mask", "networks", "affine", "assume_spacing", "findings")
    }


def test_cross_validation_by_parts_is_one(labelled, tmp_path, here):
    """A case predicted earlier is held out still: its id is not among those trained on."""
    put_folds(tmp_path / "run", {"0": (["c1"], ["c0"]), "1": (["c0"], ["c1"])})
    for id in ("c0", "c1"):
        here(*quick(labelled / id, tmp_path / "masks", tmp_path / "run"), "--cross-validation")

    told = json.loads((tmp_path / "masks" / "prediction.json").read_text())
    assert told["trained_on"] == []
    assert sorted(told["scans"]) == ["c0.nii.gz", "c1.nii.gz"]


def test_a_cross_validation_ends_with_the_command_that_scores_its_masks(labelled, tmp_path, here):
    put_folds(tmp_path / "run", {"0": (["c1"], ["c0"]), "1": (["c0"], ["c1"])})
    given = quick(labelled, tmp_path / "my masks", tmp_path / "run")

    options = [*SFORM_AND_SPACING, "--max-voxels", "1000000"]
    said = here(*given, "--cross-validation", *options)

    told, _, command = said.splitlines()[-1].partition(": ")
    assert told == "what they score, worst cases first"
    words = shlex.split(command)
    assert words[:2] == ["python", "evaluate.py"]
    assert words[-9:] == ["--allow-missing", *options]
    printed = run_script(ROOT / "evaluate.py", *words[2:], cwd=tmp_path)
    assert "2 cases found, 3 left out: c2 (no mask)" in printed
    assert (tmp_path / "report" / "index.html").exists()

    assert "evaluate.py" not in here(*given, "--overwrite")


# --- which networks a run has ---------------------------------------------------------------------


def touch(run, *folders):
    for folder in folders:
        (run / folder).mkdir(parents=True)
        (run / folder / "checkpoint.pt").touch()


def folders(paths):
    return [path.parent.name for path in paths]


def test_folds_are_numbered_folders_in_their_order(tmp_path):
    touch(
        tmp_path,
        "fold10",
        "fold2",
        "fold0",
        "fold0_old",
        "fold0.bak",
        "fold01",
        "fold",
        "folds",
        "old",
        "fold-1",
        "fold1 copy",
        "FOLD3",
    )
    (tmp_path / "fold4").mkdir()  # without a checkpoint yet
    assert folders(find_checkpoints(tmp_path)) == ["fold0", "fold2", "fold10"]


def test_the_network_of_all_cases_is_not_averaged_with_those_of_folds(tmp_path):
    touch(tmp_path, "fold0", "fold7", "foldall")
    with pytest.raises(ValueError, match="choose with --folds 0 7 or --folds all"):
        find_checkpoints(tmp_path)
    assert folders(find_checkpoints(tmp_path, ["all"])) == ["foldall"]
    assert folders(find_checkpoints(tmp_path, ["7", "0"])) == ["fold7", "fold0"]
    for fold in (0, 7):
        shutil.rmtree(tmp_path / f"fold{fold}")
    assert folders(find_checkpoints(tmp_path)) == ["foldall"]


def test_a_folds_own_folder_is_a_run_too(tmp_path):
    touch(tmp_path, "fold3")
    assert find_checkpoints(tmp_path / "fold3") == find_checkpoints(tmp_path)


def test_a_fold_named_twice_is_refused(tmp_path):
    touch(tmp_path, "fold1", "fold2")
    with pytest.raises(ValueError, match="1 is named twice, and would count twice"):
        find_checkpoints(tmp_path, ["1", "2", "1"])


@pytest.mark.parametrize(
    "text, fold",
    [
        ("0", "0"),
        ("05", "5"),
        ("17", "17"),
        ("all", "all"),
        ("-1", None),
        ("ALL", None),
        ("1.0", None),
        ("", None),
        ("0_old", None),
    ],
)
def test_folds_as_typed(text, fold):
    if fold is None:
        with pytest.raises(
            predict.argparse.ArgumentTypeError, match="wanted a fold's number, 0 or more, or all"
        ):
            predict.fold_name(text)
    else:
        assert predict.fold_name(text) == fold


def test_any_fold_can_be_chosen_and_no_other_is_taken(scans, tmp_path, here):
    networks = put_folds(tmp_path / "run", {"0": ((), ()), "11": ((), ()), "all": ((), ())})
    for fold in ("11", "all"):
        here(*quick(scans / "a.nii.gz", tmp_path / fold, tmp_path / "run"), "--folds", fold)
        assert np.array_equal(
            voxels_of(tmp_path / fold / "a.nii.gz"), wanted_mask(networks[fold], scans / "a.nii.gz")
        )
    assert "choose with --folds" in here(
        "--in", scans, "--out", tmp_path / "no", "--model", tmp_path / "run", expect=2
    )


def by_link(run):
    (run.parent / "link").symlink_to(run)
    return run.parent / "link"


def by_copy(run):
    return shutil.copytree(run, run.parent / "copy")


@pytest.mark.parametrize(
    "again",
    [
        lambda run: run,
        lambda run: run / ".." / run.name,
        lambda run: run / "fold0",
        by_link,
        by_copy,
    ],
)
def test_a_network_that_comes_twice_is_refused(scans, run, tmp_path, here, again):
    model, _ = run
    said = here(
        "--in", scans, "--out", tmp_path / "masks", "--model", model, again(model), *QUICK, expect=2
    )
    assert "the same network as" in said
    assert "would count twice" in said
    assert not (tmp_path / "masks").exists()


def test_a_copy_that_is_no_fold_is_named_and_not_averaged(scans, tmp_path, here):
    network = put(tmp_path / "run" / "fold0" / "checkpoint.pt")
    put(tmp_path / "run" / "fold0_old" / "checkpoint.pt", seed=5)
    said = here(*quick(scans, tmp_path / "masks", tmp_path / "run"))
    assert "left out, since they are no folds: fold0_old" in said
    assert np.array_equal(
        voxels_of(tmp_path / "masks" / "b.nii.gz"), wanted_mask(network, scans / "b.nii.gz")
    )


def test_a_network_that_was_stopped_early_is_named(scans, tmp_path, here):
    recipe = dataclasses.replace(TINY, epochs=1000)
    put(tmp_path / "run" / "fold0" / "checkpoint.pt", recipe=asdict(recipe), epoch=22)
    put(tmp_path / "run" / "fold1" / "checkpoint.pt", fold="1", seed=1)
    put(tmp_path / "imported" / "fold0" / "checkpoint.pt", fold="imported", seed=2, epoch=1)
    said = here(
        "--in",
        scans,
        "--out",
        tmp_path / "masks",
        "--model",
        tmp_path / "run",
        tmp_path / "imported",
        *QUICK,
    )
    assert said.count("warning:") - said.count("CT in HU") == 1
    assert "its training was stopped after 22 of 1000 epochs" in said
    told = json.loads((tmp_path / "masks" / "prediction.json").read_text())["networks"]
    assert [(network["epoch"], network["epochs"]) for network in told] == [
        (22, 1000),
        (2, 2),
        (1, None),
    ]


def test_a_network_that_saw_phantoms_alone_is_named(tmp_path):
    phantoms, mixed = ["phantom_000", "phantom_001"], ["phantom_000", "case_00000"]
    for fold, cases in enumerate((phantoms, mixed)):
        path = tmp_path / f"fold{fold}" / "checkpoint.pt"
        put(path, fold=str(fold), seed=fold, cases=(cases, []))

    _, _, said = load_networks([tmp_path])

    (line,) = [line for line in said if "phantoms" in line]
    first = tmp_path / "fold0" / "checkpoint.pt"
    assert line == f"warning: {first}: trained on phantoms alone: of no use on patients"


def test_a_fold_in_another_folds_folder_is_named(tmp_path):
    put(tmp_path / "fold3" / "checkpoint.pt", fold="0")
    _, _, said = load_networks([tmp_path], None)
    assert "lies in fold3, but is of fold 0" in said[-1]


def test_a_networks_seed_and_epoch_are_told(tmp_path):
    put(tmp_path / "fold0" / "checkpoint.pt", seed=7, epoch=1)

    (member,), _, _ = load_networks([tmp_path], None)

    assert (member.seed, member.epoch, member.epochs) == (7, 1, TINY.epochs)


def test_networks_wait_on_the_cpu_ready_to_predict(runs):
    members, recipe, _ = load_networks([runs[0] / "plain"], ["1", "2"])
    assert recipe == TINY
    assert len(members) == 2
    for member in members:
        assert not any(module.training for module in member.network.modules())


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path, strange):
    path = tmp_path / "fold0" / "checkpoint.pt"
    weights = build_unet("plain", TINY).state_dict()
    list(weights.values())[-1].view(-1)[-1] = strange
    put(path, network=weights)
    with pytest.raises(ValueError, match="weights that are NaN or infinite"):
        load_networks([tmp_path], None)


# --- what the options reach -----------------------------------------------------------------------


def test_probabilities_open_with_other_tools_and_are_those_of_the_networks(
    runs, small, tmp_path, here
):
    out, networks, _ = runs
    scan = small / "phantom_2" / "imaging.nii.gz"
    here(*quick(scan, tmp_path, out / "plain"), "--probabilities", "--folds", 1, 2)
    volume = read_volume(scan)
    both = [networks["plain", fold] for fold in (1, 2)]
    wanted = predict_probabilities(both, prepare_image(volume, TINY), TINY, False)
    masks = np.asarray(nib.load(next(tmp_path.glob("*.nii.gz"))).dataobj)
    for value, name in ((1, "kidney"), (2, "tumor")):
        image = nib.load(next((tmp_path / "probabilities").glob(f"*_{name}.nii.gz")))
        native = resample(wanted[value], volume.voxels.shape, label_orders(volume.spacing_mm))
        found = read_volume(image.get_filename())
        assert np.abs(found.voxels - native).max() < 0.5 / 255 + 1e-5
        assert found.voxels.max() <= 1
        assert np.allclose(image.affine, volume.affine)
        assert image.get_data_dtype() == np.uint8
        assert np.abs(image.get_fdata().max() - native.max()) < 0.003
        assert (image.get_fdata()[masks == value] > 1 / 3 - 0.003).all()


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.nii.gz"))}


def test_the_entropy_is_that_of_the_averaged_probabilities(runs, small, tmp_path, here):
    out, networks, _ = runs
    scan = small / "phantom_2" / "imaging.nii.gz"
    here(*quick(scan, tmp_path, out / "plain"), "--probabilities", "--folds", 1, 2)
    volume = read_volume(scan)
    both = [networks["plain", fold] for fold in (1, 2)]
    p = predict_probabilities(both, prepare_image(volume, TINY), TINY, False).numpy()
    coarse = -(p * np.log(p)).sum(axis=0) / np.log(3)

    image = nib.load(next((tmp_path / "probabilities").glob("*_entropy.nii.gz")))

    native = resample(coarse, volume.voxels.shape, label_orders(volume.spacing_mm))
    assert np.abs(read_volume(image.get_filename()).voxels - native).max() < 0.5 / 255 + 1e-5
    assert image.get_data_dtype() == np.uint8
    assert 0.3 < native.max() <= 1


def test_probabilities_that_lack_are_made_later(scans, run, tmp_path, here):
    given = ("--in", scans, "--model", run[0], *QUICK, "--out")
    here(*given, tmp_path / "at once", "--probabilities")
    here(*given, tmp_path / "later")
    told = json.loads((tmp_path / "later" / "prediction.json").read_text())
    assert told["probabilities"] is False

    said = here(*given, tmp_path / "later", "--probabilities")

    assert said.count("has no probabilities yet") == 3
    assert bytes_of(tmp_path / "later") == bytes_of(tmp_path / "at once")
    assert json.loads((tmp_path / "later" / "prediction.json").read_text())["probabilities"] is True
    (tmp_path / "later" / "probabilities" / "b_tumor.nii.gz").unlink()
    said = here(*given, tmp_path / "later", "--probabilities")
    assert "2 of 3 scans have a mask already" in said
    assert "(1 of 1, " in said
    assert bytes_of(tmp_path / "later") == bytes_of(tmp_path / "at once")


@pytest.mark.parametrize("name, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_precision_asked_for_is_the_one_used_and_told(scans, run, tmp_path, here, name, dtype):
    here(
        *quick(scans / "a.nii.gz", tmp_path / "masks", run[0]),
        "--probabilities",
        "--precision",
        name,
    )

    assert (
        json.loads((tmp_path / "masks" / "prediction.json").read_text())["precision"]
        == str(dtype)[6:]
    )
    volume = read_volume(scans / "a.nii.gz")
    close = {}
    for tried in (torch.float32, torch.bfloat16):
        network = on_its_own(run[1], torch.device("cpu"), tried)  # another form rounds otherwise
        wanted = predict_probabilities(
            [network], prepare_image(volume, TINY), TINY, False, precision=tried
        )[1]
        native = np.rint(
            255 * resample(wanted, volume.voxels.shape, label_orders(volume.spacing_mm))
        )
        found = nib.load(
            tmp_path / "masks" / "probabilities" / "a_kidney.nii.gz"
        ).dataobj.get_unscaled()
        close[tried] = np.abs(
            read_volume(tmp_path / "masks" / "probabilities" / "a_kidney.nii.gz").voxels * 255
            - native
        ).mean()
        assert found.dtype == np.uint8
    assert close[dtype] < 0.01 < max(close.values())


def test_auto_tells_what_it_took(scans, run, tmp_path, here, monkeypatch):
    monkeypatch.setattr("minikits.ready.pick_precision", lambda name, device: torch.bfloat16)
    here(
        "--in", scans / "a.nii.gz", "--out", tmp_path / "masks", "--model", run[0], "--no-mirroring"
    )
    assert (
        json.loads((tmp_path / "masks" / "prediction.json").read_text())["precision"] == "bfloat16"
    )


def test_mirroring_is_left_out_where_asked(scans, run, tmp_path, here):
    given = (
        "--in",
        scans / "a.nii.gz",
        "--model",
        run[0],
        "--precision",
        "fp32",
        "--device",
        "cpu",
        "--out",
    )
    here(*given, tmp_path / "eight")
    here(*given, tmp_path / "one", "--no-mirroring")
    for name, mirroring in (("eight", True), ("one", False)):
        wanted = wanted_mask(run[1], scans / "a.nii.gz", mirroring=mirroring)
        assert np.array_equal(voxels_of(tmp_path / name / "a.nii.gz"), wanted)
        assert (
            json.loads((tmp_path / name / "prediction.json").read_text())["mirroring"] is mirroring
        )
    assert not np.array_equal(
        voxels_of(tmp_path / "one" / "a.nii.gz"), voxels_of(tmp_path / "eight" / "a.nii.gz")
    )


def put_two_frames(path):
    """A scan whose sform and qform lie 40 mm apart."""
    image = nib.load(put_scan(path))
    moved = image.affine.copy()
    moved[0, 3] += 40
    image.header.set_qform(moved, 1)
    image.header.set_sform(image.affine, 1)
    voxels = np.asarray(image.dataobj)
    nib.Nifti1Image(voxels, None, image.header).to_filename(path)
    return path


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_the_affine_asked_for_reaches_the_reader(run, tmp_path, here, form):
    scan = put_two_frames(tmp_path / "scan.nii.gz")
    given = quick(scan, tmp_path / "masks", run[0])
    assert "--affine" in here(*given, expect=2)

    here(*given, "--affine", form)

    wanted = read_volume(scan, affine=form).affine
    assert np.allclose(nib.load(tmp_path / "masks" / "scan.nii.gz").affine, wanted)
    assert json.loads((tmp_path / "masks" / "prediction.json").read_text())["affine"] == form
    here("--in", put_scan(tmp_path / "other.nii.gz"), *given[2:])
    told = json.loads((tmp_path / "masks" / "prediction.json").read_text())["scans"]
    assert told["scan.nii.gz"]["affine"] == form
    assert told["other.nii.gz"]["affine"] is None


def test_a_spacing_that_is_assumed_reaches_the_reader(run, tmp_path, here):
    scan = put_scan(tmp_path / "scan.nii.gz")
    here(*quick(scan, tmp_path / "masks", run[0]), "--assume-spacing", 5, 4, 3)

    assert np.allclose(
        nib.affines.voxel_sizes(nib.load(tmp_path / "masks" / "scan.nii.gz").affine), [5, 4, 3]
    )
    assert json.loads((tmp_path / "masks" / "prediction.json").read_text())["assume_spacing"] == [
        5,
        4,
        3,
    ]
    wanted = predict_volume(
        [run[1]], read_volume(scan, assume_spacing=(5, 4, 3)), TINY, mirroring=False
    )
    assert np.array_equal(voxels_of(tmp_path / "masks" / "scan.nii.gz"), wanted)


@pytest.mark.parametrize("option", [("--assume-spacing", 5, 4, 3), ("--affine", "sform")])
def test_a_mask_of_another_reading_does_not_stay_unsaid(scans, run, tmp_path, here, option):
    given = quick(scans, tmp_path / "masks", run[0])
    here(*given)
    before = bytes_of(tmp_path / "masks")

    said = here(*given, *option, expect=2)

    assert f"3 masks (a.nii.gz, b.nii.gz, c.nii.gz) were made with another {option[0]}" in said
    assert bytes_of(tmp_path / "masks") == before
    assert "have a mask" not in here(*given, *option, "--overwrite")
    assert here(*given, *option).count("3 of 3 scans have a mask already") == 1


def put_scan_of_two_frames(path):
    """Its sform and its qform differ: predict.py wants --affine for it."""
    image = nib.load(put_scan(path))
    moved = image.affine.copy()
    moved[0, 3] += 9  # mm
    image.set_qform(moved, 1)
    nib.save(image, path)


def test_a_scan_that_wanted_an_option_keeps_its_mask_where_none_is_given(
    scans, run, tmp_path, here
):
    """Of four scans one is rescued with --affine, by itself; the folder goes on without."""
    out = tmp_path / "masks"
    given = quick(scans, out, run[0])
    put_scan_of_two_frames(scans / "odd.nii.gz")
    assert "--affine" in here(*given, expect=2)
    alone = ("--in", scans / "odd.nii.gz", *given[2:])
    here(*alone, "--affine", "sform")
    rescued = bytes_of(out)

    said = here(*given)

    assert "4 of 4 scans have a mask already" in said
    assert bytes_of(out) == rescued
    told = json.loads((out / "prediction.json").read_text())["scans"]
    assert told["odd.nii.gz"]["affine"] == "sform"
    assert told["a.nii.gz"]["affine"] is None
    said = here(*alone, "--affine", "qform", expect=2)
    assert "1 mask (odd.nii.gz) was made with another --affine" in said
    assert bytes_of(out) == rescued


def test_probabilities_of_a_scan_that_wanted_an_option_are_not_made_without(run, tmp_path, here):
    out = tmp_path / "masks"
    put_scan_of_two_frames(tmp_path / "scans" / "odd.nii.gz")
    given = quick(tmp_path / "scans", out, run[0])
    here(*given, "--affine", "sform")
    before = bytes_of(out)

    said = here(*given, "--probabilities", expect=2)

    assert "odd.nii.gz: has no probabilities yet, and was made with --affine sform" in said
    assert bytes_of(out) == before
    here(*given, "--probabilities", "--affine", "sform")
    assert len(bytes_of(out)) == 4


@pytest.mark.parametrize(
    "typed",
    [
        ("0", "1", "1"),
        ("1", "nan", "1"),
        ("1", "1", "-3"),
        ("inf", "1", "1"),
        ("1e400", "1", "1"),
        ("1", "x", "1"),
        ("100", "1", "1"),
        ("1", "0.01", "1"),
    ],
)
def test_a_spacing_that_is_none_is_refused_by_what_is_wrong(scans, run, tmp_path, here, typed):
    said = here(
        "--in",
        scans,
        "--out",
        tmp_path / "masks",
        "--model",
        run[0],
        "--assume-spacing",
        *typed,
        expect=2,
    )
    line = said.splitlines()[-1]
    wrong = next(text for text in typed if text != "1")
    assert line == (
        f"predict.py: error: argument --assume-spacing: {wrong}: wanted a length in mm, more than 0.01 and "
        "less than 100"
    )


@pytest.mark.parametrize("typed", ["0", "-1", "1.5", "all"])
def test_a_number_of_voxels_that_is_none_is_refused(scans, run, tmp_path, here, typed):
    said = here(
        "--in", scans, "--out", tmp_path / "m", "--model", run[0], f"--max-voxels={typed}", expect=2
    )
    assert f"argument --max-voxels: {typed}: wanted a number of voxels, 1 or more" in said


def test_the_limit_of_voxels_reaches_the_reader(scans, run, tmp_path, here):
    put_scan(scans / "large.nii.gz", shape=(10, 20, 25))
    said = here(*quick(scans, tmp_path / "m", run[0]), "--max-voxels", 4800, expect=2)
    assert "large.nii.gz: shape (10, 20, 25) found, more than 4800 voxels" in said
    assert sorted(bytes_of(tmp_path / "m")) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_volumes_are_those_of_the_voxels_also_where_they_are_sheared(run, tmp_path, here):
    """A gantry tilted by 0.4 rad: a voxel has the determinant's volume, not its sides' product."""
    scan = tmp_path / "scan.nii.gz"
    voxels = np.random.default_rng(0).integers(-400, 500, (10, 20, 24)).astype(np.int16)
    affine = np.array(
        [[0, 0, -5.5, 7], [6 * np.sin(0.4), -5.5, 0, 5], [-6 * np.cos(0.4), 0, 0, 2], [0, 0, 0, 1]]
    )
    nib.Nifti1Image(voxels, affine).to_filename(scan)

    said = here(*quick(scan, tmp_path / "masks", run[0]))

    mask = np.asarray(nib.load(tmp_path / "masks" / "scan.nii.gz").dataobj)
    kidney, tumor = ((mask == value).sum() * 6 * np.cos(0.4) * 5.5 * 5.5 / 1000 for value in (1, 2))
    assert min(kidney, tumor) > 20
    assert f"scan: kidney {kidney:.0f} ml, tumor {tumor:.0f} ml" in said


def test_a_tilde_is_the_home_folder(scans, run, tmp_path, here, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scans, tmp_path / "home" / "in")
    shutil.copytree(run[0], tmp_path / "home" / "run")
    here("--in=~/in", "--out=~/masks", "--model=~/run", *QUICK)
    assert len(bytes_of(tmp_path / "home" / "masks")) == 3
    assert not (tmp_path / "~").exists()
    with pytest.raises(predict.argparse.ArgumentTypeError, match="~nobody-of-this-name/x: "):
        typed_path("~nobody-of-this-name/x")
    assert typed_path("a~b") == Path("a~b")
    assert typed_path("./~") == Path("~")


def test_float32_is_exact_whatever_was_set_before():
    backends = torch.backends
    parts = [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    ]

    def short_by_old_switches():
        torch.set_float32_matmul_precision("medium")
        backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = True

    def short_by_new_switches():
        for part in parts:
            part.fp32_precision = "tf32"

    for disturb in (short_by_old_switches, short_by_new_switches):
        disturb()
        exact_float32()
        assert [part.fp32_precision for part in parts] == ["ieee"] * 6
        assert torch.get_float32_matmul_precision() == "highest"
        assert not backends.cudnn.allow_tf32
        assert not backends.cuda.matmul.allow_tf32


def test_predicting_and_training_make_float32_exact(scans, run, tmp_path, here):
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    here(*quick(scans / "a.nii.gz", tmp_path / "masks", run[0]))
    assert (
        torch.backends.cudnn.conv.fp32_precision
        == torch.backends.cuda.matmul.fp32_precision
        == "ieee"
    )


# --- how the networks compute ---------------------------------------------------------------------


def test_compiled_or_not_the_masks_are_the_same(scans, run, tmp_path, here, monkeypatch):
    """Padded channels, and the compiler's graphs run as they are. prediction.json does not tell."""
    compile = torch.compile
    monkeypatch.setattr("minikits.fast.suited_multiple", lambda device: 8)
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **options: compile(function, backend="aot_eager", **options),
    )
    torch.compiler.reset()

    for name in ("off", "on"):
        here(*quick(scans, tmp_path / name, run[0]), "--compile", name, "--precision", "fp32")
    torch.compiler.reset()

    plain, compiled = tmp_path / "off", tmp_path / "on"
    for mask in ("a.nii.gz", "b.nii.gz", "c.nii.gz"):
        different = voxels_of(plain / mask) != voxels_of(compiled / mask)
        assert different.mean() < 0.001
    records = [json.loads((out / "prediction.json").read_text()) for out in (plain, compiled)]
    for record in records:
        del record["scans"]
    assert records[0] == records[1]


def test_the_form_is_chosen_by_what_there_is_to_predict(scans, run, tmp_path, here, monkeypatch):
    """Three scans of 27 windows, not mirrored; on a CPU two at once. The networks that are given
    back are those that predict."""
    asked, networks = [], []

    def for_prediction(given, **options):
        asked.append(options)
        networks.extend(given)
        return given

    def segment_volume(volume, given, recipe, **options):
        asked.append((given == networks, options["at_once"]))
        return np.zeros(volume.voxels.shape, np.uint8)

    monkeypatch.setattr("minikits.ready.for_prediction", for_prediction)
    monkeypatch.setattr("minikits.ready.segment_volume", segment_volume)

    here(*quick(scans, tmp_path / "masks", run[0]))

    assert asked[0] == {
        "compiling": "auto",
        "windows": 3 * 27,
        "at_once": 2,
        "device": torch.device("cpu"),
        "precision": torch.float32,
        "say": predict.say,
    }
    assert asked[1:] == [(True, 2)] * 3


def test_windows_are_counted_for_each_network_and_mirror_image():
    """Two networks see the first scan, one the second."""
    one = predict.Scan("a", Path("a"), Path("m"), (0, 1))
    other = predict.Scan("b", Path("b"), Path("m"), (1,))
    assert predict.windows_of([one, other], mirroring=False) == 3 * 27
    assert predict.windows_of([one, other], mirroring=True) == 3 * 8 * 27
    assert predict.windows_of([], mirroring=True) == 0


def test_networks_stay_on_a_gpu_that_has_room_for_all_of_them(monkeypatch):
    """Two of 10 float32 weights each: 80 bytes. On a CPU they are there already."""
    networks = [torch.nn.Linear(10, 1, bias=False) for _ in range(2)]
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda network, where: moved.append(where))
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")

    assert keep_on_device(networks, cpu, room=80) == 0
    assert keep_on_device(networks, gpu, room=79) == 0
    assert moved == []
    assert keep_on_device(networks, gpu, room=80) == 80
    assert moved == [gpu, gpu]


@pytest.mark.parametrize(
    "device, precision, checked",
    [("cuda:0", torch.bfloat16, 1), ("cuda:0", torch.float32, 0), ("cpu", torch.bfloat16, 0)],
)
def test_convolutions_of_a_gpu_in_bfloat16_are_checked(monkeypatch, device, precision, checked):
    asked = []
    monkeypatch.setattr("minikits.ready.pick_device", torch.device)
    monkeypatch.setattr("minikits.ready.pick_precision", lambda name, device: precision)
    monkeypatch.setattr("minikits.ready.check_bfloat16", asked.append)
    torch.backends.cudnn.benchmark = False

    found = set_up(device, "auto")

    assert found == (torch.device(device), precision)
    assert asked == [torch.device(device)] * checked
    assert torch.backends.cudnn.benchmark


# --- what it says of a mask -----------------------------------------------------------------------


def table_of(out):
    with open(out / "prediction.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_found_of_each_mask_is_in_its_line_in_json_and_in_a_table(scans, tmp_path, here):
    """Of two networks; the masks are what they are without any of it."""
    networks = put_folds(tmp_path / "run", {"0": ((), ()), "1": ((), ())})
    os.rename(scans / "b.nii.gz", scans / "b, of two.nii.gz")

    said = here(*quick(scans, tmp_path / "masks", tmp_path / "run"))

    found = table_of(tmp_path / "masks")
    assert [row["mask"] for row in found] == ["a.nii.gz", "b, of two.nii.gz", "c.nii.gz"]
    assert found[1]["case"] == "b, of two"
    scan = scans / "b, of two.nii.gz"
    mask = wanted_mask(list(networks.values()), scan)
    own = [wanted_mask(network, scan) for network in networks.values()]  # on the networks' own grid
    kidney, tumor = kits_dice(*own)
    assert np.array_equal(voxels_of(tmp_path / "masks" / scan.name), mask)
    assert float(found[1]["kidney_ml"]) == pytest.approx((mask == 1).sum() * 0.288)
    assert float(found[1]["tumor_ml"]) == pytest.approx((mask == 2).sum() * 0.288)
    assert float(found[1]["kidney_agreement"]) == pytest.approx(kidney, abs=1e-4)
    assert float(found[1]["tumor_agreement"]) == pytest.approx(tumor, abs=1e-4)
    assert found[1]["networks"] == "2"
    assert found[1]["unlike_training"] == "not known"  # as checkpoints of earlier versions
    assert f"; Dice between networks {100 * kidney:.1f} and {100 * tumor:.1f} (" in said
    told = json.loads((tmp_path / "masks" / "prediction.json").read_text())["scans"]
    assert told[scan.name]["findings"]["kidney_ml"] == float(found[1]["kidney_ml"])


def test_one_network_agrees_with_nobody(scans, run, tmp_path, here):
    said = here(*quick(scans / "a.nii.gz", tmp_path / "masks", run[0]))

    (row,) = table_of(tmp_path / "masks")
    assert (row["networks"], row["kidney_agreement"], row["tumor_agreement"]) == ("1", "", "")
    assert "Dice between networks" not in said


def test_rows_of_earlier_runs_stay_and_those_of_masks_that_are_gone_go(
    scans, run, tmp_path, here, monkeypatch
):
    masks = tmp_path / "masks"
    here(*quick(scans / "a.nii.gz", masks, run[0]))
    (first,) = table_of(masks)
    here(*quick(scans, masks, run[0]))
    assert [row["mask"] for row in table_of(masks)] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert table_of(masks)[0] == first

    here(*quick(scans, masks, run[0]))  # nothing is left to do
    assert len(table_of(masks)) == 3

    (masks / "b.nii.gz").unlink()
    here(*quick(scans / "a.nii.gz", masks, run[0]))
    assert [row["mask"] for row in table_of(masks)] == ["a.nii.gz", "c.nii.gz"]


def test_a_table_of_other_networks_masks_is_gone_before_the_first_of_the_new_ones(
    scans, tmp_path, here, monkeypatch
):
    put_folds(tmp_path / "run", {"0": ((), ()), "1": ((), ())})
    given = quick(scans, tmp_path / "masks", tmp_path / "run")
    here(*given, "--folds", 0)

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("predict.predict_scan", killed)
    monkeypatch.setattr("predict.keep_stamps_if_possible", killed)
    with pytest.raises(KeyboardInterrupt):
        here(*given, "--folds", 1, "--overwrite")

    assert not (tmp_path / "masks" / "prediction.csv").exists()


def test_a_scan_unlike_the_training_data_is_named_and_predicted(scans, tmp_path, here):
    """Trained on thinner slices; a fold that saw scan b's kind too makes it familiar."""
    thin, thick = {"spacing_z_mm": [1.0, 5.0]}, {"spacing_z_mm": [1.0, 8.0]}
    for fold, ranges in enumerate((thin, thick)):
        path = tmp_path / "run" / f"fold{fold}" / "checkpoint.pt"
        put(path, fold=str(fold), seed=fold, training_ranges=ranges)
    given = quick(scans / "b.nii.gz", tmp_path / "one", tmp_path / "run")

    said = here(*given, "--folds", 0)
    of_both = here(*quick(scans / "b.nii.gz", tmp_path / "both", tmp_path / "run"))

    words = "spacing along Z, mm: 8, but 1 to 5 in training"
    assert f"warning: {scans / 'b.nii.gz'}: unlike the training data: {words}\n" in said
    assert [row["unlike_training"] for row in table_of(tmp_path / "one")] == [words]
    assert "unlike the training data" not in of_both
    assert [row["unlike_training"] for row in table_of(tmp_path / "both")] == [""]


def test_masks_of_an_earlier_version_have_a_row_without_figures(scans, run, tmp_path, here):
    masks = tmp_path / "masks"
    here(*quick(scans / "a.nii.gz", masks, run[0]))
    record = json.loads((masks / "prediction.json").read_text())
    del record["scans"]["a.nii.gz"]["findings"]
    (masks / "prediction.json").write_text(json.dumps(record))

    said = here(*quick(scans / "a.nii.gz", masks, run[0]))

    assert "1 of 1 scans has a mask already" in said
    assert [(row["mask"], row["kidney_ml"]) for row in table_of(masks)] == [("a.nii.gz", "")]


def test_a_table_that_cannot_be_written_costs_no_mask(scans, run, tmp_path, here):
    (tmp_path / "masks" / "prediction.csv").mkdir(parents=True)

    said = here(*quick(scans, tmp_path / "masks", run[0]))

    assert f"warning: {tmp_path / 'masks' / 'prediction.csv'}: not written (" in said
    assert len(bytes_of(tmp_path / "masks")) == 3


# --- whose masks stay -----------------------------------------------------------------------------


def test_masks_of_other_networks_or_options_are_not_mixed_in(scans, tmp_path, here):
    put_folds(tmp_path / "run", {"0": ((), ()), "1": ((), ())})
    given = ("--out", tmp_path / "masks", "--model", tmp_path / "run", "--device", "cpu")
    first = ("--folds", 0, "--no-mirroring", "--precision", "fp32")
    here(*given, *first, "--in", scans / "a.nii.gz")
    before = bytes_of(tmp_path / "masks"), (tmp_path / "masks" / "prediction.json").read_bytes()
    for others, said in (
        (("--folds", 1, *first[2:]), "networks"),
        (("--folds", 0, *first[3:]), "mirroring False, now"),
        ((*first[:4], "bf16"), "precision float32, now bfloat16"),
    ):
        for more in (("--in", scans), ("--in", scans / "b.nii.gz", "--overwrite")):
            refusal = here(*given, *others, *more, expect=2)
            assert "the masks here are of other networks or options" in refusal
            assert said in refusal
    assert before == (
        bytes_of(tmp_path / "masks"),
        (tmp_path / "masks" / "prediction.json").read_bytes(),
    )
    here(*given, "--folds", 1, *first[2:], "--in", scans / "a.nii.gz", "--overwrite")
    assert "1 of 1 scans has a mask already" in here(
        *given, "--folds", 1, *first[2:], "--in", scans / "a.nii.gz"
    )
    assert bytes_of(tmp_path / "masks") != before[0]


def test_stale_masks_are_gone_before_prediction_json_names_other_networks(
    scans, tmp_path, here, monkeypatch
):
    """Killed at the first scan, the folder holds no mask, no probabilities, of the ones before."""
    put_folds(tmp_path / "run", {"0": ((), ()), "1": ((), ())})
    given = (
        *quick(scans, tmp_path / "masks", tmp_path / "run"),
        "--probabilities",
    )
    here(*given, "--folds", 0)
    assert len(bytes_of(tmp_path / "masks")) == 12
    there = []

    def killed(*arguments, **options):
        there.append(list(bytes_of(tmp_path / "masks")))
        raise KeyboardInterrupt

    monkeypatch.setattr("predict.predict_scan", killed)
    with pytest.raises(KeyboardInterrupt):
        here(*given, "--folds", 1, "--overwrite")
    assert there[0] == []
    assert not bytes_of(tmp_path / "masks")
    assert (
        json.loads((tmp_path / "masks" / "prediction.json").read_text())["networks"][0]["fold"]
        == "1"
    )


def test_overwriting_keeps_a_mask_until_the_new_one_is_there(
    scans, run, tmp_path, here, monkeypatch
):
    given = quick(scans, tmp_path / "masks", run[0])
    here(*given)
    before = bytes_of(tmp_path / "masks")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("predict.write_labels", full)
    said = here(*given, "--overwrite", expect=2)
    assert (
        said.count("a.nii.gz cannot be written ([Errno 28] No space left on device)") == 2
    )  # twice
    assert bytes_of(tmp_path / "masks") == before


def lay_labels(out, name):
    """References in a folder that is to take masks."""
    put_scan(out / name)
    return out / name


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "name",
    [
        "a.nii.gz",
        "a.nii",
        "other.nii.gz",
        "A.NII.GZ",
        "probabilities/a_kidney.nii.gz",
        "case_00000/imaging.nii.gz",
        "x/segmentation.nii",
        "labels/z.nii.gz",
        "images/z_0000.nii.gz",
    ],
)
def test_scans_and_labels_in_the_folder_for_masks_are_never_touched(
    scans, run, tmp_path, here, name, more
):
    laid = lay_labels(tmp_path / "labels", name)
    before = laid.read_bytes()
    given = (*quick(scans, tmp_path / "labels", run[0]), *more)

    said = here(*given, expect=2)

    assert f"{laid}: lies in" in said
    assert "never replaced: choose another folder" in said
    left = [path for path in (tmp_path / "labels").rglob("*") if path.is_file()]
    assert left == [laid]
    assert laid.read_bytes() == before


@pytest.mark.parametrize("name", ["a.nii", "z.nii.gz", "probabilities/z.nii.gz"])
def test_labels_beside_masks_are_seen_too(scans, run, tmp_path, here, name):
    given = quick(scans, tmp_path / "masks", run[0])
    here(*given)
    lay_labels(tmp_path / "masks", name)
    for more in ((), ("--overwrite",)):
        assert "names no such mask" in here(*given, *more, expect=2)


def test_masks_do_not_go_where_the_inputs_lie(labelled, scans, run, tmp_path, here):
    for source, out in (
        (scans, scans),
        (labelled, labelled),
        (labelled, labelled / "c0"),
        (scans / "a.nii.gz", scans),
    ):
        said = here(*quick(source, out, run[0]), "--overwrite", expect=2)
        assert (
            f"{out}: scans or labels lie there; choose another folder for the masks with --out"
            in said
        )
    file = run[0] / "fold0" / "checkpoint.pt"
    assert f"{file}: is no folder" in here(
        "--in", scans, "--out", file, "--model", run[0], expect=2
    )


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2]",
        '{"trained_on": null}',
        '{"netw',
        "",
        "[" * 100_000,
        '{"networks": [], "mirroring": 1, "precision": 1, "cross_validation": 1, '
        '"affine": 1, "assume_spacing": 1, "scans": {"a.nii.gz": {"scan": 5}}}',
    ],
)
def test_a_prediction_json_of_another_tool_stays(scans, run, tmp_path, here, content):
    path = tmp_path / "masks" / "prediction.json"
    path.parent.mkdir()
    path.write_text(content)
    said = here(*quick(scans, tmp_path / "masks", run[0]), "--overwrite", expect=2)
    assert str(path) in said
    assert "move it away, or choose another folder with --out" in said
    assert path.read_text() == content
    assert [*path.parent.iterdir()] == [path]


def test_a_scan_that_was_replaced_is_predicted_again(scans, run, tmp_path, here):
    given = quick(scans, tmp_path / "masks", run[0])
    here(*given, "--probabilities")
    put_scan(scans / "b.nii.gz", seed=9, shape=(11, 20, 24))

    said = here(*given)

    assert "2 of 3 scans have a mask already" in said
    assert "b.nii.gz was replaced since; predicted again" in said
    assert np.array_equal(
        voxels_of(tmp_path / "masks" / "b.nii.gz"), wanted_mask(run[1], scans / "b.nii.gz")
    )
    assert not (
        tmp_path / "masks" / "probabilities" / "b_kidney.nii.gz"
    ).exists()  # they were of the old one
    assert (tmp_path / "masks" / "probabilities" / "a_kidney.nii.gz").exists()
    assert "3 of 3 scans have a mask already" in here(*given)


def test_a_scan_of_the_same_size_that_was_replaced_is_seen(scans, run, tmp_path, here):
    """By its time of change and its contents; one that was only copied is the same."""
    plain = tmp_path / "plain"
    for seed, name in enumerate("ab"):
        put_scan(plain / f"{name}.nii", seed)
    given = quick(plain, tmp_path / "masks", run[0])
    here(*given)
    put_scan(plain / "a.nii", seed=5)
    os.utime(plain / "b.nii", ns=(1, 1))  # as cp leaves it

    said = here(*given)

    assert "1 of 2 scans has a mask already" in said
    assert "a.nii was replaced since" in said
    assert np.array_equal(
        voxels_of(tmp_path / "masks" / "a.nii.gz"), wanted_mask(run[1], plain / "a.nii")
    )


def killed_after(masks, monkeypatch, here, given):
    """A run that is killed once a mask is there; nothing is put into prediction.json at its end."""
    predict_scan = predict.predict_scan

    def predict_first(scan, work, **options):
        if len(bytes_of(masks)) >= 1:
            raise KeyboardInterrupt
        return predict_scan(scan, work, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("predict.predict_scan", predict_first)
        patch.setattr("predict.keep_stamps", lambda *arguments: None)
        patch.setattr("predict.ThreadPoolExecutor", lambda threads: ThreadPoolExecutor(1))
        here(*given)


def test_the_masks_of_a_killed_run_are_known_as_its_own(scans, run, tmp_path, here, monkeypatch):
    masks = tmp_path / "masks"
    given = quick(scans, masks, run[0])
    killed_after(masks, monkeypatch, here, given)
    assert [*bytes_of(masks)] == ["a.nii.gz"]
    made = bytes_of(masks)["a.nii.gz"]
    assert json.loads((masks / "prediction.json").read_text())["scans"]["a.nii.gz"]["mask"] is None

    said = here(*given)

    assert [row["mask"] for row in table_of(masks)] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert all(float(row["kidney_ml"]) > 0 for row in table_of(masks))
    assert "1 of 3 scans has a mask already" in said
    assert bytes_of(masks)["a.nii.gz"] == made
    assert len(bytes_of(masks)) == 3
    assert not [path for path in masks.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["a", "b"], ids=["over a mask", "in place of one that lacks"])
def test_a_reference_laid_over_the_masks_of_a_killed_run_is_not_taken_for_one(
    scans, run, tmp_path, here, monkeypatch, name
):
    masks = tmp_path / "masks"
    given = quick(scans, masks, run[0])
    killed_after(masks, monkeypatch, here, given)
    reference = put_scan(tmp_path / "references" / f"{name}.nii.gz", seed=8).read_bytes()
    (masks / f"{name}.nii.gz").write_bytes(reference)

    for _ in range(2):
        said = here(*given, expect=2)
        assert f"{masks / name}.nii.gz: lies there, but no run has finished it" in said
        assert bytes_of(masks)[f"{name}.nii.gz"] == reference
    assert len(bytes_of(masks)) == 3

    here(*given, "--overwrite")
    wanted = wanted_mask(run[1], scans / f"{name}.nii.gz")
    assert np.array_equal(voxels_of(masks / f"{name}.nii.gz"), wanted)


def test_masks_that_a_killed_overwriting_run_did_not_reach_are_still_known(
    scans, run, tmp_path, here, monkeypatch
):
    given = quick(scans, tmp_path / "masks", run[0])
    here(*given)

    killed_after(tmp_path / "masks", monkeypatch, here, (*given, "--overwrite"))

    assert "3 of 3 scans have a mask already" in here(*given)


def test_masks_that_were_copied_elsewhere_are_still_known(scans, run, tmp_path, here):
    given = ("--in", scans, "--model", run[0], *QUICK, "--out")
    here(*given, tmp_path / "masks")
    shutil.copytree(tmp_path / "masks", tmp_path / "moved", copy_function=shutil.copyfile)
    said = here(*given, tmp_path / "moved")
    assert "3 of 3 scans have a mask already" in said
    assert "changed" not in said


def test_a_mask_that_was_deleted_is_made_again_and_one_that_was_changed_stays(
    scans, run, tmp_path, here
):
    given = quick(scans, tmp_path / "masks", run[0])
    here(*given)
    made = bytes_of(tmp_path / "masks")
    (tmp_path / "masks" / "a.nii.gz").unlink()
    shutil.copy(
        tmp_path / "masks" / "c.nii.gz", tmp_path / "masks" / "b.nii.gz"
    )  # somebody's correction

    said = here(*given, "--probabilities")

    assert "b.nii.gz: was changed since it was predicted, and stays; --overwrite" in said
    found = bytes_of(tmp_path / "masks")
    assert found["a.nii.gz"] == made["a.nii.gz"]
    assert found["b.nii.gz"] == made["c.nii.gz"]
    assert "b_tumor.nii.gz" in found
    assert "b.nii.gz: was changed" in here(*given)  # still
    put_scan(scans / "b.nii.gz", seed=9)
    said = here(*given, expect=2)
    assert "was replaced since its mask was made" in said
    assert "--overwrite predicts it again" in said
    assert bytes_of(tmp_path / "masks")["b.nii.gz"] == made["c.nii.gz"]
    here(*given, "--overwrite")
    assert np.array_equal(
        voxels_of(tmp_path / "masks" / "b.nii.gz"), wanted_mask(run[1], scans / "b.nii.gz")
    )


def test_a_scan_that_changes_while_it_is_read_is_named(scans, run, tmp_path, here, monkeypatch):
    def replaced(path, **options):
        volume = read_volume(path, **options)
        if path.name == "b.nii.gz":
            put_scan(path, seed=9, shape=(3, 20, 24))
        return volume

    monkeypatch.setattr("predict.read_volume", replaced)
    said = here(*quick(scans, tmp_path / "masks", run[0]), expect=2)
    assert "b.nii.gz: was changed while it was read; run predict.py again" in said
    assert sorted(bytes_of(tmp_path / "masks")) == ["a.nii.gz", "c.nii.gz"]


def test_a_second_process_with_the_same_folder_is_refused(scans, run, tmp_path, here, monkeypatch):
    claim(tmp_path / "masks", doing="predicts")
    monkeypatch.setattr("minikits.masks.claim", claim)
    said = here(*quick(scans, tmp_path / "masks", run[0]), expect=2)
    assert "another process predicts here" in said
    assert "choose another --out" in said
    assert not [*(tmp_path / "masks").iterdir()]


def test_a_folder_that_cannot_be_kept_is_said(scans, run, tmp_path, here, monkeypatch):
    monkeypatch.setattr(
        "minikits.masks.claim", lambda out, doing: out.mkdir() or f"{out}: has no locks"
    )
    said = here(*quick(scans, tmp_path / "masks", run[0]))
    assert "warning: " in said
    assert "has no locks" in said


# --- what is looked at, and what fails ------------------------------------------------------------


def test_what_looks_like_a_scan_is_predicted_or_named(scans, run, tmp_path, here):
    put_scan(scans / "d.nii.gz").rename(scans / "D.NII.GZ")
    (scans / "e.nii.gz").mkdir()
    (scans / "f.nii.gz").symlink_to(tmp_path / "nothing")
    said = here(*quick(scans, tmp_path / "masks", run[0]))
    assert "4 cases found, 2 left out: e.nii.gz (a folder" in said
    assert "f.nii.gz (a link to nothing)" in said
    assert sorted(bytes_of(tmp_path / "masks")) == ["D.nii.gz", "a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_labels_without_an_image_are_named(labelled, run, tmp_path, here):
    (labelled / "c3" / "imaging.nii.gz").unlink()
    said = here(*quick(labelled, tmp_path / "masks", run[0]))
    assert "4 cases found, 1 left out: c3 (labels, but no image)" in said
    shutil.rmtree(tmp_path / "masks")
    for number in (0, 1, 2, 4):
        (labelled / f"c{number}" / "imaging.nii.gz").unlink()
    said = here(*quick(labelled, tmp_path / "masks", run[0]), expect=2)
    assert "no scan found, only labels" in said


TORCH_SAYS = [
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 8589934592 bytes.",
    "std::bad_alloc",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
]


@pytest.mark.parametrize(
    "error",
    [
        *map(RuntimeError, TORCH_SAYS),
        MemoryError(),
        MemoryError("Unable to allocate 8"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB."),
    ],
)
def test_memory_that_is_not_given_is_one_scans_failure(
    scans, run, tmp_path, here, monkeypatch, error
):
    def short(networks, image, *others, **options):
        if image.shape[0] == 11:
            raise error
        return predict_probabilities(networks, image, *others, **options)

    monkeypatch.setattr("minikits.prediction.predict_probabilities", short)
    put_scan(scans / "b.nii.gz", shape=(11, 20, 24))
    said = here(*quick(scans, tmp_path / "masks", run[0]), expect=2)
    assert "b.nii.gz: out of memory" in said or "b.nii.gz: CUDA out of memory" in said
    assert "--assume-spacing" in said
    assert "Traceback" not in said
    assert sorted(bytes_of(tmp_path / "masks")) == ["a.nii.gz", "c.nii.gz"]


def test_a_scan_without_memory_beside_another_is_tried_alone(
    scans, run, tmp_path, here, monkeypatch
):
    tried = []

    def short(networks, image, *others, **options):
        tried.append(image.shape[0])
        if tried.count(11) == 1 and image.shape[0] == 11:
            raise MemoryError
        return predict_probabilities(networks, image, *others, **options)

    monkeypatch.setattr("minikits.prediction.predict_probabilities", short)
    put_scan(scans / "a.nii.gz", shape=(11, 20, 24))
    said = here(*quick(scans, tmp_path / "masks", run[0]))
    assert "a: no memory beside another scan; tried alone at the end" in said
    assert "(3 of 3, 0 s left)" in said
    assert tried[-1] == 11
    assert len(tried) == 4
    assert len(bytes_of(tmp_path / "masks")) == 3


def test_an_error_that_is_not_about_memory_is_no_scans_failure(
    scans, run, tmp_path, here, monkeypatch
):
    def broken(*arguments, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("minikits.prediction.predict_probabilities", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        here(*quick(scans, tmp_path / "masks", run[0]))


def test_a_scan_that_is_huge_at_the_networks_spacing_is_named_before_it_takes_memory(
    scans, run, tmp_path, here
):
    """60 voxels of 90 mm, three times: a header that is wrong, most likely."""
    put_scan(scans / "big.nii.gz", spacing_mm=(90.0, 90.0, 90.0), shape=(60, 60, 60))
    said = here(*quick(scans, tmp_path / "masks", run[0]), expect=2)
    assert (
        "big.nii.gz: shape (60, 60, 60) of 90 x 90 x 90 mm would have shape (675, 900, 900)" in said
    )
    assert sorted(bytes_of(tmp_path / "masks")) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_a_scan_that_the_device_has_no_memory_for_is_named_before_it_is_tried(
    scans, run, tmp_path, here, monkeypatch
):
    """36 bytes a voxel: 16 x 32 x 32 of the patch fit, 32 slices do not."""
    monkeypatch.setattr("minikits.ready.claim_memory", lambda device, needed=0: 36.0 * 16 * 32 * 32)
    put_scan(scans / "long.nii.gz", shape=(32, 20, 24))
    said = here(*quick(scans, tmp_path / "masks", run[0]), expect=2)
    assert (
        "long.nii.gz: has shape (32, 20, 24) at the networks' spacing, which takes 0.0 GiB; device cpu has"
        in said
    )
    assert sorted(bytes_of(tmp_path / "masks")) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


@pytest.mark.parametrize("whole, asked", [(2.0**40, True), (1000.0, False)])
def test_memory_is_kept_for_what_a_window_and_a_scan_need(
    runs, tmp_path, monkeypatch, whole, asked
):
    """Nothing is asked for that is not there: each scan that is too large is named."""
    members, recipe, _ = load_networks([runs[0] / "plain", runs[0] / "residual"], ["0"])
    scans = [predict.Scan("a", put_scan(tmp_path / "a.nii"), tmp_path / "m.nii.gz", (0,))]
    calls = []
    monkeypatch.setattr(
        "minikits.ready.claim_memory", lambda device, needed=0: calls.append(needed) or whole
    )

    largest = predict.bytes_of_largest(scans)
    found = keep_memory(torch.device("cpu"), members, recipe, torch.float32, largest)

    weights = sum(value.nbytes for value in members[1].network.parameters())  # of the larger one
    window = max(window_bytes(arch, TINY, torch.float32) for arch in ("plain", "residual"))
    assert found == whole
    assert calls[0] == 0
    assert len(calls) == 1 + asked
    assert not asked or calls[1] == window + weights + 5 * (10 * 20 * 24 * 2 + 352)


def test_a_damaged_scan_stops_no_other(scans, run, tmp_path, here):
    (scans / "b.nii.gz").write_bytes(b"<html>")
    said = here(*quick(scans, tmp_path / "masks", run[0]), expect=2)
    assert said.splitlines()[-1].startswith(f"predict.py: {scans / 'b.nii.gz'}: starts with")
    assert sorted(bytes_of(tmp_path / "masks")) == ["a.nii.gz", "c.nii.gz"]


# --- how it is stopped, and what it says ----------------------------------------------------------


def test_a_signal_ends_it_between_windows_with_nothing_half_written(
    scans, run, tmp_path, here, monkeypatch
):
    watch = predict.watch

    def told_meanwhile(what, stop):
        def on_window(done, of):
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop:  # the main thread notes it
                time.sleep(0.01)
            watch(what, stop)(done, of)

        return on_window

    given = quick(scans, tmp_path / "masks", run[0])
    monkeypatch.setattr("predict.watch", told_meanwhile)
    monkeypatch.setattr(
        "predict.ThreadPoolExecutor", lambda threads: ThreadPoolExecutor(1)
    )  # a second signal kills
    said = here(*given, expect=128 + signal.SIGTERM)

    assert (
        said.splitlines()[-1] == "predict.py: stopped; run it again for the masks that are missing"
    )
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["prediction.json"]
    assert not (tmp_path / "masks" / "prediction.csv").exists()
    monkeypatch.setattr("predict.watch", watch)
    assert "have a mask" not in here(*given)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_and_started_again(runs, phantoms, tmp_path, here, number):
    """Whatever moment it is at: every mask is whole, and the next run makes those that lack."""
    out, networks, _ = runs
    masks = tmp_path / "masks"
    arguments = (*quick(phantoms, masks, out / "plain"), "--folds", 0)
    process = subprocess.Popen(
        [sys.executable, "predict.py", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while not [*masks.glob("*.nii.gz")] and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)

    said = process.communicate()[0].decode()

    assert "Traceback" not in said
    if number == signal.SIGTERM:  # it may have been done already
        assert process.returncode == 0 or (
            process.returncode == 143 and "predict.py: stopped" in said
        )
        assert not [path for path in masks.iterdir() if path.name.startswith(".")]
    assert re.search("of 6 scans (has|have) a mask already", here(*arguments))
    assert len(bytes_of(masks)) == 6
    for id in ("phantom_0", "phantom_5"):
        wanted = wanted_mask(networks["plain", 0], phantoms / id / "imaging.nii.gz")
        assert (
            voxels_of(masks / f"{id}.nii.gz") != wanted
        ).mean() < 1e-4  # threads may round otherwise


def test_processes_share_the_scans_and_a_failure_stops_no_other(
    scans, run, tmp_path, here, monkeypatch
):
    monkeypatch.setattr("minikits.doubts.LEAST_ACROSS_MM", 200)  # as in the processes
    (scans / "bad.nii.gz").write_bytes(b"<html>" * 100_000)  # the largest, so that it fails first
    arguments = ("--in", scans, *QUICK, "--model", run[0])

    printed = run_script(
        *TORCHRUN, 2, "predict.py", *arguments, "--out", tmp_path / "two", expect=1
    )

    here(*arguments, "--out", tmp_path / "one", expect=2)
    assert "bad.nii.gz: starts with" in printed
    assert printed.count(" ml, tumor ") == 3
    assert printed.count("4 cases found") == 1
    assert len(bytes_of(tmp_path / "two")) == 3
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert len(table_of(tmp_path / "one")) == 3
    assert table_of(tmp_path / "one") == table_of(tmp_path / "two")
    told = [
        json.loads((tmp_path / name / "prediction.json").read_text())["scans"]
        for name in ("one", "two")
    ]
    sums = [
        [entry["mask"] and entry["mask"]["sha256"] for entry in entries.values()]
        for entries in told
    ]
    assert sums[0] == sums[1]
    assert sums[0].count(None) == 1  # each process's are kept


def test_the_first_process_decides_for_all(monkeypatch):
    """What it decides, or refuses, the others are told; it alone says why."""
    sent = []
    monkeypatch.setattr(
        "predict.distributed.broadcast_object_list", lambda answer: sent.append(list(answer))
    )
    refused = pytest.raises(ValueError, match="mixed")

    assert predict.decided_by_first(0, 2, lambda: "plan") == "plan"
    assert sent == [["plan"]]
    with refused:
        predict.decided_by_first(0, 2, lambda: (_ for _ in ()).throw(ValueError("mixed")))
    assert sent[1] == [None]  # they do not wait for ever
    with pytest.raises(SystemExit) as ended:
        predict.decided_by_first(1, 2, lambda: pytest.fail("only the first decides"))
    assert ended.value.code == 2

    monkeypatch.setattr(
        "predict.distributed.broadcast_object_list", lambda answer: answer.__setitem__(0, "plan")
    )
    assert predict.decided_by_first(1, 2, lambda: pytest.fail("only the first decides")) == "plan"


def nobody_reads():
    """A text stream into a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", encoding="ascii")


def test_messages_that_nobody_reads_or_that_cannot_be_shown_end_nothing(monkeypatch):
    stream = nobody_reads()
    monkeypatch.setattr("sys.stdout", stream)
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stderr", shown)
    forgiving_output()
    for _ in range(3):
        print("grün \udcfc 肾", flush=True)
    print("grün \udcfc 肾", file=sys.stderr, flush=True)
    assert shown.buffer.getvalue() == b"gr\\xfcn \\udcfc \\u80be\n"
    sys.stdout.flush()
    assert sys.stdout.encoding == "ascii"
    assert not sys.stdout.isatty()
    stream.close()
    print("after the end", flush=True)


def test_a_stream_that_is_closed_from_the_start_keeps_its_number():
    """Else the first file that is opened would be standard output, and take the messages."""
    child = (
        "from minikits.files import forgiving_output\nimport os, sys\nforgiving_output()\nprint('lost')\n"
        "opened = os.open('README.md', os.O_RDONLY)\nsys.stderr.write(f'{opened} {sys.stdout.isatty()}')"
    )
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" >&- <&-', sys.executable, child],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr == "3 False"  # 0 and 1 are taken


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_names_that_cannot_be_shown_and_a_closed_output_cost_no_mask(run, tmp_path):
    for seed, name in enumerate((b"a\xfc.nii.gz", "grün.nii.gz".encode(), b"plain.nii.gz")):
        put_scan(tmp_path / "scan.nii.gz", seed)
        os.makedirs(tmp_path / "scans", exist_ok=True)
        os.rename(
            os.fsencode(tmp_path / "scan.nii.gz"), os.fsencode(tmp_path / "scans") + b"/" + name
        )
    command = '"$0" predict.py --in "$1" --out "$2" --model "$3" --no-mirroring >&-'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, tmp_path / "scans", tmp_path / "masks", run[0]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.returncode == 0
    assert not done.stderr
    assert len(bytes_of(tmp_path / "masks")) == 3


def test_networks_that_wait_beside_the_device_give_the_same(generator):
    """Here on the CPU both: what is moved comes back, and nothing changes."""
    torch.manual_seed(0)
    networks, image = (
        [build_unet(arch, TINY).eval() for arch in ("plain", "residual")],
        torch.randn(16, 40, 33),
    )
    here = predict_probabilities(networks, image, TINY, False)
    moved = predict_probabilities(networks, image, TINY, False, device=torch.device("cpu"))
    single = sum(predict_probabilities([network], image, TINY, False) for network in networks) / 2
    assert torch.equal(here, moved)
    assert torch.allclose(here, single, atol=1e-6)
    low = predict_probabilities(networks, image, TINY, False, precision=torch.bfloat16)
    assert low.dtype == torch.float32
    assert 0 < (low - here).abs().max() < 0.1


def test_probabilities_of_thick_slices_are_brought_back_as_labels_are(run, tmp_path, here):
    scan = put_scan(tmp_path / "scan.nii.gz", spacing_mm=(20.0, 5.0, 5.0), shape=(6, 24, 28))
    here(*quick(scan, tmp_path / "masks", run[0]), "--probabilities")
    volume = read_volume(scan)
    wanted = predict_probabilities([run[1]], prepare_image(volume, TINY), TINY, False)
    for value, name in ((1, "kidney"), (2, "tumor")):
        native = resample(wanted[value], volume.voxels.shape, (0, 1, 1))  # nearest along Z
        found = read_volume(tmp_path / "masks" / "probabilities" / f"scan_{name}.nii.gz").voxels
        assert np.abs(found - native).max() < 0.5 / 255 + 1e-5


@pytest.mark.parametrize(
    "field, value",
    [
        ("spacing_mm", (8.0, 6.0, 5.0)),
        ("window_hu", (-80.0, 304.0)),
        ("mean_hu", 100.0),
        ("sd_hu", 77.0),
        ("patch", (16, 32, 16)),
    ],
)
def test_networks_that_see_images_differently_are_not_averaged(tmp_path, field, value):
    put(tmp_path / "fold0" / "checkpoint.pt")
    recipe = dataclasses.replace(TINY, **{field: value})
    network = build_unet("plain", recipe)
    put(tmp_path / "fold1" / "checkpoint.pt", recipe=asdict(recipe), network=network.state_dict())
    with pytest.raises(
        ValueError, match=rf"fold1/checkpoint\.pt: {field} is .* in the first; average"
    ):
        load_networks([tmp_path], None)


def test_cross_validation_leaves_out_what_the_networks_recipe_does(phantoms, tmp_path, here):
    """Not the paper's list, where a recipe has another."""
    for seed, name in enumerate(("case_00002", "case_00023")):
        put_scan(tmp_path / "cases" / name / "imaging.nii.gz", seed)
        write_image(
            tmp_path / "cases" / name / "segmentation.nii.gz",
            np.ones((10, 20, 24), np.uint8),
            SPACING,
        )
    recipe = dataclasses.replace(TINY, excluded_cases=(2,))
    put(
        tmp_path / "run" / "fold0" / "checkpoint.pt",
        cases=([], ["case_00002", "case_00023"]),
        recipe=asdict(recipe),
    )
    said = here(
        *quick(tmp_path / "cases", tmp_path / "masks", tmp_path / "run"), "--cross-validation"
    )
    assert "1 case found, 1 left out: case_00002 (one of the recipe's excluded_cases)" in said
    assert [path.name for path in (tmp_path / "masks").glob("*.gz")] == ["prediction_00023.nii.gz"]


@pytest.fixture
def doubted(tmp_path, monkeypatch):
    """Two scans: one of 32 mm along Z, and one in which nothing is doubted."""
    monkeypatch.setattr("minikits.doubts._not_hu", lambda voxels: None)  # noise is no CT
    put_scan(tmp_path / "scans" / "few.nii.gz", shape=(4, 20, 24))
    put_scan(tmp_path / "scans" / "many.nii.gz")
    return tmp_path / "scans"


def test_doubts_about_a_scan_are_said_and_kept(doubted, run, tmp_path, here):
    masks = tmp_path / "masks"

    said = here(*quick(doubted, masks, run[0]))

    words = "covers 32 mm along Z, wanted 40 or more; is this the whole scan?"
    assert f"warning: {doubted / 'few.nii.gz'}: {words}\n" in said
    assert [row["doubts"] for row in table_of(masks)] == [words, ""]
    told = json.loads((masks / "prediction.json").read_text())["scans"]
    assert told["few.nii.gz"]["findings"]["doubts"] == [words]
    assert told["many.nii.gz"]["findings"]["doubts"] == []


def test_masks_that_stay_are_counted_where_their_scans_were_doubted(doubted, run, tmp_path, here):
    masks = tmp_path / "masks"
    given = quick(doubted, masks, run[0])
    assert "of these" not in here(*given)

    once_more = here(*given)
    of_the_other = here(*quick(doubted / "many.nii.gz", masks, run[0]))

    assert (
        "2 of 2 scans have a mask already; --overwrite predicts them again\n"
        "warning: 1 of these is doubted or unlike the training data: see the columns doubts and "
        f"unlike_training of {masks / 'prediction.csv'}\n"
    ) in once_more
    assert "1 of 1 scans has a mask already" in of_the_other
    assert "of these" not in of_the_other


def test_masks_of_scans_unlike_the_training_are_counted_too(doubted, tmp_path, here):
    put(tmp_path / "run" / "fold0" / "checkpoint.pt", training_ranges={"spacing_z_mm": [1.0, 5.0]})
    given = quick(doubted, tmp_path / "masks", tmp_path / "run")
    here(*given)

    assert "warning: 2 of these are doubted or unlike the training data" in here(*given)


def test_masks_of_a_cross_validation_are_not_mixed_with_others(labelled, tmp_path, here):
    put_folds(tmp_path / "run", {"0": (["c1"], ["c0"]), "1": (["c0"], ["c1"])})
    given = quick(labelled, tmp_path / "masks", tmp_path / "run")
    here(*given, "--cross-validation")
    before = bytes_of(tmp_path / "masks")
    said = here(*given, expect=2)
    assert "cross_validation True, now False" in said
    assert bytes_of(tmp_path / "masks") == before


def test_the_device_works_for_one_scan_at_a_time(scans, run, tmp_path, here, monkeypatch):
    """Two threads take scans, but the probabilities of one are gone before the next one's come."""
    working, most = [], []

    def predict_probabilities(*given, **named):
        working.append(1)
        time.sleep(0.05)
        most.append(len(working))
        return real(*given, **named)

    def labels_on_native_grid(*given):
        working.pop()
        return native(*given)

    real, native = prediction.predict_probabilities, prediction.labels_on_native_grid
    monkeypatch.setattr("minikits.prediction.predict_probabilities", predict_probabilities)
    monkeypatch.setattr("minikits.prediction.labels_on_native_grid", labels_on_native_grid)
    here(*quick(scans, tmp_path / "masks", run[0]))
    assert most == [1, 1, 1]
