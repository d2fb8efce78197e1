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
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from torch import distributed

from minikits import checkpoints, devices, fast, training
from minikits import prepared as prepared_module
from minikits.cases import find_fold, five_folds, prepare, read_folds
from minikits.checkpoints import load_checkpoint, load_network, save_checkpoint
from minikits.evaluation import kits_dice
from minikits.familiar import QUANTITIES, ranges_in
from minikits.nifti import read_labels, write_image
from minikits.paper import DEMO, PAPER, departures
from minikits.sampling import draw_batch
from minikits.training import Progress
from minikits.unet import build_unet

SMALL = replace(
    TINY, patch=(8, 16, 16), epochs=2, batches_per_epoch=4, validation_batches=2, learning_rate=0.02
)
ONE_BATCH = replace(SMALL, epochs=1, batches_per_epoch=1)


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
    """What the command line gives for a plain network on the CPU; more: further words of it."""
    out.mkdir(exist_ok=True)
    path = out / "recipe.json"
    path.write_text(json.dumps(asdict(recipe)))

    given = ["--arch", "plain", "--data", data, "--out", out, "--recipe", path]
    given += ["--device", "cpu", "--precision", "fp32", *more]
    return train.command_line().parse_args([str(word) for word in given])


def checkpoint_of(out, fold=0):
    return load_checkpoint(out / "plain" / f"fold{fold}" / "checkpoint.pt")


def column(name, checkpoint):
    """What the rows of its log have under a name."""
    return [row[name] for row in checkpoint["log"]]


def same_weights(one, other):
    return all(torch.equal(value, other["network"][name]) for name, value in one["network"].items())


class Drawn(NamedTuple):
    """A batch that train.py asked for."""

    ids: list[str]  # of the cases to draw from
    seed: int
    iteration: int
    augmented: bool
    samples: list[int] | None


def on_each_draw(monkeypatch, train, note):
    """note is given a Drawn before each batch of train.py's is drawn."""

    def draw(cases, recipe, seed, iteration, *, augmented=True, samples=None, device=None):
        share = None if samples is None else list(samples)
        note(Drawn([case.id for case in cases], seed, iteration, augmented, share))
        return draw_batch(
            cases, recipe, seed, iteration, augmented=augmented, samples=samples, device=device
        )

    monkeypatch.setattr(train, "draw_batch", draw)


def told_by(monkeypatch, train, when):
    """A list that takes SIGTERM's number at the first batch for which when(iteration, augmented)
    is true."""
    noted = []

    def note(drawn):
        if when(drawn.iteration, drawn.augmented) and not noted:
            noted.append(signal.SIGTERM)

    on_each_draw(monkeypatch, train, note)
    return noted


class Undisturbed(NamedTuple):
    """A run from its beginning to its end, in one go."""

    drawn: list[Drawn]
    checkpoint: dict
    printed: list[str]
    out: Path


