"""What each part of the method is worth, at the demo's size: trained without it, over seeds.

    python benchmarks/ablations.py FOLDER [--seeds 5] [--jobs 2] [--only "full recipe"]

Trains fold 0 of the demo's phantoms for each variant and seed (one thread each, so many at a time),
and scores six other phantoms, each window seen once. The networks of the full recipe predict them
in other ways too, and averaged, as do those of five folds. What is in FOLDER already is not done
again. Three minutes of a core for each network; it shows what can be seen at this size, and
nothing about patients or the paper's networks.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from minikits import prediction
from minikits.cases import five_folds, prepare
from minikits.devices import pick_precision
from minikits.evaluation import kits_dice
from minikits.files import write_text
from minikits.losses import downsampled, head_weights, segmentation_loss, soft_dice_loss
from minikits.nifti import read_labels, read_volume
from minikits.paper import DEMO
from minikits.phantoms import make_case, write_case
from minikits.prediction import predict_probabilities
from minikits.preprocessing import labels_on_native_grid, prepare_image
from minikits.recipe import Recipe
from minikits.sampling import draw_batch
from minikits.training import Progress, freeze_coarsest_head, sgd, train_epoch
from minikits.unet import ResidualBlock, UNet, build_unet, residual_encoder

CASES, SCANS = 40, 6  # the demo's
FULL = "full recipe"
FOLDS = "another fold for each seed"
AIR_BELOW_HU = -500
STUDENTS_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


# --- what is left out -----------------------------------------------------------------------------


def finest_head_alone(logits, target):
    """The loss without deep supervision."""
    return segmentation_loss(logits[0], target)


def over_heads(loss_of_head, logits, target):
    """A loss of one head, over the supervised resolutions as the method weighs them."""
    loss = 0
    for weight, head in zip(head_weights(len(logits)), logits):
        if weight:
            loss = loss + weight * loss_of_head(head.float(), downsampled(target, head.shape[2:]))
    return loss


def cross_entropy(logits, target):
    return F.cross_entropy(logits, target.long())


class BlockWithoutShortcut(ResidualBlock):
    """conv-IN-ReLU-conv-IN-ReLU: a residual block that does not add its input. The weights of the
    way around it, where it has any, stay as they were drawn, and nothing is done with them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x))


def residual_network(recipe: Recipe) -> UNet:
    return build_unet("residual", recipe)


def without_shortcuts(recipe: Recipe) -> UNet:
    """The residual network, of the same depth and the same first weights, whose blocks do not add
    their input: what it loses is what the shortcuts are worth, not the size."""
    network = residual_network(recipe)
    stages = residual_encoder(
        BlockWithoutShortcut,
        recipe.features("residual"),
        recipe.strides,
        recipe.residual_blocks,
    )
    encoder = nn.ModuleList(stages)
    encoder.load_state_dict(network.encoder.state_dict())
    network.encoder = encoder
    return network


@dataclass(frozen=True)
class Variant:
    """What differs from the demo's residual network on fold 0."""

    recipe: Recipe = DEMO
    fold_of: Callable[[int], int] = lambda seed: 0
    loss_of: Callable = segmentation_loss
    network_of: Callable[[Recipe], UNet] = residual_network


VARIANTS = {
    FULL: Variant(),
    "no augmentation": Variant(
        replace(
            DEMO,
            rotation_probability=0.0,
            scaling_probability=0.0,
            noise_probability=0.0,
            brightness_probability=0.0,
            contrast_probability=0.0,
            inverted_gamma_probability=0.0,
            gamma_probability=0.0,
            mirroring_probability=0.0,
        )
    ),
    "no deep supervision": Variant(loss_of=finest_head_alone),
    "no patch forced on foreground": Variant(replace(DEMO, foreground_share=0.0)),
    "cross-entropy alone": Variant(loss_of=partial(over_heads, cross_entropy)),
    "Dice alone": Variant(loss_of=partial(over_heads, soft_dice_loss)),
    "without the shortcuts": Variant(network_of=without_shortcuts),
    FOLDS: Variant(fold_of=lambda seed: seed % 5),
}


# --- training and scoring -------------------------------------------------------------------------


