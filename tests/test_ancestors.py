"""A training that begins with another network's weights: what is taken, told and remembered."""

import importlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY

from minikits.ancestors import take_weights
from minikits.cases import five_folds
from minikits.checkpoints import load_checkpoint, save_checkpoint
from minikits.ensemble import load_networks
from minikits.nnunet import import_nnunet
from minikits.scans import find_scans
from minikits.unet import build_unet

CPU = ["--device", "cpu", "--precision", "fp32"]
SMALL = replace(TINY, patch=(8, 16, 16), epochs=1, batches_per_epoch=1)
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="module")
def prepared(phantoms, tmp_path_factory):
    """A folder for runs that has the prepared cases already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        out = tmp_path_factory.mktemp("prepared")
        run(importlib.import_module("train"), phantoms, out)
    return out / "prepared"


def run(train, data, out, *more, recipe=SMALL, arch="plain"):
    """A training into `out`; more: further words of the command line."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "recipe.json"
    path.write_text(json.dumps(asdict(recipe)))
    words = ["--arch", arch, "--data", data, "--out", out, "--recipe", path, *CPU, *more]
    train.train(train.command_line().parse_args([str(word) for word in words]), [])
    return out / arch


def weights_of(arch, recipe, seed):
    torch.manual_seed(seed)
    return build_unet(arch, recipe)


def saved(path, *, arch="plain", recipe=TINY, seed=5, fold="0", **changes):
    """A checkpoint of a network that saw cases a and b; returns its weights."""
    content = {
        "arch": arch,
        "fold": fold,
        "recipe": asdict(recipe),
        "cases": {"train": ["a", "b"], "validation": ["c"]},
        "seed": seed,
        "iteration": 6,
        "network": weights_of(arch, recipe, seed).state_dict(),
        "optimizer": {},
        "log": [],
        **changes,
    }
    save_checkpoint(path, **content)
    return content["network"]


def take(network, path):
    return take_weights(network, load_checkpoint(path), path)


# --- what is taken --------------------------------------------------------------------------------


def test_all_of_a_network_of_the_same_sizes_is_taken(tmp_path):
    theirs = saved(tmp_path / "other.pt")
    network = weights_of("plain", TINY, seed=6)

    ancestor = take(network, tmp_path / "other.pt")

    assert (ancestor.taken, ancestor.skipped) == (len(theirs), [])
    for name, value in network.state_dict().items():
        assert torch.equal(value, theirs[name])


def test_what_differs_in_shape_stays_as_it_was_drawn_and_is_listed(tmp_path):
    """Features 4 8 8 ... and 4 16 16 ...: the first stage is alike, and what leads to the next not.

    A head has a weight for each of the features that it reads."""
    theirs = saved(tmp_path / "other.pt", recipe=TINY)
    network = weights_of("plain", replace(TINY, max_features=16), seed=6)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    ancestor = take(network, tmp_path / "other.pt")

    after = network.state_dict()
    alike = [name for name in after if after[name].shape == theirs[name].shape]
    assert ancestor.taken == len(alike) and 0 < len(alike) < len(after)
    for name, value in after.items():
        assert torch.equal(value, theirs[name] if name in alike else before[name]), name

    assert len(ancestor.skipped) == len(after) - len(alike)
    assert "heads.0.weight: (3, 8, 1, 1, 1) there, (3, 16, 1, 1, 1) here" in ancestor.skipped


def test_of_another_architecture_what_matches_is_taken(tmp_path):
    """Both have heads of the same sizes; blocks bear other names."""
    theirs = saved(tmp_path / "other.pt", arch="residual")
    network = weights_of("plain", TINY, seed=6)

    ancestor = take(network, tmp_path / "other.pt")

    ours = network.state_dict()
    assert torch.equal(ours["heads.1.weight"], theirs["heads.1.weight"])
    one_sided = [line for line in ancestor.skipped if "absent" in line]
    assert any(line.endswith("absent here") for line in one_sided)
    assert any(": absent there, " in line for line in one_sided)
    assert ancestor.taken + len(ancestor.skipped) == len({*ours, *theirs})


