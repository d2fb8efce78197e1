"""The card of a trained network: what it was trained on and how, what it scored, what it is not for."""

from collections.abc import Sequence
from math import isnan

from minikits import __version__
from minikits.checkpoints import Provenance, Run, saw_phantoms_alone
from minikits.familiar import QUANTITIES
from minikits.paper import CLASSES

CARD = "model_card.md"  # beside the checkpoint


def model_card(run: Run, provenance: Provenance, log: Sequence[dict]) -> str:
    """The text of a run's card, in Markdown, after the last epoch of its log.

    All of it stands in the checkpoint too, so that a run which is resumed writes the same card."""
    sections = {
        "What it is for": _use(run, provenance),
        "Data": _data(run, provenance),
        "Recipe": _recipe(run, provenance),
        "How the run differs from the paper": _listed(provenance.departures["run"]),
        "How the code differs from the paper": _listed(provenance.departures["code"]),
        "Environment": _environment(provenance),
        "Scores": _scores(run, log),
        "Cases": _cases(run),
    }
    lines = [f"# {run.arch} U-Net, fold {run.fold}", "", *_introduction(run, log)]
    for heading, paragraph in sections.items():
        lines += ["", f"## {heading}", "", *paragraph]
    return "\n".join(lines) + "\n"


def _introduction(run, log):
    state = "trained to its end"
    if len(log) < run.recipe.epochs:
        state = "not trained to its end"
    return [
        f"Marks {' and '.join(CLASSES[1:])} in CT scans of the abdomen. Written by `train.py` of "
        f"minikits {__version__} after epoch {len(log)} of {run.recipe.epochs}: {state}. The "
        "weights are in `checkpoint.pt` beside this card.",
        "",
        "Method: F. Isensee and K. H. Maier-Hein, An attempt at beating the 3D U-Net, "
        "arXiv:1908.02182 (2019).",
    ]


def _use(run, provenance):
    lines = [
        "- For research and teaching. It is no medical device, and not for clinical decisions.",
        "- What it has not seen it does not know, and nothing in a mask warns of that: other "
        "phases of contrast, other spacings, other diseases. Look at every mask.",
        "- If the cases are KiTS19's: images and labels are licensed CC BY-NC-SA 4.0, for no "
        "commercial use. What this means for weights trained on them is not settled by this card.",
    ]
    if saw_phantoms_alone(run.train_ids, provenance.ancestor):
        lines.insert(0, "- Trained on phantoms alone: of no use on patients.")
    return lines


def _data(run, provenance):
    lines = [
        f"- {len(run.train_ids)} cases trained on, {len(run.validation_ids)} held out (fold "
        f"{run.fold}); their names are below, sums of what they hold are in the checkpoint"
    ]
    ancestor = provenance.ancestor
    if ancestor:
        before = f"{len(ancestor.trained_on)} cases"
        if not ancestor.cases_known:
            before = "cases that are not known"
        lines.append(
            f"- its first weights are those of {ancestor.name} ({ancestor.weights}), which was "
            f"trained on {before}"
        )
    if not provenance.training_ranges:
        return lines

    lines += ["", "| of the cases trained on | least | most |", "|---|---|---|"]
    for name, (least, most) in provenance.training_ranges.items():
        lines.append(f"| {QUANTITIES[name]} | {least:.3g} | {most:.3g} |")
    return lines


def _recipe(run, provenance):
    recipe = run.recipe
    patch = " x ".join(map(str, recipe.patch))
    spacing = " x ".join(f"{side:g}" for side in recipe.spacing_mm)
    low, high = recipe.window_hu
    return [
        f"- {recipe.epochs} epochs of {recipe.batches_per_epoch} batches of {recipe.batch_size} "
        f"patches, {patch} voxels of {spacing} mm (Z Y X); seed {run.seed}",
        f"- values cut to {low:g} to {high:g} HU, less {recipe.mean_hu:g}, divided by "
        f"{recipe.sd_hu:g}",
        f"- beside the paper's: {len(provenance.departures['recipe'])} fields differ",
        *[f"  - {line}" for line in provenance.departures["recipe"]],
    ]


def _listed(lines):
    if not lines:
        return ["- in nothing that is recorded"]
    return [f"- {line}" for line in lines]


def _environment(provenance):
    return [f"- {name}: {value}" for name, value in provenance.environment.items()]


def _scores(run, log):
    """Patch Dice, and what it is not."""
    if not log:
        return ["None yet: no epoch is done."]
    last, recipe = log[-1], run.recipe
    lines = [f"Mean loss of the last epoch: {last['loss']:.3f}."]
    kidney, tumor = last["patch_dice_kidney"], last["patch_dice_tumor"]
    if isnan(kidney) and isnan(tumor):
        return [*lines, "No patch Dice: nothing was held out, or held-out patches were empty."]

    patches = recipe.validation_batches * recipe.batch_size
    return [
        *lines,
        "",
        "| | kidney | tumor |",
        "|---|---|---|",
        f"| patch Dice | {_dice(kidney)} | {_dice(tumor)} |",
        "",
        f"Patch Dice is that of all voxels of {patches} patches of held-out cases, the same in "
        f"each epoch, {recipe.foreground_samples} of {recipe.batch_size} centred on foreground. "
        "**It is no Dice of cases, and not comparable to the paper's**: for that, "
        "`python predict.py --cross-validation` and `python evaluate.py`.",
    ]


def _dice(value):
    """As the table shows it: of a structure that no held-out patch holds there is none."""
    return "none held out" if isnan(value) else f"{value:.3f}"


def _cases(run):
    return [
        f"Trained on: {', '.join(run.train_ids)}.",
        "",
        f"Held out: {', '.join(run.validation_ids) or 'none'}.",
    ]
