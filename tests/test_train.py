"""train.py, driven in this process: what it draws, keeps, resumes and refuses."""

import csv
import gzip
import importlib
import json
import os
import shutil
import signal
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from torch import distributed

from minikits import checkpoints, devices
from minikits import prepared as prepared_module
from minikits.cases import find_fold, five_folds, prepare, read_folds
from minikits.checkpoints import load_checkpoint, load_network, save_checkpoint
from minikits.evaluation import kits_dice
from minikits.nifti import read_labels, write_image
from minikits.paper import DEMO, PAPER, departures
from minikits.sampling import draw_batch
from minikits.training import Progress
from minikits.unet import build_unet

SMALL = replace(
    TINY, patch=(8, 16, 16), epochs=2, batches_per_epoch=4, validation_batches=2, learning_rate=0.02
)


@pytest.fixture
def train(monkeypatch):
    """train.py as a module; a run folder may be taken again within this process."""
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module("train")
    monkeypatch.setattr(module, "claim", lambda folder: None)
    return module


@pytest.fixture(scope="module")
def prepared(phantoms, tmp_path_factory):
    """A cache in which every case is prepared for SMALL."""
    cache = tmp_path_factory.mktemp("prepared")
    prepare(phantoms, cache, SMALL)
    return cache


@pytest.fixture
def out(prepared, tmp_path):
    """A folder for runs that has the prepared cases already."""
    shutil.copytree(prepared, tmp_path / "out" / "prepared")
    return tmp_path / "out"


def options(train, data, out, *more, recipe=SMALL):
    out.mkdir(exist_ok=True)
    path = out / "recipe.json"
    path.write_text(json.dumps(asdict(recipe)))
    given = [
        "--arch",
        "plain",
        "--data",
        data,
        "--out",
        out,
        "--recipe",
        path,
        "--device",
        "cpu",
        "--precision",
        "fp32",
        *more,
    ]
    return train.command_line().parse_args([str(word) for word in given])


def checkpoint_of(out, fold=0):
    return load_checkpoint(out / "plain" / f"fold{fold}" / "checkpoint.pt")


def same_weights(one, other):
    return all(torch.equal(value, other["network"][name]) for name, value in one["network"].items())


def told_by(monkeypatch, train, when):
    """A list that takes SIGTERM's number at the first batch for which when(iteration, augmented) is true."""
    noted, real = [], draw_batch

    def draw(cases, recipe, seed, iteration, *, augmented=True, samples=None, device=None):
        if when(iteration, augmented) and not noted:
            noted.append(signal.SIGTERM)
        return real(
            cases, recipe, seed, iteration, augmented=augmented, samples=samples, device=device
        )

    monkeypatch.setattr(train, "draw_batch", draw)
    return noted


@pytest.fixture(scope="module")
def undisturbed(phantoms, prepared, tmp_path_factory):
    """(what was drawn, as (ids, seed, iteration, augmented); the checkpoint; what was printed) of one run."""
    out = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        train = importlib.import_module("train")
        drawn, printed = [], []

        def draw(cases, recipe, seed, iteration, *, augmented=True, samples=None, device=None):
            drawn.append(([case.id for case in cases], seed, iteration, augmented))
            return draw_batch(
                cases, recipe, seed, iteration, augmented=augmented, samples=samples, device=device
            )

        patch.setattr(train, "draw_batch", draw)
        patch.setattr(
            train, "print", lambda *words, **_: printed.append(" ".join(words)), raising=False
        )
        shutil.copytree(prepared, out / "prepared")
        stopped = train.train(options(train, phantoms, out, "--seed", 3), [])
    assert stopped is None
    return drawn, checkpoint_of(out), printed, out


def test_each_batch_of_the_training_cases_is_drawn_once(undisturbed, phantoms):
    drawn, *_ = undisturbed
    train_ids, validation_ids = five_folds([path.name for path in phantoms.iterdir()])[0]

    training = [each for each in drawn if each[3]]
    scoring = [each for each in drawn if not each[3]]

    assert training == [(train_ids, 3, iteration, True) for iteration in range(8)]
    assert scoring == [
        (validation_ids, 3, iteration, False) for iteration in (0, 1, 0, 1)
    ]  # each epoch the same