def test_a_network_that_nnunet_trained_may_be_begun_with(tmp_path):
    """Its cases are nowhere named, so that no case can be said to be held out."""
    geometry = json.loads((GOLDEN / "plain.json").read_text())
    recipe = import_nnunet(GOLDEN / "plain.model", "plain", geometry, tmp_path / "theirs.pt")
    network = weights_of("plain", recipe, seed=6)

    ancestor = take(network, tmp_path / "theirs.pt")

    assert ancestor.skipped == [] and ancestor.taken == len(network.state_dict())
    assert (ancestor.trained_on, ancestor.cases_known) == ([], False)
    assert ancestor.name.startswith("plain fold imported, epoch ")


def test_a_network_of_which_nothing_fits_is_refused(tmp_path):
    saved(tmp_path / "other.pt")
    network = weights_of("plain", replace(TINY, plain_features=5, max_features=10), seed=6)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    with pytest.raises(ValueError, match=r"other\.pt: none of the \d+ tensors") as refusal:
        take(network, tmp_path / "other.pt")

    assert "\n" not in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    broken = weights_of("plain", TINY, seed=5).state_dict()
    broken["heads.1.weight"][0] = torch.nan
    saved(tmp_path / "other.pt", network=broken)

    with pytest.raises(ValueError, match=r"other\.pt: weights that are NaN or infinite"):
        take(weights_of("plain", TINY, seed=6), tmp_path / "other.pt")


# --- whose cases they have seen -------------------------------------------------------------------


def test_cases_are_handed_down_from_ancestor_to_ancestor(tmp_path):
    """The first saw a and b, the second c; the third inherits from the second, and so all."""
    saved(tmp_path / "first.pt")
    first = take(weights_of("plain", TINY, seed=6), tmp_path / "first.pt")
    cases = {"train": ["c"], "validation": ["a"]}
    saved(tmp_path / "second.pt", cases=cases, ancestor=asdict(first))

    second = take(weights_of("plain", TINY, seed=7), tmp_path / "second.pt")

    assert first.trained_on == ["a", "b"]
    assert second.trained_on == ["a", "b", "c"]
    assert second.cases_known


def test_what_descends_from_unknown_cases_does_not_know_them_either(tmp_path):
    saved(tmp_path / "first.pt", fold="imported", cases={"train": [], "validation": []})
    first = take(weights_of("plain", TINY, seed=6), tmp_path / "first.pt")
    saved(tmp_path / "second.pt", ancestor=asdict(first))

    second = take(weights_of("plain", TINY, seed=7), tmp_path / "second.pt")

    assert not first.cases_known
    assert not second.cases_known and second.trained_on == ["a", "b"]


def member_of(tmp_path, ancestor):
    saved(tmp_path / "run" / "fold0" / "checkpoint.pt", ancestor=ancestor)
    members, recipe, lines = load_networks([tmp_path / "run"])
    return members, recipe, lines


def test_a_case_that_an_ancestor_has_seen_is_not_held_out(tmp_path):
    saved(tmp_path / "first.pt", cases={"train": ["c", "d"], "validation": []})
    ancestor = take(weights_of("plain", TINY, seed=6), tmp_path / "first.pt")

    (member,), _, _ = member_of(tmp_path, asdict(ancestor))

    assert member.trained_on == {"a", "b", "c", "d"}
    assert member.held_out == set()
    assert member.as_record()["trained_on"] == ["a", "b", "c", "d"]


def test_networks_of_unknown_cases_are_named_when_they_predict(tmp_path):
    saved(tmp_path / "first.pt", fold="imported", cases={"train": [], "validation": []})
    ancestor = take(weights_of("plain", TINY, seed=6), tmp_path / "first.pt")

    _, _, lines = member_of(tmp_path, asdict(ancestor))

    assert any("fold imported, epoch 2, which does not name the cases" in line for line in lines)


