"""Train one network of one fold: python train.py --arch residual --fold 0"""

import argparse
import io
import platform
import signal
import subprocess
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from minikits import __version__
from minikits.cases import excluded_ids, five_folds, look_for_training_cases, prepare
from minikits.checkpoints import load_checkpoint, load_network, save_checkpoint
from minikits.devices import (
    Stop,
    claim_memory,
    exact_float32,
    is_out_of_memory,
    join_processes,
    note_signals,
    pick_device,
    pick_precision,
    what_memory_lacked,
)
from minikits.evaluation import kits_dice
from minikits.files import (
    claim,
    forgiving_output,
    read_json,
    typed_path,
    typed_spacing,
)
from minikits.losses import segmentation_loss
from minikits.paper import ARCHITECTURES, DEMO, PAPER, code_departures, recipe_from, run_departures
from minikits.paper import departures as recipe_departures
from minikits.reports import draw_curve, write_log
from minikits.sampling import draw_batch
from minikits.training import Progress, sgd, train_epoch
from minikits.unet import build_unet


def command_line():
    parser = argparse.ArgumentParser(description="Train one network of one fold.")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="residual")
    parser.add_argument("--fold", default="0", help="0 to 4, or all")
    parser.add_argument(
        "--folds",
        type=typed_path,
        help='a split of your own: JSON list of {"train": [ids], "validation": [ids]}',
    )
    parser.add_argument(
        "--data",
        type=typed_path,
        default=Path("data"),
        help="KiTS19 folder, or images/ and labels/",
    )
    parser.add_argument(
        "--out", type=typed_path, default=Path("runs"), help="the run goes to OUT/ARCH/foldN"
    )
    parser.add_argument(
        "--recipe", default="paper", help="paper, demo, or a JSON file of Recipe fields to override"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "bf16"], default="auto", help="paper: fp32"
    )
    parser.add_argument(
        "--affine", choices=["sform", "qform"], help="which to take where they or pixdim differ"
    )
    parser.add_argument(
        "--assume-spacing",
        type=typed_spacing,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="mm; axes as KiTS19's",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the initial weights and of all that is drawn"
    )
    parser.add_argument("--resume", action="store_true", help="go on where the checkpoint ends")
    return parser


def main():
    forgiving_output()
    parser = command_line()
    arguments = parser.parse_args()
    try:
        with note_signals() as noted:
            stopped = train(arguments, noted)
    except KeyboardInterrupt:
        stopped = signal.SIGINT
    except (ValueError, OSError) as error:
        parser.exit(2, f"train.py: {error}\n")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        lacked = what_memory_lacked(error)
        parser.exit(2, f"train.py: {lacked}; a recipe with a smaller patch needs less\n")
    if stopped:
        parser.exit(128 + stopped, "train.py: stopped; --resume goes on\n")