def test_a_process_draws_its_share_of_a_batch(
    train, group_of_one, phantoms, out, monkeypatch, capsys
):
    """The second of two: it says nothing and writes nothing, the first does."""
    drawn, real = [], draw_batch

    def draw(cases, recipe, seed, iteration, *, augmented=True, samples=None, device=None):
        drawn.append((augmented, None if samples is None else list(samples)))
        return real(
            cases, recipe, seed, iteration, augmented=augmented, samples=samples, device=device
        )

    monkeypatch.setattr(train, "draw_batch", draw)
    monkeypatch.setattr(train, "join_processes", lambda device: (1, 2))
    recipe = replace(SMALL, epochs=1, batch_size=4)

    assert train.train(options(train, phantoms, out, recipe=recipe), []) is None

    assert drawn == [(True, [1, 3])] * 4 + [(False, None)] * 2
    assert capsys.readouterr().out == "" and not (out / "plain").exists()


def test_a_run_is_continued_as_the_same_alone(train, undisturbed, phantoms):
    """And not overwritten: it needs to be asked for."""
    *_, out = undisturbed
    before = (out / "plain" / "fold0" / "checkpoint.pt").read_bytes()
    for more, recipe, complaint in (
        (["--seed", 3], SMALL, "this run exists; go on with --resume, or choose another --out"),
        (["--seed", 4, "--resume"], SMALL, "was trained with another seed"),
        (
            ["--seed", 3, "--resume"],
            replace(SMALL, weight_decay=0.1),
            "was trained with another recipe",
        ),
        (
            ["--seed", 3, "--resume", "--folds", out / "split.json"],
            SMALL,
            "was trained with another cases",
        ),
    ):
        names = sorted(path.name for path in phantoms.iterdir())
        (out / "split.json").write_text(json.dumps([{"train": names[:2], "val": names[2:]}]))
        with pytest.raises(ValueError, match=f"checkpoint.pt: {complaint}"):
            train.train(options(train, phantoms, out, *more, recipe=recipe), [])
    assert (out / "plain" / "fold0" / "checkpoint.pt").read_bytes() == before


def test_the_initial_weights_are_those_of_the_seed(train, tmp_path):
    cpu = torch.device("cpu")
    fresh = []
    for number in (3, 3, 4):
        arguments = options(train, tmp_path, tmp_path, "--seed", number)
        run = train.Run(tmp_path, "plain", SMALL, "0", arguments.seed, [], [])
        network, _, progress, log = train.start_or_resume({}, run, cpu)
        assert progress == Progress() and log == []
        assert not network.heads[0].weight.requires_grad
        fresh.append(network.state_dict())
    torch.manual_seed(3)
    wanted = build_unet("plain", SMALL).state_dict()

    assert all(
        torch.equal(value, fresh[0][name]) and torch.equal(value, fresh[1][name])
        for name, value in wanted.items()
    )
    assert not torch.equal(wanted["heads.1.weight"], fresh[2]["heads.1.weight"])


def test_patch_dice_is_that_of_the_held_out_patches(undisturbed, phantoms, prepared):
    _, checkpoint, *_ = undisturbed
    network = load_network(checkpoint, "checkpoint").eval()
    held_out = [
        case
        for case in prepare(phantoms, prepared, SMALL)
        if case.id in checkpoint["cases"]["validation"]
    ]

    predictions, targets = [], []
    for iteration in range(2):
        image, target = draw_batch(held_out, SMALL, 3, iteration, augmented=False)
        with torch.no_grad():
            predictions.append(network(image).argmax(1).numpy())
        targets.append(target.numpy())
    kidney, tumor = kits_dice(np.stack(predictions), np.stack(targets))

    row = checkpoint["log"][-1]
    assert (row["patch_dice_kidney"], row["patch_dice_tumor"]) == (kidney, tumor)
    assert 0 < kidney < 1


