"""Train one network of one fold: python train.py --arch residual --fold 0"""

import argparse
import platform
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from minikits.cases import five_folds, prepare, training_cases
from minikits.checkpoints import load_checkpoint, load_weights, save_checkpoint
from minikits.devices import pick_device, pick_precision
from minikits.evaluation import as_csv, as_json, kits_dice, score_case, summarise, table
from minikits.files import read_json, write_text, written_whole
from minikits.losses import segmentation_loss
from minikits.paper import ARCHITECTURES, DEMO, FOLDS, PAPER, recipe_from
from minikits.prediction import predict_volume
from minikits.sampling import draw_batch, fetch_ahead
from minikits.unet import build_unet
from minikits.volumes import check_same_grid, read_labels, read_volume, write_labels


def main():
    parser = argparse.ArgumentParser(description="Train one network of one fold, then predict and score the fold.")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="residual")
    parser.add_argument("--fold", choices=[*map(str, range(FOLDS)), "all"], default="0")
    parser.add_argument("--data", type=Path, default=Path("data"), help="KiTS19 folder, or images/ and labels/")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the run goes to OUT/ARCH/foldN")
    parser.add_argument("--recipe", default="paper", help="paper, demo, or a JSON file of Recipe fields to override")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--precision", choices=("auto", "fp32"), default="auto", help="fp32 is the paper's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on where the run's checkpoint ends")
    arguments = parser.parse_args()
    try:
        train(arguments)
    except (ValueError, OSError) as error:
        parser.exit(2, f"train.py: {error}\n")


