"""What grows with the work: slices of a scan, cases to prepare, GPUs of a training, an archive.

    python benchmarks/scaling.py               # measures (ten minutes), then draws
    python benchmarks/scaling.py --draw        # from what was measured last
    python benchmarks/scaling.py --tiny --out FOLDER     # whether it runs at all

Measured are scans of KiTS19's shapes from file to mask, and the preparing of many small cases, all
of them phantoms: CPU seconds on one thread, of which other work on the machine takes none. They are
kept in results/scaling.json. What cannot be measured here is a model, stated
at the function that computes it, from those measurements and from results/gpu.md. The figure
(docs/figures/scaling.png) shows measured values as points and models as dashed lines;
results/scaling.md has the numbers."""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from prediction import KITS19, SMALL, make_scan, write_model

from minikits.cases import prepare
from minikits.checkpoints import load_checkpoint, load_network
from minikits.devices import claim_memory, pick_precision
from minikits.nifti import read_labels, read_volume, write_image, write_labels
from minikits.paper import ARCHITECTURES, PAPER
from minikits.phantoms import make_case
from minikits.prediction import predict_probabilities, window_starts
from minikits.preprocessing import labels_on_native_grid, prepare_image, resampled_shape
from minikits.recipe import Recipe
from minikits.unet import build_unet

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIGURE = ROOT / "docs" / "figures" / "scaling.png"

# From the fewest slices of KiTS19's cases to the most.
CASES = (
    *("case_00061", "case_00004", "case_00200", "case_00008"),
    *("case_00100", "case_00000", "case_00151"),
)
CASES_TO_PREPARE = (10, 30, 100, 300)
SMALL_CASE = {"shape": (24, 64, 64), "spacing_mm": (5.0, 3.5, 3.5)}
FAR = 10_000  # cases, to which the line of preparing is drawn
MILLION = 1_000_000  # scans of an archive
GPUS = (1, 2, 4, 8, 16, 32, 64)
LINKS = {"PCIe": 25e9, "NVLink": 300e9}  # bytes a second of an all-reduce, assumed
MIRRORED_ENSEMBLE = 5 * 8  # networks and mirror images


# --- measured: a scan, from its file to its mask --------------------------------------------------


class Clock(torch.nn.Module):
    """A network that notes the CPU seconds spent in it."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network
        self.seconds = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        began = time.process_time()
        logits = self.network(x)
        self.seconds += time.process_time() - began
        return logits


def stages_of_scan(scan: Path, mask: Path) -> dict[str, float]:
    """CPU seconds of each stage of predict.py, in a row, and the peak of this process. The network,
    whose checkpoint lies beside the scan, is a tiny one: it knows kidneys by their brightness."""
    content = load_checkpoint(scan.parent / "fold0" / "checkpoint.pt")
    recipe = content["recipe"]
    network = Clock(load_network(content, scan).eval())
    precision = pick_precision("auto", torch.device("cpu"))

    times = [time.process_time()]
    volume = read_volume(scan)
    times.append(time.process_time())
    image = prepare_image(volume, recipe)
    times.append(time.process_time())
    probabilities = predict_probabilities([network], image, recipe, False, precision=precision)
    times.append(time.process_time())
    labels = labels_on_native_grid(probabilities, volume)
    times.append(time.process_time())
    write_labels(mask, labels, volume)
    times.append(time.process_time())

    read, prepared, windows, back, written = np.diff(times)
    return {
        "read": read,
        "prepare": prepared,
        "windows": windows - network.seconds,
        "back": back,
        "write": written,
        "network": network.seconds,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def measure_scan(case: str, kits19: Path, recipe: Recipe, folder: Path) -> dict:
    """A phantom around a case's labels: the stages, as a process of its own has them."""
    scan, mask = folder / "scan.nii.gz", folder / "mask.nii.gz"
    make_scan(case, SimpleNamespace(kits19=kits19), scan)
    write_model(folder, recipe)
    labels = read_labels(kits19 / case / "segmentation.nii.gz")

    measured = in_a_process("scan", scan, mask)
    return {
        "case": case,
        "slices": labels.voxels.shape[0],
        "shape": list(labels.voxels.shape),
        "scan_mb": scan.stat().st_size / 1e6,
        "mask_mb": mask.stat().st_size / 1e6,
        **measured,
    }


