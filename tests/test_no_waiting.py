"""Drawing and training never wait for a GPU: on a pretended one, which refuses what would have to wait."""

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import TINY
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from minikits import prediction, training
from minikits.augmentation import generator_for
from minikits.fast import faster
from minikits.sampling import PreparedCase, draw_batch
from minikits.unet import build_unet

GPU = torch.device("meta")  # the one that torch has everywhere; for "cuda" it would start a driver
WAITING = (  # their result, or its shape, depends on values that lie on the GPU
    "_local_scalar_dense",
    "nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "equal",
    "is_nonzero",
)
EVERYTHING = dataclasses.replace(
    TINY,
    **{
        field.name: 0.7 for field in dataclasses.fields(TINY) if field.name.endswith("_probability")
    },
)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU. `held`: its values, an ordinary tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=GPU
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        raise AssertionError(f"{function} outside of a pretended GPU")


class PretendedGpu(TorchDispatchMode):
    """Computes on the CPU what a GPU is asked for. AssertionError for what would wait for it.

    allowed: how often one number may be asked for. copied: bytes that went there, copy by copy."""

    def __init__(self, allowed=0):
        super().__init__()
        self.allowed = allowed
        self.copied = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = dict(named or {})
        given = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in given if isinstance(tensor, OnGpu)]
        wanted = torch.device(named.get("device") or "cpu")
        if not there and wanted.type == "cpu":
            return function(*arguments, **named)

        name = function.overloadpacket.__name__
        if name == "_local_scalar_dense" and self.allowed > 0:
            self.allowed -= 1
        else:
            assert name not in WAITING, f"{name} waits for the GPU"
        if name.startswith("index"):
            masks = [tensor for tensor in given if tensor.dtype == torch.bool]
            assert not masks, f"{name} by a mask waits for the GPU"
        copies = name in ("_to_copy", "copy_")
        if copies and len(there) < len(given):
            here = [tensor for tensor in given if not isinstance(tensor, OnGpu)]
            assert isinstance(given[0], OnGpu) or wanted == GPU, f"{name} waits for the GPU"
            does_not_wait = named.get("non_blocking") or arguments[2:] == (True,)
            assert does_not_wait, f"{name} to the GPU waits"
            self.copied += [tensor.nbytes for tensor in here]
        elif copies and "device" in named:
            assert wanted == GPU, f"{name} to the CPU waits for the GPU"
        else:
            sizes = [tensor.dim() for tensor in given if not isinstance(tensor, OnGpu)]
            assert not any(sizes), f"{name} of tensors on two devices"

        if "device" in named:
            named["device"] = torch.device("cpu")
        bare_arguments, bare_named = tree_map(held_by, (arguments, named))
        result = function(*bare_arguments, **bare_named)
        changed = {id(tensor.held): tensor for tensor in there}
        return tree_map(lambda found: there_again(found, changed), result)


def held_by(value):
    return value.held if isinstance(value, OnGpu) else value


def there_again(value, changed):
    """A result on the GPU; of what was changed in place, the tensor itself."""
    if not isinstance(value, torch.Tensor):
        return value
    return changed[id(value)] if id(value) in changed else OnGpu(value)


def small_case():
    labels = torch.zeros(24, 40, 44, dtype=torch.uint8)
    labels[6:12, 10:20, 12:30] = 1
    labels[9:11, 12:16, 14:20] = 2
    image = torch.randn(24, 40, 44, generator=generator_for(1)).half()
    foreground = tuple(np.flatnonzero(labels.numpy() == value) for value in (1, 2))
    return PreparedCase("a", image, labels, foreground)


def test_twenty_draws_wait_for_no_gpu_and_are_those_of_the_cpu():
    case = small_case()

    for iteration in range(20):
        wanted = draw_batch([case], EVERYTHING, 0, iteration)
        with PretendedGpu():
            image, target = draw_batch([case], EVERYTHING, 0, iteration, device=GPU)

        assert isinstance(image, OnGpu) and isinstance(target, OnGpu)
        assert torch.equal(image.held, wanted[0])
        assert torch.equal(target.held, wanted[1])


