"""Train one network of one fold: python train.py --arch residual --fold 0"""

import argparse
import io
import signal
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from minikits.ancestors import begin, departure
from minikits.card import CARD, model_card
from minikits.cases import find_fold, prepare, training_cases
from minikits.checkpoints import (
    Ancestor,
    Provenance,
    Run,
    check_unchanged,
    earlier_checkpoint,
    save_run,
    start_or_resume,
)
from minikits.devices import (
    Machine,
    Stop,
    check_bfloat16,
    claim_memory,
    doubt_about,
    draws_on,
    environment,
    exact_float32,
    is_out_of_memory,
    join_processes,
    keep_on_device,
    mean_of_processes,
    note_signals,
    pick_device,
    pick_precision,
    repeat_to_the_bit,
    step_bytes,
    what_memory_lacked,
)
from minikits.evaluation import kits_dice
from minikits.familiar import quantities_of_case, ranges_of
from minikits.fast import for_training
from minikits.files import (
    claim,
    forgiving_output,
    typed_path,
    write_text,
)
from minikits.nifti import read_spacing
from minikits.paper import ARCHITECTURES, code_departures, run_departures
from minikits.paper import departures as recipe_departures
from minikits.processes import cores
from minikits.reading import a_number, add_frame_options, chosen_recipe
from minikits.recipe import Recipe
from minikits.reports import draw_curve, write_log
from minikits.sampling import PreparedCase, draw_batch
from minikits.training import Progress, train_epoch

# what prepared cases may take of the memory beside a step; in the rest, patches are augmented
CASES_SHARE = 0.8
# of an epoch's time: who waits longer for batches than this gains by a faster disk
LONG_WAIT = 0.3


def command_line() -> argparse.ArgumentParser:
    """The options."""
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
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ..., mps")
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "bf16"], default="auto", help="paper: fp32"
    )
    parser.add_argument(
        "--compile",
        choices=["auto", "on", "off"],
        default="auto",
        help="the network by torch.compile; auto: on a GPU, where its minute is earned back",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU too, two runs of one command give the same weights to the bit; a step takes "
        "longer (a sixth on an H200)",
    )
    add_frame_options(parser)
    parser.add_argument(
        "--jobs",
        type=a_number,
        default=cores(),
        help="processes that prepare cases, at most (default: the cores, %(default)s); fewer of small "
        "scans, or where memory is short",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the initial weights and of all that is drawn"
    )
    parser.add_argument(
        "--init",
        type=typed_path,
        metavar="CHECKPOINT",
        help="begin with its weights, where names and shapes are the same",
    )
    parser.add_argument("--resume", action="store_true", help="go on where the checkpoint ends")
    return parser


def main() -> None:
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


