"""Train one network of one fold: python train.py --arch residual --fold 0"""

import argparse
import platform
import signal
import subprocess
from dataclasses import asdict, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from minikits.cases import five_folds, prepare, training_cases
from minikits.checkpoints import load_checkpoint, load_network, save_checkpoint
from minikits.devices import claim_memory, join_processes, mean_of_processes, note_signals, pick_device, pick_precision
from minikits.evaluation import as_csv, kits_dice
from minikits.files import claim, read_json, write_text, written_whole
from minikits.losses import segmentation_loss
from minikits.paper import ARCHITECTURES, DEMO, PAPER, recipe_from
from minikits.sampling import draw_batch, fetch_ahead
from minikits.unet import build_unet


def main():
    parser = argparse.ArgumentParser(description="Train one network of one fold.")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="residual")
    parser.add_argument("--fold", default="0", help="0 to 4, or all")
    parser.add_argument("--folds", help='a split of your own: JSON list of {"train": [ids], "validation": [ids]}')
    parser.add_argument("--data", type=Path, default=Path("data"), help="KiTS19 folder, or images/ and labels/")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the run goes to OUT/ARCH/foldN")
    parser.add_argument("--recipe", default="paper", help="paper, demo, or a JSON file of Recipe fields to override")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="paper: fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on where the run's checkpoint ends")
    arguments = parser.parse_args()
    try:
        stopped = train(arguments)
    except (ValueError, OSError) as error:
        parser.exit(2, f"train.py: {error}\n")
    except torch.OutOfMemoryError as error:
        parser.exit(2, f"train.py: {str(error).split('. ')[0]}; a recipe with a smaller patch needs less\n")
    if stopped:
        parser.exit(128 + stopped, "train.py: stopped; --resume goes on\n")


def train(arguments):
    """Trains to the end, or until told to stop: then the signal's number."""
    recipe = {"paper": PAPER, "demo": DEMO}.get(name := arguments.recipe) or recipe_from(read_json(name), source=name)
    device = pick_device(arguments.device)
    precision, (rank, world) = pick_precision(arguments.precision, device), join_processes(device)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False  # shapes are fixed; fp32 means fp32
    if recipe.batch_size % world:
        raise ValueError(f"recipe: batch_size {recipe.batch_size}, wanted a multiple of the {world} processes")
    run = arguments.out / arguments.arch / f"fold{arguments.fold}"
    train_ids, validation_ids = split(arguments, recipe)
    about = {"arch": arguments.arch, "recipe": asdict(recipe), "fold": arguments.fold, "seed": arguments.seed,
             "cases": {"train": train_ids, "validation": validation_ids}}
    rank or claim(run)  # before its checkpoint is read
    network, optimizer, state = start_or_resume(run, arguments.resume, about, recipe, device)
    share = range(rank, recipe.batch_size, world)  # of each batch's samples
    needed = step_bytes(arguments.arch, recipe, len(share), precision)
    memory = claim_memory(device, needed)
    surroundings = environment(device, precision, world) | {"step_gib": round(needed / 2**30, 1)}
    rank or introduce(run, about, network, recipe, surroundings, state)
    rank and distributed.barrier()  # the first prepares the cases for all
    cases = prepare(arguments.data, arguments.out / "prepared", recipe)
    if world > 1 and rank == 0:
        distributed.barrier()
    train_cases, validation_cases = ([case for case in cases if case.id in ids] for ids in (train_ids, validation_ids))
    cached = on_device(train_cases, device, 0.8 * (memory - needed))  # the rest is for augmentation
    model = DistributedDataParallel(network) if world > 1 else network

    def draw(iteration):
        batch = draw_batch(cached, recipe, arguments.seed, iteration, samples=share)
        return [part.to(device, non_blocking=True) for part in batch]
    noted = note_signals()
    while state["epoch"] < recipe.epochs:
        row = train_epoch(model, draw, optimizer, recipe, precision, state, noted=noted)
        stopped = state["batch"] < recipe.batches_per_epoch
        if not stopped:
            row |= patch_dice(network, validation_cases, recipe, arguments.seed, device, precision)
            state |= {"epoch": row["epoch"], "batch": 0, "loss_sum": 0.0, "log": [*state["log"], row]}
        rank or save_checkpoint(run / "checkpoint.pt", **about, **state, environment=surroundings,
                                network=network.state_dict(), optimizer=optimizer.state_dict())
        if stopped:
            return noted[0] if noted else signal.SIGTERM
        rank or report(run, state["log"], recipe)