def seed(text):
    """A number that torch's generators take whole, so that each gives other weights and draws."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text}: wanted a whole number from 0 to {2**32 - 1}")
    return number


def train(arguments, noted):
    """Trains to the end, or until a signal is noted: then its number."""
    recipe = chosen_recipe(arguments.recipe)
    device, precision, rank, world = set_up(arguments, recipe)
    share = range(rank, recipe.batch_size, world)  # of each batch's samples
    say = print if rank == 0 else silent
    stop = Stop(noted, device)

    run = arguments.out / arguments.arch / f"fold{arguments.fold}"
    about = describe(arguments, recipe, say)
    if rank == 0:
        claim_run(run)  # before its checkpoint is read
    checkpoint = earlier_checkpoint(run, arguments.resume, about)
    if arguments.resume and not checkpoint:
        say(f"{run}: no checkpoint to resume, the training begins")
    network, optimizer, progress, log = start_or_resume(checkpoint, run, arguments, recipe, device)
    needed = step_bytes(arguments.arch, recipe, len(share), precision, device.type)
    memory = claim_memory(device, needed)
    about["environment"] = environment(device, precision, world, needed)
    about["departures"] = departures(arguments, recipe, about, device, checkpoint)
    introduce(run, about, network, recipe, progress, say)

    cases = prepare_once(arguments, recipe, stop, rank)
    if cases is None:
        return stop.number()
    about["checksums"] = {case.id: case.checksum for case in cases}
    check_unchanged(checkpoint, about["checksums"], run, say)
    train_cases = [case for case in cases if case.id in about["cases"]["train"]]
    held_out = [case for case in cases if case.id in about["cases"]["validation"]]
    train_cases = on_device(train_cases, device, 0.8 * (memory - needed))  # the rest: augmentation

    def draw(iteration):
        batch = draw_batch(train_cases, recipe, arguments.seed, iteration, samples=share)
        return [part.to(device, non_blocking=True) for part in batch]

    model = DistributedDataParallel(network) if world > 1 else network
    while progress.epoch < recipe.epochs:
        row = train_epoch(
            model, draw, optimizer, recipe, progress, precision=precision, stop=stop.due
        )
        stopped = stop.agreed()
        if not stopped:
            scores = patch_dice(
                network, held_out, recipe, arguments.seed, precision=precision, stop=stop.due
            )
            stopped = scores is None
        if not stopped:
            log.append(row | scores)
            progress = Progress(epoch=progress.epoch + 1)

        check_finite(network, row["epoch"])
        if rank == 0:
            save_checkpoint(
                run / "checkpoint.pt",
                **about,
                **asdict(progress),
                log=log,
                network=network.state_dict(),
                optimizer=optimizer.state_dict(),
            )
        if stopped:
            return stop.number()
        if rank == 0:
            report(run, log, recipe)


def set_up(arguments, recipe):
    """(device, precision, rank, world): what computes, in which format, and beside how many."""
    device = pick_device(arguments.device)
    precision = pick_precision(arguments.precision, device)
    torch.backends.cudnn.benchmark = True  # shapes are fixed
    exact_float32()
    rank, world = join_processes(device)
    if recipe.batch_size % world:
        raise ValueError(
            f"recipe: batch_size {recipe.batch_size}, wanted a multiple of the {world} processes"
        )
    return device, precision, rank, world


def silent(*_, **__):
    """Takes what other processes than the first would print."""


def chosen_recipe(name):
    """The paper's, the demo's, or the one in a JSON file."""
    if name == "paper":
        return PAPER
    if name == "demo":
        return DEMO
    return recipe_from(read_json(typed_path(name)), source=name)


def describe(arguments, recipe, say):
    """What makes a run this one and no other: a checkpoint of the same is resumed."""
    train_ids, validation_ids = split(arguments, recipe, say)
    return {
        "arch": arguments.arch,
        "recipe": asdict(recipe),
        "fold": arguments.fold,
        "seed": arguments.seed,
        "cases": {"train": train_ids, "validation": validation_ids},
    }


def split(arguments, recipe, say=silent):
    """(train, validation) ids of the fold. say: prints what was found and left out."""
    if arguments.fold == "all" and arguments.folds:
        raise ValueError(
            f"--fold all trains on every case, --folds {arguments.folds} on some; give one of them"
        )
    found = look_for_training_cases(arguments.data, recipe)
    say(found.summary())
    ids = [case.id for case in found.cases]
    if arguments.fold == "all":
        return ids, []

    if arguments.folds:
        folds, excluded = read_folds(arguments.folds, ids, recipe)
        if excluded:
            say(f"{arguments.folds}: {', '.join(excluded)} left out: excluded_cases of the recipe")
    else:
        folds = five_folds(ids)
    if arguments.fold not in map(str, range(len(folds))):
        raise ValueError(
            f"--fold {arguments.fold}: no such fold, wanted 0 to {len(folds) - 1}, or all"
        )
    return folds[int(arguments.fold)]


def read_folds(path, known, recipe):
    """(folds, excluded) of a JSON list of objects, as nnU-Net's splits_final.json is one too.

    folds: (train, validation) pairs of sorted ids. excluded: ids in the file that the recipe leaves
    out; they are taken out of the folds. known: ids of the cases that are there; a ValueError names
    others, and what is in both halves of a fold."""
    try:
        written = read_json(path)
        pairs = [({*fold["train"]}, {*fold.get("validation", fold.get("val"))}) for fold in written]
    except (TypeError, KeyError, AttributeError):
        raise ValueError(
            f'{path}: wanted a JSON list of {{"train": [ids], "validation": [ids]}}'
        ) from None

    left_out = excluded_ids(recipe)
    folds, excluded = [], set()
    for train_ids, held_out in pairs:
        excluded |= (train_ids | held_out) & left_out
        train_ids, held_out = train_ids - left_out, held_out - left_out
        strange = (train_ids | held_out) - {*known} or train_ids & held_out
        if strange or not train_ids:
            wrong = sorted(map(str, strange))[:5] or "nothing to train on"
            raise ValueError(f"{path}: {wrong} in a fold, wanted cases, once")
        folds.append((sorted(train_ids), sorted(held_out)))
    return folds, sorted(excluded)


def claim_run(run):
    """Keeps the run's folder for this process; says where the system cannot protect it."""
    unprotected = claim(run)
    if unprotected:
        print(unprotected, flush=True)


