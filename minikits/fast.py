"""The same network, faster: same parameters, same numbers, arranged as the processor likes it.

`faster(network)` gives a second network that computes with the first one's own parameters. An
optimizer, a checkpoint or a transfer to another device that sees either network sees both; nothing
that is written down tells which of them computed. What is different:

- channels are padded with zeros to a multiple that the convolution kernels of a GPU are made for
  (30 feature maps become 32). This is exact: a channel whose weights, gain and offset are 0 stays 0
  through convolution, norm and (leaky) ReLU, and meets weights of 0 in the next layer;
- the channels of a voxel lie side by side in memory ("channels last") throughout;
- instance norm needs one pass over its input, for the sums of x and of x*x, instead of two;
- torch.compile fuses what lies between the convolutions, and the loss.

On a GPU all of it pays with the compiler, and none without. On a CPU nothing is compiled, and channels
last take a third off, where the norm is one that keeps them (PatchNorm). Nobody needs this file to
understand the method."""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from minikits.losses import segmentation_loss

SPACE = (2, 3, 4)  # the axes Z, Y, X
# [ours: a Hopper GPU takes 47.9 ms a step of 30, 60, 120, ... maps and 35.5 of 32, 64, 128, ...]
GPU_MULTIPLE = 32
# [ours: on an H200 compiling takes 50 s, and a step 58 ms less then: benchmarks/results/gpu.md]
STEPS_THAT_PAY = 2000
# [ours: of 8 maps a bfloat16 step takes 1.1 times as long in channels last with AMX, of 24 and 30
# it takes 0.8: benchmarks/results/cpu_step.md]
FEWEST_MAPS_THAT_PAY = 16
# [ours: on an H200 a prototype's window took 9.3 ms, 14.3 as it is; compiling takes a minute]
WINDOWS_THAT_PAY = 12_000


def faster(network: nn.Module, *, multiple: int = 1, norm: Callable | None = None) -> nn.Module:
    """The same network in the fast form: it shares the parameters of `network`, by the same names.

    network: a UNet. multiple: each number of feature maps is rounded up to a multiple of it. norm:
    FastNorm, which the compiler likes, or PatchNorm. Input and logits are those of `network`;
    gradients arrive in its parameters, without the padding. Each of the two networks has a training
    mode of its own."""
    norm = norm or FastNorm
    the_same = {id(parameter): parameter for parameter in network.parameters()}
    fast = copy.deepcopy(network, the_same)  # copies all but the parameters

    for parent in list(fast.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
                setattr(parent, name, FastConvolution(layer, multiple))
            elif isinstance(layer, nn.InstanceNorm3d):
                setattr(parent, name, norm(layer, multiple))

    first_convolution(fast).inputs_multiple = 1  # the image has one channel, and keeps it
    for level in fast.decoder:
        first_convolution(level).parts = 2  # sees what comes up and what was skipped, each padded
    for head in fast.heads:
        head.outputs_multiple = 1  # one channel for each class
    return fast


def first_convolution(network: nn.Module) -> "FastConvolution":
    """The one that sees the input: modules stand in the order in which they are used."""
    return next(layer for layer in network.modules() if isinstance(layer, FastConvolution))


class FastConvolution(nn.Module):
    """What `layer` computes, or its transposed kind, on padded channels; with the layer's own
    weight and bias. parts: the input's channels are so many groups, each padded by itself."""

    def __init__(self, layer: nn.Conv3d | nn.ConvTranspose3d, multiple: int):
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self.stride = layer.stride
        self.padding = layer.padding
        self.transposed = isinstance(layer, nn.ConvTranspose3d)
        self.inputs_multiple = multiple
        self.outputs_multiple = multiple
        self.parts = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, Z, Y, X) -> (B, C', Z', Y', X'), C and C' padded."""
        outputs, inputs = (1, 0) if self.transposed else (0, 1)  # axes of the weight
        weight = padded(self.weight, inputs, self.inputs_multiple, parts=self.parts)
        weight = padded(weight, outputs, self.outputs_multiple)
        bias = None
        if self.bias is not None:
            bias = padded(self.bias, 0, self.outputs_multiple)

        x = x.to(memory_format=torch.channels_last_3d)
        if self.transposed:
            return F.conv_transpose3d(x, weight, bias, self.stride)
        return F.conv3d(x, weight, bias, self.stride, self.padding)