def test_a_checkpoint_holds_all_that_a_run_is(undisturbed, phantoms, prepared):
    _, checkpoint, _, out = undisturbed
    train_ids, validation_ids = five_folds([path.name for path in phantoms.iterdir()])[0]

    assert checkpoint["arch"] == "plain" and checkpoint["fold"] == "0" and checkpoint["seed"] == 3
    assert checkpoint["recipe"] == SMALL
    assert checkpoint["cases"] == {"train": train_ids, "validation": validation_ids}
    kept = {case.id: case.checksum for case in prepare(phantoms, prepared, SMALL)}
    assert checkpoint["checksums"] == kept and len({*kept.values()}) == 6 and all(kept.values())
    assert (checkpoint["iteration"], checkpoint["loss_sum"]) == (8, 0)
    assert checkpoint["environment"]["precision"] == "float32"
    assert checkpoint["environment"]["processes"] == 1
    momentum = checkpoint["optimizer"]["state"]
    shapes = [tuple(momentum[number]["momentum_buffer"].shape) for number in sorted(momentum)]
    trained = [
        tuple(value.shape)
        for name, value in build_unet("plain", SMALL).named_parameters()
        if name != "heads.0.weight"
    ]
    assert shapes == trained

    rows = list(csv.DictReader((out / "plain" / "fold0" / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["learning_rate"]) for row in rows] == [0.02, pytest.approx(0.02 * 0.5**0.9)]
    for row, kept in zip(rows, checkpoint["log"], strict=True):
        assert {name: float(value) for name, value in row.items()} == kept
    assert set(rows[0]) == {
        "epoch",
        "loss",
        "learning_rate",
        "seconds_computing",
        "seconds_waiting",
        "patch_dice_kidney",
        "patch_dice_tumor",
        "seconds_scoring",
    }


def test_the_keys_of_a_checkpoint_and_the_columns_of_the_log_stay(undisturbed):
    """Runs are resumed, audited and plotted by these names, those of earlier versions too."""
    _, checkpoint, _, out = undisturbed

    columns = (out / "plain" / "fold0" / "log.csv").read_text().splitlines()[0]

    assert set(checkpoint) == {
        *("format", "minikits", "arch", "recipe", "fold", "seed", "cases", "checksums"),
        *("iteration", "loss_sum", "seconds_computing", "seconds_waiting"),
        *("network", "optimizer", "log", "departures", "environment"),
    }
    assert list(checkpoint["cases"]) == ["train", "validation"]
    assert list(checkpoint["departures"]) == ["recipe", "run", "code"]
    assert set(checkpoint["environment"]) == {
        *("device", "precision", "processes", "minikits", "torch", "numpy", "python"),
        *("revision", "step_gib"),
    }
    assert columns == (
        "epoch,loss,learning_rate,seconds_computing,seconds_waiting,"
        "patch_dice_kidney,patch_dice_tumor,seconds_scoring"
    )


def test_the_log_says_what_was_found_and_every_departure(undisturbed):
    _, checkpoint, printed, out = undisturbed
    log = "\n".join(printed)
    told = checkpoint["departures"]

    assert printed[0] == "6 cases found"
    assert told["recipe"] == departures(SMALL) and told["code"]
    assert told["run"] == [
        "device: cpu, which rounds otherwise (paper: one GPU)",
        "cases: 6 (paper: 206 of KiTS19)",
    ]
    for kind, lines in told.items():
        assert f"{kind}: {len(lines)} departures from the paper" in printed
    assert all(f"  {line}" in printed for line in told["recipe"] + told["run"])
    assert (
        "plain U-Net, fold 0, seed 3: " in log
        and " weights, patch 8x16x16, 2 epochs of 4 batches of 2" in log
    )
    assert f"into {out / 'plain' / 'fold0'}" in log and "4 to train on, 2 held out" in log
    assert "epoch 2 of 2" in log and "0:00:00 left" in log


def test_departures_of_the_code_are_counted_and_not_listed_in_every_log(train):
    said = []

    train.introduce_departures("run", ["device: cpu (paper: one GPU)"], said.append)
    train.introduce_departures("recipe", [], said.append)
    train.introduce_departures("code", ["axes: by the affine", "draws: by --seed"], said.append)

    assert said == [
        "run: 1 departure from the paper",
        "  device: cpu (paper: one GPU)",
        "recipe: the paper's",
        "code: 2 departures from the paper",
        "  listed in docs/paper.md, and in the checkpoint",
    ]


@pytest.mark.parametrize(
    "when, batch",
    [
        (lambda iteration, augmented: augmented and iteration == 2, 2),
        (lambda iteration, augmented: not augmented, 4),
    ],
    ids=["training", "scoring"],
)
def test_stopped_and_resumed_equals_undisturbed(
    train, undisturbed, phantoms, out, monkeypatch, capsys, when, batch
):
    noted = told_by(monkeypatch, train, when)
    assert train.train(options(train, phantoms, out, "--seed", 3), noted) == signal.SIGTERM
    stopped = checkpoint_of(out)
    assert stopped["log"] == []
    done = stopped["iteration"]
    assert done == batch or (batch == 2 and done == 1)  # one is drawn ahead
    assert stopped["loss_sum"] != 0 and stopped["seconds_computing"] > 0

    assert train.train(options(train, phantoms, out, "--seed", 3, "--resume"), []) is None

    assert f"resumed after epoch 0, batch {done} of the next" in capsys.readouterr().out
    resumed = checkpoint_of(out)
    assert same_weights(undisturbed[1], resumed)
    for name in ("loss", "learning_rate", "patch_dice_kidney", "patch_dice_tumor"):
        assert [row[name] for row in resumed["log"]] == [
            row[name] for row in undisturbed[1]["log"]
        ], name


def test_a_checkpoint_within_a_long_epoch_changes_nothing(
    train, undisturbed, phantoms, out, monkeypatch
):
    """Every batch takes too long here, so that there is a checkpoint after each of the eight."""
    seen, real = [], save_checkpoint

    def save(path, **content):
        seen.append((content["iteration"], len(content["log"])))
        real(path, **content)

    monkeypatch.setattr(checkpoints, "save_checkpoint", save)
    monkeypatch.setattr(devices.Stop, "PAUSE_SECONDS", 0)

    assert train.train(options(train, phantoms, out, "--seed", 3), []) is None

    assert seen == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1), (7, 1), (8, 2)]
    assert same_weights(undisturbed[1], checkpoint_of(out))
    losses = [row["loss"] for row in checkpoint_of(out)["log"]]
    assert losses == [row["loss"] for row in undisturbed[1]["log"]]