def train(folder: Path, name: str, seed: int) -> torch.nn.Module:
    """The network of a variant and seed, in eval mode; from the folder where it is there."""
    variant = VARIANTS[name]
    recipe = variant.recipe
    kept = folder / "networks" / f"{name} {seed}.pt"
    torch.manual_seed(seed)
    network = variant.network_of(recipe)
    if kept.exists():
        network.load_state_dict(torch.load(kept, weights_only=True))
        return network.eval()

    cases = prepare(folder / "data", folder / "prepared", recipe) or []
    train_ids, _ = five_folds([case.id for case in cases])[variant.fold_of(seed)]
    cases = [case for case in cases if case.id in train_ids]
    freeze_coarsest_head(network)
    optimizer, progress = sgd(network, recipe), Progress()
    for epoch in range(recipe.epochs):
        train_epoch(
            network,
            partial(draw_batch, cases, recipe, seed),
            optimizer,
            recipe,
            epoch,
            progress,
            precision=pick_precision("auto", torch.device("cpu")),
            loss_of=variant.loss_of,
        )
        progress = Progress(progress.iteration)

    kept.parent.mkdir(exist_ok=True)
    torch.save(network.state_dict(), kept)
    return network.eval()


def predict(networks: list, volume, recipe: Recipe, mirroring: bool) -> np.ndarray:
    """The labels of a scan, on its own grid."""
    probabilities = predict_probabilities(
        networks,
        prepare_image(volume, recipe),
        recipe,
        mirroring,
        precision=pick_precision("auto", torch.device("cpu")),
    )
    return labels_on_native_grid(probabilities, volume)


def score(folder: Path, name: str, seed: int) -> None:
    """Trains a network and writes {way of predicting: [[kidney, tumor] of each scan]}."""
    torch.set_num_threads(1)
    kept = folder / "scores" / f"{name} {seed}.json"
    if kept.exists():
        return
    network = train(folder, name, seed)
    recipe = VARIANTS[name].recipe
    scores, in_air = {}, 0
    for case in sorted((folder / "scans").iterdir()):
        volume = read_volume(case / "imaging.nii.gz")
        reference = read_labels(case / "segmentation.nii.gz").voxels
        labels = predict([network], volume, recipe, mirroring=False)
        ways = {"": labels}
        if name == FULL:
            air = volume.voxels < AIR_BELOW_HU
            in_air += np.count_nonzero(labels[air])
            ways["with mirroring"] = predict([network], volume, recipe, mirroring=True)
            ways["what lies in air deleted"] = np.where(air, 0, labels)
            ways["windows weighted alike"] = predict_unweighted(network, volume, recipe)
        for way, found in ways.items():
            scores.setdefault(way, []).append(kits_dice(found, reference))
    write_text(kept, json.dumps({"scores": scores, "voxels in air": int(in_air)}))
    print(f"{name}, seed {seed}: {np.nanmean(scores[''], axis=0)}", flush=True)


def predict_unweighted(network, volume, recipe: Recipe) -> np.ndarray:
    """As `predict`, but the rim of a window counts as much as its middle."""
    weighted = prediction.importance_map
    prediction.importance_map = lambda patch: torch.ones(tuple(patch))
    try:
        return predict([network], volume, recipe, mirroring=False)
    finally:
        prediction.importance_map = weighted


def score_ensemble(folder: Path, name: str, seeds: range) -> list:
    """[[kidney, tumor] of each scan] by all networks of a variant, averaged."""
    networks = [train(folder, name, seed) for seed in seeds]
    scores = []
    for case in sorted((folder / "scans").iterdir()):
        volume = read_volume(case / "imaging.nii.gz")
        labels = predict(networks, volume, DEMO, mirroring=False)
        scores.append(kits_dice(labels, read_labels(case / "segmentation.nii.gz").voxels))
    return scores


# --- windows unlike the training's ----------------------------------------------------------------