def on_device(cases, device, room):
    """The cases in a GPU's memory where that has room (bytes); else as they are, memory-mapped."""
    fit = device.type != "cpu" and sum(part.nbytes for case in cases for part in (case.image, case.labels)) <= room
    return [replace(c, image=c.image.to(device), labels=c.labels.to(device)) for c in cases] if fit else cases


def start_or_resume(run, resume, about, recipe, device):
    """(network, optimizer, state): new, or the run's, which is never overwritten or continued as another."""
    path = run / "checkpoint.pt"
    if path.exists() and not resume:
        raise ValueError(f"{path}: this run exists; go on with --resume, or choose another --out")
    checkpoint = load_checkpoint(path) if path.exists() else {}
    for name, value in about.items() if checkpoint else ():
        if (asdict(checkpoint[name]) if name == "recipe" else checkpoint[name]) != value:
            raise ValueError(f"{path}: was trained with another {name}; resume with the same, or choose another --out")
    torch.manual_seed(about["seed"])  # of the initial weights; every later draw has a generator of its own
    network = (load_network(checkpoint, path) if checkpoint else build_unet(about["arch"], recipe)).to(device)
    network.heads[0].requires_grad_(len(network.heads) == 1)  # the coarsest of several has no weight in the loss
    optimizer = torch.optim.SGD(network.parameters(), recipe.learning_rate, recipe.momentum, nesterov=True,
                                weight_decay=recipe.weight_decay, fused=device.type == "cuda")
    state = {"epoch": 0, "batch": 0, "loss_sum": 0.0, "log": []}  # epochs done; of the next one: batches, their losses
    if checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
        state = {name: checkpoint.get(name, value) for name, value in state.items()}
    return network, optimizer, state


def train_epoch(model, draw, optimizer, recipe, precision, state, *, noted):
    """What is left of the epoch after state's batches, or until a process notes a signal: its row of the log."""
    epoch = state["epoch"]
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(epoch)
    model.train()
    began = asked = monotonic()
    total, waited, start = state["loss_sum"], 0.0, epoch * recipe.batches_per_epoch
    for image, target in fetch_ahead(draw, range(start + state["batch"], start + recipe.batches_per_epoch)):
        waited += monotonic() - asked  # (B, 1, Z, Y, X), (B, Z, Y, X)
        with torch.autocast(image.device.type, precision, enabled=precision != torch.float32):
            logits = model(image)
        loss = segmentation_loss(logits, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
        optimizer.step()
        total = total + loss.detach()  # stays on the device: no waiting for it before the epoch's end
        state["batch"] += 1
        ask = state["batch"] % 10 == 0 or not distributed.is_initialized()  # asking, processes wait for each other
        if ask and mean_of_processes(len(noted), image.device):
            break
        asked = monotonic()
    state["loss_sum"] = mean_of_processes(total, image.device)
    mean = state["loss_sum"] / state["batch"]
    if not np.isfinite(mean):
        raise ValueError(f"epoch {epoch + 1}: the loss is {mean}, wanted a finite one; --resume with --precision fp32")
    return {"epoch": epoch + 1, "loss": mean, "learning_rate": recipe.learning_rate_at(epoch),
            "seconds_computing": monotonic() - began - waited, "seconds_waiting": waited}


def step_bytes(arch, recipe, samples, precision):
    """About a step's peak memory: weights, gradients, momentum, what is kept for the way back, largest gradients."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()  # the same memory once
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network = build_unet(arch, recipe)
        segmentation_loss(network(torch.empty(samples, 1, *recipe.patch)), torch.empty(samples, *recipe.patch))
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return 3 * weights + (sum(kept.values()) + 2 * max(kept.values())) * precision.itemsize // 4


def split(arguments, recipe):
    """(train, validation) ids of the fold."""
    ids = [case.id for case in training_cases(arguments.data, recipe)]
    if arguments.fold == "all":
        return ids, []
    folds = read_folds(arguments.folds, ids) if arguments.folds else five_folds(ids)
    if arguments.fold not in map(str, range(len(folds))):
        raise ValueError(f"--fold {arguments.fold}: no such fold, wanted 0 to {len(folds) - 1}, or all")
    return folds[int(arguments.fold)]


def read_folds(path, known):
    """(train, validation) pairs of ids from a JSON list of objects, as nnU-Net's splits_final.json is too."""
    try:
        folds = [(sorted(fold["train"]), sorted(fold.get("validation", fold.get("val")))) for fold in read_json(path)]
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f'{path}: wanted a JSON list of {{"train": [ids], "validation": [ids]}}') from None
    for train_ids, held_out in folds:
        strange = {*train_ids, *held_out} - {*known} or {*train_ids} & {*held_out}
        if strange or not train_ids:
            raise ValueError(f"{path}: {sorted(strange)[:5] or 'nothing to train on'} in a fold, wanted cases, once")
    return folds