def windows_of(shape: list[int], spacing_mm: list[float]) -> int:
    """How many windows the paper's networks see of a scan."""
    count = 1
    for size, patch in zip(resampled_shape(shape, spacing_mm, PAPER), PAPER.patch):
        count *= len(window_starts(size, patch))
    return count


def on_average(geometry: dict) -> dict[str, float]:
    """Slices and windows of the mean case of KiTS19."""
    slices = [shape[0] for shape, _ in geometry.values()]
    windows = [windows_of(shape, spacing_mm) for shape, spacing_mm in geometry.values()]
    return {"slices": float(np.mean(slices)), "windows": float(np.mean(windows))}


def small_kits19(folder: Path) -> None:
    """Labels of two phantoms as KITS19 has them, which take no time."""
    geometry = {}
    for name, slices in (("short", 12), ("long", 30)):
        _, labels, spacing_mm = make_case(0, shape=(slices, 40, 40), spacing_mm=(6.0, 8.0, 8.0))
        write_image(folder / name / "segmentation.nii.gz", labels, spacing_mm)
        geometry[name] = [list(labels.shape), list(spacing_mm)]
    (folder / "geometry.json").write_text(json.dumps(geometry))


# --- measured: preparing --------------------------------------------------------------------------


def small_cases(folder: Path, count: int) -> None:
    """So many cases of one small phantom, under names of their own."""
    image, labels, spacing_mm = make_case(0, **SMALL_CASE)
    write_image(folder / "image.nii.gz", image, spacing_mm)
    write_image(folder / "labels.nii.gz", labels, spacing_mm)
    for number in range(count):
        case = folder / "cases" / f"small_{number:05d}"
        case.mkdir(parents=True)
        os.link(folder / "image.nii.gz", case / "imaging.nii.gz")
        os.link(folder / "labels.nii.gz", case / "segmentation.nii.gz")


def seconds_to_prepare(cases: Path, cache: Path) -> dict[str, float]:
    """Preparing a folder for the first time; and again, when all is there."""
    seconds = []
    for _ in range(2):
        began = time.process_time()
        prepare(cases, cache, PAPER)
        seconds.append(time.process_time() - began)
    return {"first": seconds[0], "again": seconds[1]}


def measure_preparing(count: int, processes: int) -> dict:
    """Several processes have a folder and a cache each: the slowest counts, which is how long it
    takes where each has a core."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, str(number)) for number in range(processes)]
        for folder in folders:
            small_cases(folder, count // processes)

        def run(folder):
            return in_a_process("prepare", folder / "cases", folder / "cache")

        with ThreadPoolExecutor(processes) as pool:
            measured = list(pool.map(run, folders))
    return {
        "cases": count,
        "processes": processes,
        "first": max(each["first"] for each in measured),
        "again": max(each["again"] for each in measured),
    }


def in_a_process(what: str, *paths: Path) -> dict[str, float]:
    """What `stages_of_scan` or `seconds_to_prepare` gives in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(cases: tuple, counts: tuple, kits19: Path, recipe: Recipe) -> dict:
    """All that is measured, and on what. kits19: labels of the cases, and the geometry of all."""
    geometry = json.loads((kits19 / "geometry.json").read_text())
    found = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0],
        "mean_case": on_average(geometry),
        "scans": [],
        "preparing": [],
    }
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            found["scans"].append(measure_scan(case, kits19, recipe, Path(folder)))
        print(found["scans"][-1], file=sys.stderr, flush=True)
    for processes in (1, 2):
        for count in counts:
            found["preparing"].append(measure_preparing(count, processes))
            print(found["preparing"][-1], file=sys.stderr, flush=True)
    return found


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# --- modelled -------------------------------------------------------------------------------------


def straight_line(x: list[float], y: list[float]) -> Callable:
    """The line of least squares through measured points, as a function."""
    slope, start = np.polyfit(x, y, 1)
    return lambda value: start + slope * value


def line_of_seconds(scans: list[dict]) -> Callable:
    """Seconds of all but the network, by slices."""
    return straight_line([scan["slices"] for scan in scans], [rest_of(scan) for scan in scans])


def rest_of(scan: dict) -> float:
    """Seconds of all but the network."""
    return sum(scan[stage] for stage in ("read", "prepare", "windows", "back", "write"))


def line_of_memory(scans: list[dict]) -> Callable:
    """GiB of a process, by slices."""
    return straight_line([scan["slices"] for scan in scans], [scan["peak_gib"] for scan in scans])