@pytest.fixture(scope="module")
def undisturbed(phantoms, prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(prepared, out / "prepared")
    drawn, printed = [], []

    def say(*words, **_):
        printed.append(" ".join(words))

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        train = importlib.import_module("train")
        on_each_draw(patch, train, drawn.append)
        patch.setattr(train, "print", say, raising=False)
        stopped = train.train(options(train, phantoms, out, "--seed", 3), [])

    assert stopped is None
    return Undisturbed(drawn, checkpoint_of(out), printed, out)


def test_each_batch_of_the_training_cases_is_drawn_once(undisturbed, phantoms):
    train_ids, validation_ids = five_folds([path.name for path in phantoms.iterdir()])[0]

    training = [drawn for drawn in undisturbed.drawn if drawn.augmented]
    scoring = [drawn for drawn in undisturbed.drawn if not drawn.augmented]

    assert [drawn.iteration for drawn in training] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [drawn.iteration for drawn in scoring] == [0, 1, 0, 1]  # each epoch the same
    assert all(drawn.ids == train_ids for drawn in training)
    assert all(drawn.ids == validation_ids for drawn in scoring)
    assert all(drawn.seed == 3 for drawn in undisturbed.drawn)


def test_a_process_draws_its_share_of_a_batch(
    train, group_of_one, phantoms, out, monkeypatch, capsys
):
    """The second of two: it says nothing and writes nothing, the first does."""
    drawn = []
    on_each_draw(monkeypatch, train, drawn.append)
    monkeypatch.setattr(train, "join_processes", lambda device: (1, 2))
    recipe = replace(SMALL, epochs=1, batch_size=4)

    stopped = train.train(options(train, phantoms, out, recipe=recipe), [])

    assert stopped is None
    assert [batch.samples for batch in drawn if batch.augmented] == [[1, 3]] * 4
    assert [batch.samples for batch in drawn if not batch.augmented] == [None] * 2
    assert [batch.augmented for batch in drawn] == [True] * 4 + [False] * 2
    assert capsys.readouterr().out == ""
    assert not (out / "plain").exists()


def test_a_run_is_continued_as_the_same_alone(train, undisturbed, phantoms):
    """And not overwritten: it needs to be asked for."""
    out = undisturbed.out
    checkpoint = out / "plain" / "fold0" / "checkpoint.pt"
    before = checkpoint.read_bytes()
    names = sorted(path.name for path in phantoms.iterdir())
    (out / "split.json").write_text(json.dumps([{"train": names[:2], "val": names[2:]}]))

    def check_refused(*more, why, recipe=SMALL):
        with pytest.raises(ValueError, match=f"checkpoint.pt: {why}"):
            train.train(options(train, phantoms, out, *more, recipe=recipe), [])

    exists = "this run exists; go on with --resume, or choose another --out"
    check_refused("--seed", 3, why=exists)
    check_refused("--seed", 4, "--resume", why="was trained with another seed")
    other = replace(SMALL, weight_decay=0.1)
    check_refused("--seed", 3, "--resume", recipe=other, why="was trained with another recipe")
    split = ("--folds", out / "split.json")
    check_refused("--seed", 3, "--resume", *split, why="was trained with another cases")
    assert checkpoint.read_bytes() == before


def test_the_initial_weights_are_those_of_the_seed(train, tmp_path):
    def started(seed):
        arguments = options(train, tmp_path, tmp_path, "--seed", seed)
        run = train.Run(tmp_path, "plain", SMALL, "0", arguments.seed, [], [])
        network, _, progress, log = train.start_or_resume({}, run, torch.device("cpu"))
        assert progress == Progress()
        assert log == []
        assert not network.heads[0].weight.requires_grad
        return network.state_dict()

    one, again, other = started(3), started(3), started(4)

    torch.manual_seed(3)
    wanted = build_unet("plain", SMALL).state_dict()
    for name, value in wanted.items():
        assert torch.equal(value, one[name])
        assert torch.equal(value, again[name])
    assert not torch.equal(wanted["heads.1.weight"], other["heads.1.weight"])


def test_patch_dice_is_that_of_the_held_out_patches(undisturbed, phantoms, prepared):
    checkpoint = undisturbed.checkpoint
    network = load_network(checkpoint, "checkpoint").eval()
    ids = checkpoint["cases"]["validation"]
    held_out = [case for case in prepare(phantoms, prepared, SMALL) if case.id in ids]

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
    checkpoint, out = undisturbed.checkpoint, undisturbed.out
    train_ids, validation_ids = five_folds([path.name for path in phantoms.iterdir()])[0]
    checksums = {case.id: case.checksum for case in prepare(phantoms, prepared, SMALL)}
    momentum = checkpoint["optimizer"]["state"]
    weights = dict(build_unet("plain", SMALL).named_parameters())
    del weights["heads.0.weight"]  # frozen

    assert checkpoint["arch"] == "plain"
    assert checkpoint["fold"] == "0"
    assert checkpoint["seed"] == 3
    assert checkpoint["recipe"] == SMALL
    assert checkpoint["cases"] == {"train": train_ids, "validation": validation_ids}

    assert checkpoint["checksums"] == checksums
    assert len({*checksums.values()}) == 6
    assert all(checksums.values())

    assert (checkpoint["iteration"], checkpoint["loss_sum"]) == (8, 0)
    assert checkpoint["environment"]["precision"] == "float32"
    assert checkpoint["environment"]["processes"] == 1
    shapes = [momentum[number]["momentum_buffer"].shape for number in sorted(momentum)]
    assert shapes == [value.shape for value in weights.values()]

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


def test_a_checkpoint_says_what_the_cases_that_were_trained_on_are_like(
    undisturbed, phantoms, prepared
):
    """Not the held-out ones, whose kidneys are the two brightest."""
    checkpoint = undisturbed.checkpoint

    found = checkpoint["training_ranges"]

    hu = []
    for case in prepare(phantoms, prepared, SMALL):
        if case.id in checkpoint["cases"]["train"]:
            normalised = case.image[case.labels == 1].double().mean()
            hu.append(float(normalised * SMALL.sd_hu + SMALL.mean_hu))
    assert found["kidney_hu"] == pytest.approx([min(hu), max(hu)])
    assert found["spacing_z_mm"] == [6.0, 6.0]
    assert found["spacing_x_mm"] == [5.5, 5.5]
    assert list(found) == list(QUANTITIES)
    assert ranges_in(checkpoint) == found


def test_the_keys_of_a_checkpoint_and_the_columns_of_the_log_stay(undisturbed):
    """Runs are resumed, audited and plotted by these names, those of earlier versions too."""
    checkpoint, out = undisturbed.checkpoint, undisturbed.out

    columns = (out / "plain" / "fold0" / "log.csv").read_text().splitlines()[0]

    assert set(checkpoint) == {
        *("format", "minikits", "arch", "recipe", "fold", "seed", "cases", "checksums"),
        *("iteration", "loss_sum", "seconds_computing", "seconds_waiting"),
        *("network", "optimizer", "log", "departures", "environment", "ancestor"),
        "training_ranges",
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
    printed, out = undisturbed.printed, undisturbed.out
    log = "\n".join(printed)
    told = undisturbed.checkpoint["departures"]

    assert printed[0] == "6 cases found"
    assert told["recipe"] == departures(SMALL)
    assert told["code"]
    assert told["run"] == [
        "device: cpu, which rounds otherwise (paper: one GPU)",
        "cases: 6 (paper: 206 of KiTS19)",
    ]
    for kind, lines in told.items():
        assert f"{kind}: {len(lines)} departures from the paper" in printed
    for line in told["recipe"] + told["run"]:
        assert f"  {line}" in printed

    assert "plain U-Net, fold 0, seed 3: " in log
    assert " weights, patch 8x16x16, 2 epochs of 4 batches of 2" in log
    assert f"into {out / 'plain' / 'fold0'}" in log
    assert "4 to train on, 2 held out" in log
    assert "epoch 2 of 2" in log
    assert "0:00:00 left" in log


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

    status = train.train(options(train, phantoms, out, "--seed", 3), noted)

    assert status == signal.SIGTERM
    stopped = checkpoint_of(out)
    done = stopped["iteration"]
    assert stopped["log"] == []
    assert done == batch or (batch == 2 and done == 1)  # one is drawn ahead
    assert stopped["loss_sum"] != 0
    assert stopped["seconds_computing"] > 0

    status = train.train(options(train, phantoms, out, "--seed", 3, "--resume"), [])

    assert status is None
    assert f"resumed after epoch 0, batch {done} of the next" in capsys.readouterr().out
    resumed = checkpoint_of(out)
    assert same_weights(undisturbed.checkpoint, resumed)
    for name in ("loss", "learning_rate", "patch_dice_kidney", "patch_dice_tumor"):
        assert column(name, resumed) == column(name, undisturbed.checkpoint), name


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

    stopped = train.train(options(train, phantoms, out, "--seed", 3), [])

    assert stopped is None
    assert seen == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1), (7, 1), (8, 2)]
    assert same_weights(undisturbed.checkpoint, checkpoint_of(out))
    assert column("loss", checkpoint_of(out)) == column("loss", undisturbed.checkpoint)