def seed(text: str) -> int:
    """A number that torch's generators take whole, so that each gives other weights and draws."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text}: wanted a whole number from 0 to {2**32 - 1}")
    return number


def train(arguments: Namespace, noted: list[int]) -> int | None:
    """Trains to the end, or until a signal is noted: then its number."""
    # what computes
    recipe = chosen_recipe(arguments.recipe)
    machine = set_up(arguments, recipe)
    say = print if machine.is_first else silent
    stop = Stop(noted, machine.device)

    # which run, and where it stands
    run = chosen_run(arguments, recipe, say)
    if machine.is_first:
        claim_run(run.folder)  # before its checkpoint is read
    checkpoint = earlier_checkpoint(run, arguments.resume, say)
    network, optimizer, progress, log = start_or_resume(checkpoint, run, machine.device)
    ancestor = begin(network, run, checkpoint, arguments.init, say)

    # what its log begins with
    room = memory_beside_a_step(run, machine)
    surroundings = environment(machine, room.needed, Path(__file__).parent)
    departures = departures_of(arguments, run, machine, checkpoint, ancestor)
    introduce(run, network, progress, len(log), departures, surroundings, say)

    # its cases
    cases = prepare_once(arguments, recipe, stop, machine)
    if cases is None:
        return stop.number()
    checksums = {case.id: case.checksum for case in cases}
    check_unchanged(checkpoint, checksums, run, say)
    train_cases = [case for case in cases if case.id in run.train_ids]
    ranges = training_ranges(arguments, train_cases, recipe)
    provenance = Provenance(departures, surroundings, checksums, ranges, ancestor)
    train_cases = keep_on_device(train_cases, machine.device, room.for_cases)
    held_out = [case for case in cases if case.id in run.validation_ids]

    # its batches, and the form of the network that is trained
    share = machine.share(recipe.batch_size)
    drawn = partial(draw_batch, train_cases, recipe, run.seed, samples=share)
    draw = draws_on(machine.device, drawn)
    average = partial(mean_of_processes, device=machine.device)
    steps = recipe.epochs * recipe.batches_per_epoch - progress.iteration
    fast, loss_of = for_training(
        network,
        compiling=arguments.compile,
        steps=steps,
        precision=machine.precision,
        say=say,
    )
    model = DistributedDataParallel(fast) if machine.world > 1 else fast

    if machine.is_first and log:
        write_card(run, provenance, log)  # a run that was killed may have left an earlier one
    stop.paused()  # so far nothing was to be saved
    while len(log) < recipe.epochs:
        epoch = len(log)
        row = train_epoch(
            model,
            draw,
            optimizer,
            recipe,
            epoch,
            progress,
            precision=machine.precision,
            loss_of=loss_of,
            pause=stop.pause_due,
            average=average,
        )
        check_finite(network, row["epoch"])

        stopped = stop.agreed()
        epoch_done = progress.iteration == (epoch + 1) * recipe.batches_per_epoch
        scores = None
        if epoch_done and not stopped:
            scores = patch_dice(
                fast, held_out, recipe, run.seed, precision=machine.precision, stop=stop.due
            )
            stopped = scores is None  # a signal came meanwhile
        if scores:
            log.append(row | scores)
            progress = Progress(progress.iteration)

        # an epoch that a pause cut short comes round again, from progress.iteration
        if machine.is_first:
            save_run(run, provenance, network, optimizer, progress, log)
        stop.paused()

        if stopped:
            return stop.number()
        if scores and machine.is_first:
            report(run.folder, log, recipe)
            write_card(run, provenance, log)


@dataclass(frozen=True)
class Room:
    """Bytes of memory: what a step needs, and what the device has beside it for cases."""

    needed: int
    for_cases: float


def chosen_run(arguments: Namespace, recipe: Recipe, say: Callable) -> Run:
    """The Run that the command line asks for. say: prints what was found and left out."""
    train_ids, validation_ids = find_fold(
        arguments.data, recipe, arguments.fold, folds_file=arguments.folds, say=say
    )
    folder = arguments.out / arguments.arch / f"fold{arguments.fold}"
    return Run(
        folder,
        arguments.arch,
        recipe,
        arguments.fold,
        arguments.seed,
        train_ids,
        validation_ids,
    )


def set_up(arguments: Namespace, recipe: Recipe) -> Machine:
    """The Machine: what computes, in which format, and beside how many."""
    device = pick_device(arguments.device)
    precision = pick_precision(arguments.precision, device)
    doubt = doubt_about(device)
    if doubt:
        print(doubt, flush=True)
    torch.backends.cudnn.benchmark = True  # shapes are fixed
    exact_float32()
    if arguments.deterministic:
        repeat_to_the_bit()
    if device.type == "cuda" and precision == torch.bfloat16:
        check_bfloat16(device)

    rank, world = join_processes(device)
    if recipe.batch_size % world:
        raise ValueError(
            f"recipe: batch_size {recipe.batch_size}, wanted a multiple of the {world} processes"
        )
    return Machine(device, precision, rank, world)


def memory_beside_a_step(run: Run, machine: Machine) -> Room:
    """The Room; ValueError where a step does not fit."""
    samples = len(machine.share(run.recipe.batch_size))
    needed = step_bytes(run.arch, run.recipe, samples, machine.precision, machine.device.type)
    memory = claim_memory(machine.device, needed)
    return Room(needed, CASES_SHARE * (memory - needed))


def silent(*_: object, **__: object) -> None:
    """Takes what other processes than the first would print."""


def claim_run(run: Path) -> None:
    """Keeps the run's folder for this process; says where the system cannot protect it."""
    unprotected = claim(run)
    if unprotected:
        print(unprotected, flush=True)


def prepare_once(
    arguments: Namespace, recipe: Recipe, stop: Stop, machine: Machine
) -> list[PreparedCase] | None:
    """The PreparedCases of --data, prepared by the first process for all; None after a signal."""

    def prepared():
        return prepare(
            arguments.data,
            arguments.out / "prepared",
            recipe,
            affine=arguments.affine,
            assume_spacing=arguments.assume_spacing,
            jobs=arguments.jobs,
            stop=stop.told,
            say=partial(print, flush=True),
        )

    cases = None
    if machine.is_first:
        cases = prepared()
    if stop.agreed():  # here the others wait for the first
        return None

    if not machine.is_first:
        with redirect_stdout(io.StringIO()):  # the first has said it
            cases = prepared()
    if stop.agreed():
        return None
    return cases


def training_ranges(
    arguments: Namespace, cases: list[PreparedCase], recipe: Recipe
) -> dict[str, list[float]]:
    """What the cases that are trained on are like, for whoever predicts others."""
    scans = {}
    for case in training_cases(arguments.data, recipe):
        assert case.image  # as each of them has
        scans[case.id] = case.image

    quantities = []
    for case in cases:
        spacing_mm = read_spacing(
            scans[case.id], affine=arguments.affine, assume_spacing=arguments.assume_spacing
        )
        quantities.append(quantities_of_case(case, spacing_mm, recipe))
    return ranges_of(quantities)