def line_of_preparing(preparing: list[dict], processes: int) -> Callable:
    """Seconds, by cases: a case's time is the same however many there are."""
    rows = [row for row in preparing if row["processes"] == processes]
    return straight_line([row["cases"] for row in rows], [row["first"] for row in rows])


def gradient_bytes(arch: str) -> int:
    """What the processes of a training average at each step: a float32 for each weight."""
    with torch.device("meta"):
        network = build_unet(arch, PAPER)
    return sum(4 * parameter.numel() for parameter in network.parameters())


def seconds_of_step(step: float, size: int, gpus: int, bytes_a_second: float) -> float:
    """A step on each of `gpus` with two patches each, measured on one, and then a ring all-reduce:
    each link carries 2 (n - 1) / n of the gradient. Nothing is hidden behind the backward pass, so
    that DistributedDataParallel, which hides most, does better; drawing, disk and stragglers are
    left out, so that it may do worse."""
    return step + 2 * (gpus - 1) / gpus * size / bytes_a_second


def patches_a_second(step: float, size: int, gpus: int, bytes_a_second: float) -> float:
    """What all of them train on: two patches each at a step."""
    return 2 * gpus / seconds_of_step(step, size, gpus, bytes_a_second)


def archive(scans: list[dict], mean_case: dict, window_seconds: float) -> dict[str, float]:
    """A scan of KiTS19's mean case: GPU seconds of one network and of five that are mirrored,
    CPU seconds of a core for all else, bytes of scan and mask. A million of them take a million
    times that, since no scan knows of another."""
    slices, windows = mean_case["slices"], mean_case["windows"]
    all_slices = sum(scan["slices"] for scan in scans)
    return {
        "one network": windows * window_seconds,
        "five networks, mirrored": MIRRORED_ENSEMBLE * windows * window_seconds,
        "all else": line_of_seconds(scans)(slices),
        "scan_mb": slices * sum(scan["scan_mb"] for scan in scans) / all_slices,
        "mask_mb": slices * sum(scan["mask_mb"] for scan in scans) / all_slices,
    }


def measured_on_gpu(page: Path) -> tuple[dict[str, float], float]:
    """({architecture: seconds of a step in train.py's loop}, seconds of a window) of a GPU's page."""
    text = page.read_text()
    loop = text.partition("## The loop of train.py")[2].partition("\n## ")[0]
    steps = {}
    for arch in ARCHITECTURES:
        found = re.search(rf"^\| {arch} \| ([\d.]+) \|", loop, flags=re.MULTILINE)
        if found:
            steps[arch] = float(found[1]) / 1000

    windows = text.partition("## A window of inference")[2]
    rows = re.findall(r"^\| residual[^|]*\| \d+ \| [\d.]+ \| ([\d.]+) \|", windows, re.MULTILINE)
    return steps, min(map(float, rows)) / 1000


# --- the page and the figure ----------------------------------------------------------------------


def page(found: dict, gpu: Path = RESULTS / "gpu.md") -> str:
    """All numbers of the figure."""
    steps, window_seconds = measured_on_gpu(gpu)
    one = archive(found["scans"], found["mean_case"], window_seconds)
    return "\n".join(
        [
            "# What grows with the work",
            "",
            f"`python benchmarks/scaling.py`, {found['date']}: {found['processor']}, "
            f"{found['cores']} cores, {found['versions']}; load when it began "
            f"{found['load_before']:.1f}. Scans are phantoms of KiTS19's shapes.",
            "",
            "## A scan, from file to mask (measured)",
            "",
            "CPU seconds of each stage on one thread, without mirroring; the network is a tiny one. "
            "GiB: the peak of the process; MB: of the scan's file.",
            "",
            *rows_of_scans(found["scans"]),
            "",
            "## Preparing small cases (measured; the last row by a line through the others)",
            "",
            f"Phantoms of {'x'.join(map(str, SMALL_CASE['shape']))} voxels. Seconds where each "
            "process has a core: the CPU time of the slower one, on one thread. Two have half of the "
            "cases each; such small ones minikits itself prepares in one process.",
            "",
            *rows_of_preparing(found["preparing"]),
            "",
            "## One training on several GPUs (modelled)",
            "",
            "Patches a second: a step of two patches on each GPU as measured on one "
            "([gpu.md](gpu.md)), and then an all-reduce of the gradient, none of it hidden.",
            "",
            *rows_of_gpus(steps),
            "",
            "## An archive of a million scans (modelled)",
            "",
            f"Each like KiTS19's mean case: {found['mean_case']['slices']:.0f} slices, "
            f"{found['mean_case']['windows']:.1f} windows of {1000 * window_seconds:.1f} ms "
            "([gpu.md](gpu.md)).",
            "",
            *rows_of_archive(one),
        ]
    )