def at_the_bound(image: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Which voxels of a prepared image lie at the window's lower bound: air, lung, fat."""
    lowest = (recipe.window_hu[0] - recipe.mean_hu) / recipe.sd_hu
    return image <= lowest + 0.01


def share_of_most_patches(folder: Path, recipe: Recipe) -> float:
    """99% of 300 training patches have at most this share of their voxels at the bound."""
    cases = prepare(folder / "data", folder / "prepared", recipe) or []
    shares = []
    for iteration in range(150):
        images, _ = draw_batch(cases, recipe, 0, iteration, augmented=False)
        shares += [at_the_bound(image, recipe).float().mean().item() for image in images]
    return float(np.quantile(shares, 0.99))


def marked_at_the_bound(network, image: torch.Tensor, recipe: Recipe) -> list[tuple[float, int]]:
    """Of each window of a prepared image: the share of its voxels at the bound, and how many of
    these the network marks, the window taken alone."""
    axes = [
        prediction.window_starts(side, length) for side, length in zip(image.shape, recipe.patch)
    ]
    found = []
    for starts in product(*axes):
        box = tuple(slice(start, start + length) for start, length in zip(starts, recipe.patch))
        window = image[box]
        missing = [length - side for side, length in zip(window.shape, recipe.patch)]
        window = F.pad(window, (0, missing[2], 0, missing[1], 0, missing[0]))
        with torch.inference_mode(), torch.autocast("cpu", pick_precision("auto", window.device)):
            labels = network(window[None, None]).argmax(dim=1)[0]
        bound = at_the_bound(window, recipe)
        found.append((bound.float().mean().item(), int(labels[bound].count_nonzero())))
    return found


def line_on_windows(folder: Path, seeds: range) -> str:
    """How much of what is marked at the bound lies in windows with more of it than patches have."""
    most = share_of_most_patches(folder, DEMO)
    marked, odd, held = [], np.zeros(0, dtype=bool), 0.0
    for seed in seeds:
        network = train(folder, FULL, seed)
        windows = []
        for case in sorted((folder / "scans").iterdir()):
            image = prepare_image(read_volume(case / "imaging.nii.gz"), DEMO)
            windows += marked_at_the_bound(network, torch.as_tensor(image).float(), DEMO)
        shares = np.array([share for share, _ in windows])
        odd = shares > most
        held = shares[odd].sum() / shares.sum()
        counts = np.array([count for _, count in windows])
        marked.append(f"{counts[odd].sum() / max(counts.sum(), 1):.0%} of {counts.sum()}")
    return (
        f"{odd.sum()} of {len(odd)} windows have more voxels at the lower bound than 99% of training "
        f"patches ({most:.0%}), {held:.0%} of all there are; of what is marked there, they hold, each "
        f"seed: {', '.join(marked)}"
    )


# --- the table ------------------------------------------------------------------------------------


def mean_of_seeds(scores: list[list]) -> np.ndarray:
    """(seeds, 2): the mean Dice of kidney and tumor over the scans, in %."""
    return 100 * np.nanmean(np.array(scores, dtype=float), axis=1)


def row(what: str, means: np.ndarray, full: np.ndarray) -> str:
    """A line of the table: each structure's mean and range over seeds, and the difference from the
    full recipe, paired by seed, with its 95% interval."""
    cells = [what]
    for structure in (0, 1):
        values = means[:, structure]
        cells.append(f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})")
        differences = (values - full[:, structure]).tolist()
        if not any(differences):
            cells.append("")
            continue
        cells.append(f"{statistics.mean(differences):+.1f} ± {half_interval(differences):.1f}")
    return f"| {' | '.join(cells)} |"


def ensemble_row(name: str, scores: list, singles: list[dict]) -> str:
    """A line of the table: the networks of a variant averaged, and the difference from one of them
    alone (the mean over them), paired by scan, with its 95% interval."""
    ensemble = 100 * np.array(scores, dtype=float)
    alone = 100 * np.mean([each["scores"][""] for each in singles], axis=0)
    cells = [f"{name}: {len(singles)} networks averaged, less one alone"]
    for structure in (0, 1):
        differences = (ensemble - alone)[:, structure]
        differences = differences[~np.isnan(differences)].tolist()
        cells.append(f"{np.nanmean(ensemble[:, structure]):.1f}")
        cells.append(f"{statistics.mean(differences):+.1f} ± {half_interval(differences):.1f}")
    return f"| {' | '.join(cells)} |"


def half_interval(values: list[float]) -> float:
    """Half the width of the 95% interval of their mean (Student's t)."""
    return STUDENTS_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5, choices=STUDENTS_T)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    folder, seeds = arguments.folder, range(arguments.seeds)

    for kind, first_seed, count in (("data", 0, CASES), ("scans", 2, SCANS)):
        for number in range(count):
            place = folder / kind / f"phantom_{1000 * first_seed + number:03d}"
            if not place.exists():
                write_case(place, make_case([first_seed, number]))
    prepare(folder / "data", folder / "prepared", DEMO)

    jobs = [(name, seed) for name in arguments.only for seed in seeds]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(score, folder), *zip(*jobs)))

    found = {}
    for name in arguments.only:
        files = [folder / "scores" / f"{name} {seed}.json" for seed in seeds]
        found[name] = [json.loads(file.read_text()) for file in files]
    print(
        f"\n{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, "
        f"{pick_precision('auto', torch.device('cpu'))}; {' '.join(sys.argv)}\n\n"
        "| what | kidney | less full | tumor | less full |\n|---|---|---|---|---|"
    )
    full = mean_of_seeds([each["scores"][""] for each in found[FULL]])
    for name, results in found.items():
        for way in results[0]["scores"]:
            means = mean_of_seeds([each["scores"][way] for each in results])
            print(row(way or name, means, full))
    for name in (FULL, FOLDS):
        if name in found:
            print(ensemble_row(name, score_ensemble(folder, name, seeds), found[name]))
    in_air = [each["voxels in air"] for each in found[FULL]]
    print(f"\nmarked in air (below {AIR_BELOW_HU} HU), voxels of all scans, each seed: {in_air}")
    print(line_on_windows(folder, seeds))


if __name__ == "__main__":
    main()