def train(arguments):
    recipe, device = read_recipe(arguments.recipe), pick_device(arguments.device)
    precision = pick_precision(arguments.precision, device)
    run = arguments.out / arguments.arch / f"fold{arguments.fold}"
    train_ids, validation_ids = split(arguments, recipe)
    about = {"arch": arguments.arch, "recipe": asdict(recipe), "fold": arguments.fold, "seed": arguments.seed,
             "cases": {"train": train_ids, "validation": validation_ids}}
    checkpoint = earlier_checkpoint(run, arguments.resume, about)

    cases = {case.id: case for case in prepare(arguments.data, arguments.out / "prepared", recipe)}
    train_cases, validation_cases = ([cases[id] for id in ids] for ids in (train_ids, validation_ids))
    torch.manual_seed(arguments.seed)  # of the initial weights; every later draw has a generator of its own
    network = build_unet(arguments.arch, recipe).to(device, memory_format=torch.channels_last_3d)
    optimizer = torch.optim.SGD(network.parameters(), recipe.learning_rate, recipe.momentum, nesterov=True,
                                weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    first_epoch, log = 0, []
    if checkpoint:
        load_weights(network, checkpoint, run / "checkpoint.pt")
        optimizer.load_state_dict(checkpoint["optimizer"])
        scaler.load_state_dict(checkpoint["scaler"])
        first_epoch, log = checkpoint["epoch"], checkpoint["log"]
    introduce(run, about, network, recipe, device, precision, first_epoch)

    def draw(iteration):
        return [t.to(device, non_blocking=True) for t in draw_batch(train_cases, recipe, arguments.seed, iteration)]

    for epoch in range(first_epoch, recipe.epochs):
        began = time.monotonic()
        batches = fetch_ahead(draw, range(epoch * recipe.batches_per_epoch, (epoch + 1) * recipe.batches_per_epoch))
        loss, waited = train_epoch(network, batches, optimizer, scaler, recipe, epoch, precision)
        if not np.isfinite(loss):
            raise ValueError(f"{run}: the loss of epoch {epoch + 1} is {loss}, wanted a finite one; the checkpoint of "
                             "the epoch before is kept; try --precision fp32, or look at the data")
        kidney, tumor = patch_dice(network, validation_cases, recipe, arguments.seed, device)
        log.append({"epoch": epoch + 1, "loss": loss, "learning_rate": recipe.learning_rate_at(epoch),
                    "patch_dice_kidney": kidney, "patch_dice_tumor": tumor,
                    "seconds_computing": time.monotonic() - began - waited, "seconds_waiting": waited})
        save_checkpoint(run / "checkpoint.pt", **about, epoch=epoch + 1, log=log, network=network.state_dict(),
                        optimizer=optimizer.state_dict(), scaler=scaler.state_dict(), environment=environment(device))
        report(run, log, recipe, first_epoch)
    score_fold(run, network, arguments.data, validation_ids, recipe)


def train_epoch(network, batches, optimizer, scaler, recipe, epoch, precision):
    """One pass over the epoch's batches: (mean loss, seconds spent waiting for data)."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(epoch)
    network.train()
    total, waited, asked = 0, 0.0, time.monotonic()
    for image, target in batches:  # (B, 1, Z, Y, X), (B, Z, Y, X)
        waited += time.monotonic() - asked
        with torch.autocast(image.device.type, precision, enabled=precision != torch.float32):
            logits = network(image.contiguous(memory_format=torch.channels_last_3d))
        loss = segmentation_loss(logits, target)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.max_gradient_norm)
        scaler.step(optimizer)
        scaler.update()
        total = total + loss.detach()  # stays on the device: no waiting for it before the epoch's end
        asked = time.monotonic()
    return total.item() / recipe.batches_per_epoch, waited


def read_recipe(name):
    if name in ("paper", "demo"):
        return PAPER if name == "paper" else DEMO
    return recipe_from(read_json(name), source=name)


def split(arguments, recipe):
    """(train, validation) ids of the fold."""
    ids = [case.id for case in training_cases(arguments.data, recipe)]
    return (ids, []) if arguments.fold == "all" else five_folds(ids)[int(arguments.fold)]


def earlier_checkpoint(run, resume, about):
    """The run's checkpoint, or None for a new run. A run is neither overwritten nor continued as another one."""
    path = run / "checkpoint.pt"
    if not path.exists():
        if resume:
            print(f"{path}: nothing to resume yet, starting from the first epoch")
        return None
    if not resume:
        raise ValueError(f"{path}: this run exists; go on with --resume, or choose another --out")
    checkpoint = load_checkpoint(path)
    checkpoint["recipe"] = asdict(checkpoint["recipe"])
    for name, value in about.items():
        if checkpoint[name] != value:
            raise ValueError(f"{path}: was trained with another {name}; resume with the same, or choose another --out")
    return checkpoint


def introduce(run, about, network, recipe, device, precision, first_epoch):
    departures = recipe.departures()
    print(f"{about['arch']} U-Net, fold {about['fold']}, seed {about['seed']}: "
          f"{sum(p.numel() for p in network.parameters()):,} weights, patch {'x'.join(map(str, recipe.patch))}, "
          f"{recipe.epochs} epochs of {recipe.batches_per_epoch} batches of {recipe.batch_size}, into {run}")
    print("recipe: the paper's" if not departures else f"recipe: {len(departures)} departures from the paper\n  "
          + "\n  ".join(departures))
    print(f"cases: {len(about['cases']['train'])} to train on, {len(about['cases']['validation'])} held out; "
          f"{', '.join(f'{k} {v}' for k, v in environment(device).items())}, {str(precision).removeprefix('torch.')}")
    if first_epoch:
        print(f"resumed after epoch {first_epoch}", flush=True)


def environment(device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return {"device": f"{device} ({name})", "torch": str(torch.__version__), "numpy": np.__version__,
            "python": platform.python_version()}


@torch.inference_mode()
def patch_dice(network, cases, recipe, seed, device):
    """(kidney, tumor) Dice of all voxels of the same held-out patches in each epoch. Not the Dice of the fold."""
    if not cases:
        return float("nan"), float("nan")
    network.eval()
    predictions, targets = [], []
    for iteration in range(recipe.validation_batches):
        image, target = draw_batch(cases, recipe, seed, iteration, augmented=False)
        predictions.append(network(image.to(device)).argmax(dim=1).byte().cpu())
        targets.append(target)
    return kits_dice(torch.cat(predictions), torch.cat(targets))


def report(run, log, recipe, first_epoch):
    """The epoch's line; log.csv; the learning curve where matplotlib is installed."""
    row, timed = log[-1], log[first_epoch:]
    left = np.mean([r["seconds_computing"] + r["seconds_waiting"] for r in timed]) * (recipe.epochs - row["epoch"])
    print(f"epoch {row['epoch']} of {recipe.epochs}: loss {row['loss']:.3f}, learning rate {row['learning_rate']:.4f}, "
          f"patch Dice kidney {row['patch_dice_kidney']:.3f} tumor {row['patch_dice_tumor']:.3f}, "
          f"{row['seconds_computing']:.1f} s computing, {row['seconds_waiting']:.1f} s waiting, "
          f"{int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d} left", flush=True)
    write_text(run / "log.csv", as_csv(log))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    epochs = [r["epoch"] for r in log]
    axes.plot(epochs, [r["loss"] for r in log], color="black", label="training loss")
    for structure, colour in (("kidney", "tab:blue"), ("tumor", "tab:red")):
        axes.plot(epochs, [r[f"patch_dice_{structure}"] for r in log], color=colour, label=f"patch Dice, {structure}")
    axes.set(xlabel="epoch", ylim=(-1, max(1.0, log[0]["loss"])), title=f"{run.parent.name} U-Net, {run.name}")
    axes.legend(loc="best")
    with written_whole(run / "learning_curve.png") as file:
        figure.savefig(file, format="png", dpi=120)


def score_fold(run, network, data, validation_ids, recipe):
    """Predicts the held-out cases whole, on their own grids, and prints their Dice."""
    if not validation_ids:
        print("no case was held out: nothing to score")
        return
    network.eval()
    files = {case.id: case for case in training_cases(data, recipe)}
    rows = []
    for number, id in enumerate(validation_ids, 1):
        volume, reference = read_volume(files[id].image), read_labels(files[id].labels)
        check_same_grid(volume, reference)
        labels = predict_volume([network], volume, recipe)
        write_labels(run / "validation" / f"{id}.nii.gz", labels, volume)
        rows.append(score_case(id, labels, reference.voxels))
        print(f"predicted {id} ({number} of {len(validation_ids)})", flush=True)
    print(table(rows))
    write_text(run / "validation" / "cases.csv", as_csv(rows))
    write_text(run / "validation" / "summary.json", as_json(summarise(rows)))


if __name__ == "__main__":
    main()
