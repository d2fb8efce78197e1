"""Which device, number format and memory a run gets, and the processes that share it."""

import ctypes
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import distributed

from minikits import devices

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")
GIB = 2**30


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.pick_device("auto") == CPU == devices.pick_device("cpu")


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    asked = []

    def ones(shape, device):
        asked.append(device)
        return torch.zeros(shape)

    monkeypatch.setattr(
        devices,
        "torch",
        SimpleNamespace(ones=ones, cuda=SimpleNamespace(is_available=lambda: True)),
    )
    monkeypatch.setenv("LOCAL_RANK", "3")
    for name in ("auto", "cuda", "cuda:1"):
        devices.pick_device(name)
    monkeypatch.delenv("LOCAL_RANK")
    devices.pick_device("auto")
    assert asked == ["cuda:3", "cuda:3", "cuda:1", "cuda:0"]


@pytest.mark.parametrize(
    "name, able, dtype",
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("fp32", True, torch.float32),
        ("bf16", False, torch.bfloat16),
    ],
)
def test_a_gpu_that_emulates_bfloat16_does_not_get_it_unasked(monkeypatch, name, able, dtype):
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or able,
    )
    assert devices.pick_precision(name, GPU) == dtype


@pytest.mark.parametrize(
    "capability, dtype",
    [("amx_bf16", torch.bfloat16), ("avx512_bf16", torch.bfloat16), ("avx2", torch.float32)],
)
def test_a_cpu_computes_in_bfloat16_where_it_can(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert devices.pick_precision("auto", CPU) == dtype


@pytest.fixture
def switches_as_before():
    """What a test sets for the whole process is as before after it."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    yield
    cudnn.benchmark, cudnn.deterministic = before
    torch.use_deterministic_algorithms(False)


def test_what_repeats_to_the_bit_is_chosen_by_no_timing(switches_as_before, monkeypatch):
    """An operation without such a form is warned of: the sum of the cross-entropy has none."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True

    devices.repeat_to_the_bit()

    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.deterministic
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_right_convolution_in_bfloat16_passes():
    devices.check_bfloat16(CPU)


def forgets_a_plane(x, kernel, padding):
    """As a convolution that reads the wrong memory at one end of the last axis."""
    output = F.conv3d(x, kernel, padding=padding)
    return torch.cat([output[..., :-1], output[..., :1]], dim=-1)


def forgets_in_channels_last(x, kernel, padding):
    wrong = x.is_contiguous(memory_format=torch.channels_last_3d)
    return (forgets_a_plane if wrong else F.conv3d)(x, kernel, padding=padding)


class WrongOnTheWayBack(torch.autograd.Function):
    """Nothing, but a gradient that is 3% too large."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return 1.03 * gradient


def wrong_gradient_of_the_kernel(x, kernel, padding):
    return F.conv3d(x, WrongOnTheWayBack.apply(kernel), padding=padding)


def wrong_gradient_of_the_input(x, kernel, padding):
    return F.conv3d(WrongOnTheWayBack.apply(x), kernel, padding=padding)


@pytest.mark.parametrize(
    "convolve",
    [
        forgets_a_plane,
        forgets_in_channels_last,
        wrong_gradient_of_the_kernel,
        wrong_gradient_of_the_input,
        lambda x, kernel, padding: F.conv3d(x, kernel, padding=padding) * torch.nan,
    ],
)
def test_a_wrong_convolution_in_bfloat16_is_refused_with_its_versions(convolve):
    with pytest.raises(
        ValueError,
        match=r"device cpu: a 3D convolution in bfloat16 is wrong by .*% with torch .*, cuDNN .*; "
        "take --precision fp32, or other versions",
    ):
        devices.check_bfloat16(CPU, convolve)


@pytest.mark.parametrize("device, backend", [(CPU, "gloo"), (GPU, "nccl")])
def test_processes_of_torchrun_join_by_their_numbers(monkeypatch, device, backend):
    joined, at_exit = [], []
    monkeypatch.setattr(
        distributed, "init_process_group", lambda name, timeout: joined.append(name)
    )
    monkeypatch.setattr(devices.atexit, "register", at_exit.append)
    assert devices.join_processes(device) == (0, 1) and not joined

    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert devices.join_processes(device) == (2, 4) and joined == [backend]
    assert at_exit == [distributed.destroy_process_group]


def test_the_mean_of_processes_is_over_all_of_them(monkeypatch):
    assert devices.mean_of_processes(torch.tensor(3.0), CPU) == 3.0  # alone
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(
        distributed, "all_reduce", lambda number: number.add_(9.0)
    )  # what the others have
    assert devices.mean_of_processes(3.0, CPU) == 3.0
    assert devices.mean_of_processes(7.0, CPU) == 4.0


def test_a_gpus_memory_is_what_is_free_of_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 24 * GIB))
    assert devices.claim_memory(GPU, 10 * GIB) == 10 * GIB
    with pytest.raises(
        ValueError,
        match=r"cuda:1: has 10\.0 GiB of memory, a training step wants about 11\.0; "
        "a recipe with a smaller patch needs less .*no patch is centred on foreground",
    ):
        devices.claim_memory(GPU, 11 * GIB)


@pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="only glibc is told to"
)
@pytest.mark.parametrize(
    "needed, beside, told",
    [(7, "1", True), (8, "1", False), (3, "2", True), (4, "2", False), (0, "1", False)],
)
def test_freed_memory_is_kept_where_all_processes_have_twice_what_they_need(
    monkeypatch, needed, beside, told
):
    """Of 16 GiB: more than twice what each process of this computer needs."""
    calls = []
    monkeypatch.setattr(
        devices.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 16 * GIB // 4096
    )
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *given: calls.append(given))
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
    assert devices.claim_memory(CPU, needed * GIB) == 16 * GIB
    assert calls == ([(-8, 1), (-4, 0), (-1, -1)] if told else [])


@pytest.mark.parametrize(
    "said",
    [
        "std::bad_alloc",
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "unable to mmap: Cannot allocate memory (12)",
        "not enough memory: you tried",
    ],
)
def test_what_libraries_say_of_memory_is_known(said):
    from minikits.devices import is_out_of_memory

    assert is_out_of_memory(RuntimeError(said)) and not is_out_of_memory(ValueError(said))