def test_a_pause_is_due_when_the_last_checkpoint_is_old(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(devices, "monotonic", lambda: now[0])
    stop = devices.Stop([], torch.device("cpu"))

    now[0] += stop.PAUSE_SECONDS - 1
    assert not stop.pause_due()
    now[0] += 2
    assert stop.pause_due()
    assert not stop.due()  # of a signal nothing is known

    stop.paused()
    assert not stop.pause_due()


def test_stopped_while_cases_are_prepared(train, phantoms, tmp_path, monkeypatch, capsys):
    """What is prepared is kept, nothing is left half-done, and there is no checkpoint yet."""
    noted, real = [], prepared_module.prepare_image

    def prepare_image(*given):
        noted.append(signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(prepared_module, "prepare_image", prepare_image)
    runs = tmp_path / "runs"
    run = runs / "plain" / "fold0"

    first = train.train(options(train, phantoms, runs), noted)
    second = train.train(options(train, phantoms, runs, "--resume"), [*noted])

    assert first == second == signal.SIGINT
    assert f"{run}: no checkpoint to resume, the training begins" in capsys.readouterr().out
    assert noted == [signal.SIGINT]  # one case only
    assert len([*(runs / "prepared").iterdir()]) == 1
    assert not (run / "checkpoint.pt").exists()


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

    stopped = train.train(options(train, phantoms, out, recipe=recipe), noted)

    assert stopped == signal.SIGTERM
    checkpoint = checkpoint_of(out)
    assert checkpoint["iteration"] == 4
    assert checkpoint["log"] == []


def test_processes_ask_each_other_every_tenth_batch_of_the_run(group_of_one, monkeypatch):
    asked, noted = [], []

    def mean_of_processes(value, device):
        asked.append(value)
        return value

    monkeypatch.setattr(devices, "mean_of_processes", mean_of_processes)
    stop = devices.Stop(noted, torch.device("cpu"))

    answers = [stop.due() for _ in range(25)]

    assert not any(answers)
    assert len(asked) == 2  # in the tenth and the twentieth round

    noted.append(signal.SIGTERM)
    answers = [stop.due() for _ in range(5)]

    assert answers == [False, False, False, False, True]
    assert stop.told()
    assert stop.agreed()


def test_another_process_that_was_told_stops_this_one(group_of_one, monkeypatch):
    monkeypatch.setattr(devices, "mean_of_processes", lambda value, device: (value + 1) / 2)
    stop = devices.Stop([], torch.device("cpu"))

    assert stop.agreed()
    assert not stop.told()
    assert stop.number() == signal.SIGTERM


def test_without_other_processes_every_batch_asks():
    noted = []
    stop = devices.Stop(noted, torch.device("cpu"))
    assert not stop.due()

    noted.append(signal.SIGINT)

    assert stop.due()
    assert stop.agreed()
    assert stop.number() == signal.SIGINT


@pytest.fixture
def ctrl_c_interrupts():
    """As in a terminal; a shell's background jobs are started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_signals_are_noted_once_each_and_then_act_as_ever(ctrl_c_interrupts):
    def handlers():
        return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    before = handlers()

    with devices.note_signals() as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert noted == [signal.SIGTERM, signal.SIGINT]

        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    assert handlers() == before


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
            "train.py: out of memory: the computer gives no more; "
            "a recipe with a smaller patch needs less\n",
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

    assert end.value.code == status
    assert capsys.readouterr().err == said


def test_an_error_of_the_program_is_not_hidden(train, monkeypatch):
    def fail(*_):
        raise RuntimeError("a shape is wrong")

    monkeypatch.setattr(train, "train", fail)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        train.main()


def test_memory_that_is_not_given_is_known_as_such():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)  # float32: 2**52 bytes, or 2**22 GiB

    lacked = devices.what_memory_lacked(refused.value)

    assert devices.is_out_of_memory(refused.value)
    assert not devices.is_out_of_memory(RuntimeError("shape"))
    assert lacked == "out of memory: the computer did not give 4194304.0 GiB more"


@pytest.mark.parametrize("given", ["-1", "4294967296", "1.5", "many"])
def test_a_seed_that_no_generator_takes_is_refused_with_its_option(train, capsys, given):
    with pytest.raises(SystemExit) as end:
        train.command_line().parse_args(["--seed", given])

    assert end.value.code == 2
    assert "argument --seed" in capsys.readouterr().err


def test_the_largest_seed_gives_weights_of_its_own(train):
    def drawn(seed):
        torch.manual_seed(seed)
        return torch.rand(3)

    largest = train.command_line().parse_args(["--seed", str(2**32 - 1)]).seed

    assert not torch.equal(drawn(largest), drawn(2**31 - 1))


def test_all_cases_and_a_split_contradict_each_other(train, phantoms, tmp_path):
    both = ("--fold", "all", "--folds", tmp_path / "folds.json")
    arguments = options(train, phantoms, tmp_path, *both)

    message = r"--fold all trains on every case, --folds .* on some; give one of them"
    with pytest.raises(ValueError, match=message):
        train.train(arguments, [])

    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json"}


def test_a_split_that_names_excluded_cases_is_used_without_them(phantoms, tmp_path):
    """As nnU-Net's splits_final.json of all 210 cases does."""
    data, file = tmp_path / "data", tmp_path / "splits_final.json"
    data.mkdir()
    for number, name in enumerate(("case_00000", "case_00001", "case_00002", "case_00023")):
        (data / name).symlink_to(phantoms / f"phantom_{number}")
    fold = {
        "train": ["case_00000", "case_00023", "case_00001"],
        "val": ["case_00002", "case_00068"],
    }
    file.write_text(json.dumps([fold]))
    said = []

    found = find_fold(data, SMALL, "0", folds_file=file, say=said.append)

    assert found == (["case_00000", "case_00001"], ["case_00002"])
    assert said[0].startswith("3 cases found, 1 left out: case_00023")
    left_out = "case_00023, case_00068 left out: excluded_cases of the recipe"
    assert said[1] == f"{file}: {left_out}"

    fold["train"].append("case_00300")
    file.write_text(json.dumps([fold]))
    with pytest.raises(ValueError, match=r"splits_final\.json: \['case_00300'\] in a fold"):
        find_fold(data, SMALL, "0", folds_file=file)

    excluding_none = replace(SMALL, excluded_cases=())
    known = ["case_00000", "case_00001", "case_00002", "case_00300"]
    with pytest.raises(ValueError, match=r"\['case_00023', 'case_00068'"):
        read_folds(file, known, excluding_none)


def test_a_folders_name_is_no_command(tmp_path):
    folder = tmp_path / '$(touch pwned)"; touch pwned; "'
    folder.mkdir()

    revision = devices.revision(folder)

    assert revision == "unknown"
    assert [*tmp_path.iterdir()] == [folder]
    assert not os.path.exists("pwned")


def test_the_revision_is_gits_and_unknown_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert devices.revision(ROOT) == "unknown"


def copied(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "data")
    return tmp_path / "data"


def relabel(data, name):
    """A case's tumor becomes kidney."""
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
    stopped = checkpoint_of(out)
    trained_on = stopped["cases"]["train"][0]
    held_out = stopped["cases"]["validation"][0]
    labels = data / trained_on / "segmentation.nii.gz"
    before = labels.read_bytes()

    relabel(data, trained_on)

    message = rf"checkpoint.pt: was trained on another image or other labels of {trained_on};"
    with pytest.raises(ValueError, match=message):
        train.train(options(train, data, out, "--resume"), [])
    assert same_weights(checkpoint_of(out), stopped)

    labels.write_bytes(before)
    relabel(data, held_out)

    train.train(options(train, data, out, "--resume"), [])

    said = capsys.readouterr().out
    assert f"warning: image or labels of {held_out}, held out, are not those of before" in said
    assert checkpoint_of(out)["iteration"] == 8


def test_a_frame_that_is_refused_may_be_chosen(train, phantoms, tmp_path):
    data = copied(phantoms, tmp_path)
    for path in (data / "phantom_3").iterdir():
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[80:92] = np.float32([1, 1, 1]).tobytes()  # pixdim, beside a right sform
        path.write_bytes(gzip.compress(bytes(content)))
    out = tmp_path / "runs"

    def train_on_all(*more):
        train.train(options(train, data, out, "--fold", "all", *more, recipe=ONE_BATCH), [])

    with pytest.raises(ValueError, match=r"phantom_3.*--affine"):
        train_on_all()
    train_on_all("--affine", "sform")

    told = checkpoint_of(out, "all")["departures"]["run"]
    assert "affine: the sform of files whose frames differ" in told
    assert "fold: all, nothing is held out (paper: trained on four fifths)" in told


def test_a_spacing_may_be_assumed(train, phantoms, out, tmp_path):
    spacing = ("--assume-spacing", 12, 11, 11)
    runs = tmp_path / "runs"

    train.train(options(train, phantoms, runs, *spacing, recipe=ONE_BATCH), [])

    wide = prepare(phantoms, tmp_path / "wide", ONE_BATCH, assume_spacing=(12.0, 11.0, 11.0))
    as_given = prepare(phantoms, out / "prepared", ONE_BATCH)
    assert checkpoint_of(runs)["checksums"] == {case.id: case.checksum for case in wide}
    assert [case.checksum for case in as_given] != [case.checksum for case in wide]
    told = checkpoint_of(runs)["departures"]["run"]
    assert "spacing of the files: [12.0, 11.0, 11.0] mm, whatever they say" in told


def test_a_log_or_curve_that_cannot_be_written_is_a_warning(
    train, phantoms, out, monkeypatch, capsys
):
    run = out / "plain" / "fold0"
    (run / "log.csv").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # its import fails

    stopped = train.train(options(train, phantoms, out), [])

    assert stopped is None
    said = capsys.readouterr().out
    assert said.count(f"warning: {run / 'log.csv'}: not written") == 2  # each epoch
    assert said.count(f"warning: {run / 'learning_curve.png'}: not written") == 2
    assert checkpoint_of(out)["iteration"] == 8


def test_the_checkpoint_comes_before_the_log(train, phantoms, out, monkeypatch):
    seen = []

    def report(run, log, recipe):
        seen.append(len(checkpoint_of(out)["log"]))

    monkeypatch.setattr(train, "report", report)

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

    message = "epoch 2: weights are NaN or infinite, so the last checkpoint is kept"
    with pytest.raises(ValueError, match=message):
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

    train.report(tmp_path, [row], replace(TINY, epochs=6))  # 4 are left, of 15 s each

    assert "10.0 s computing, 2.0 s waiting, 0:01:00 left" in capsys.readouterr().out


def test_departures_of_a_run_survive_its_resuming(train, undisturbed, phantoms, tmp_path):
    """Half a training in bfloat16 is one, though the other half was not."""
    now = undisturbed.checkpoint["departures"]["run"]
    line = "number format while training: bfloat16 (paper: float32)"
    earlier = {"departures": {"run": [line, *now]}}
    arguments = options(train, phantoms, tmp_path)
    run = train.chosen_run(arguments, SMALL, train.silent)
    machine = devices.Machine(torch.device("cpu"), torch.float32)

    told = train.departures_of(arguments, run, machine, earlier)

    assert told["run"] == [*now, line]


def test_a_device_that_computes_nothing_is_refused():
    for name in ("meta", "nonsense", "cuda:99"):
        with pytest.raises(ValueError, match=f"device {name}: .*use auto, cpu, cuda or cuda:1"):
            devices.pick_device(name)


def test_whether_to_compile_is_decided_by_the_steps_that_are_left(
    train, undisturbed, phantoms, out, monkeypatch
):
    """Eight steps, of which a run that is resumed after two has six."""
    seed = ("--seed", 3)
    asked, real = [], train.for_training

    def for_training(network, *, compiling, steps, precision, say):
        asked.append((compiling, steps))
        return real(network, compiling="off", steps=steps, precision=precision, say=say)

    monkeypatch.setattr(train, "for_training", for_training)
    noted = told_by(monkeypatch, train, lambda iteration, augmented: iteration == 1)

    train.train(options(train, phantoms, out, *seed), noted)
    done = checkpoint_of(out)["iteration"]
    train.train(options(train, phantoms, out, *seed, "--resume", "--compile", "on"), [])

    assert 1 <= done <= 2
    assert asked == [("auto", 8), ("on", 8 - done)]
    assert same_weights(undisturbed.checkpoint, checkpoint_of(out))


@pytest.fixture
def compiled(monkeypatch):
    """Compiled means padded, and the graphs run as they are: no compiler of C++ is needed."""
    compile = torch.compile
    monkeypatch.setattr(fast, "suited_multiple", lambda device: 4)
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **options: compile(function, backend="aot_eager", **options),
    )
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("first, then", [("on", "off"), ("off", "on")])
def test_a_run_goes_on_in_the_other_form(
    train, undisturbed, phantoms, out, monkeypatch, compiled, first, then
):
    """Stopped in the first epoch, and scored in the other form after it. A checkpoint does not know
    which form wrote it."""
    given = ("--seed", 3, "--compile")
    noted = told_by(monkeypatch, train, lambda iteration, augmented: iteration == 1)
    train.train(options(train, phantoms, out, *given, first), noted)
    stopped = checkpoint_of(out)

    train.train(options(train, phantoms, out, *given, then, "--resume"), [])

    whole, resumed = undisturbed.checkpoint, checkpoint_of(out)
    assert stopped["iteration"] in (1, 2) and resumed["iteration"] == 8
    for checkpoint in (stopped, resumed):
        assert checkpoint.keys() == whole.keys()
        assert checkpoint["network"].keys() == whole["network"].keys()
        assert checkpoint["optimizer"]["state"].keys() == whole["optimizer"]["state"].keys()
    for name, value in whole["network"].items():
        assert torch.allclose(value, resumed["network"][name], rtol=1e-3, atol=1e-4), name
    for name in ("loss", "patch_dice_kidney", "patch_dice_tumor"):
        wanted = [row[name] for row in whole["log"]]
        assert [row[name] for row in resumed["log"]] == pytest.approx(wanted, abs=1e-3), name


@pytest.mark.parametrize("form", ["readable", "fast"])
def test_scoring_brings_all_patches_from_the_device_at_once(
    train, phantoms, prepared, monkeypatch, form
):
    """Two batches of predictions and of targets, once each; in either form the same scores."""
    network = build_unet("plain", SMALL)
    model = network if form == "readable" else fast.faster(network, multiple=4)
    cases = prepare(phantoms, prepared, SMALL)
    wanted = train.patch_dice(network, cases, SMALL, 0, precision=torch.float32)
    brought, real = [], torch.Tensor.cpu
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda tensor: brought.append(tensor.shape) or real(tensor)
    )

    found = train.patch_dice(model, cases, SMALL, 0, precision=torch.float32)

    assert brought == [(2, 2, 8, 16, 16)] * 2
    for name in ("patch_dice_kidney", "patch_dice_tumor"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-3)


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

    assert train.chosen_recipe(arguments.recipe) == PAPER
    assert arguments.arch == "residual"