@pytest.mark.parametrize(
    "ancestor",
    [
        5,
        {"name": "x"},
        {"trained_on": "abc"},
        {"trained_on": [["a"]]},
        {"skipped": [1]},
        {"weights": 7},
        {"more": 1},
    ],
    ids=str,
)
def test_an_ancestor_that_train_did_not_write_is_refused(tmp_path, ancestor):
    saved(tmp_path / "first.pt")
    right = asdict(take(weights_of("plain", TINY, seed=6), tmp_path / "first.pt"))
    wrong = ancestor
    if isinstance(ancestor, dict) and "name" not in ancestor:
        wrong = {**right, **ancestor}
    saved(tmp_path / "second.pt", ancestor=wrong)

    with pytest.raises(ValueError, match=r"second\.pt: ancestor .* wanted one as train\.py"):
        load_checkpoint(tmp_path / "second.pt")


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture
def out(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "out" / "prepared")
    return tmp_path / "out"


def test_a_run_says_and_keeps_what_it_began_with(train, phantoms, out, tmp_path, capsys):
    """Two held-out cases were trained on by the ancestor; so no case is left to cross-validate."""
    names = sorted(path.name for path in phantoms.iterdir())
    _, held_out = five_folds(names)[0]
    others = {"train": held_out, "validation": []}
    theirs = saved(tmp_path / "other.pt", recipe=SMALL, cases=others)
    unchanged = replace(SMALL, learning_rate=1e-12)

    folder = run(train, phantoms, out, "--init", tmp_path / "other.pt", recipe=unchanged)

    printed = capsys.readouterr().out
    checkpoint = load_checkpoint(folder / "fold0" / "checkpoint.pt")
    for name, value in checkpoint["network"].items():
        assert torch.allclose(value, theirs[name]), name
    ancestor = checkpoint["ancestor"]
    line = (
        f"initial weights: {len(theirs)} tensors (0 skipped) from plain fold 0, epoch 6, "
        f"weights {ancestor.weights}, trained on 2 cases (paper: drawn at random)"
    )
    assert ancestor.trained_on == held_out
    assert line in checkpoint["departures"]["run"]
    assert f"  {line}" in printed.splitlines()
    assert "warning: 2 held-out cases were trained on by plain fold 0, epoch 6" in printed

    members, recipe, _ = load_networks([folder])
    with pytest.raises(ValueError, match="nothing is left to cross-validate"):
        find_scans(phantoms, tmp_path / "masks", members, recipe, crossed=True)


def test_a_run_that_is_resumed_keeps_its_ancestor(train, phantoms, out, tmp_path, capsys):
    """With --init or without; with that of another it is refused, and so is what was drawn."""
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    saved(one, recipe=SMALL)
    saved(other, recipe=SMALL, seed=8)
    folder = run(train, phantoms, out, "--init", one)
    checkpoint = folder / "fold0" / "checkpoint.pt"
    began = load_checkpoint(checkpoint)
    capsys.readouterr()

    with pytest.raises(ValueError, match=r"checkpoint\.pt: this run exists; go on with --resume"):
        run(train, phantoms, out, "--init", one)
    with pytest.raises(ValueError, match=r"began with plain fold 0, epoch 6, not with .*other\.pt"):
        run(train, phantoms, out, "--init", other, "--resume")
    run(train, phantoms, out, "--init", one, "--resume")
    assert f"{one}: the run began with it, and goes on" in capsys.readouterr().out
    run(train, phantoms, out, "--resume")

    assert "initial weights: " in capsys.readouterr().out
    again = load_checkpoint(checkpoint)
    assert again["ancestor"] == began["ancestor"]
    assert again["departures"] == began["departures"]

    drawn = run(train, phantoms, out, arch="residual") / "fold0" / "checkpoint.pt"
    assert load_checkpoint(drawn)["ancestor"] is None
    with pytest.raises(ValueError, match="began with weights drawn at random, not with"):
        run(train, phantoms, out, "--init", one, "--resume", arch="residual")


def test_a_file_that_is_no_checkpoint_is_refused_before_the_training(train, phantoms, out):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt: no such file; wanted a checkpoint"):
        run(train, phantoms, out, "--init", Path("absent.pt"))
    with pytest.raises(ValueError, match=r"recipe\.json: damaged"):
        run(train, phantoms, out, "--init", out / "recipe.json")
    assert not (out / "plain" / "fold0" / "checkpoint.pt").exists()
