"""Three blocks, one U-Net: plain, residual and pre-activation residual. [paper 2.2, figure 1]

Axes: (B, C, Z, Y, X). `build_unet` says in what the three differ; the skeleton is the same."""

import math
from functools import partial

import torch
from torch import nn

from minikits.paper import CLASSES, KERNEL, NEGATIVE_SLOPE

conv = partial(nn.Conv3d, kernel_size=KERNEL, padding=KERNEL // 2)
norm = partial(nn.InstanceNorm3d, affine=True)
relu = nn.ReLU  # in place, on the view that instance norm gives, each gradient would be copied
leaky = partial(
    nn.LeakyReLU, NEGATIVE_SLOPE, inplace=True
)  # else twice the memory would be kept for the way back


def conv_norm(channels, features, stride, *, bias, nonlinearity):
    return nn.Sequential(
        conv(channels, features, stride=stride, bias=bias), norm(features), nonlinearity()
    )


def plain_block(channels, features, stride):
    """conv-IN-LReLU, twice; the stride is the first convolution's."""
    return nn.Sequential(
        conv_norm(channels, features, stride, bias=True, nonlinearity=leaky),
        conv_norm(features, features, 1, bias=True, nonlinearity=leaky),
    )


class ResidualBlock(nn.Module):
    """conv-IN-ReLU-conv-IN-(+)-ReLU. A skip that changes the shape is a 1x1x1 convolution and IN."""

    def __init__(self, channels, features, stride):
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, features, stride=stride, bias=False),
            norm(features),
            relu(),
            conv(features, features, bias=False),
            norm(features),
        )
        self.skip = nn.Identity()
        if channels != features or max(stride) > 1:
            self.skip = nn.Sequential(
                nn.Conv3d(channels, features, 1, stride, bias=False), norm(features)
            )

    def forward(self, x):
        return torch.relu(self.body(x) + self.skip(x))


class PreactivationBlock(nn.Module):
    """IN-ReLU-conv-IN-ReLU-conv-(+). A skip that changes the shape branches off after the first IN-ReLU, bare."""

    def __init__(self, channels, features, stride):
        super().__init__()
        self.activation = nn.Sequential(norm(channels), relu())
        self.body = nn.Sequential(
            conv(channels, features, stride=stride, bias=False),
            norm(features),
            relu(),
            conv(features, features, bias=False),
        )
        same = channels == features and max(stride) == 1
        self.skip = None if same else nn.Conv3d(channels, features, 1, stride, bias=False)

    def forward(self, x):
        active = self.activation(x)
        return self.body(active) + (x if self.skip is None else self.skip(active))


class UNet(nn.Module):
    """(B, 1, Z, Y, X) -> logits (B, K, Z, Y, X), in training mode a list: one per decoder resolution, finest first.
    The side lengths must be multiples of the product of the strides, else a ValueError.
    features, strides, blocks: one per stage, where block(channels, features, stride) comes that often.
    stem: before the first stage, giving stem_features.
    activate_skips: IN-ReLU on each skip. decoder_convs: after each upsampling. bias: of these, else of the heads."""

    def __init__(
        self,
        features,
        strides,
        *,
        block,
        blocks,
        stem,
        stem_features,
        activate_skips,
        decoder_convs,
        bias,
        nonlinearity,
    ):
        super().__init__()
        self.multiples = tuple(math.prod(stride) for stride in zip(*strides))  # of each side length
        self.stem = stem
        self.encoder, self.skips, self.upsampling, self.decoder, self.heads = (
            nn.ModuleList() for _ in range(5)
        )
        for channels, width, stride, count in zip(
            (stem_features, *features), features, strides, blocks
        ):
            more = [block(width, width, (1, 1, 1)) for _ in range(count - 1)]
            self.encoder.append(nn.Sequential(block(channels, width, stride), *more))
        for channels, width, stride in zip(features[:0:-1], features[-2::-1], strides[:0:-1]):
            self.skips.append(
                nn.Sequential(norm(width), relu()) if activate_skips else nn.Identity()
            )
            self.upsampling.append(nn.ConvTranspose3d(channels, width, stride, stride, bias=False))
            self.decoder.append(
                nn.Sequential(
                    *[
                        conv_norm(
                            width if i else 2 * width,
                            width,
                            1,
                            bias=bias,
                            nonlinearity=nonlinearity,
                        )
                        for i in range(decoder_convs)
                    ]
                )
            )
            self.heads.append(
                nn.Conv3d(width, len(CLASSES), 1, bias=not bias)
            )  # as it is in nnU-Net v1

    def forward(self, x):
        sides = x.shape[2:]
        if any(side % multiple for side, multiple in zip(sides, self.multiples)):
            raise ValueError(
                f"patch {tuple(sides)}, wanted sides that are multiples of {self.multiples}"
            )
        x = self.stem(x)
        passed = [x := stage(x) for stage in self.encoder]
        passed.pop()  # the bottleneck goes up by itself
        logits = []
        for skip, up, convs, head in zip(self.skips, self.upsampling, self.decoder, self.heads):
            x = convs(torch.cat([up(x), skip(passed.pop())], dim=1))
            if self.training:
                logits.append(head(x))
        return logits[::-1] if self.training else self.heads[-1](x)


def build_unet(arch, recipe):
    """A freshly initialised network of the paper: arch "plain", "residual" or "preactivation".
    Kaiming-normal convolutions for LeakyReLU, in all three, biases 0 [nnU-Net v1 initialization.py:19]; torch's
    global generator draws them."""
    features, strides, blocks = recipe.features(arch), recipe.strides, recipe.residual_blocks
    both = dict(
        blocks=blocks, stem_features=features[0], decoder_convs=1, bias=False, nonlinearity=relu
    )
    if arch == "plain":
        network = UNet(
            features,
            strides,
            block=plain_block,
            blocks=(1,) * len(strides),
            stem=nn.Identity(),
            stem_features=1,
            activate_skips=False,
            decoder_convs=2,
            bias=True,
            nonlinearity=leaky,
        )
    elif arch == "residual":
        network = UNet(
            features,
            strides,
            block=ResidualBlock,
            activate_skips=False,
            stem=conv_norm(1, features[0], 1, bias=False, nonlinearity=relu),
            **both,
        )
    elif arch == "preactivation":
        network = UNet(
            features,
            strides,
            block=PreactivationBlock,
            activate_skips=True,
            stem=conv(1, features[0], bias=False),
            **both,
        )
    else:
        raise ValueError(f"architecture {arch!r}; wanted plain, residual or preactivation")
    for name, parameter in network.named_parameters():
        if parameter.ndim == 5:  # a convolution
            nn.init.kaiming_normal_(parameter, a=NEGATIVE_SLOPE)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return network