def earlier_checkpoint(run, resume, about):
    """The run's checkpoint, {} where there is none; ValueError where it may not be continued."""
    path = run / "checkpoint.pt"
    if not path.exists():
        return {}
    if not resume:
        raise ValueError(f"{path}: this run exists; go on with --resume, or choose another --out")
    checkpoint = load_checkpoint(path)
    for name, value in about.items():
        found = asdict(checkpoint["recipe"]) if name == "recipe" else checkpoint[name]
        if found != value:
            raise ValueError(
                f"{path}: was trained with another {name}; resume with the same, or "
                "choose another --out"
            )
    return checkpoint


def start_or_resume(checkpoint, run, arguments, recipe, device):
    """(network, optimizer, Progress, log): new ones, or the checkpoint's."""
    if not checkpoint:
        torch.manual_seed(arguments.seed)  # of the initial weights; draws have their own generators
        network = build_unet(arguments.arch, recipe).to(device)
        return network, sgd(network, recipe), Progress(), []

    network = load_network(checkpoint, run / "checkpoint.pt").to(device)
    optimizer = sgd(network, recipe)
    optimizer.load_state_dict(checkpoint["optimizer"])
    fields = asdict(Progress())
    progress = Progress(**{name: checkpoint.get(name, value) for name, value in fields.items()})
    return network, optimizer, progress, checkpoint["log"]


def prepare_once(arguments, recipe, stop, rank):
    """The PreparedCases of --data, prepared by the first process for all; None after a signal."""

    def prepared():
        return prepare(
            arguments.data,
            arguments.out / "prepared",
            recipe,
            affine=arguments.affine,
            assume_spacing=arguments.assume_spacing,
            stop=stop.told,
        )

    cases = prepared() if rank == 0 else None
    if stop.agreed():  # here the others wait for the first
        return None
    if rank > 0:
        with redirect_stdout(io.StringIO()):  # the first has said it
            cases = prepared()
    return None if stop.agreed() else cases


def check_unchanged(checkpoint, checksums, run, say=silent):
    """ValueError where a case that the checkpoint was trained on holds something else now."""
    before = checkpoint.get("checksums", {})
    changed = [
        name
        for name, checksum in sorted(before.items())
        if checksum and checksums.get(name, checksum) != checksum
    ]
    trained_on = [name for name in changed if name in checkpoint["cases"]["train"]]
    held_out = [name for name in changed if name in checkpoint["cases"]["validation"]]
    if trained_on:
        raise ValueError(
            f"{run / 'checkpoint.pt'}: was trained on another image or other labels of "
            f"{', '.join(trained_on)}; put those back, or train anew with another --out"
        )
    if held_out:
        say(
            f"warning: image or labels of {', '.join(held_out)}, held out, are not those of before;"
            " patch Dice goes on with these",
            flush=True,
        )


def on_device(cases, device, room):
    """The cases in a GPU's memory where that has room (bytes); else as they are, memory-mapped."""
    size = sum(case.image.nbytes + case.labels.nbytes for case in cases)
    if device.type == "cpu" or size > room:
        return cases
    return [
        replace(case, image=case.image.to(device), labels=case.labels.to(device)) for case in cases
    ]


def step_bytes(arch, recipe, samples, precision, device_type="cpu"):
    """About what a step takes at its peak: weights, their gradients and momentum; what is kept for
    the way back, in the precision of the convolutions, of the loss in float32; and the largest
    layer's gradients. A CPU's library rearranges these, in float32: four of the largest tensors.

    Measured on a CPU: 0.8 to 1.2 times this. The process itself (0.4 GiB) and what an allocator
    keeps for later are not in it."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()  # the same memory once
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.device("meta"), hooks:
        network = build_unet(arch, recipe)
        logits = network(torch.empty(samples, 1, *recipe.patch))
        of_network = sum(kept.values())
        segmentation_loss(logits, torch.empty(samples, *recipe.patch))
    of_loss = sum(kept.values()) - of_network

    weights = sum(parameter.nbytes for parameter in network.parameters())
    share = precision.itemsize / torch.float32.itemsize
    largest = max(kept.values())
    passing = 4 * largest if device_type == "cpu" else 2 * largest * share
    return round(3 * weights + share * of_network + of_loss + passing)


def environment(device, precision, world, needed):
    """What a run depends on beside its recipe. needed: bytes of a step."""
    name = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": f"{device} ({name})",
        "precision": str(precision).removeprefix("torch."),
        "processes": world,
        "minikits": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "revision": revision(Path(__file__).parent),
        "step_gib": round(needed / 2**30, 1),
    }


def revision(folder):
    """What git calls the code in a folder; "unknown" where there is no git or no repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else "unknown"