class FastNorm(nn.Module):
    """Instance norm on padded channels, with the gain and offset of `layer`.

    The variance is the mean of squares less the square of the mean, so that both come of one pass.
    The difference loses digits where the mean is far from 0, therefore sums and all that follows
    are float32 or more, whatever the input is: at a mean of 100 standard deviations the result is
    wrong by up to 0.1%, at 3 by less than 1e-5."""

    def __init__(self, layer: nn.InstanceNorm3d, multiple: int):
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self.eps = layer.eps
        self.multiple = multiple

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, Z, Y, X), C padded -> the same shape and dtype."""
        gain = padded(self.weight, 0, self.multiple)[:, None, None, None]
        offset = padded(self.bias, 0, self.multiple)[:, None, None, None]
        voxels = x[0, 0].numel()

        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = values.sum(SPACE, keepdim=True) / voxels
        mean_of_squares = (values * values).sum(SPACE, keepdim=True) / voxels
        variance = (mean_of_squares - mean * mean).clamp(min=0)

        normalised = (values - mean) * (variance + self.eps).rsqrt()
        return (normalised * gain + offset).to(x.dtype)


class PatchNorm(FastNorm):
    """Instance norm as batch norm of one patch at a time: the same sums, but torch has it for
    channels last on CPUs, where its instance norm copies to the usual layout and back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, Z, Y, X), C padded -> the same shape and dtype."""
        gain = padded(self.weight, 0, self.multiple)
        offset = padded(self.bias, 0, self.multiple)
        patches = []
        for patch in x.split(1):
            normalised = F.batch_norm(patch, None, None, gain, offset, training=True, eps=self.eps)
            patches.append(normalised)
        return torch.cat(patches)


def padded(values: torch.Tensor, axis: int, multiple: int, *, parts: int = 1) -> torch.Tensor:
    """Zeros behind each of `parts` equal parts along an axis, so that each is a multiple long:
    30 + 30 with multiple 32 become 30 + 2 zeros + 30 + 2 zeros."""
    length = values.shape[axis] // parts
    missing = -length % multiple
    if missing == 0:
        return values

    shape = list(values.shape)
    shape[axis] = missing
    zeros = values.new_zeros(shape)
    pieces = []
    for part in values.split(length, axis):
        pieces += [part, zeros]
    return torch.cat(pieces, axis)


def for_training(
    network: nn.Module,
    *,
    compiling: str,
    steps: int,
    precision: torch.dtype = torch.float32,
    say: Callable,
) -> tuple[nn.Module, Callable]:
    """(model, loss): the fast form of `network`, on its device, and the loss that goes with it, both
    compiled. Where it is not to be compiled, the network as it is fastest on its own.

    compiling: "on", "off", or "auto": on a GPU, where the steps that are left earn back the minute
    that the first of them takes. say: prints a line where it was to be compiled but cannot."""
    device = next(network.parameters()).device
    if compiles(compiling, device, pays=steps >= STEPS_THAT_PAY, say=say):
        model = faster(network, multiple=suited_multiple(device))
        model.compile(dynamic=False)
        return model, torch.compile(segmentation_loss, dynamic=False)

    return on_its_own(network, device, precision), segmentation_loss


def on_its_own(
    network: nn.Module, device: torch.device, precision: torch.dtype = torch.float32
) -> nn.Module:
    """The network as it is fastest on `device`, in this number format, without the compiler. A GPU
    takes it as it is: the fast form is no faster there (benchmarks/results/gpu.md). A CPU takes
    channels last, but for a network of few feature maps in bfloat16
    (benchmarks/results/cpu_step.md)."""
    if device.type != "cpu":
        return network

    finest_maps = network.heads[-1].in_channels  # pyrefly: ignore[missing-attribute]
    if precision == torch.bfloat16 and finest_maps < FEWEST_MAPS_THAT_PAY:
        return network
    return faster(network, norm=PatchNorm)


def for_prediction(
    networks: Sequence[nn.Module],
    *,
    compiling: str,
    windows: int,
    at_once: int,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    say: Callable,
) -> list[nn.Module]:
    """The networks, in eval mode, as they are to predict on `device`: in the fast form, compiled.
    Where they are not to be compiled, as they are fastest on their own.

    compiling: "on", "off", or "auto": on a GPU, where so many windows, mirrored ones counted, earn
    back the minute that it takes. Networks of one architecture share it. at_once: the windows that
    a network sees together, or fewer. say: as for training."""
    if not compiles(compiling, device, pays=windows >= WINDOWS_THAT_PAY, say=say):
        return [on_its_own(network, device, precision).eval() for network in networks]

    models: list[nn.Module] = []
    for network in networks:
        model = faster(network, multiple=suited_multiple(device)).eval()
        model.compile(dynamic=False)
        models.append(FixedBatch(model, at_once))
    return models


class FixedBatch(nn.Module):
    """`model`, which always sees so many samples, since for another number it would be compiled
    again: where there are fewer, the first comes several times."""

    def __init__(self, model: nn.Module, samples: int):
        super().__init__()
        self.model = model
        self.samples = samples

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, Z, Y, X), B at most `samples` -> what the model gives for these."""
        given = x.shape[0]
        missing = self.samples - given
        if missing:
            more = x[:1].expand(missing, -1, -1, -1, -1)
            x = torch.cat([x, more])
        return self.model(x)[:given]


def suited_multiple(device: torch.device) -> int:
    """What numbers of feature maps are rounded up to: on CPUs they stay as they are."""
    return GPU_MULTIPLE if device.type == "cuda" else 1


def compiles(compiling: str, device: torch.device, *, pays: bool, say: Callable) -> bool:
    """Whether to compile: as told, or by itself on a GPU where it pays; said where it cannot."""
    wanted = compiling == "on"
    if compiling == "auto":
        wanted = device.type == "cuda" and pays
    if not wanted:
        return False

    lacking = what_compiling_lacks(device)
    if lacking:
        say(f"torch.compile does not work here, so it goes on without: {lacking}")
    return not lacking


def what_compiling_lacks(device: torch.device) -> str:
    """The complaint of torch.compile about this computer, in a line; "" where it works.

    A sum of squares is tried: on a GPU that needs Triton, on a CPU a C++ compiler."""
    try:
        compiled = torch.compile(lambda x: (x * x).sum(), dynamic=False)
        compiled(torch.ones(64, device=device)).item()
    except Exception as error:  # of whatever is missing
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return ""
