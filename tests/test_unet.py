"""Counted weights, the heads' sizes, and each block against the same thing written out by hand."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from minikits.paper import ARCHITECTURES, PAPER
from minikits.unet import PreactivationBlock, ResidualBlock, build_unet

# counted on nnU-Net v1's own classes
PARAMETERS = {"plain": 29_688_080, "residual": 78_688_015, "preactivation": 78_686_783}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameters_are_the_reference_implementations(arch):
    with torch.device("meta"):
        network = build_unet(arch, PAPER)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_five_heads_at_the_papers_resolutions(arch):
    with torch.device("meta"):
        network = build_unet(arch, PAPER)
        logits = network(torch.empty(2, 1, *PAPER.patch))
        finest = network.eval()(torch.empty(2, 1, *PAPER.patch))
    assert [tuple(head.shape) for head in logits] == [
        (2, 3, 80, 160, 160), (2, 3, 80, 80, 80), (2, 3, 40, 40, 40), (2, 3, 20, 20, 20), (2, 3, 10, 10, 10)]
    assert finest.shape == logits[0].shape


@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 32, 48), (7, 16, 8), (1, 16, 16)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_any_patch_of_two_or_more_stages(arch, patch):
    recipe = dataclasses.replace(TINY, patch=patch)
    network = build_unet(arch, recipe)
    x = torch.randn(2, 1, *patch)
    logits = network(x)
    assert len(logits) == len(recipe.strides) - 1 and logits[0].shape == (2, 3, *patch)
    assert torch.equal(network.eval()(x), logits[0])  # no statistics, no dropout
    sum(head.square().mean() for head in logits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_residual_blocks_by_hand(generator):
    x = torch.randn(2, 4, 6, 6, 6, generator=generator)
    for stride, features in (((1, 1, 1), 4), ((1, 2, 2), 6)):
        block = ResidualBlock(4, features, stride)
        one, two = block.body[0], block.body[3]
        y = F.conv3d(F.relu(F.instance_norm(F.conv3d(x, one.weight, None, stride, 1))), two.weight, None, 1, 1)
        y = F.instance_norm(y)
        skip = x if features == 4 else F.instance_norm(F.conv3d(x, block.skip[0].weight, None, stride))
        assert torch.allclose(block(x), F.relu(y + skip), atol=1e-5)


def test_preactivation_blocks_by_hand(generator):
    x = torch.randn(2, 4, 6, 6, 6, generator=generator)
    for stride, features in (((1, 1, 1), 4), ((2, 2, 2), 6)):
        block = PreactivationBlock(4, features, stride)
        one, two = block.body[0], block.body[3]
        active = F.relu(F.instance_norm(x))
        y = F.conv3d(F.relu(F.instance_norm(F.conv3d(active, one.weight, None, stride, 1))), two.weight, None, 1, 1)
        skip = x if features == 4 else F.conv3d(active, block.skip.weight, None, stride)
        assert torch.allclose(block(x), y + skip, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_initial_weights(arch):
    """Kaiming normal, fan in, for a slope of 0.01: variance 2 / (1.0001 fan in); biases 0."""
    torch.manual_seed(0)
    for name, module in build_unet(arch, dataclasses.replace(PAPER, patch=(16, 32, 32))).named_modules():
        if isinstance(module, (torch.nn.Conv3d, torch.nn.ConvTranspose3d)) and module.weight.numel() > 20_000:
            fan_in = module.weight[0].numel()
            assert module.weight.var().item() == pytest.approx(2 / 1.0001 / fan_in, rel=0.05), name
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any()


def test_unknown_architecture():
    with pytest.raises(ValueError, match="architecture 'dense'"):
        build_unet("dense", PAPER)