def rows_of_scans(scans: list[dict]) -> list[str]:
    stages = ("read", "prepare", "windows", "back", "write", "network")
    lines = [
        f"| case | slices | shape | {' | '.join(stages)} | all but the network | GiB | MB |",
        "|---" * (6 + len(stages)) + "|",
    ]
    for scan in scans:
        seconds = [f"{scan[stage]:.2f}" for stage in stages]
        shape = "x".join(map(str, scan["shape"]))
        lines.append(
            f"| {scan['case']} | {scan['slices']} | {shape} | {' | '.join(seconds)} | "
            f"{rest_of(scan):.2f} | {scan['peak_gib']:.2f} | {scan['scan_mb']:.0f} |"
        )
    return lines


def rows_of_preparing(preparing: list[dict]) -> list[str]:
    lines = ["| cases | one process, s | two, s | all prepared already, s |", "|---|---|---|---|"]
    one = [row for row in preparing if row["processes"] == 1]
    two = [row for row in preparing if row["processes"] == 2]
    for alone, shared in zip(one, two):
        lines.append(
            f"| {alone['cases']} | {alone['first']:.1f} | {shared['first']:.1f} | "
            f"{alone['again']:.2f} |"
        )
    again = straight_line([row["cases"] for row in one], [row["again"] for row in one])
    far = [line_of_preparing(preparing, processes)(FAR) for processes in (1, 2)]
    lines.append(f"| {FAR:,} | {far[0]:.0f} | {far[1]:.0f} | {again(FAR):.0f} |")
    return lines


def rows_of_gpus(steps: dict[str, float]) -> list[str]:
    lines = [
        f"| network | link | {' | '.join(f'{gpus} GPUs' for gpus in GPUS)} |",
        "|---" * (2 + len(GPUS)) + "|",
    ]
    for arch, step in steps.items():
        size = gradient_bytes(arch)
        for link, speed in LINKS.items():
            rates = [f"{patches_a_second(step, size, gpus, speed):.0f}" for gpus in GPUS]
            lines.append(f"| {arch} | {link}, {speed / 1e9:.0f} GB/s | {' | '.join(rates)} |")
    return lines


def rows_of_archive(one: dict[str, float]) -> list[str]:
    lines = ["| what | of a scan | of a million |", "|---|---|---|"]
    for what in ("one network", "five networks, mirrored"):
        hours = one[what] * MILLION / 3600
        lines.append(f"| {what}, residual | {one[what]:.2f} s | {hours:,.0f} GPU hours |")
    hours = one["all else"] * MILLION / 3600
    lines.append(
        f"| all but the network | {one['all else']:.2f} s of a core | {hours:,.0f} core hours |"
    )
    for what in ("scan", "mask"):
        megabytes = one[f"{what}_mb"]
        lines.append(f"| a {what}'s file | {megabytes:.1f} MB | {megabytes:,.1f} TB |")
    return lines