def introduce(run, about, network, recipe, environment, state):
    departures = recipe.departures()
    print(f"{about['arch']} U-Net, fold {about['fold']}, seed {about['seed']}: "
          f"{sum(p.numel() for p in network.parameters()):,} weights, patch {'x'.join(map(str, recipe.patch))}, "
          f"{recipe.epochs} epochs of {recipe.batches_per_epoch} batches of {recipe.batch_size}, into {run}")
    if state["epoch"] or state["batch"]:
        print(f"resumed after epoch {state['epoch']}, batch {state['batch']} of the next")
    print("recipe: the paper's" if not departures else f"recipe: {len(departures)} departures from the paper\n  "
          + "\n  ".join(departures))
    print(f"cases: {len(about['cases']['train'])} to train on, {len(about['cases']['validation'])} held out, for "
          f"predict.py --cross-validation; {', '.join(map('{0[0]} {0[1]}'.format, environment.items()))}", flush=True)


def environment(device, precision, world):
    """What a run depends on beside its recipe."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    absent, revision = subprocess.getstatusoutput(f'git -C "{Path(__file__).parent}" describe --always --dirty')
    return {"device": f"{device} ({name})", "precision": str(precision).removeprefix("torch."), "processes": world,
            "torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version(),
            "revision": "unknown" if absent else revision}


@torch.inference_mode()
def patch_dice(network, cases, recipe, seed, device, precision):
    """Dice of all voxels of the same held-out patches in each epoch; not the Dice of the fold."""
    network.eval()
    pairs = []
    for iteration in range(recipe.validation_batches if cases else 0):
        image, target = draw_batch(cases, recipe, seed, iteration, augmented=False)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            pairs.append((network(image.to(device)).argmax(dim=1).byte().cpu(), target))
    return dict(zip(("patch_dice_kidney", "patch_dice_tumor"),
                    kits_dice(*map(torch.stack, zip(*pairs))) if pairs else (np.nan, np.nan)))


def report(run, log, recipe):
    """The epoch's line; log.csv; the learning curve where matplotlib is installed."""
    row = log[-1]
    computing, waiting = row["seconds_computing"], row["seconds_waiting"]
    left = timedelta(seconds=round((computing + waiting) * (recipe.epochs - row["epoch"])))
    print(f"epoch {row['epoch']} of {recipe.epochs}: loss {row['loss']:.3f}, learning rate {row['learning_rate']:.4f}, "
          f"patch Dice kidney {row['patch_dice_kidney']:.3f} tumor {row['patch_dice_tumor']:.3f}, "
          f"{computing:.1f} s computing, {waiting:.1f} s waiting, {left} left", flush=True)
    if waiting > 0.3 * (computing + waiting):
        print("  more than 30% of the time was spent waiting for data: is the disk of runs/prepared slow?", flush=True)
    write_text(run / "log.csv", as_csv(log))
    if not find_spec("matplotlib"):
        return
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in ("loss", "patch_dice_kidney", "patch_dice_tumor", "learning_rate"):
        unit, label = (log[0][name], " / its first") if name == "learning_rate" else (1, "")
        axes.plot([r["epoch"] for r in log], [r[name] / unit for r in log], label=name.replace("_", " ") + label)
    axes.set(xlabel="epoch", ylim=(-1, max(1.0, log[0]["loss"])), title=f"{run.parent.name} U-Net, {run.name}")
    axes.legend(loc="best")
    with written_whole(run / "learning_curve.png") as file:
        figure.savefig(file, format="png", dpi=120)


if __name__ == "__main__":
    main()