def departures_of(
    arguments: Namespace,
    run: Run,
    machine: Machine,
    checkpoint: dict,
    ancestor: Ancestor | None = None,
) -> dict[str, list[str]]:
    """{"recipe", "run", "code"}: lines on what differs from the paper; of the run, ever."""
    now = run_departures(
        precision=str(machine.precision).removeprefix("torch."),
        device=machine.device.type,
        processes=machine.world,
        fold=run.fold,
        folds_file=str(arguments.folds) if arguments.folds else None,
        cases=len(run.train_ids) + len(run.validation_ids),
    )
    if arguments.affine:
        now.append(f"affine: the {arguments.affine} of files whose frames differ")
    if arguments.assume_spacing:
        now.append(f"spacing of the files: {arguments.assume_spacing} mm, whatever they say")
    if ancestor:
        now.append(departure(ancestor))

    before_resuming = checkpoint.get("departures", {}).get("run", [])
    earlier = [line for line in before_resuming if line not in now]
    return {
        "recipe": recipe_departures(run.recipe),
        "run": now + earlier,
        "code": code_departures(),
    }


def introduce(
    run: Run,
    network: torch.nn.Module,
    progress: Progress,
    epoch: int,
    departures: dict[str, list[str]],
    surroundings: dict,
    say: Callable,
) -> None:
    """The first lines of the log: which network, where it stands, what differs from the paper."""
    recipe = run.recipe
    weights = sum(parameter.numel() for parameter in network.parameters())
    patch = "x".join(map(str, recipe.patch))
    say(
        f"{run.arch} U-Net, fold {run.fold}, seed {run.seed}: {weights:,} weights, "
        f"patch {patch}, {recipe.epochs} epochs of {recipe.batches_per_epoch} batches of "
        f"{recipe.batch_size}, into {run.folder}"
    )
    if progress.iteration:
        batch = progress.iteration - epoch * recipe.batches_per_epoch
        say(f"resumed after epoch {epoch}, batch {batch} of the next")

    for kind, lines in departures.items():
        introduce_departures(kind, lines, say)

    facts = ", ".join(f"{name} {value}" for name, value in surroundings.items())
    say(
        f"cases: {len(run.train_ids)} to train on, {len(run.validation_ids)} held out, for "
        f"predict.py --cross-validation; {facts}",
        flush=True,
    )


def introduce_departures(kind: str, lines: list[str], say: Callable) -> None:
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
def patch_dice(
    model: torch.nn.Module,
    cases: list[PreparedCase],
    recipe: Recipe,
    seed: int,
    *,
    precision: torch.dtype,
    stop: Callable[[], bool] = lambda: False,
) -> dict | None:
    """Dice of all voxels of the same held-out patches in each epoch; not the Dice of the fold.

    {"patch_dice_kidney", "patch_dice_tumor", "seconds_scoring"}; NaN without cases. None where
    stop(), asked after every batch, is true."""
    model.eval()
    device = next(model.parameters()).device
    began = monotonic()

    predictions, targets = [], []
    draw = draws_on(device, partial(draw_batch, cases, recipe, seed, augmented=False))
    batches = recipe.validation_batches if cases else 0
    for iteration in range(batches):
        image, target = draw(iteration)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = model(image)
        predictions.append(logits.argmax(dim=1).byte())
        targets.append(target)
        if stop():
            return None

    kidney, tumor = np.nan, np.nan
    if targets:
        # from the device at once: no batch waits for it
        kidney, tumor = kits_dice(torch.stack(predictions).cpu(), torch.stack(targets).cpu())
    return {
        "patch_dice_kidney": kidney,
        "patch_dice_tumor": tumor,
        "seconds_scoring": monotonic() - began,
    }


def check_finite(network: torch.nn.Module, epoch: int) -> None:
    """ValueError where a weight is not finite: no such checkpoint takes the last one's place."""
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise ValueError(
            f"epoch {epoch}: weights are NaN or infinite, so the last checkpoint is kept; --resume "
            "goes on from there, with --precision fp32, or train anew at a lower learning_rate"
        )


def report(run: Path, log: list[dict], recipe: Recipe) -> None:
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
    if waiting > LONG_WAIT * (computing + waiting):
        print(
            f"  more than {LONG_WAIT:.0%} of the time was spent waiting for data: is the disk of "
            "runs/prepared slow?",
            flush=True,
        )

    for name, write in (("log.csv", write_log), ("learning_curve.png", draw_curve)):
        try:
            write(run / name, log)
        except Exception as error:  # whatever a drawing library may raise
            print(f"warning: {run / name}: not written ({error}); training goes on", flush=True)


def write_card(run: Run, provenance: Provenance, log: list[dict]) -> None:
    """The network's card beside its checkpoint; that it cannot be written is a warning."""
    path = run.folder / CARD
    try:
        write_text(path, model_card(run, provenance, log))
    except OSError as error:
        print(f"warning: {path}: not written ({error}); training goes on", flush=True)


if __name__ == "__main__":
    main()
