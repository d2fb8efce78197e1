"""Whole or not at all; what is not a checkpoint of ours is refused in one line, and nothing in it
runs."""

import pickle
import resource
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import TINY, run_script

import minikits
from minikits.checkpoints import (
    Run,
    find_checkpoints,
    load_checkpoint,
    load_network,
    save_checkpoint,
    start_or_resume,
)
from minikits.training import sgd
from minikits.unet import build_unet


def content(**changes):
    return {
        "arch": "plain",
        "fold": "0",
        "recipe": asdict(TINY),
        "cases": {"train": ["a"], "validation": []},
        "seed": 0,
        "iteration": 3,
        "network": build_unet("plain", TINY).state_dict(),
        "optimizer": {},
        "log": [],
        **changes,
    }


def test_round_trip(tmp_path):
    path = tmp_path / "fold0" / "checkpoint.pt"
    saved = content()

    save_checkpoint(path, **saved)
    loaded = load_checkpoint(path)
    network = load_network(loaded, path)

    assert loaded["recipe"] == TINY
    assert loaded["cases"] == saved["cases"]
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, saved["network"][name])
    assert find_checkpoints(tmp_path) == [path]
    assert list(path.parent.iterdir()) == [path]


def test_a_checkpoint_says_which_version_wrote_it(tmp_path):
    path = tmp_path / "checkpoint.pt"

    save_checkpoint(path, **content())

    assert load_checkpoint(path)["minikits"] == minikits.__version__ == "0.1.0"


class Payload:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_a_payload_is_refused_and_does_not_run(tmp_path):
    witness, path = tmp_path / "it_ran", tmp_path / "checkpoint.pt"
    refusal = "damaged, or holds more than plain tensors"

    torch.save(content(extra=Payload(witness)), path)
    with pytest.raises(ValueError, match=refusal):
        load_checkpoint(path)

    path.write_bytes(pickle.dumps(Payload(witness)))
    with pytest.raises(ValueError, match=refusal):
        load_checkpoint(path)

    assert not witness.exists()


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"cases": {"train": 5}}, "cases 5;"),
        ({"cases": {"train": [["a"]]}}, "a list of cases"),
        ({"cases": {}}, "None"),
        ({"arch": "dense"}, "architecture 'dense'"),
        ({"format": 99}, "format 99"),
        ({"network": None}, "no 'network'"),
        ({"recipe": {"layers": 3}}, "no field of a recipe"),
        ({"iteration": "last"}, "no 'iteration'"),
    ],
)
def test_wrong_content_is_named(tmp_path, changes, complaint):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 1, **content(), **changes}, path)
    with pytest.raises(ValueError, match=complaint) as refusal:
        load_checkpoint(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_damaged_files(tmp_path):
    path = tmp_path / "checkpoint.pt"

    save_checkpoint(path, **content())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)

    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no 'format'"):
        load_checkpoint(path)


def test_absent_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file; wanted a checkpoint"):
        load_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match=r"fold0/checkpoint\.pt: no such checkpoint"):
        find_checkpoints(tmp_path / "absent")

    (third,) = find_checkpoints(tmp_path, [3])
    with pytest.raises(FileNotFoundError, match=r"fold3/checkpoint\.pt: no such file"):
        load_checkpoint(third)


def test_where_there_is_no_network_the_demos_is_named_if_that_was_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(FileNotFoundError, match=r"\(docs/using\.md\), named by --model$"):
        find_checkpoints("runs/residual")

    save_checkpoint(tmp_path / "demo/runs/residual/fold0/checkpoint.pt", **content())
    with pytest.raises(FileNotFoundError, match=r"; the demo's: --model demo/runs/residual$"):
        find_checkpoints("runs/residual")


def test_weights_of_another_network_are_refused(tmp_path):
    loaded = {"arch": "plain", "recipe": TINY, "network": build_unet("residual", TINY).state_dict()}
    with pytest.raises(ValueError, match=r"weight .* for the plain network"):
        load_network(loaded, tmp_path)


