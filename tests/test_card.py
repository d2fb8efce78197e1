"""The card beside a checkpoint, and how the software is cited."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from conftest import ROOT, TINY

import minikits
from minikits import card
from minikits.card import model_card
from minikits.checkpoints import Ancestor, Provenance, Run
from minikits.paper import DEMO, PAPER, departures

RUN = Run(Path("runs/plain/fold3"), "plain", DEMO, "3", 7, ["a", "b", "c"], ["d"])
LINES = {"recipe": departures(DEMO), "run": ["device: cpu"], "code": ["axes: ours (theirs)"]}
PROVENANCE = Provenance(LINES, {"device": "cpu", "torch": "2.13.0"}, {"a": "00ff"}, {})
ROW = {"epoch": 1, "loss": -0.5, "patch_dice_kidney": 0.8649, "patch_dice_tumor": 0.25}


def section(text, heading):
    """What stands below a heading, up to the next."""
    return re.search(rf"^## {heading}\n\n(.*?)(?=\n## |\Z)", text, re.DOTALL | re.MULTILINE)[1]


def test_a_card_says_on_what_and_how_it_was_trained():
    text = model_card(RUN, PROVENANCE, [ROW])

    assert text.startswith("# plain U-Net, fold 3\n")
    assert "- 3 cases trained on, 1 held out (fold 3)" in section(text, "Data")
    assert section(text, "Cases") == "Trained on: a, b, c.\n\nHeld out: d.\n"
    assert "12 epochs of 60 batches of 2 patches, 32 x 48 x 48 voxels of 5 x 3.2 x 3.2 mm" in text
    assert "values cut to -79 to 304 HU, less 101, divided by 76.9" in text
    assert "seed 7" in section(text, "Recipe")
    assert section(text, "Environment") == "- device: cpu\n- torch: 2.13.0\n"


def test_a_card_says_what_the_cases_are_like():
    ranges = {"spacing_z_mm": [0.5, 5.0], "kidneys_ml": [212.4, 801.0]}

    text = model_card(RUN, replace(PROVENANCE, training_ranges=ranges), [ROW])

    assert "| spacing along Z, mm | 0.5 | 5 |\n" in section(text, "Data")
    assert "| kidneys with tumors, ml | 212 | 801 |\n" in section(text, "Data")
    assert "|" not in section(model_card(RUN, PROVENANCE, [ROW]), "Data")


def test_a_card_lists_every_departure():
    text = model_card(RUN, PROVENANCE, [ROW])
    of_the_paper = replace(RUN, recipe=PAPER)
    none = replace(PROVENANCE, departures={"recipe": [], "run": [], "code": []})

    for line in departures(DEMO):
        assert f"  - {line}\n" in section(text, "Recipe")
    assert f"{len(departures(DEMO))} fields differ" in text
    assert section(text, "How the run differs from the paper") == "- device: cpu\n"
    assert section(text, "How the code differs from the paper") == "- axes: ours (theirs)\n"
    plain = model_card(of_the_paper, none, [ROW])
    assert "- in nothing that is recorded\n" in plain and "0 fields differ" in plain


def test_a_card_says_that_patch_dice_is_no_dice_of_cases():
    """Four batches of two patches are eight, of each two one on foreground."""
    scores = section(model_card(RUN, PROVENANCE, [ROW]), "Scores")

    assert "| patch Dice | 0.865 | 0.250 |" in scores
    assert "all voxels of 8 patches of held-out cases" in scores
    assert "1 of 2 centred on foreground" in scores
    assert "It is no Dice of cases, and not comparable to the paper's" in scores


def test_a_card_shows_the_scores_of_the_last_epoch():
    rows = [ROW, {**ROW, "loss": -0.75, "patch_dice_tumor": 0.5}]

    scores = section(model_card(RUN, PROVENANCE, rows), "Scores")

    assert "last epoch: -0.750." in scores
    assert "| patch Dice | 0.865 | 0.500 |" in scores


def test_a_card_without_scores_says_why():
    nothing_held_out = {**ROW, "patch_dice_kidney": np.nan, "patch_dice_tumor": np.nan}

    before = section(model_card(RUN, PROVENANCE, []), "Scores")
    of_all = section(model_card(RUN, PROVENANCE, [nothing_held_out]), "Scores")

    assert before == "None yet: no epoch is done.\n"
    assert "No patch Dice: nothing was held out" in of_all
    assert "nan" not in of_all and "|" not in of_all


def test_a_card_says_of_which_structure_nothing_was_held_out():
    no_tumor = {**ROW, "patch_dice_tumor": np.nan}

    scores = section(model_card(RUN, PROVENANCE, [no_tumor]), "Scores")

    assert "| patch Dice | 0.865 | none held out |" in scores


def test_a_card_says_where_the_training_stands():
    unfinished = model_card(RUN, PROVENANCE, [ROW])
    finished = model_card(RUN, PROVENANCE, [ROW] * DEMO.epochs)

    assert "after epoch 1 of 12: not trained to its end." in unfinished
    assert "after epoch 12 of 12: trained to its end." in finished


def test_a_card_names_the_limits():
    use = section(model_card(RUN, PROVENANCE, [ROW]), "What it is for")

    assert "no medical device, and not for clinical decisions" in use
    assert "CC BY-NC-SA 4.0" in use


def test_a_card_of_phantoms_alone_says_so_first():
    """Weights of which others' cases, or nobody knows which, were seen before are not such."""
    phantoms = replace(RUN, train_ids=["phantom_000", "phantom_1002"])
    before = Ancestor("residual fold 0, epoch 5", "00ff", ["phantom_7"], True, 3, [])
    of_a_patient = replace(before, trained_on=["phantom_7", "case_00000"])
    unknown = replace(before, cases_known=False)

    def use(run, ancestor=None):
        text = model_card(run, replace(PROVENANCE, ancestor=ancestor), [ROW])
        return section(text, "What it is for")

    words = "- Trained on phantoms alone: of no use on patients.\n"
    assert use(phantoms).startswith(words)
    assert use(phantoms, before).startswith(words)
    assert words not in use(phantoms, of_a_patient)
    assert words not in use(phantoms, unknown)
    assert words not in use(replace(RUN, train_ids=["phantom_000", "case_00000"]))
    assert words not in use(replace(RUN, train_ids=[]))