def test_a_pause_is_due_when_the_last_checkpoint_is_old(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(devices, "monotonic", lambda: now[0])
    stop = devices.Stop([], torch.device("cpu"))

    now[0] += stop.PAUSE_SECONDS - 1
    assert not stop.pause_due()
    now[0] += 2
    assert stop.pause_due() and not stop.due()  # of a signal nothing is known

    stop.paused()
    assert not stop.pause_due()


def test_stopped_while_cases_are_prepared(train, phantoms, tmp_path, monkeypatch, capsys):
    """What is prepared is kept, nothing is left half-done, and there is no checkpoint yet."""
    noted, real = [], prepared_module.prepare_image

    def prepare_image(*given):
        noted.append(signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(prepared_module, "prepare_image", prepare_image)
    assert train.train(options(train, phantoms, tmp_path / "runs"), noted) == signal.SIGINT

    arguments = options(train, phantoms, tmp_path / "runs", "--resume")
    assert train.train(arguments, [*noted]) == signal.SIGINT
    run = tmp_path / "runs" / "plain" / "fold0"
    assert f"{run}: no checkpoint to resume, the training begins" in capsys.readouterr().out
    assert noted == [signal.SIGINT]  # one case only
    assert len([*(tmp_path / "runs" / "prepared").iterdir()]) == 1
    assert not (tmp_path / "runs" / "plain" / "fold0" / "checkpoint.pt").exists()


@pytest.fixture
def group_of_one(tmp_path):
    """torch.distributed as torchrun sets it up, with this process alone."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_processes_that_share_a_run_stop_within_an_epoch_of_few_batches(
    train, group_of_one, phantoms, out, monkeypatch
):
    """They ask each other every tenth batch only, and an epoch has four: so at its end too."""
    noted = told_by(monkeypatch, train, lambda iteration, augmented: iteration == 1)
    recipe = replace(SMALL, epochs=50)
    assert train.train(options(train, phantoms, out, recipe=recipe), noted) == signal.SIGTERM
    checkpoint = checkpoint_of(out)
    assert checkpoint["iteration"] == 4 and checkpoint["log"] == []


def test_processes_ask_each_other_every_tenth_batch_of_the_run(group_of_one, monkeypatch):
    asked = []
    monkeypatch.setattr(
        devices, "mean_of_processes", lambda value, device: asked.append(value) or value
    )
    noted = []
    stop = devices.Stop(noted, torch.device("cpu"))
    answers = [stop.due() for _ in range(25)]
    assert len(asked) == 2 and not any(answers)
    noted.append(signal.SIGTERM)
    assert [stop.due() for _ in range(5)] == [False] * 4 + [True] and stop.told() and stop.agreed()


def test_another_process_that_was_told_stops_this_one(group_of_one, monkeypatch):
    monkeypatch.setattr(devices, "mean_of_processes", lambda value, device: (value + 1) / 2)
    stop = devices.Stop([], torch.device("cpu"))
    assert stop.agreed() and not stop.told() and stop.number() == signal.SIGTERM


def test_without_other_processes_every_batch_asks():
    noted = []
    stop = devices.Stop(noted, torch.device("cpu"))
    assert not stop.due()
    noted.append(signal.SIGINT)
    assert stop.due() and stop.agreed() and stop.number() == signal.SIGINT


@pytest.fixture
def ctrl_c_interrupts():
    """As in a terminal; a shell's background jobs are started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_signals_are_noted_once_each_and_then_act_as_ever(ctrl_c_interrupts):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with devices.note_signals() as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert noted == [signal.SIGTERM, signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    "error, status, said",
    [
        (KeyboardInterrupt(), 130, "train.py: stopped; --resume goes on\n"),
        (ValueError("no such thing"), 2, "train.py: no such thing\n"),
        (OSError("disk"), 2, "train.py: disk\n"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. "
                "DefaultCPUAllocator: can't allocate memory: you tried to "
                "allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)"
            ),
            2,
            "train.py: out of memory: the computer did not give 3.0 GiB more; "
            "a recipe with a smaller patch needs less\n",
        ),
        (
            MemoryError(),
            2,
            "train.py: out of memory: the computer gives no more; a recipe with a smaller patch needs less\n",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0"),
            2,
            "train.py: CUDA out of memory; a recipe with a smaller patch needs less\n",
        ),
    ],
    ids=["interrupted", "refused", "system", "cpu_memory", "python_memory", "gpu_memory"],
)
def test_an_end_before_the_end_is_one_line(train, monkeypatch, capsys, error, status, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(train, "train", fail)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == status and capsys.readouterr().err == said


def test_an_error_of_the_program_is_not_hidden(train, monkeypatch):
    def fail(*_):
        raise RuntimeError("a shape is wrong")

    monkeypatch.setattr(train, "train", fail)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        train.main()


def test_memory_that_is_not_given_is_known_as_such():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    assert devices.is_out_of_memory(refused.value) and not devices.is_out_of_memory(
        RuntimeError("shape")
    )
    assert (
        devices.what_memory_lacked(refused.value)
        == "out of memory: the computer did not give 4194304.0 GiB more"
    )


@pytest.mark.parametrize("given", ["-1", "4294967296", "1.5", "many"])
def test_a_seed_that_no_generator_takes_is_refused_with_its_option(train, capsys, given):
    with pytest.raises(SystemExit) as end:
        train.command_line().parse_args(["--seed", given])
    assert end.value.code == 2 and "argument --seed" in capsys.readouterr().err


def test_the_largest_seed_gives_weights_of_its_own(train):
    largest = train.command_line().parse_args(["--seed", str(2**32 - 1)]).seed
    torch.manual_seed(largest)
    one = torch.rand(3)
    torch.manual_seed(2**31 - 1)
    assert not torch.equal(one, torch.rand(3))


def test_all_cases_and_a_split_contradict_each_other(train, phantoms, tmp_path):
    arguments = options(
        train, phantoms, tmp_path, "--fold", "all", "--folds", tmp_path / "folds.json"
    )
    with pytest.raises(
        ValueError, match=r"--fold all trains on every case, --folds .* on some; give one of them"
    ):
        train.train(arguments, [])
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json"}


def test_a_split_that_names_excluded_cases_is_used_without_them(phantoms, tmp_path):
    """As nnU-Net's splits_final.json of all 210 cases does."""
    for number, name in enumerate(("case_00000", "case_00001", "case_00002", "case_00023")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for file in (phantoms / f"phantom_{number}").iterdir():
            (tmp_path / "data" / name / file.name).symlink_to(file)
    split = [
        {"train": ["case_00000", "case_00023", "case_00001"], "val": ["case_00002", "case_00068"]}
    ]
    (tmp_path / "splits_final.json").write_text(json.dumps(split))
    said = []

    found = find_fold(
        tmp_path / "data", SMALL, "0", folds_file=tmp_path / "splits_final.json", say=said.append
    )

    assert found == (["case_00000", "case_00001"], ["case_00002"])
    assert said[0].startswith("3 cases found, 1 left out: case_00023")
    assert said[1] == (
        f"{tmp_path / 'splits_final.json'}: case_00023, case_00068 left out: "
        "excluded_cases of the recipe"
    )

    split[0]["train"].append("case_00300")
    (tmp_path / "splits_final.json").write_text(json.dumps(split))
    with pytest.raises(ValueError, match=r"splits_final\.json: \['case_00300'\] in a fold"):
        find_fold(tmp_path / "data", SMALL, "0", folds_file=tmp_path / "splits_final.json")
    with pytest.raises(
        ValueError, match=r"\['case_00023', 'case_00068'"
    ):  # a recipe that leaves none out
        read_folds(
            tmp_path / "splits_final.json",
            ["case_00000", "case_00001", "case_00002", "case_00300"],
            replace(SMALL, excluded_cases=()),
        )


def test_a_folders_name_is_no_command(tmp_path):
    folder = tmp_path / '$(touch pwned)"; touch pwned; "'
    folder.mkdir()
    before = {*tmp_path.iterdir()}
    assert (
        devices.revision(folder) == "unknown"
        and {*tmp_path.iterdir()} == before
        and not os.path.exists("pwned")
    )


def test_the_revision_is_gits_and_unknown_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.revision(ROOT) == "unknown"


def copied(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "data")
    return tmp_path / "data"


def relabel(data, name):
    path = data / name / "segmentation.nii.gz"
    reference = read_labels(path)
    labels = reference.voxels.copy()
    labels[labels == 2] = 1
    write_image(path, labels, reference.spacing_mm)


def test_resuming_on_other_labels_is_refused_and_names_the_cases(
    train, phantoms, tmp_path, monkeypatch, capsys
):
    data = copied(phantoms, tmp_path)
    out = tmp_path / "runs"
    noted = told_by(monkeypatch, train, lambda iteration, augmented: iteration == 1)
    train.train(options(train, data, out), noted)
    changed = checkpoint_of(out)["cases"]["train"][0]
    held_out = checkpoint_of(out)["cases"]["validation"][0]
    before = (data / changed / "segmentation.nii.gz").read_bytes()
    weights = checkpoint_of(out)

    relabel(data, changed)
    with pytest.raises(
        ValueError,
        match=rf"checkpoint.pt: was trained on another image or other labels of {changed};",
    ):
        train.train(options(train, data, out, "--resume"), [])
    assert same_weights(checkpoint_of(out), weights)

    (data / changed / "segmentation.nii.gz").write_bytes(before)
    relabel(data, held_out)
    train.train(options(train, data, out, "--resume"), [])
    said = capsys.readouterr().out
    assert f"warning: image or labels of {held_out}, held out, are not those of before" in said
    assert checkpoint_of(out)["iteration"] == 8


def test_a_frame_that_is_refused_may_be_chosen(train, phantoms, tmp_path):
    data = copied(phantoms, tmp_path)
    for path in (data / "phantom_3").iterdir():
        header = bytearray(gzip.decompress(path.read_bytes()))
        header[80:92] = np.float32([1, 1, 1]).tobytes()  # pixdim, beside a right sform
        path.write_bytes(gzip.compress(bytes(header)))
    recipe = replace(SMALL, epochs=1, batches_per_epoch=1)
    out = tmp_path / "runs"

    with pytest.raises(ValueError, match=r"phantom_3.*--affine"):
        train.train(options(train, data, out, "--fold", "all", recipe=recipe), [])
    train.train(options(train, data, out, "--fold", "all", "--affine", "sform", recipe=recipe), [])

    told = checkpoint_of(out, "all")["departures"]["run"]
    assert "affine: the sform of files whose frames differ" in told
    assert "fold: all, nothing is held out (paper: trained on four fifths)" in told


def test_a_spacing_may_be_assumed(train, phantoms, out, tmp_path):
    recipe = replace(SMALL, epochs=1, batches_per_epoch=1)
    arguments = options(
        train, phantoms, tmp_path / "runs", "--assume-spacing", 12, 11, 11, recipe=recipe
    )
    train.train(arguments, [])
    wide = prepare(phantoms, tmp_path / "wide", recipe, assume_spacing=(12.0, 11.0, 11.0))
    assert checkpoint_of(tmp_path / "runs")["checksums"] == {
        case.id: case.checksum for case in wide
    }
    given = prepare(phantoms, out / "prepared", recipe)
    assert [case.checksum for case in given] != [case.checksum for case in wide]
    told = checkpoint_of(tmp_path / "runs")["departures"]["run"]
    assert "spacing of the files: [12.0, 11.0, 11.0] mm, whatever they say" in told


def test_a_log_or_curve_that_cannot_be_written_is_a_warning(
    train, phantoms, out, monkeypatch, capsys
):
    run = out / "plain" / "fold0"
    (run / "log.csv").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # its import fails

    assert train.train(options(train, phantoms, out), []) is None

    said = capsys.readouterr().out
    assert said.count(f"warning: {run / 'log.csv'}: not written") == 2  # each epoch
    assert said.count(f"warning: {run / 'learning_curve.png'}: not written") == 2
    assert checkpoint_of(out)["iteration"] == 8


def test_the_checkpoint_comes_before_the_log(train, phantoms, out, monkeypatch):
    seen = []
    monkeypatch.setattr(
        train, "report", lambda run, log, recipe: seen.append(len(checkpoint_of(out)["log"]))
    )
    train.train(options(train, phantoms, out), [])
    assert seen == [1, 2]


def test_weights_that_are_not_finite_do_not_replace_the_last_checkpoint(
    train, phantoms, out, monkeypatch
):
    real = train.train_epoch

    def spoilt(model, draw, optimizer, recipe, epoch, progress, **named):
        row = real(model, draw, optimizer, recipe, epoch, progress, **named)
        if epoch == 1:
            with torch.no_grad():
                model.heads[1].weight[0] = torch.inf
        return row

    monkeypatch.setattr(train, "train_epoch", spoilt)
    with pytest.raises(
        ValueError, match="epoch 2: weights are NaN or infinite, so the last checkpoint is kept"
    ):
        train.train(options(train, phantoms, out), [])
    assert len(checkpoint_of(out)["log"]) == 1


def test_time_left_counts_computing_waiting_and_scoring(train, tmp_path, capsys):
    row = {
        "epoch": 2,
        "loss": 1.0,
        "learning_rate": 0.1,
        "seconds_computing": 10.0,
        "seconds_waiting": 2.0,
        "patch_dice_kidney": 0.5,
        "patch_dice_tumor": 0.25,
        "seconds_scoring": 3.0,
    }
    train.report(tmp_path, [row], replace(TINY, epochs=6))
    assert "10.0 s computing, 2.0 s waiting, 0:01:00 left" in capsys.readouterr().out


def test_departures_of_a_run_survive_its_resuming(train, undisturbed, phantoms, tmp_path):
    """Half a training in bfloat16 is one, though the other half was not."""
    _, checkpoint, *_ = undisturbed
    line = "number format while training: bfloat16 (paper: float32)"
    earlier = {"departures": {"run": [line, *checkpoint["departures"]["run"]]}}
    arguments = options(train, phantoms, tmp_path)
    run = train.chosen_run(arguments, SMALL, train.silent)
    machine = devices.Machine(torch.device("cpu"), torch.float32)

    told = train.departures_of(arguments, run, machine, earlier)

    assert told["run"] == [*checkpoint["departures"]["run"], line]


def test_a_device_that_computes_nothing_is_refused():
    for name in ("meta", "nonsense", "cuda:99"):
        with pytest.raises(ValueError, match=f"device {name}: .*use auto, cpu, cuda or cuda:1"):
            devices.pick_device(name)


def test_whether_to_compile_is_decided_by_the_steps_that_are_left(
    train, undisturbed, phantoms, out, monkeypatch
):
    """Eight steps, of which a run that is resumed after two has six."""
    asked, real = [], train.for_training

    def for_training(network, *, compiling, steps, say):
        asked.append((compiling, steps))
        return real(network, compiling="off", steps=steps, say=say)

    monkeypatch.setattr(train, "for_training", for_training)
    noted = told_by(monkeypatch, train, lambda iteration, augmented: iteration == 1)
    train.train(options(train, phantoms, out, "--seed", 3), noted)
    done = checkpoint_of(out)["iteration"]
    monkeypatch.setattr(train, "draw_batch", draw_batch)
    train.train(options(train, phantoms, out, "--seed", 3, "--resume", "--compile", "on"), [])

    assert asked == [("auto", 8), ("on", 8 - done)] and 1 <= done <= 2
    assert same_weights(undisturbed[1], checkpoint_of(out))


def test_what_repeats_is_asked_for_after_all_that_chooses_by_timing(
    train, phantoms, out, monkeypatch
):
    """On a CPU it repeats anyway: what is trained is the same."""

    def repeat_to_the_bit():
        torch.backends.cudnn.benchmark = False

    monkeypatch.setattr(train, "repeat_to_the_bit", repeat_to_the_bit)

    train.set_up(options(train, phantoms, out), SMALL)
    assert torch.backends.cudnn.benchmark

    train.set_up(options(train, phantoms, out, "--deterministic"), SMALL)
    assert not torch.backends.cudnn.benchmark


def test_the_paper_recipe_is_the_default(train):
    arguments = train.command_line().parse_args([])
    assert train.chosen_recipe(arguments.recipe) == PAPER and arguments.arch == "residual"


def test_a_run_that_no_lock_protects_says_so(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "claim", lambda folder: f"{folder}: its file system has no locks")
    train.claim_run(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path}: its file system has no locks\n"


def test_each_fold_is_its_own_and_all_holds_nothing_out(phantoms):
    ids = sorted(path.name for path in phantoms.iterdir())
    for fold, wanted in enumerate(five_folds(ids)):
        assert find_fold(phantoms, SMALL, str(fold)) == wanted
    assert find_fold(phantoms, SMALL, "all") == (ids, [])


def test_a_resumed_run_keeps_its_rows_and_what_it_departed_by(
    train, undisturbed, phantoms, out, monkeypatch
):
    """Stopped in the second epoch, by a run that had another number format once."""
    noted = told_by(monkeypatch, train, lambda iteration, augmented: augmented and iteration == 6)
    train.train(options(train, phantoms, out, "--seed", 3), noted)
    stopped = checkpoint_of(out)
    assert len(stopped["log"]) == 1
    line = "number format while training: bfloat16 (paper: float32)"
    stopped["departures"]["run"].append(line)
    del stopped["format"]
    save_checkpoint(
        out / "plain" / "fold0" / "checkpoint.pt", **stopped | {"recipe": asdict(SMALL)}
    )

    assert train.train(options(train, phantoms, out, "--seed", 3, "--resume"), []) is None

    resumed = checkpoint_of(out)
    assert line in resumed["departures"]["run"]
    assert [row["loss"] for row in resumed["log"]] == [row["loss"] for row in undisturbed[1]["log"]]


def test_departures_and_environment_are_those_of_the_run(train, phantoms, tmp_path):
    split = tmp_path / "split.json"
    machine = devices.Machine(torch.device("cpu"), torch.bfloat16, world=2)
    surroundings = devices.environment(machine, 3 * 2**30, ROOT)
    assert (surroundings["precision"], surroundings["processes"], surroundings["step_gib"]) == (
        "bfloat16",
        2,
        3.0,
    )

    run = train.Run(tmp_path, "plain", SMALL, "0", 0, ["a", "b"], ["c"])
    arguments = options(train, phantoms, tmp_path, "--folds", split)
    told = train.departures_of(arguments, run, machine, {})

    assert told["run"] == [
        "number format while training: bfloat16 (paper: float32)",
        "device: cpu, which rounds otherwise (paper: one GPU)",
        "processes that share a batch: 2 (paper: 1)",
        f"folds: those of {split} (nnU-Net v1: five, shuffled with its seed)",
        "cases: 3 (paper: 206 of KiTS19)",
    ]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_held_out_patches_are_scored_in_the_precision_of_the_training(
    train, phantoms, prepared, precision
):
    network, seen = build_unet("plain", SMALL), set()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(lambda module, given, result: seen.add(result.dtype))
    train.patch_dice(network, prepare(phantoms, prepared, SMALL), SMALL, 0, precision=precision)
    assert seen == {precision}


def test_a_recipe_is_chosen_by_its_name_or_its_file(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.json").write_text('{"epochs": 7}')
    assert train.chosen_recipe("demo") == DEMO != PAPER
    assert train.chosen_recipe("~/mine.json") == replace(PAPER, epochs=7)


def test_seconds_waiting_are_those_of_drawing_and_computing_the_rest(monkeypatch):
    """A clock that moves by hand: a batch takes 10 s to compute, the first 3 s to be drawn."""
    from minikits import training

    now = [100.0]
    monkeypatch.setattr(training, "monotonic", lambda: now[0])

    def batches(draw, iterations, device):
        for number in iterations:
            now[0] += 3
            yield draw(number)

    def step(*_, **__):
        now[0] += 10
        return torch.tensor(1.0)

    monkeypatch.setattr(training, "fetch_ahead", batches)
    monkeypatch.setattr(training, "training_step", step)
    network = build_unet("plain", SMALL)
    row = training.train_epoch(
        network, lambda i: (None, None), training.sgd(network, SMALL), SMALL, 0, Progress()
    )
    assert (row["seconds_computing"], row["seconds_waiting"]) == (40, 12)


def test_the_recipe_says_which_cases_are_left_out(phantoms, tmp_path):
    """Not the paper's list, where a recipe has another."""
    names = [f"case_{number:05d}" for number in (0, 1, 2, 3, 23, 68)]
    for name, phantom in zip(names, sorted(phantoms.iterdir())):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(phantom)
    recipe = replace(SMALL, excluded_cases=(2,))
    wanted = [name for name in names if name != "case_00002"]
    assert find_fold(tmp_path / "data", recipe, "all") == (wanted, [])
    assert [case.id for case in prepare(tmp_path / "data", tmp_path / "prepared", recipe)] == wanted


def test_the_copy_of_another_folds_run_is_not_continued(train, undisturbed, phantoms, out):
    *_, run = undisturbed
    recipe = replace(SMALL, epochs=2)
    for path, more in (("plain/fold1", ["--fold", 1]), ("residual/fold0", ["--arch", "residual"])):
        shutil.copytree(run / "plain" / "fold0", out / path)
        with pytest.raises(ValueError, match=r"was trained with another (fold|arch)"):
            train.train(
                options(train, phantoms, out, "--seed", 3, "--resume", *more, recipe=recipe), []
            )