def test_cases_are_prepared_by_as_many_processes_as_were_asked_for(
    train, phantoms, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(train, "prepare", lambda *_, jobs, **__: asked.append(jobs) or [])
    machine = train.Machine(torch.device("cpu"), torch.float32)
    stop = train.Stop([], machine.device)

    for words in (["--jobs", "3"], []):
        arguments = options(train, phantoms, tmp_path / "out", *words)
        train.prepare_once(arguments, SMALL, stop, machine)

    assert asked == [3, train.cores()]


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
    path = out / "plain" / "fold0" / "checkpoint.pt"
    noted = told_by(monkeypatch, train, lambda iteration, augmented: augmented and iteration == 6)
    train.train(options(train, phantoms, out, "--seed", 3), noted)
    stopped = load_checkpoint(path)
    assert len(stopped["log"]) == 1
    line = "number format while training: bfloat16 (paper: float32)"
    stopped["departures"]["run"].append(line)
    stopped["recipe"] = asdict(SMALL)
    del stopped["format"]
    save_checkpoint(path, **stopped)

    status = train.train(options(train, phantoms, out, "--seed", 3, "--resume"), [])

    assert status is None
    resumed = load_checkpoint(path)
    assert line in resumed["departures"]["run"]
    assert column("loss", resumed) == column("loss", undisturbed.checkpoint)


def test_departures_and_environment_are_those_of_the_run(train, phantoms, tmp_path):
    split = tmp_path / "split.json"
    machine = devices.Machine(torch.device("cpu"), torch.bfloat16, world=2)
    run = train.Run(tmp_path, "plain", SMALL, "0", 0, ["a", "b"], ["c"])
    arguments = options(train, phantoms, tmp_path, "--folds", split)

    surroundings = devices.environment(machine, 3 * 2**30, ROOT)
    told = train.departures_of(arguments, run, machine, {})

    assert surroundings["precision"] == "bfloat16"
    assert surroundings["processes"] == 2
    assert surroundings["step_gib"] == 3.0
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
    cases = prepare(phantoms, prepared, SMALL)
    network = build_unet("plain", SMALL)
    seen = set()

    def see(module, given, result):
        seen.add(result.dtype)

    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(see)

    train.patch_dice(network, cases, SMALL, 0, precision=precision)

    assert seen == {precision}


def test_a_recipe_is_chosen_by_its_name_or_its_file(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.json").write_text('{"epochs": 7}')

    assert DEMO != PAPER
    assert train.chosen_recipe("demo") == DEMO
    assert train.chosen_recipe("~/mine.json") == replace(PAPER, epochs=7)


def test_seconds_waiting_are_those_of_drawing_and_computing_the_rest(monkeypatch):
    """A clock that moves by hand: each of the four batches takes 3 s to be drawn, 10 s to compute."""
    now = [100.0]
    monkeypatch.setattr(training, "monotonic", lambda: now[0])

    def no_batch(iteration):
        return None, None

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
    optimizer = training.sgd(network, SMALL)

    row = training.train_epoch(network, no_batch, optimizer, SMALL, 0, Progress())

    assert row["seconds_computing"] == 4 * 10
    assert row["seconds_waiting"] == 4 * 3


def test_the_recipe_says_which_cases_are_left_out(phantoms, tmp_path):
    """Not the paper's list, where a recipe has another."""
    data = tmp_path / "data"
    data.mkdir()
    names = ["case_00000", "case_00001", "case_00002", "case_00003", "case_00023", "case_00068"]
    for name, phantom in zip(names, sorted(phantoms.iterdir())):
        (data / name).symlink_to(phantom)
    recipe = replace(SMALL, excluded_cases=(2,))

    train_ids, validation_ids = find_fold(data, recipe, "all")
    cases = prepare(data, tmp_path / "prepared", recipe)

    assert train_ids == ["case_00000", "case_00001", "case_00003", "case_00023", "case_00068"]
    assert validation_ids == []
    assert [case.id for case in cases] == train_ids


def test_the_copy_of_another_folds_run_is_not_continued(train, undisturbed, phantoms, out):
    copies = {"plain/fold1": ("--fold", 1), "residual/fold0": ("--arch", "residual")}

    for folder, more in copies.items():
        shutil.copytree(undisturbed.out / "plain" / "fold0", out / folder)
        arguments = options(train, phantoms, out, "--seed", 3, "--resume", *more)

        with pytest.raises(ValueError, match=r"was trained with another (fold|arch)"):
            train.train(arguments, [])
