"""Which device, number format and memory a run uses, the processes that share it, how it stops."""

import atexit
import ctypes
import os
import platform
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import monotonic

import numpy as np
import torch
import torch.nn.functional as F
from torch import distributed

from minikits import __version__
from minikits.losses import segmentation_loss
from minikits.recipe import Recipe
from minikits.unet import build_unet

OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|out of memory|not enough memory|(can't|cannot) allocate memory"
    "|STATUS_ALLOC_FAILED|bad_alloc",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Machine:
    """What a run computes with: a device, the dtype of convolutions there, and which of the `world`
    processes that share the run (torchrun) this is."""

    device: torch.device
    precision: torch.dtype
    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` things this process does."""
        return range(self.rank, count, self.world)


def pick_device(name: str) -> torch.device:
    """auto: an NVIDIA GPU if there is one; of several processes on a machine (torchrun), each its
    own. An Apple GPU (mps) is taken where it is named."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name
        one = torch.ones((), device=own)
        one.item()  # a device that computes nothing, like meta, fails here, not in the first batch
        return one.device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name}: {str(error).splitlines()[0]}; use auto, cpu, cuda or cuda:1 "
            "(mps: untested)"
        ) from None


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of convolutions. auto: bfloat16 where the device computes in it, else float32.
    ValueError for bfloat16 on an Apple GPU, which nobody has tried."""
    if device.type == "mps":
        if name == "bf16":
            raise ValueError(f"--precision bf16: untried on device {device}; use fp32 there")
        return torch.float32
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    elif name == "auto":  # without these a CPU only emulates it, far slower than float32
        able = torch.cpu.get_capabilities()
        name = "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def doubt_about(device: torch.device) -> str:
    """A line on a device that this code has never run on; empty for the others."""
    if device.type != "mps":
        return ""
    return (
        f"warning: device {device} is untested: compare a mask with that of --device cpu; where torch "
        "lacks an operation, PYTORCH_ENABLE_MPS_FALLBACK=1 computes it on the CPU"
    )


def exact_float32() -> None:
    """float32 means float32 from now on, in matrix products and convolutions alike: no TF32 on
    NVIDIA GPUs (10 bits of mantissa), nothing shorter on CPUs, whatever torch's defaults are."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    # torch has two sets of switches for the same: where only one is set, reading the other may fail
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    # pyrefly: ignore[missing-attribute]  # torch's types do not know them
    for part in (cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn):
        part.fp32_precision = "ieee"  # pyrefly: ignore[missing-attribute]


def repeat_to_the_bit() -> None:
    """The same run gives the same weights on a GPU from now on, to the bit: cuDNN no longer chooses
    its algorithms by timing them, and takes such as repeat.

    torch warns of an operation that has no such form: of a training's, the sum of the cross-entropy
    alone, which the log shows and no gradient depends on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS first computes
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def check_bfloat16(device: torch.device, convolve: Callable = F.conv3d) -> None:
    """ValueError where 3D convolutions in bfloat16 are wrong on this device, forward or backward.

    Versions of cuDNN gave wrong ones without a word [pytorch #163539, #166122]. A small one is
    compared with float32, in both layouts that networks use. It takes 1.4 s on an H200: most
    likely not the convolutions, of microseconds, but cuDNN, which loads and tries its algorithms
    for each of nine; then a smaller one would take as long."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 32, 8, 16, 16), (32, 32, 3, 3, 3), (2, 32, 8, 16, 16)]
    numbers = []  # the input, the kernel, and a gradient of the output
    for shape in shapes:
        drawn = torch.randn(shape, generator=generator).bfloat16()  # so that both begin alike
        numbers.append(drawn.to(device))

    exact = _convolution_and_gradients(numbers, torch.float32, torch.contiguous_format, F.conv3d)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        found = _convolution_and_gradients(numbers, torch.bfloat16, layout, convolve)
        for ours, right in zip(found, exact):
            error = ((ours.float() - right).abs().max() / right.abs().max()).item()
            if not error < 0.02:  # rounding to 8 bits is 0.004
                raise ValueError(
                    f"device {device}: a 3D convolution in bfloat16 is wrong by {error:.0%} with "
                    f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}; take "
                    "--precision fp32, or other versions"
                )


def _convolution_and_gradients(numbers, dtype, layout, convolve):
    """(output, gradient of the input, of the kernel) of a convolution, computed in dtype."""
    x, kernel, gradient = [each.to(dtype, memory_format=layout, copy=True) for each in numbers]
    x.requires_grad_()
    kernel.requires_grad_()
    output = convolve(x, kernel, padding=1)
    output.backward(gradient)
    return output.detach(), x.grad, kernel.grad


def claim_memory(device: torch.device, needed: int = 0) -> float:
    """Bytes: a GPU's free memory, the whole of a computer's. ValueError where more is needed.

    With a CPU that has twice as much as is needed, glibc keeps what is freed: pages that the system
    gives anew are cleared first, a quarter of a step. Where nothing is said to be needed, it gives
    back what is freed, as ever."""
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0]
    else:
        memory = _whole_memory()
    if needed > memory:
        raise ValueError(
            f"device {device}: has {memory / 2**30:.1f} GiB of memory, a training step wants about "
            f"{needed / 2**30:.1f}; a recipe with a smaller patch needs less (batch_size 1 too, "
            "but then no patch is centred on foreground)"
        )
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this computer
    roomy = needed > 0 and 2 * needed * beside < memory
    if roomy and device.type == "cpu" and "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()):
        for option, value in (
            (-8, 1),
            (-4, 0),
            (-1, -1),
        ):  # malloc.h: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(option, value)
    return memory


def _whole_memory():
    """Bytes of a computer's memory; infinity where the system does not tell, as Windows."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def keep_on_device(cases: list, device: torch.device, room: float) -> list:
    """The prepared cases in an NVIDIA GPU's memory where that has room (bytes); else as they are,
    memory-mapped. What is drawn of them is the same."""
    size = sum(case.image.nbytes + case.labels.nbytes for case in cases)
    if device.type in ("cpu", "mps") or size > room:  # an Apple GPU's batches are drawn on the CPU
        return cases
    return [
        replace(case, image=case.image.to(device), labels=case.labels.to(device)) for case in cases
    ]


def draws_on(device: torch.device, draw: Callable) -> Callable:
    """draw(i, device=...) gives batch i as tensors; a function of i alone that gives them on `device`.
    They are drawn there, but those of an Apple GPU on the CPU: it has no float64, in which places in
    a case are worked out."""
    if device.type != "mps":
        return partial(draw, device=device)

    def draw_and_send(iteration: int) -> list[torch.Tensor]:
        drawn = draw(iteration, device=torch.device("cpu"))
        return [part.to(device) for part in drawn]

    return draw_and_send


def step_bytes(
    arch: str, recipe: Recipe, samples: int, precision: torch.dtype, device_type: str = "cpu"
) -> int:
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was not given: Python's error, a GPU's, or a plain RuntimeError of torch's or
    its libraries' that says so."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def what_memory_lacked(error: BaseException) -> str:
    """A line on such an error: a GPU's first sentence, or how much a computer did not give."""
    said = str(error)
    tried = re.search(r"tried to allocate (\d+) bytes", said)
    if tried:
        return f"out of memory: the computer did not give {int(tried[1]) / 2**30:.1f} GiB more"
    numpys = re.search(r"Unable to allocate ([\d.]+ \w+)", said)
    if numpys:
        return f"out of memory: the computer did not give {numpys[1]} more"
    sentence = said.splitlines()[0].split(". ")[0] if said else "the computer gives no more"
    return sentence if "out of memory" in sentence else f"out of memory: {sentence}"


def environment(machine: Machine, needed: int, code: Path) -> dict:
    """What a run depends on beside its recipe. needed: bytes of a step. code: the script's
    folder."""
    name = f"{torch.get_num_threads()} threads"
    if machine.device.type == "cuda":
        name = torch.cuda.get_device_name(machine.device)
    return {
        "device": f"{machine.device} ({name})",
        "precision": str(machine.precision).removeprefix("torch."),
        "processes": machine.world,
        "minikits": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "revision": revision(code),
        "step_gib": round(needed / 2**30, 1),
    }


def revision(folder: Path) -> str:
    """What git calls the code in a folder; "unknown" where there is no git or no repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else "unknown"


def join_processes(device: torch.device) -> tuple[int, int]:
    """(rank, world): this process among those that torchrun started, (0, 1) without it."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=30)
        )
        atexit.register(
            distributed.destroy_process_group
        )  # else its threads may abort a process that is done
    return rank, world


def mean_of_processes(value: float, device: torch.device) -> float:
    """The mean of a number over all processes of the run, as a float, on each of them."""
    if not distributed.is_initialized():
        return float(value)
    number = torch.tensor(float(value), device=device, dtype=torch.float64)
    distributed.all_reduce(number)
    return number.item() / distributed.get_world_size()


@contextmanager
def note_signals() -> Iterator[list[int]]:
    """A list that takes the numbers of SIGTERM and Ctrl-C within the `with`, once each; sent again,
    they act as ever."""
    noted = []
    before = {}

    def note(number, _):
        noted.append(number)
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stop:
    """Whether a run was told to stop; processes that share a run (torchrun) agree on it.

    noted: the list that takes this process's signals. told() asks about this process alone. The
    others wait for the other processes, which have to call them as often, in the same order. due()
    and pause_due() are for loops, once a round: they ask the others every tenth time, since waiting
    costs, counted over all loops of the run, however short each is."""

    ASK_EVERY = 10
    PAUSE_SECONDS = 600  # from one checkpoint to the next, where an epoch takes longer

    def __init__(self, noted: list, device: torch.device):
        self.noted = noted
        self.device = device
        self.rounds = 0
        self.last_pause = monotonic()

    def told(self) -> bool:
        """Whether this process was."""
        return bool(self.noted)

    def agreed(self) -> bool:
        """Whether any process was."""
        return mean_of_processes(len(self.noted), self.device) > 0

    def due(self) -> bool:
        """Whether any process was; for loops."""
        return self._asks() and self.agreed()

    def pause_due(self) -> bool:
        """Whether any process was, or it is long since the last checkpoint; for loops."""
        if not self._asks():
            return False
        late = monotonic() - self.last_pause > self.PAUSE_SECONDS
        return mean_of_processes(self.told() or late, self.device) > 0

    def paused(self) -> None:
        """A checkpoint was written."""
        self.last_pause = monotonic()

    def number(self) -> int:
        """The signal's; SIGTERM where another process was told."""
        return self.noted[0] if self.noted else signal.SIGTERM

    def _asks(self) -> bool:
        self.rounds += 1
        return not distributed.is_initialized() or self.rounds % self.ASK_EVERY == 0
