"""Counted weights, the heads' sizes, and each block against the same thing written out by hand."""

import dataclasses
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY

from minikits import unet
from minikits.paper import ARCHITECTURES, DEMO, PAPER
from minikits.unet import PreactivationBlock, ResidualBlock, build_unet

# strides (1, 1, 1), (1, 2, 2), (2, 2, 2); blocks 1, 2, 3; two heads
SMALL = dataclasses.replace(
    TINY, patch=(8, 16, 16), plain_features=4, residual_features=3, max_features=7
)
STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2)]

# counted on nnU-Net v1's own classes
PARAMETERS = {"plain": 29_688_080, "residual": 78_688_015, "preactivation": 78_686_783}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameters_are_the_reference_implementations(arch):
    with torch.device("meta"):
        network = build_unet(arch, PAPER)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("name, recipe", [("PAPER", PAPER), ("DEMO", DEMO)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_names_order_and_shapes_of_the_weights_stay(arch, name, recipe):
    """Checkpoints are read by these names, and nnU-Net v1's weights go in by this order."""
    kept = json.loads((ROOT / "tests" / "golden" / "state_dicts.json").read_text())

    with torch.device("meta"):
        weights = build_unet(arch, recipe).state_dict()

    shapes = [(weight, list(value.shape)) for weight, value in weights.items()]
    assert shapes == list(kept[f"{arch} {name}"].items())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_five_heads_at_the_papers_resolutions(arch):
    with torch.device("meta"):
        network = build_unet(arch, PAPER)
        logits = network(torch.empty(2, 1, *PAPER.patch))
        finest = network.eval()(torch.empty(2, 1, *PAPER.patch))
    assert [tuple(head.shape) for head in logits] == [
        (2, 3, 80, 160, 160),
        (2, 3, 80, 80, 80),
        (2, 3, 40, 40, 40),
        (2, 3, 20, 20, 20),
        (2, 3, 10, 10, 10),
    ]
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
        y = F.conv3d(
            F.relu(F.instance_norm(F.conv3d(x, one.weight, None, stride, 1))),
            two.weight,
            None,
            1,
            1,
        )
        y = F.instance_norm(y)
        skip = (
            x if features == 4 else F.instance_norm(F.conv3d(x, block.skip[0].weight, None, stride))
        )
        assert torch.allclose(block(x), F.relu(y + skip), atol=1e-5)


def test_preactivation_blocks_by_hand(generator):
    x = torch.randn(2, 4, 6, 6, 6, generator=generator)
    for stride, features in (((1, 1, 1), 4), ((2, 2, 2), 6)):
        block = PreactivationBlock(4, features, stride)
        one, two = block.body[0], block.body[3]
        active = F.relu(F.instance_norm(x))
        y = F.conv3d(
            F.relu(F.instance_norm(F.conv3d(active, one.weight, None, stride, 1))),
            two.weight,
            None,
            1,
            1,
        )
        skip = x if features == 4 else F.conv3d(active, block.skip.weight, None, stride)
        assert torch.allclose(block(x), y + skip, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_initial_weights(arch):
    """Kaiming normal, fan in, for a slope of 0.01: variance 2 / (1.0001 fan in); biases 0."""
    torch.manual_seed(0)
    for name, module in build_unet(
        arch, dataclasses.replace(PAPER, patch=(16, 32, 32))
    ).named_modules():
        if (
            isinstance(module, (torch.nn.Conv3d, torch.nn.ConvTranspose3d))
            and module.weight.numel() > 20_000
        ):
            fan_in = module.weight[0].numel()
            assert module.weight.var().item() == pytest.approx(2 / 1.0001 / fan_in, rel=0.05), name
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any()


def test_unknown_architecture():
    with pytest.raises(ValueError, match="architecture 'dense'"):
        build_unet("dense", PAPER)


# The three networks by hand, from figure 1 and what nnU-Net v1 does: torch's functions on the networks' weights.


class Weights:
    """The weights of a part of a network in the order they were made, taken one after the other."""

    def __init__(self, *modules):
        self.left = [parameter for module in modules for parameter in module.parameters()]

    def take(self, count):
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def conv(self, x, stride=1, *, bias):
        weight, offset = self.take(2) if bias else (*self.take(1), None)
        assert weight.shape[2:] == (3, 3, 3)
        return F.conv3d(x, weight, offset, stride, padding=1)

    def shortcut(self, x, stride):
        [weight] = self.take(1)
        assert weight.shape[2:] == (1, 1, 1)
        return F.conv3d(x, weight, None, stride)

    def norm(self, x):
        gain, offset = (parameter[:, None, None, None] for parameter in self.take(2))
        mean = x.mean(dim=(2, 3, 4), keepdim=True)
        variance = (x - mean).square().mean(dim=(2, 3, 4), keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * gain + offset

    def up(self, x, stride):
        [weight] = self.take(1)
        assert weight.shape[2:] == stride
        return F.conv_transpose3d(x, weight, None, stride)

    def head(self, x, *, bias):
        weight, offset = self.take(2) if bias else (*self.take(1), None)
        assert weight.shape[0] == 3 and weight.shape[2:] == (1, 1, 1)
        return F.conv3d(x, weight, offset)


def leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def plain_by_hand(network, x):
    passed = []
    for stage, stride in zip(network.encoder, STRIDES):
        weights = Weights(stage)
        x = leaky(weights.norm(weights.conv(x, stride, bias=True)))
        x = leaky(weights.norm(weights.conv(x, bias=True)))
        assert not weights.left
        passed.append(x)
    logits = []
    for level in range(2):
        weights = Weights(network.upsampling[level], network.decoder[level], network.heads[level])
        x = torch.cat([weights.up(x, STRIDES[2 - level]), passed[1 - level]], dim=1)
        x = leaky(weights.norm(weights.conv(x, bias=True)))
        x = leaky(weights.norm(weights.conv(x, bias=True)))
        logits.insert(0, weights.head(x, bias=False))
        assert not weights.left
    return logits


def residual_by_hand(network, x):
    weights = Weights(network.stem)
    x = F.relu(weights.norm(weights.conv(x, bias=False)))
    assert not weights.left
    passed = []
    for number, (stage, stride) in enumerate(zip(network.encoder, STRIDES)):
        weights = Weights(stage)
        for block in range(number + 1):
            by = stride if block == 0 else (1, 1, 1)
            y = F.relu(weights.norm(weights.conv(x, by, bias=False)))
            y = weights.norm(weights.conv(y, bias=False))
            changes = number > 0 and block == 0
            x = F.relu(y + (weights.norm(weights.shortcut(x, by)) if changes else x))
        assert not weights.left
        passed.append(x)
    return decoded_by_hand(network, x, passed)


def preactivation_by_hand(network, x):
    weights = Weights(network.stem)
    x = weights.conv(x, bias=False)
    assert not weights.left
    passed = []
    for number, (stage, stride) in enumerate(zip(network.encoder, STRIDES)):
        weights = Weights(stage)
        for block in range(number + 1):
            by = stride if block == 0 else (1, 1, 1)
            active = F.relu(weights.norm(x))
            y = F.relu(weights.norm(weights.conv(active, by, bias=False)))
            y = weights.conv(y, bias=False)
            changes = number > 0 and block == 0
            x = y + (weights.shortcut(active, by) if changes else x)
        assert not weights.left
        passed.append(x)
    for level in range(2):
        weights = Weights(network.skips[1 - level])
        passed[level] = F.relu(weights.norm(passed[level]))
    return decoded_by_hand(network, x, passed)


def decoded_by_hand(network, x, passed):
    logits = []
    for level in range(2):
        weights = Weights(network.upsampling[level], network.decoder[level], network.heads[level])
        x = torch.cat([weights.up(x, STRIDES[2 - level]), passed[1 - level]], dim=1)
        x = F.relu(weights.norm(weights.conv(x, bias=False)))
        logits.insert(0, weights.head(x, bias=True))
        assert not weights.left
    return logits


@pytest.mark.parametrize(
    "arch, by_hand",
    [
        ("plain", plain_by_hand),
        ("residual", residual_by_hand),
        ("preactivation", preactivation_by_hand),
    ],
)
@pytest.mark.parametrize("most", [7, 3])
def test_networks_by_hand(arch, by_hand, most, generator):
    """Every weight is random, gains and offsets too, so that each has to be where it belongs. At most 3 features: none
    of the stages has more than the one before, so that a block changes the shape by its stride alone."""
    network = build_unet(arch, dataclasses.replace(SMALL, max_features=most)).double()
    assert SMALL.strides == tuple(STRIDES)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        x = torch.randn(2, 1, 8, 16, 16, generator=generator, dtype=torch.float64)
        found, wanted = network(x), by_hand(network, x)
    assert len(found) == len(wanted) == 2
    for one, other in zip(found, wanted):
        assert one.shape == other.shape and torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_small_differences_are_divided_by_no_less_than_eps(arch, generator):
    """Where the variance is of the order of 1e-5, the epsilon of the first norm counts: 1e-5, not 1e-3 or 1e-8."""
    by_hand = {
        "plain": plain_by_hand,
        "residual": residual_by_hand,
        "preactivation": preactivation_by_hand,
    }[arch]
    network = build_unet(arch, SMALL).double()
    with torch.no_grad():
        x = 0.003 * torch.randn(1, 1, 8, 16, 16, generator=generator, dtype=torch.float64)
        for one, other in zip(network(x), by_hand(network, x)):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_is_remembered_between_patches(arch, generator):
    """No running statistics: no buffers, and a patch's logits do not depend on the patches before or beside it."""
    network = build_unet(arch, SMALL)
    assert not list(network.buffers())
    one, other = (torch.randn(1, 1, 8, 16, 16, generator=generator) for _ in range(2))
    first = network(one)[0]
    network(10 * other)
    assert torch.equal(network(one)[0], first)
    assert torch.allclose(network(torch.cat([other, one]))[0][1:], first, atol=1e-5)


def kind_of(name, parameter):
    """Which kind of weight: a convolution, a norm's gain, or an offset."""
    if parameter.ndim == 5:
        return "convolution"
    return "bias" if name.endswith("bias") else "gain"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_initial_weights_of_every_layer(arch):
    """Over 40 seeds. Normal around 0, fan in as torch counts it: of a convolution its maps in times its kernel, of a
    transposed one its maps out times its kernel. Norms begin as the identity, biases at 0."""
    drawn = {}
    for seed in range(40):
        torch.manual_seed(seed)
        for name, parameter in build_unet(arch, SMALL).named_parameters():
            drawn.setdefault(name, []).append(parameter.detach().double())
    kinds = {name: kind_of(name, each[0]) for name, each in drawn.items()}
    assert set(kinds.values()) == {"convolution", "bias", "gain"}

    for name, kind in kinds.items():
        weights = torch.stack(drawn[name])
        if kind == "bias":
            assert not weights.any(), name
        elif kind == "gain":
            assert (weights == 1).all(), name
        else:
            fan_in = math.prod(weights.shape[2:])
            share = weights / math.sqrt(2 / (1 + 0.01**2) / fan_in)
            count = share.numel()
            assert abs(share.mean()) < 5 / math.sqrt(count), name
            assert abs(share.square().mean() - 1) < 5 * math.sqrt(2 / count), name
            assert abs(share.pow(4).mean() - 3) < 5 * math.sqrt(96 / count), (
                name
            )  # 1.8 if it were uniform
            assert len(share.unique()) > 0.99 * count, name


def test_each_kind_of_layer_was_among_them():
    """So that no layer's beginning is held by nothing: stem, blocks, shortcuts, upsampling, decoder, heads."""
    for arch, shortcuts in (("plain", 0), ("residual", 2), ("preactivation", 2)):
        network = build_unet(arch, SMALL)
        shapes = [tuple(p.shape[2:]) for p in network.encoder.parameters() if p.ndim == 5]
        assert shapes.count((1, 1, 1)) == shortcuts
        assert len(shapes) - shortcuts == (6 if arch == "plain" else 12)
        assert [
            len(list(part.parameters())) > 0
            for part in (network.upsampling, network.decoder, network.heads)
        ] == [True] * 3
        assert sum(p.ndim == 5 for p in network.stem.parameters()) == (0 if arch == "plain" else 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_initial_weights_are_the_seeds(arch):
    def weights(seed):
        torch.manual_seed(seed)
        return [parameter.detach().clone() for parameter in build_unet(arch, SMALL).parameters()]

    same, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(a, b) for a, b in zip(same, again))
    assert not any(torch.equal(a, b) for a, b in zip(same, other) if a.ndim == 5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sides_that_do_not_come_back_the_same_are_refused(arch):
    network = build_unet(arch, SMALL)
    assert network.eval()(torch.zeros(1, 1, 10, 16, 20)).shape == (1, 3, 10, 16, 20)
    for sides in ((9, 16, 16), (8, 14, 16), (8, 16, 18)):
        with pytest.raises(ValueError, match="multiples"):
            network(torch.zeros(1, 1, *sides))


@pytest.mark.parametrize("arch", ["plain", "residual", "preactivation"])
def test_every_network_is_initialised_for_the_slope_of_leaky_relu(arch, monkeypatch):
    """Of one seed, another slope scales each convolution, in the networks with ReLU too."""
    torch.manual_seed(0)
    usual = build_unet(arch, TINY)
    monkeypatch.setattr(unet, "NEGATIVE_SLOPE", 1.0)
    torch.manual_seed(0)
    other = dict(build_unet(arch, TINY).named_parameters())
    for name, value in usual.named_parameters():
        if value.ndim == 5:
            assert torch.allclose(
                other[name], value * math.sqrt((1 + 0.01**2) / 2), rtol=1e-5, atol=0
            ), name


def test_every_stage_has_the_recipes_number_of_blocks():
    network = build_unet("residual", replace(TINY, residual_blocks=(3, 1, 2, 4, 9)))
    assert [len(stage) for stage in network.encoder] == [3, 1, 2, 4]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_names_and_order_of_the_weights(arch):
    """Checkpoints name them, and weights of nnU-Net v1 are taken over by their order."""
    network = build_unet(arch, SMALL)
    norms = ["weight", "bias"]

    def named(part, *layers):
        return [f"{part}.{layer}" for layer in layers]

    def plain_stage(part):
        conv_and_norm = ["0.weight", "0.bias", "1.weight", "1.bias"]
        return named(part, *(f"{half}.{name}" for half in (0, 1) for name in conv_and_norm))

    residual = ["body.0.weight", "body.1.weight", "body.1.bias", "body.3.weight"]
    residual += ["body.4.weight", "body.4.bias"]
    residual_shortcut = ["skip.0.weight", "skip.1.weight", "skip.1.bias"]
    preactivation = ["activation.0.weight", "activation.0.bias", "body.0.weight"]
    preactivation += ["body.1.weight", "body.1.bias", "body.3.weight"]
    decoder = ["0.0.weight", "0.1.weight", "0.1.bias"]

    if arch == "plain":
        wanted = [name for stage in range(3) for name in plain_stage(f"encoder.{stage}.0")]
        wanted += ["upsampling.0.weight", "upsampling.1.weight"]
        wanted += plain_stage("decoder.0") + plain_stage("decoder.1")
        wanted += ["heads.0.weight", "heads.1.weight"]
    else:
        block, shortcut = (residual, residual_shortcut)
        wanted = named("stem", "0.weight", "1.weight", "1.bias")
        if arch == "preactivation":
            block, shortcut = (preactivation, ["skip.weight"])
            wanted = ["stem.weight"]
        wanted += named("encoder.0.0", *block)
        wanted += named("encoder.1.0", *block, *shortcut) + named("encoder.1.1", *block)
        wanted += named("encoder.2.0", *block, *shortcut)
        wanted += named("encoder.2.1", *block) + named("encoder.2.2", *block)
        if arch == "preactivation":
            wanted += named("skips.0.0", *norms) + named("skips.1.0", *norms)
        wanted += ["upsampling.0.weight", "upsampling.1.weight"]
        wanted += named("decoder.0", *decoder) + named("decoder.1", *decoder)
        wanted += named("heads.0", *norms) + named("heads.1", *norms)
    assert list(network.state_dict()) == wanted