def departures(arguments, recipe, about, device, checkpoint):
    """{"recipe", "run", "code"}: lines on what differs from the paper; of the run, ever."""
    now = run_departures(
        precision=about["environment"]["precision"],
        device=device.type,
        processes=about["environment"]["processes"],
        fold=arguments.fold,
        folds_file=str(arguments.folds) if arguments.folds else None,
        cases=sum(map(len, about["cases"].values())),
    )
    if arguments.affine:
        now.append(f"affine: the {arguments.affine} of files whose frames differ")
    if arguments.assume_spacing:
        now.append(f"spacing of the files: {arguments.assume_spacing} mm, whatever they say")
    before_resuming = checkpoint.get("departures", {}).get("run", [])
    earlier = [line for line in before_resuming if line not in now]
    return {"recipe": recipe_departures(recipe), "run": now + earlier, "code": code_departures()}


def introduce(run, about, network, recipe, progress, say):
    """The first lines of the log: which network, where it stands, what differs from the paper."""
    weights = sum(parameter.numel() for parameter in network.parameters())
    patch = "x".join(map(str, recipe.patch))
    say(
        f"{about['arch']} U-Net, fold {about['fold']}, seed {about['seed']}: {weights:,} weights, "
        f"patch {patch}, {recipe.epochs} epochs of {recipe.batches_per_epoch} batches of "
        f"{recipe.batch_size}, into {run}"
    )
    if progress.epoch or progress.batch:
        say(f"resumed after epoch {progress.epoch}, batch {progress.batch} of the next")

    for kind, lines in about["departures"].items():
        introduce_departures(kind, lines, say)

    train_ids, validation_ids = about["cases"]["train"], about["cases"]["validation"]
    surroundings = ", ".join(f"{name} {value}" for name, value in about["environment"].items())
    say(
        f"cases: {len(train_ids)} to train on, {len(validation_ids)} held out, for predict.py "
        f"--cross-validation; {surroundings}",
        flush=True,
    )


def introduce_departures(kind, lines, say):
    """How many departures there are of a kind, and which; those of the code are always the same."""
    if not lines:
        say(f"{kind}: the paper's")
        return
    departures = "departure" if len(lines) == 1 else "departures"
    say(f"{kind}: {len(lines)} {departures} from the paper")
    if kind == "code":
        say("  listed in docs/paper.md, and in the checkpoint")
        return
    for line in lines:
        say(f"  {line}")


@torch.inference_mode()
def patch_dice(network, cases, recipe, seed, *, precision, stop=lambda: False):
    """Dice of all voxels of the same held-out patches in each epoch; not the Dice of the fold.

    {"patch_dice_kidney", "patch_dice_tumor", "seconds_scoring"}; NaN without cases. None where
    stop(), asked after every batch, is true."""
    network.eval()
    device = next(network.parameters()).device
    began = monotonic()
    predictions, targets = [], []
    for iteration in range(recipe.validation_batches if cases else 0):
        image, target = draw_batch(cases, recipe, seed, iteration, augmented=False)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            predictions.append(network(image.to(device)).argmax(dim=1).byte().cpu())
        targets.append(target)
        if stop():
            return None

    kidney, tumor = np.nan, np.nan
    if targets:
        kidney, tumor = kits_dice(torch.stack(predictions), torch.stack(targets))
    return {
        "patch_dice_kidney": kidney,
        "patch_dice_tumor": tumor,
        "seconds_scoring": monotonic() - began,
    }


def check_finite(network, epoch):
    """ValueError where a weight is not finite: no such checkpoint takes the last one's place."""
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise ValueError(
            f"epoch {epoch}: weights are NaN or infinite, so the last checkpoint is kept; --resume "
            "goes on from there, with --precision fp32, or train anew at a lower learning_rate"
        )


def report(run, log, recipe):
    """The epoch's line, log.csv and the curve; one that cannot be written is a warning."""
    row = log[-1]
    computing, waiting = row["seconds_computing"], row["seconds_waiting"]
    seconds = computing + waiting + row["seconds_scoring"]
    left = timedelta(seconds=round(seconds * (recipe.epochs - row["epoch"])))
    print(
        f"epoch {row['epoch']} of {recipe.epochs}: loss {row['loss']:.3f}, "
        f"learning rate {row['learning_rate']:.4f}, "
        f"patch Dice kidney {row['patch_dice_kidney']:.3f} tumor {row['patch_dice_tumor']:.3f}, "
        f"{computing:.1f} s computing, {waiting:.1f} s waiting, {left} left",
        flush=True,
    )
    if waiting > 0.3 * (computing + waiting):
        print(
            "  more than 30% of the time was spent waiting for data: is the disk of "
            "runs/prepared slow?",
            flush=True,
        )

    for name, write in (("log.csv", write_log), ("learning_curve.png", draw_curve)):
        try:
            write(run / name, log)
        except Exception as error:  # whatever a drawing library may raise
            print(f"warning: {run / name}: not written ({error}); training goes on", flush=True)


if __name__ == "__main__":
    main()
