"""The method on one page: python docs/one_page.py

A small plain U-Net learns from synthetic scans to find kidneys (1) and tumors (2), and is tried on one
that it has not seen. Each function is the plain form of a stage. minikits does the same faster, refuses
what cannot be trusted, and has what is left out here: cubic splines for images, the residual networks,
several folds. tests/test_one_page.py holds both against each other.

A minute on two cores. By then it finds kidneys, roughly; tumors want a longer training (`make demo`)."""

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from minikits.phantoms import make_case

SPACING_MM = (7.0, 6.0, 6.0)  # of the network's grid; the paper's is 3.22 1.62 1.62
WINDOW_HU, MEAN_HU, SD_HU = (-79, 304), 101, 76.9
PATCH = (16, 32, 32)  # voxels Z Y X; the paper's is 80 160 160
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))  # of the stages: halved while 4 are left
FEATURES = (8, 16, 32, 64)  # maps of the stages; the paper's are 30 60 120 240 320 320
STEPS = 200  # the paper's are 250,000
SCANS = {"shape": (50, 90, 100), "spacing_mm": (4.8, 4.0, 4.0)}  # of the phantoms


# --- a scan to the network's grid, and back -------------------------------------------------------


def interpolated(volume, shape, orders=(1, 1, 1)):
    """(Z, Y, X) numbers -> shape, axis by axis: order 0 takes the nearest voxel, 1 is linear."""
    for axis, (old, new, order) in enumerate(zip(volume.shape, shape, orders)):
        # where the centres of the new voxels lie, counted in old ones
        places = (np.arange(new) + 0.5) * (old / new) - 0.5
        if order == 0:
            volume = volume.take(np.floor(places + 0.5).astype(int), axis)
            continue
        below = np.floor(places).astype(int)
        share = (places - below).reshape([-1 if other == axis else 1 for other in range(3)])
        lower = volume.take(below.clip(0, old - 1), axis)
        upper = volume.take((below + 1).clip(0, old - 1), axis)
        volume = (1 - share) * lower + share * upper
    return volume


def interpolated_labels(labels, shape, orders=(1, 1, 1)):
    """Each label's 0/1 mask is interpolated, and the largest wins; a tie goes to the nearest voxel's
    label."""
    nearest = interpolated(labels, shape, (0, 0, 0))
    masks = []
    for value in range(3):
        mask = interpolated((labels == value).astype(float), shape, orders)
        masks.append(mask + 1e-5 * (nearest == value))
    return np.argmax(masks, axis=0)


def prepared(hu, spacing_mm):
    """A scan in HU on the network's grid: resampled, clipped to soft tissue, normalised."""
    shape = np.round(np.multiply(hu.shape, spacing_mm) / SPACING_MM).astype(int)
    return (interpolated(hu, shape).clip(*WINDOW_HU) - MEAN_HU) / SD_HU


# --- patches, and what is done to them ------------------------------------------------------------


