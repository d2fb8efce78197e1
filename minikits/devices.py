"""Which device, number format and memory a run uses, the processes that share it, and how it is stopped."""

import atexit
import ctypes
import os
import signal
from datetime import timedelta

import torch
from torch import distributed


def pick_device(name):
    """auto: a GPU if there is one; of several processes on a machine (torchrun), each takes its own."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(0, device=f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name}: {str(error).splitlines()[0]}; use auto, cpu, cuda or cuda:1") from None


def pick_precision(name, device):
    """The dtype of convolutions. auto: bfloat16 where the device computes in it, else float32."""
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    elif name == "auto":  # without these a CPU only emulates it, far slower than float32
        able = torch.cpu.get_capabilities()
        name = "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def claim_memory(device, needed=0):
    """Bytes: a GPU's free memory, the whole of a computer's. ValueError where more is needed. With a CPU that has twice
    as much, glibc keeps what is freed: pages that the system gives anew are cleared first, a quarter of a step."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else float("inf")
    memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else whole
    if needed > memory:
        raise ValueError(f"device {device}: has {memory / 2**30:.1f} GiB of memory, a training step wants about "
                         f"{needed / 2**30:.1f}; a recipe with a smaller patch or batch_size needs less")
    roomy = 2 * needed * int(os.environ.get("LOCAL_WORLD_SIZE", 1)) < memory  # torchrun's processes on this computer
    if roomy and device.type == "cpu" and "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()):
        for option, value in ((-8, 1), (-4, 0), (-1, -1)):  # malloc.h: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(option, value)
    return memory


def join_processes(device):
    """(rank, world): this process among those that torchrun started, (0, 1) without it."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=30))
        atexit.register(distributed.destroy_process_group)  # else its threads may abort a process that is done
    return rank, world


def mean_of_processes(value, device):
    """The mean of a number over all processes of the run, as a float, on each of them."""
    if not distributed.is_initialized():
        return float(value)
    number = torch.tensor(float(value), device=device, dtype=torch.float64)
    distributed.all_reduce(number)
    return number.item() / distributed.get_world_size()


def note_signals():
    """A list that takes, from now on, the numbers of SIGTERM and Ctrl-C, once each; sent again they act as ever."""
    noted = []

    def note(number, _):
        noted.append(number)
        signal.signal(number, before[number])
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    return noted