def draw(found: dict, path: Path, gpu: Path = RESULTS / "gpu.md") -> None:
    """The figure: points are measured, dashed lines modelled."""
    from matplotlib.figure import Figure

    steps, window_seconds = measured_on_gpu(gpu)
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    seconds, memory, preparing, gpus, hours, size = figure.subplots(2, 3).flat
    draw_scans(seconds, memory, found["scans"])
    draw_preparing(preparing, found["preparing"])
    draw_gpus(gpus, steps)
    draw_archive(hours, size, archive(found["scans"], found["mean_case"], window_seconds))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle("Points: measured. Dashed lines: modelled.", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def draw_scans(seconds, memory, scans: list[dict]) -> None:
    slices = [scan["slices"] for scan in scans]
    ends = [0, max(slices)]
    rest = [rest_of(scan) for scan in scans]
    whole = [rest_of(scan) + scan["network"] for scan in scans]

    seconds.plot(slices, whole, "o", color="C1", label="with a tiny network")
    seconds.plot(slices, rest, "o", color="C0", label="all but the network")
    line = line_of_seconds(scans)
    seconds.plot(ends, [line(end) for end in ends], "--", color="C0")
    seconds.set(title="A scan, file to mask", xlabel="slices", ylabel="CPU seconds")

    memory.plot(slices, [scan["peak_gib"] for scan in scans], "o", color="C0", label="the process")
    line = line_of_memory(scans)
    memory.plot(ends, [line(end) for end in ends], "--", color="C0")
    memory.set(title="Its memory", xlabel="slices", ylabel="GiB at the peak", ylim=(0, None))


def draw_preparing(axes, preparing: list[dict]) -> None:
    for processes, colour in ((1, "C0"), (2, "C1")):
        rows = [row for row in preparing if row["processes"] == processes]
        counts = [row["cases"] for row in rows]
        line = line_of_preparing(preparing, processes)
        along = np.geomspace(min(counts), FAR, 50)
        word = "one process" if processes == 1 else "two processes"
        axes.plot(counts, [row["first"] for row in rows], "o", color=colour, label=word)
        axes.plot(along, line(along), "--", color=colour)
    axes.set(title="Preparing small cases", xlabel="cases", ylabel="seconds, a core each")
    axes.set(xscale="log", yscale="log")


def draw_gpus(axes, steps: dict[str, float]) -> None:
    for number, (arch, step) in enumerate(steps.items()):
        size = gradient_bytes(arch)
        axes.plot([1], [2 / step], "o", color=f"C{number}", label=arch)
        for link, alpha in (("NVLink", 1), ("PCIe", 0.5)):
            rates = [patches_a_second(step, size, gpus, LINKS[link]) for gpus in GPUS]
            speed = f"{LINKS[link] / 1e9:.0f} GB/s"
            axes.plot(GPUS, rates, "--", color=f"C{number}", alpha=alpha, label=speed)
    axes.set(title="One training, two patches a GPU", xlabel="GPUs", ylabel="patches a second")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")


def draw_archive(hours, size, one: dict[str, float]) -> None:
    counts = np.geomspace(1000, MILLION, 20)
    for number, what in enumerate(("one network", "five networks, mirrored")):
        taken = counts * one[what] / 3600
        hours.plot(counts, taken, "--", color=f"C{number}", label=f"GPU hours, {what}")
    core_hours = counts * one["all else"] / 3600
    hours.plot(counts, core_hours, "--", color="C2", label="core hours, all else")
    hours.set(title="An archive", xlabel="scans", ylabel="hours", xscale="log", yscale="log")

    for number, what in enumerate(("scan", "mask")):
        terabytes = counts * one[f"{what}_mb"] / 1e6
        size.plot(counts, terabytes, "--", color=f"C{number}", label=f"{what}s")
    size.set(title="Its files", xlabel="scans", ylabel="TB", xscale="log", yscale="log")


# --- the command line -----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="from what was measured last")
    parser.add_argument("--tiny", action="store_true", help="scans of a few slices, a few cases")
    parser.add_argument("--out", type=Path, help="a folder for all three files, instead of theirs")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "FROM", "TO"), help="one, as JSON")
    options = parser.parse_args()
    if options.measure:
        torch.set_num_threads(1)
        claim_memory(torch.device("cpu"), 1 << 30)  # glibc keeps what is freed, as in predict.py
        what, source, target = options.measure
        work = {"scan": stages_of_scan, "prepare": seconds_to_prepare}[what]
        print(json.dumps(work(Path(source), Path(target))))
        return

    results = options.out or RESULTS
    figure = options.out / "scaling.png" if options.out else FIGURE
    numbers = results / "scaling.json"
    if not options.draw:
        cases, counts, kits19, recipe = CASES, CASES_TO_PREPARE, KITS19, SMALL
        if options.tiny:
            cases, counts, kits19 = ("short", "long"), (2, 4), results / "kits19"
            recipe = replace(SMALL, patch=(16, 32, 32))
            small_kits19(kits19)
        results.mkdir(parents=True, exist_ok=True)
        found = measure(cases, counts, kits19, recipe)
        numbers.write_text(json.dumps(found, indent=1) + "\n")

    found = json.loads(numbers.read_text())
    text = page(found)
    print(text)
    (results / "scaling.md").write_text(text + "\n")
    draw(found, figure)


if __name__ == "__main__":
    main()