def random_start(labels, random, forced):
    """The first voxel of a patch: anywhere in the case, or centred on a voxel of a structure."""
    last = np.maximum(np.subtract(labels.shape, PATCH), 0)
    if not forced:
        return random.integers(0, last + 1)
    structure = random.choice(np.unique(labels[labels > 0]))
    voxel = random.choice(np.argwhere(labels == structure))
    return np.maximum(voxel - np.array(PATCH) // 2, 0)


def places_to_read(shape, angles, scale, start=(0, 0, 0)):
    """(Z, Y, X, 3): where in the case each voxel of a patch is read, when the patch is turned about
    Z, Y, X (radians) and scaled about its centre."""
    cz, cy, cx = np.cos(angles)
    sz, sy, sx = np.sin(angles)
    about_z = np.array([[1, 0, 0], [0, cz, -sz], [0, sz, cz]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[cx, -sx, 0], [sx, cx, 0], [0, 0, 1]])

    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    centre = (np.array(shape) - 1) / 2
    turned = (voxels - centre) @ (about_z @ about_y @ about_x) * scale
    return turned + centre + start


def trilinear(volume, places):
    """(Z, Y, X) numbers, read at (..., 3) places between voxels; outside all is 0."""
    below = np.floor(places).astype(int)
    total = np.zeros(places.shape[:-1])
    for corner in product((0, 1), repeat=3):
        voxel = below + corner
        weight = np.prod(1 - abs(places - voxel), axis=-1)
        inside = ((voxel >= 0) & (voxel < volume.shape)).all(axis=-1)
        z, y, x = np.moveaxis(voxel.clip(0, np.subtract(volume.shape, 1)), -1, 0)
        total += weight * inside * volume[z, y, x]
    return total


def augmented(image, labels, start, random):
    """A patch of a case, changed as another patient or scanner might."""
    angles, scale = np.zeros(3), 1.0
    if random.random() < 0.2:
        angles = np.radians(random.uniform(-30, 30, size=3))
    if random.random() < 0.2:
        scale = random.choice([random.uniform(0.7, 1), random.uniform(1, 1.4)])
    places = places_to_read(PATCH, angles, scale, start)
    image_patch = trilinear(image, places)
    kidney, tumor = trilinear(labels == 1, places), trilinear(labels == 2, places)
    label_patch = np.argmax([1 - kidney - tumor, kidney, tumor], axis=0)

    if random.random() < 0.1:
        image_patch = image_patch + random.normal(0, random.uniform(0, 0.1), PATCH)
    if random.random() < 0.15:
        image_patch = image_patch * random.uniform(0.75, 1.25)
    if random.random() < 0.15:
        image_patch = contrast(image_patch, random.uniform(0.75, 1.25))
    for probability, sign in ((0.1, -1), (0.3, 1)):
        if random.random() < probability:
            exponent = random.choice([random.uniform(0.7, 1), random.uniform(1, 1.5)])
            image_patch = sign * gamma(sign * image_patch, exponent)

    axes = [axis for axis in range(3) if random.random() < 0.5]
    return np.flip(image_patch, axes), np.flip(label_patch, axes)


def contrast(image, factor):
    """Stretched about the mean, within the range it had."""
    mean = image.mean()
    return ((image - mean) * factor + mean).clip(image.min(), image.max())


def gamma(image, exponent):
    """Scaled to 0 to 1 and raised to a power; mean and standard deviation are then restored."""
    span = np.ptp(image) + 1e-7
    powered = ((image - image.min()) / span) ** exponent
    return (powered - powered.mean()) / (powered.std() + 1e-8) * image.std() + image.mean()


# --- the network ----------------------------------------------------------------------------------


def block(channels, features, stride=1):
    """conv-IN-LReLU, twice."""
    layers = []
    for inputs, step in ((channels, stride), (features, 1)):
        layers.append(nn.Conv3d(inputs, features, 3, step, padding=1))
        layers.append(nn.InstanceNorm3d(features, affine=True))
        layers.append(nn.LeakyReLU(0.01))
    return nn.Sequential(*layers)


class PlainUNet(nn.Module):
    """(B, 1, Z, Y, X) image -> logits (B, 3, Z, Y, X) of each resolution, finest first."""

    def __init__(self):
        super().__init__()
        widths = list(zip((1, *FEATURES), FEATURES))
        self.down = nn.ModuleList([block(a, b, s) for (a, b), s in zip(widths, STRIDES)])
        self.up, self.level, self.head = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for (here, below), stride in zip(widths[:0:-1], STRIDES[:0:-1]):
            self.up.append(nn.ConvTranspose3d(below, here, stride, stride, bias=False))
            self.level.append(block(2 * here, here))
            self.head.append(nn.Conv3d(here, 3, 1, bias=False))

    def forward(self, x):
        passed = []
        for stage in self.down:
            x = stage(x)
            passed.append(x)
        passed.pop()  # the bottleneck

        logits = []
        for up, level, head in zip(self.up, self.level, self.head):
            x = level(torch.cat([up(x), passed.pop()], dim=1))
            logits.insert(0, head(x))
        return logits


# --- the loss, and a step of the training ---------------------------------------------------------


def loss_of_head(logits, target):
    """Cross-entropy less the mean soft Dice of kidney and tumor: (B, 3, Z, Y, X), (B, Z, Y, X)."""
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)

    entropy, dice = 0, 0
    for p_of_sample, labels in zip(probabilities, target):
        for value, p in enumerate(p_of_sample):
            truth = (labels == value).to(p.dtype)
            entropy -= (truth * p.log()).sum() / target.numel()
            if value == 0:
                continue
            tp = (p * truth).sum()
            fp = (p * (1 - truth)).sum()
            fn = ((1 - p) * truth).sum()
            dice += (2 * tp + 1e-5) / (2 * tp + fp + fn + 1e-5)

    samples_and_structures = 2 * len(target)
    return entropy - dice / samples_and_structures