def test_a_save_that_fails_keeps_the_last_good_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, **content(iteration=4))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, **content(iteration=5))

    assert load_checkpoint(path)["iteration"] == 4
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_keeps_the_last_good_file_and_is_told_in_a_line(tmp_path):
    """A limit on the size of files stands for it: torch's writer reports that as a RuntimeError."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, **content(iteration=4))
    large = content(iteration=5, log=[{"loss": float(number)} for number in range(3000)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(
            OSError, match=r"checkpoint\.pt: cannot be written \(.*\); is the disk full\?"
        ) as refusal:
            save_checkpoint(path, **large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(refusal.value)
    assert load_checkpoint(path)["iteration"] == 4 and list(tmp_path.iterdir()) == [path]


def test_what_torch_cannot_write_is_told_with_the_systems_reason(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, **content(iteration=4))

    def save(*_):
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError(
                "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nmore lines"
            )

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(
        OSError, match=r"cannot be written \(\[Errno 28\] No space left on device\)"
    ):
        save_checkpoint(path, **content(iteration=5))
    assert load_checkpoint(path)["iteration"] == 4 and list(tmp_path.iterdir()) == [path]


def test_a_run_is_audited_by_its_checkpoint_alone(tmp_path):
    """What train.py adds (sums of the cases, departures, seconds) comes back as it was."""
    path = tmp_path / "checkpoint.pt"
    more = {
        "checksums": {"a": "00ff"},
        "departures": {"recipe": ["x: 1 (paper: 2)"], "run": [], "code": []},
        "iteration": 7,
        "loss_sum": 1.5,
        "seconds_computing": 2.5,
        "environment": {"device": "cpu"},
    }
    save_checkpoint(path, **content(**more))
    loaded = load_checkpoint(path)
    assert {name: loaded[name] for name in more} == more


def test_weights_of_double_precision_are_loaded_in_float32(tmp_path):
    weights = build_unet("plain", TINY).double().state_dict()
    checkpoint = {"arch": "plain", "recipe": TINY, "network": weights}

    network = load_network(checkpoint, tmp_path / "checkpoint.pt")

    assert {weight.dtype for weight in weights.values()} == {torch.float64}
    assert {weight.dtype for weight in network.state_dict().values()} == {torch.float32}


def test_no_weights_are_drawn_for_a_network_that_is_loaded(tmp_path, monkeypatch):
    """To draw some that take no memory, torch would load its compiler, for two seconds."""
    weights = build_unet("plain", TINY).state_dict()
    checkpoint = {"arch": "plain", "recipe": TINY, "network": weights}
    monkeypatch.delattr("minikits.unet.initialise")

    network = load_network(checkpoint, tmp_path / "checkpoint.pt")

    assert network.state_dict().keys() == weights.keys()


def test_an_earlier_count_that_is_no_number_is_refused(tmp_path):
    for changes in ({"epoch": 2, "batch": "x"}, {"epoch": "x"}, {}):
        earlier = content(**changes)
        del earlier["iteration"]
        save_checkpoint(tmp_path / "checkpoint.pt", **earlier)

        with pytest.raises(ValueError, match="no 'iteration'"):
            load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("iteration, right", [(5, False), (6, True), (9, True), (10, False)])
def test_a_run_goes_on_where_its_log_ends(tmp_path, iteration, right):
    """Two rows of three batches each: 6 to 9 are done, the third epoch at most."""
    run = Run(tmp_path, "plain", TINY, "0", 0, ["a"], [])
    network = build_unet("plain", TINY)
    optimizer = sgd(network, TINY).state_dict()
    rows = [{"epoch": 1}, {"epoch": 2}]
    save_checkpoint(run.checkpoint, **content(iteration=iteration, log=rows, optimizer=optimizer))
    checkpoint = load_checkpoint(run.checkpoint)

    if right:
        _, _, progress, log = start_or_resume(checkpoint, run, torch.device("cpu"))
        assert (progress.iteration, log) == (iteration, rows)
    else:
        with pytest.raises(ValueError, match=f"iteration {iteration} with 2 rows"):
            start_or_resume(checkpoint, run, torch.device("cpu"))


def test_the_old_command_of_the_import_names_the_new_one():
    said = run_script("-m", "minikits.checkpoints", "import-nnunet", "theirs.model", expect=1)
    assert "python -m minikits.nnunet" in said


def test_an_earlier_checkpoint_counted_epochs_and_the_batches_of_the_next(tmp_path):
    """Two epochs of three batches, and one more, are seven."""
    earlier = content(epoch=2, batch=1)
    del earlier["iteration"]
    save_checkpoint(tmp_path / "checkpoint.pt", **earlier)

    loaded = load_checkpoint(tmp_path / "checkpoint.pt")

    assert TINY.batches_per_epoch == 3 and loaded["iteration"] == 7
