"""Three blocks, three builders, one U-Net: plain, residual and pre-activation residual.
[paper 2.2, figure 1]

IN is instance normalisation, always with a gain and an offset of its own for each map. Axes are
(B, C, Z, Y, X)."""

from collections.abc import Sequence

import torch
from torch import nn

from minikits.paper import ARCHITECTURES, CLASSES, KERNEL, NEGATIVE_SLOPE
from minikits.recipe import Recipe

Stride = int | tuple[int, int, int]


def conv(channels: int, features: int, stride: Stride = 1, *, bias: bool = False) -> nn.Conv3d:
    """A convolution of figure 1: (B, channels, Z, Y, X) -> (B, features, Z, Y, X) over stride."""
    return nn.Conv3d(channels, features, KERNEL, stride, padding=KERNEL // 2, bias=bias)


def norm(features: int) -> nn.InstanceNorm3d:
    """IN: each map of each patch to mean 0 and variance 1, then times a gain, plus an offset."""
    return nn.InstanceNorm3d(features, affine=True)


def relu() -> nn.ReLU:
    """Not in place: its way back needs only what it gives, which the next convolution keeps anyway,
    and IN gives a view, of which a change in place would cost a copy of the gradient."""
    return nn.ReLU()


def leaky_relu() -> nn.LeakyReLU:
    """In place, in spite of that copy: else its input would be kept as well for the way back."""
    return nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)


def conv_in_lrelu(channels: int, features: int, stride: Stride = 1) -> nn.Sequential:
    """What the plain network is made of; its convolutions have a bias."""
    return nn.Sequential(
        conv(channels, features, stride, bias=True),
        norm(features),
        leaky_relu(),
    )


def conv_in_relu(channels: int, features: int) -> nn.Sequential:
    """What the decoders of the residual networks are made of."""
    return nn.Sequential(conv(channels, features), norm(features), relu())


def plain_block(channels: int, features: int, stride: Stride = 1) -> nn.Sequential:
    """conv-IN-LReLU, twice; the stride is the first convolution's."""
    return nn.Sequential(
        conv_in_lrelu(channels, features, stride),
        conv_in_lrelu(features, features),
    )