def loss_of_heads(logits, target):
    """Half the weight for each coarser head, none for the coarsest; targets by nearest voxel."""
    weights = [0.5**number for number in range(len(logits) - 1)]
    loss = 0
    for weight, head in zip(weights, logits):
        z, y, x = [full // coarse for full, coarse in zip(target.shape[1:], head.shape[2:])]
        coarse = target[:, z // 2 :: z, y // 2 :: y, x // 2 :: x]
        loss = loss + weight / sum(weights) * loss_of_head(head, coarse)
    return loss


def train_step(network, optimizer, image, target):
    """One batch: (B, 1, Z, Y, X), (B, Z, Y, X). Gives its loss."""
    loss = loss_of_heads(network(image), target)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()
    return loss.item()


def train(network, cases, random):
    """Batches of two patches: one from anywhere, one on foreground. The learning rate falls to 0."""
    optimizer = torch.optim.SGD(
        network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=3e-5
    )
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / STEPS) ** 0.9
        images, targets = [], []
        for forced in (False, True):
            image, labels = cases[random.integers(len(cases))]
            patch = augmented(image, labels, random_start(labels, random, forced), random)
            images.append(patch[0])
            targets.append(patch[1])

        batch = torch.tensor(np.stack(images)[:, None], dtype=torch.float32)
        loss = train_step(network, optimizer, batch, torch.tensor(np.stack(targets)))
        if (step + 1) % 20 == 0:
            print(f"step {step + 1} of {STEPS}: loss {loss:.3f}", flush=True)


# --- prediction, and its score --------------------------------------------------------------------


def starts_of_windows(size, side):
    """Windows are at most half their side apart, evenly spread."""
    if size <= side:
        return [0]
    steps = int(np.ceil((size - side) / (side * 0.5)))
    return [int(np.round((size - side) / steps * step)) for step in range(steps + 1)]


def weight_of_window(patch):
    """A Gaussian about the middle: there the network sees most of a voxel's surroundings."""
    z, y, x = [np.exp(-0.5 * ((np.arange(n) - n // 2) / (n / 8)) ** 2) for n in patch]
    return (z[:, None, None] * y[:, None] * x).astype(np.float32)


def probabilities_by_loops(networks, image, patch):
    """(K, Z, Y, X) of mirrored windows, by one loop inside the other. Networks see two at once."""
    missing = [max(side - size, 0) for size, side in zip(image.shape, patch)]
    before = [some // 2 for some in missing]
    padded = np.pad(image, [(some // 2, some - some // 2) for some in missing])
    weight = weight_of_window(patch)
    total = np.zeros((3, *padded.shape), np.float32)
    weights = np.zeros(padded.shape, np.float32)  # of one network

    for network in networks:
        for z, y, x in product(*map(starts_of_windows, padded.shape, patch)):
            window = tuple(slice(start, start + side) for start, side in zip((z, y, x), patch))
            for axes in ((), (1,), (0,), (0, 1)):
                pair = (axes, (*axes, 2))
                seen = softmax_of_mirrored(network, padded[window], pair)
                for mirrored, probabilities in zip(pair, seen):
                    back = np.flip(probabilities, [axis + 1 for axis in mirrored])
                    total[(slice(None), *window)] += weight * back
                    if network is networks[0]:
                        weights[window] += weight

    probabilities = total / (weights * len(networks))
    inner = [slice(start, start + size) for start, size in zip(before, image.shape)]
    return probabilities[(slice(None), *inner)]


def softmax_of_mirrored(network, window, pair):
    """(2, K, Z, Y, X): a window flipped along these axes, and along those."""
    flipped = [np.flip(window, axes) for axes in pair]
    with torch.inference_mode():
        logits = network(torch.tensor(np.stack(flipped)[:, None]))
    finest = logits[0] if isinstance(logits, list) else logits
    return F.softmax(finest, dim=1).numpy()


def segmented(hu, spacing_mm, network):
    """(Z, Y, X) labels of a scan, on its own grid."""
    image = prepared(hu, spacing_mm).astype(np.float32)
    probabilities = probabilities_by_loops([network], image, PATCH)
    return np.argmax([interpolated(p, hu.shape) for p in probabilities], axis=0)


def plain_dice(ours, theirs):
    """Of two masks, all voxels at once."""
    return 2 * np.logical_and(ours, theirs).sum() / (ours.sum() + theirs.sum())


def main():
    torch.manual_seed(0)
    cases = []
    for seed in range(24):
        hu, labels, spacing_mm = make_case(seed, **SCANS)
        image = prepared(hu, spacing_mm)
        cases.append((image, interpolated_labels(labels, image.shape)))

    network = PlainUNet()
    train(network, cases, np.random.default_rng(0))

    hu, labels, spacing_mm = make_case(100, **SCANS)
    mask = segmented(hu, spacing_mm, network)
    kidney, tumor = plain_dice(mask > 0, labels > 0), plain_dice(mask == 2, labels == 2)
    print(f"a scan that it has not seen: Dice of kidney {kidney:.2f}, of tumor {tumor:.2f}")


if __name__ == "__main__":
    main()