def test_a_card_names_the_network_that_it_began_with():
    known = Ancestor("residual fold 0, epoch 5", "00ff", ["x", "y"], True, 3, [])
    unknown = replace(known, trained_on=[], cases_known=False)

    one = model_card(RUN, replace(PROVENANCE, ancestor=known), [ROW])
    other = model_card(RUN, replace(PROVENANCE, ancestor=unknown), [ROW])

    began = "its first weights are those of residual fold 0, epoch 5 (00ff), which was trained on "
    assert f"{began}2 cases\n" in section(one, "Data")
    assert f"{began}cases that are not known\n" in section(other, "Data")


# --- train.py writes it ---------------------------------------------------------------------------


def run_training(train, data, out, *more, fold="0"):
    recipe = replace(TINY, patch=(8, 16, 16), epochs=2, batches_per_epoch=1)
    out.mkdir(exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe)))
    words = ["--arch", "plain", "--fold", fold, "--data", data, "--out", out, *more]
    words += ["--recipe", out / "recipe.json", "--device", "cpu", "--precision", "fp32"]
    train.train(train.command_line().parse_args([str(word) for word in words]), [])
    return out / "plain" / f"fold{fold}"


def test_a_run_has_its_card_and_a_stale_one_is_written_anew(
    train, phantoms, tmp_path, monkeypatch, capsys
):
    """Where it cannot be written, that is a warning."""
    folder = run_training(train, phantoms, tmp_path / "out")
    card_of_the_run = (folder / card.CARD).read_text()

    (folder / card.CARD).write_text("of an earlier epoch")
    run_training(train, phantoms, tmp_path / "out", "--resume")
    again = (folder / card.CARD).read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(train, "write_text", fail)
    run_training(train, phantoms, tmp_path / "out", "--resume")

    assert "after epoch 2 of 2: trained to its end." in card_of_the_run
    assert "- 4 cases trained on, 2 held out (fold 0)" in card_of_the_run
    assert again == card_of_the_run
    assert f"warning: {folder / card.CARD}: not written (disk full)" in capsys.readouterr().out


# --- citing ---------------------------------------------------------------------------------------


def test_the_citation_names_this_version_and_the_paper():
    """Its form was checked with cffconvert, which is not among the packages of the tests."""
    lines = (ROOT / "CITATION.cff").read_text().splitlines()

    assert lines[0] == "cff-version: 1.2.0"
    assert f"version: {minikits.__version__}" in lines
    assert "license: MIT" in lines
    assert "    title: An attempt at beating the 3D U-Net" in lines
    assert "    url: https://arxiv.org/abs/1908.02182" in lines
    assert all(key in "\n".join(lines) for key in ("message: ", "title: ", "authors:\n"))