class ResidualBlock(nn.Module):
    """conv-IN-ReLU-conv-IN-(+)-ReLU; the stride is the first convolution's.

    What is added is the block's input. Where the block changes the shape, a 1x1x1 convolution of the
    input, with IN, is added instead."""

    def __init__(self, channels: int, features: int, stride: tuple[int, int, int] = (1, 1, 1)):
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, features, stride),
            norm(features),
            relu(),
            conv(features, features),
            norm(features),
        )
        self.skip = nn.Identity()
        if changes_shape(channels, features, stride):
            self.skip = nn.Sequential(shortcut(channels, features, stride), norm(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class PreactivationBlock(nn.Module):
    """IN-ReLU-conv-IN-ReLU-conv-(+); the stride is the first convolution's.

    What is added is the block's input, as it came. Where the block changes the shape, a 1x1x1
    convolution of what its first IN-ReLU gives is added instead."""

    def __init__(self, channels: int, features: int, stride: tuple[int, int, int] = (1, 1, 1)):
        super().__init__()
        self.activation = nn.Sequential(norm(channels), relu())
        self.body = nn.Sequential(
            conv(channels, features, stride),
            norm(features),
            relu(),
            conv(features, features),
        )
        self.skip = None
        if changes_shape(channels, features, stride):
            self.skip = shortcut(channels, features, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.activation(x)
        if self.skip is None:
            return self.body(active) + x
        return self.body(active) + self.skip(active)


def changes_shape(channels: int, features: int, stride: tuple[int, int, int]) -> bool:
    """Whether a block gives another number of maps, or smaller ones, than it takes."""
    return channels != features or max(stride) > 1


def shortcut(channels: int, features: int, stride: Stride) -> nn.Conv3d:
    """A 1x1x1 convolution that brings a block's input to the shape of its output."""
    return nn.Conv3d(channels, features, 1, stride, bias=False)


class UNet(nn.Module):
    """(B, 1, Z, Y, X) image -> (B, K, Z, Y, X) logits, one map for each of K classes.

    In training mode a list of logits, one for each resolution of the decoder, finest first; in eval
    mode the finest alone. ValueError for a side length that would not come back the same: each has
    to be a multiple of the product of the strides along its axis.

    encoder: a module for each stage, finest first. The other four have one for each resolution of
    the decoder, coarsest first: what is done to the encoder's maps on their way across, the step
    up, the convolutions after it, and the logits."""

    def __init__(
        self,
        stem: nn.Module,
        encoder: Sequence[nn.Module],
        skips: Sequence[nn.Module],
        upsampling: Sequence[nn.ConvTranspose3d],
        decoder: Sequence[nn.Module],
        heads: Sequence[nn.Module],
    ):
        super().__init__()
        self.stem = stem
        self.encoder = nn.ModuleList(encoder)
        self.skips = nn.ModuleList(skips)
        self.upsampling = nn.ModuleList(upsampling)
        self.decoder = nn.ModuleList(decoder)
        self.heads = nn.ModuleList(heads)
        self.strides = [up.stride for up in upsampling]

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        check_sides(x.shape[2:], self.strides)

        x = self.stem(x)
        passed = []
        for stage in self.encoder:
            x = stage(x)
            passed.append(x)
        passed.pop()  # the bottleneck has no skip: it goes up by itself

        logits = []
        for skip, up, convs, head in zip(self.skips, self.upsampling, self.decoder, self.heads):
            x = torch.cat([up(x), skip(passed.pop())], dim=1)
            x = convs(x)
            if self.training:
                logits.insert(0, head(x))

        return logits if self.training else self.heads[-1](x)


def check_sides(sides: tuple[int, ...], strides: list[tuple[int, ...]]) -> None:
    """ValueError unless each side (Z, Y, X) can be divided by all of the strides in turn."""
    multiples = [1, 1, 1]
    for stride in strides:
        multiples = [multiple * step for multiple, step in zip(multiples, stride)]

    if any(side % multiple for side, multiple in zip(sides, multiples)):
        raise ValueError(
            f"patch {tuple(sides)}, wanted sides that are multiples of {tuple(multiples)}"
        )


def build_unet(arch: str, recipe: Recipe) -> UNet:
    """A freshly initialised network of the paper: arch "plain", "residual" or "preactivation".

    torch's global generator draws its weights. ValueError for any other arch."""
    network = unet_of(arch, recipe)
    initialise(network)
    return network


def unet_of(arch: str, recipe: Recipe) -> UNet:
    """The network of `build_unet`, for weights that are still to be given to it."""
    builders = {
        "plain": plain_unet,
        "residual": residual_unet,
        "preactivation": preactivation_unet,
    }
    if arch not in builders:
        raise ValueError(f"architecture {arch!r}; wanted {', '.join(ARCHITECTURES)}")

    return builders[arch](recipe)


def plain_unet(recipe: Recipe) -> UNet:
    """Two conv-IN-LReLU at each resolution, on the way down as on the way up."""
    features, strides = recipe.features("plain"), recipe.strides

    encoder = []
    channels = 1
    for width, stride in zip(features, strides):
        encoder.append(nn.Sequential(plain_block(channels, width, stride)))  # a stage of one block
        channels = width

    skips, upsampling, decoder, heads = [], [], [], []
    for below, width, stride in way_up(features, strides):
        skips.append(nn.Identity())
        upsampling.append(upsample(below, width, stride))
        decoder.append(plain_block(2 * width, width))
        heads.append(nn.Conv3d(width, len(CLASSES), 1, bias=False))

    return UNet(nn.Identity(), encoder, skips, upsampling, decoder, heads)


def residual_unet(recipe: Recipe) -> UNet:
    """Residual blocks on the way down, more of them the deeper; one conv-IN-ReLU at each resolution
    on the way up."""
    features, strides = recipe.features("residual"), recipe.strides

    stem = conv_in_relu(1, features[0])
    encoder = residual_encoder(ResidualBlock, features, strides, recipe.residual_blocks)

    skips, upsampling, decoder, heads = [], [], [], []
    for below, width, stride in way_up(features, strides):
        skips.append(nn.Identity())
        upsampling.append(upsample(below, width, stride))
        decoder.append(nn.Sequential(conv_in_relu(2 * width, width)))
        heads.append(nn.Conv3d(width, len(CLASSES), 1, bias=True))

    return UNet(stem, encoder, skips, upsampling, decoder, heads)


def preactivation_unet(recipe: Recipe) -> UNet:
    """The residual network with IN and ReLU in front of the convolutions: so the stem has none, and
    the maps that go across get them on the way."""
    features, strides = recipe.features("preactivation"), recipe.strides

    stem = conv(1, features[0])
    encoder = residual_encoder(PreactivationBlock, features, strides, recipe.residual_blocks)

    skips, upsampling, decoder, heads = [], [], [], []
    for below, width, stride in way_up(features, strides):
        skips.append(nn.Sequential(norm(width), relu()))
        upsampling.append(upsample(below, width, stride))
        decoder.append(nn.Sequential(conv_in_relu(2 * width, width)))
        heads.append(nn.Conv3d(width, len(CLASSES), 1, bias=True))

    return UNet(stem, encoder, skips, upsampling, decoder, heads)


def residual_encoder(
    block: type[nn.Module],
    features: tuple[int, ...],
    strides: tuple[tuple[int, int, int], ...],
    blocks: tuple[int, ...],
) -> list[nn.Sequential]:
    """A stage for each of features and strides, finest first: so many blocks, of which the first
    one strides. The stem has given it features[0] maps."""
    encoder = []
    channels = features[0]
    for width, stride, count in zip(features, strides, blocks):
        stage = [block(channels, width, stride)]
        while len(stage) < count:
            stage.append(block(width, width))
        encoder.append(nn.Sequential(*stage))
        channels = width
    return encoder


def way_up(features: tuple, strides: tuple) -> list[tuple]:
    """(maps below, maps here, stride between) of each resolution of the decoder, coarsest first:
    the encoder's, backwards."""
    steps = list(zip(features[1:], features[:-1], strides[1:]))
    return steps[::-1]


def upsample(channels: int, features: int, stride: Stride) -> nn.ConvTranspose3d:
    """A transposed convolution whose kernel is its stride: each voxel becomes a small box."""
    return nn.ConvTranspose3d(channels, features, stride, stride, bias=False)


def initialise(network: nn.Module) -> None:
    """Kaiming-normal convolutions for a LeakyReLU, in all three networks, biases 0; IN begins with
    gain 1 and offset 0. [nnU-Net v1 initialization.py:19]"""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 5:  # a convolution
            nn.init.kaiming_normal_(parameter, a=NEGATIVE_SLOPE)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