def test_cases_that_lie_on_the_gpu_are_drawn_there_without_waiting():
    case = small_case()
    there = dataclasses.replace(case, image=OnGpu(case.image), labels=OnGpu(case.labels))

    for iteration in range(20):
        wanted = draw_batch([case], EVERYTHING, 0, iteration)
        gpu = PretendedGpu()
        with gpu:
            image, target = draw_batch([there], EVERYTHING, 0, iteration)

        noise = image.held[0].numel() * 4  # all that goes there, of each patch that gets it
        assert all(bytes == noise for bytes in gpu.copied)
        assert torch.equal(image.held, wanted[0]) and torch.equal(target.held, wanted[1])


def test_what_is_read_of_a_case_goes_to_the_gpu_and_nothing_else():
    """Without augmentation 16 x 32 x 32 voxels of two patches, images of 2 bytes, labels of 1."""
    gpu = PretendedGpu()

    with gpu:
        draw_batch([small_case()], TINY, 0, 0, augmented=False, device=GPU)

    voxels = 16 * 32 * 32
    assert gpu.copied == [2 * voxels, voxels] * 2


def there_already(network):
    """The network, with its weights on the GPU."""
    with PretendedGpu():
        for module in network.modules():
            for name, weights in module.named_parameters(recurse=False):
                module._parameters[name] = torch.nn.Parameter(OnGpu(weights.detach()))
    return network


def test_an_epoch_of_training_waits_for_no_gpu(monkeypatch):
    """But for the mean loss, once at its end."""
    case = small_case()
    network = there_already(build_unet("plain", TINY))
    before = [weights.held.clone() for weights in network.parameters()]
    optimizer = training.sgd(network, TINY)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # has no such device
    monkeypatch.setattr(training, "fetch_ahead", lambda draw, left, device: map(draw, left))

    def draw(iteration):
        return draw_batch([case], TINY, 0, iteration, device=GPU)

    gpu = PretendedGpu(allowed=1)
    with gpu:
        row = training.train_epoch(network, draw, optimizer, TINY, 0, training.Progress())

    after = [weights.held for weights in network.parameters()]
    assert row["epoch"] == 1 and np.isfinite(row["loss"]) and gpu.allowed == 0
    assert sum(not torch.equal(one, other) for one, other in zip(before, after)) > 10


@pytest.mark.parametrize("form", ["readable", "fast"])
def test_a_scan_is_predicted_without_waiting_for_a_gpu(monkeypatch, form):
    """Two networks, eight windows in eight mirror images, five of them at once: their sums stay on
    the GPU. Image and weights of a window went there before, once for a scan."""
    image = torch.randn(24, 48, 48, generator=generator_for(1))
    networks = [build_unet(arch, TINY).eval() for arch in ("plain", "residual")]
    wanted = prediction.predict_probabilities(networks, image, TINY)
    models = [there_already(network) for network in networks]
    if form == "fast":
        models = [faster(network, multiple=4) for network in models]
    weight = prediction.importance_map(TINY.patch)
    monkeypatch.setattr(prediction, "importance_map", lambda patch: OnGpu(weight))
    monkeypatch.setattr(prediction, "_lent", lambda network, device: nullcontext())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # has no such device
    predict_probabilities = prediction.predict_probabilities.__wrapped__  # of inference_mode
    told = []

    gpu = PretendedGpu()
    with gpu, torch.no_grad():
        found = predict_probabilities(
            models,
            OnGpu(image),
            TINY,
            device=GPU,
            at_once=5,
            on_window=lambda done, of: told.append(done),
        )

    assert isinstance(found, OnGpu)
    assert (found.held - wanted).abs().max() < 1e-5
    assert gpu.copied == [] and told[-1] == 16 and len(told) == 2 * 13


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3).to(GPU),
    ],
)
def test_a_pretended_gpu_notices_what_waits(waits):
    with PretendedGpu(), pytest.raises(AssertionError, match=r"waits|two devices"):
        waits(torch.arange(3.0).to(GPU, non_blocking=True))
