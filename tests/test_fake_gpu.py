"""A batch's loss and a scan's windows on a GPU that is not there: torch follows devices, formats
and shapes, and computes nothing.

That needs torch's build for CUDA, but no driver. The way back needs one; test_fast.py has it on
"meta". What would wait for a GPU has a test of its own too, test_no_waiting.py, since here a copy
to the CPU is as good as any other."""

from contextlib import nullcontext

import pytest
import torch
from conftest import TINY
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices

from minikits import prediction
from minikits.fast import FastConvolution, faster
from minikits.losses import segmentation_loss
from minikits.paper import ARCHITECTURES
from minikits.prediction import predict_probabilities
from minikits.training import freeze_coarsest_head, sgd
from minikits.unet import build_unet

GPU = torch.device("cuda:0")
CONVOLUTIONS = (torch.nn.Conv3d, torch.nn.ConvTranspose3d, FastConvolution)

with_cuda_build = pytest.mark.skipif(
    torch.version.cuda is None, reason="torch's CPU build cannot index a fake GPU's tensors"
)
each_network = pytest.mark.parametrize("arch", ARCHITECTURES)
each_form = pytest.mark.parametrize("form", ["readable", "fast"])


@pytest.fixture
def fake_gpu(monkeypatch):
    """Within it torch has a GPU that computes in bfloat16, and no tensor has values. Networks do
    not move, which torch does not know to do with such."""
    monkeypatch.setattr(prediction, "_lent", lambda network, device: nullcontext())
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    with FakeTensorMode():
        yield


def network_there(arch, form="readable", *, trained=False):
    """(network, model): weights on the fake GPU; not trained: without gradients."""
    with torch.device("meta"):
        network = build_unet(arch, TINY)
    for module in network.modules():
        for name, weights in module.named_parameters(recurse=False):
            there = torch.empty(weights.shape, device=GPU)
            module._parameters[name] = torch.nn.Parameter(there, requires_grad=trained)
    freeze_coarsest_head(network)
    model = faster(network, multiple=32) if form == "fast" else network
    return network, model


def batch_there():
    image = torch.empty(2, 1, *TINY.patch, device=GPU)
    target = torch.empty(2, *TINY.patch, dtype=torch.uint8, device=GPU)
    return image, target


def note_convolutions(model):
    """A set that takes (device, dtype) of what each convolution gives."""
    found = set()
    for layer in model.modules():
        if isinstance(layer, CONVOLUTIONS):
            layer.register_forward_hook(lambda _, __, maps: found.add((maps.device, maps.dtype)))
    return found


def test_a_value_of_a_fake_gpu_is_known_to_nobody(fake_gpu):
    with pytest.raises(DataDependentOutputException):
        torch.ones(3, device=GPU).sum().item()


@with_cuda_build
@each_form
@each_network
def test_the_loss_of_a_batch_on_a_gpu(fake_gpu, arch, form):
    """Convolutions in bfloat16, the loss in float32, all of it there."""
    _, model = network_there(arch, form)
    image, target = batch_there()
    found = note_convolutions(model)

    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        logits = model(image)
    loss = segmentation_loss(logits, target)

    assert found == {(GPU, torch.bfloat16)}
    assert loss.device == GPU and loss.dtype == torch.float32 and loss.shape == ()


def test_the_optimizer_of_a_gpu_takes_all_weights_at_once(fake_gpu, monkeypatch):
    """One kernel for all tensors: torch's fused SGD. (Clipping takes lists of tensors on a GPU by
    itself, of real ones alone.)"""
    network, _ = network_there("residual", trained=True)
    trained = [weights for weights in network.parameters() if weights.requires_grad]
    for weights in trained:
        weights.grad = torch.empty_like(weights)
    called = []
    monkeypatch.setattr(torch, "_fused_sgd_", lambda tensors, *_, **__: called.append(len(tensors)))
    optimizer = sgd(network, TINY)

    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), TINY.max_gradient_norm)
    optimizer.step()

    assert norm.device == GPU
    assert called == [len(trained)] and len(trained) == len(list(network.parameters())) - 2
    assert "cuda" in _get_foreach_kernels_supported_devices()


@with_cuda_build
@each_form
@each_network
def test_windows_on_a_gpu(fake_gpu, arch, form):
    """Eight windows in threes, the last two alone; an image that comes from the CPU."""
    _, model = network_there(arch, form)
    found = note_convolutions(model)
    told = []

    probabilities = predict_probabilities(
        [model.eval()],
        torch.empty(24, 48, 48),
        TINY,
        mirroring=False,
        device=GPU,
        precision=torch.bfloat16,
        at_once=3,
        on_window=lambda done, of: told.append((done, of)),
    )

    assert found == {(GPU, torch.bfloat16)}
    assert probabilities.device == GPU and probabilities.dtype == torch.float32
    assert probabilities.shape == (3, 24, 48, 48)
    assert told == [(3, 8), (6, 8), (8, 8)]
