"""What drawing the next batch costs a training on a CPU, which steps and draws on the same cores.

    python benchmarks/drawing.py            # three minutes on two cores
    python benchmarks/drawing.py --quick    # seconds: whether it runs at all

The demo's residual network and batches. The four ways take turns, an epoch each; the median
milliseconds of a step, draws counted:

  no draw                the same batch in each step
  before each step       drawn by the thread that trains, on all cores
  beside, on all cores   another thread draws the next one meanwhile
  beside, on one core    the same, as train.py does it
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import torch

from minikits import sampling, training
from minikits.cases import prepare
from minikits.devices import claim_memory, pick_precision
from minikits.paper import DEMO
from minikits.phantoms import make_case, write_case
from minikits.recipe import Recipe
from minikits.sampling import draw_batch, fetch_ahead
from minikits.training import Progress, sgd, train_epoch
from minikits.unet import build_unet

CASES = 6
CPU = torch.device("cpu")


def no_draw(draw: Callable, iterations: Iterable, device: torch.device) -> Iterator:
    batch = draw(0)
    for _ in iterations:
        yield batch


def before_each_step(draw: Callable, iterations: Iterable, device: torch.device) -> Iterator:
    return map(draw, iterations)


def beside_on_all_cores(draw: Callable, iterations: Iterable, device: torch.device) -> Iterator:
    """As train.py does it, but for the number of threads."""
    with patch.object(sampling, "compute_on_one_core", lambda: None):
        yield from fetch_ahead(draw, iterations, device)


WAYS = {
    "no draw": no_draw,
    "before each step": before_each_step,
    "beside, on all cores": beside_on_all_cores,
    "beside, on one core": fetch_ahead,
}


def seconds_of_ways(cases: list, recipe: Recipe, rounds: int) -> dict[str, list[float]]:
    """{way: seconds of a step, the mean of each round's epoch}; the first round is not counted."""
    torch.manual_seed(0)
    network = build_unet("residual", recipe)
    optimizer = sgd(network, recipe)
    draw = partial(draw_batch, cases, recipe, 0)
    precision = pick_precision("auto", CPU)

    seconds = {way: [] for way in WAYS}
    usual = training.fetch_ahead
    try:
        for number in range(rounds + 1):
            for way, fetch in WAYS.items():
                training.fetch_ahead = fetch
                began = perf_counter()
                train_epoch(network, draw, optimizer, recipe, 0, Progress(), precision=precision)
                if number:
                    seconds[way].append((perf_counter() - began) / recipe.batches_per_epoch)
    finally:
        training.fetch_ahead = usual
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """A row for each way: milliseconds of a step, and what it takes more than without draws."""
    lines = ["| the next batch is drawn | ms a step | more than no draw |", "|---|---|---|"]
    least = statistics.median(seconds["no draw"])
    for way, taken in seconds.items():
        median = statistics.median(taken)
        lines.append(f"| {way} | {1000 * median:.0f} | {1000 * (median - least):.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two steps of a tiny network")
    options = parser.parse_args()
    claim_memory(CPU, 1 << 30)  # glibc keeps what is freed, as in train.py

    recipe, rounds = replace(DEMO, batches_per_epoch=30), 9
    if options.quick:
        small = {"patch": (16, 16, 16), "residual_features": 2, "max_features": 4}
        recipe, rounds = replace(DEMO, batches_per_epoch=2, **small), 1

    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 if options.quick else CASES):
            write_case(Path(folder) / "data" / f"phantom_{number:03d}", make_case([0, number]))
        cases = prepare(Path(folder) / "data", Path(folder) / "prepared", recipe) or []
        seconds = seconds_of_ways(cases, recipe, rounds)
    print(table(seconds))


if __name__ == "__main__":
    main()
