"""Twelve exercises, in the order of a patch's life. Write each function's body in place of its
last line; README.md beside this file says how to check them.

numpy and torch are all you need. Axes are Z Y X (slices, rows, columns), B is the sample of a batch
and K the class. Labels are 0 background, 1 kidney, 2 tumor. No function changes what it is given.
"""

import numpy as np  # noqa: F401
import torch  # noqa: F401


def normalise(image_hu, window_hu, mean_hu, sd_hu):
    """1. A scan in Hounsfield units as the network takes it: (Z, Y, X) numbers -> (Z, Y, X) floats.

    image_hu: an array of any kind of number, int16 too. window_hu: (lowest, highest). What lies
    outside the window is brought to its nearer end; then mean_hu is subtracted, and the rest is
    divided by sd_hu. Mean and standard deviation are those of all training cases, not of this scan.

    By hand, with window_hu (-79, 304), mean_hu 101, sd_hu 76.9:

        air       -1000 HU -> (-79 - 101) / 76.9 = -2.341
        a kidney    101 HU -> (101 - 101) / 76.9 = 0
        a clip     3000 HU -> (304 - 101) / 76.9 = 2.640
    """
    raise NotImplementedError


def linear_matrix(size, new_size):
    """2. Linear interpolation along an axis, as a matrix: (new_size, size) floats, a numpy array.

    Row i says how much of each old voxel is in the new voxel i: new = matrix @ old. The old voxels
    and the new ones are `size` and `new_size` boxes of equal length that fill the same axis; a
    voxel's place is the centre of its box. So the new voxel i lies, counted in old voxels, at

        position = (i + 1/2) * size / new_size - 1/2

    where 0 is the centre of the first old voxel. It takes of the two old voxels on either side: at
    0.25 three quarters of voxel 0 and a quarter of voxel 1. Beyond the ends the outermost voxel is
    repeated: at -0.25 all is voxel 0.

    By hand:

        linear_matrix(4, 2)      linear_matrix(3, 6)
        0.5  0.5  0    0         1     0     0
        0    0    0.5  0.5       0.75  0.25  0
                                 0.25  0.75  0
                                 0     0.75  0.25
                                 0     0.25  0.75
                                 0     0     1
    """
    raise NotImplementedError


def resample_labels(labels, matrices):
    """3. Labels on another grid: (Z, Y, X) labels 0, 1, 2 -> whole numbers 0, 1, 2 on the new one.

    matrices: three numpy arrays, (new, old) as in exercise 2, for Z, Y and X; the result is
    (new Z, new Y, new X). A label is a name and no amount: halfway between background 0 and tumor 2
    there is no kidney 1. So each label's mask, of zeros and ones, is resampled, background too, and
    each new voxel gets the label whose mask is largest there. Where two are equal, either is right.

    By hand: four voxels 0 0 2 2 along X, on a grid with three voxels for each of them, are

        0 0 0 0 0 0 2 2 2 2 2 2
    """
    raise NotImplementedError


def downsampling_plan(patch):
    """4. The strides of a U-Net's stages: a patch's (Z, Y, X) voxels -> a list of (z, y, x).

    The first stage keeps the patch: (1, 1, 1). Each further stage halves an axis (2) or keeps it
    (1). An axis is halved as long as its length is even and half of it is at least 4. There are as
    many further stages as the axis that is halved most often needs. An axis that is halved less
    often is halved in the last stages and kept in those before.

    By hand: a side of 80 is halved four times (40, 20, 10, 5), one of 160 five times, so

        downsampling_plan((80, 160, 160))
        [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]

    and the deepest maps have 5 x 5 x 5 voxels.
    """
    raise NotImplementedError


def foreground_start(labels, patch, rng):
    """5. Where a patch on foreground begins: its first voxel, (z, y, x) whole numbers.

    labels: (Z, Y, X) labels 0, 1, 2, at least as large as the patch, not all 0. patch: its
    (Z, Y, X) voxels. rng: a numpy.random.Generator, the only source of chance. First one of the
    structures (1, 2) that are there is drawn, each as likely as the other, however large it is;
    then one of its voxels, each as likely as another. The patch begins patch // 2 before this voxel
    along each axis, but not below 0. At the high end it may stick out of the case.

    By hand: a patch of (4, 6, 6) voxels, with only one voxel of foreground in the case:

        the voxel (10, 15, 2)  -> the start (8, 12, 0)
    """
    raise NotImplementedError


def preactivation_block(x, weights, stride=(1, 1, 1)):
    """6. IN-ReLU-conv-IN-ReLU-conv-(+): (B, C, Z, Y, X) -> (B, features, Z, Y, X) over the stride.

    A function of torch tensors (torch.nn.functional is allowed). weights is a dict:

        "gain_1", "offset_1"   (C,)                    of the first IN
        "conv_1"               (features, C, 3, 3, 3)  of the first convolution
        "gain_2", "offset_2"   (features,)             of the second IN
        "conv_2"               (features, features, 3, 3, 3)
        "shortcut"             (features, C, 1, 1, 1), or None

    IN brings each map of each sample to mean 0 and variance 1 over its n voxels (the variance over
    n, not n - 1; 1e-5 is added to it before the root), then multiplies by the gain and adds the
    offset.
    Convolutions are padded with 0 to keep the size, and have no bias. The stride is that of the
    first convolution and of the shortcut.

    What is added at the end: without a shortcut, x as it came; with one, the shortcut's convolution
    of what the first IN-ReLU gives. After the sum nothing follows.

    By hand: one map of two voxels -2 4, all 3x3x3 weights 0, gain_1 2, offset_1 1:

        without a shortcut   -2 4
        a shortcut of 10      0 30     IN: -1 1; gain and offset: -1 3; ReLU: 0 3; times 10
    """
    raise NotImplementedError


def soft_dice_loss(logits, target):
    """7. Minus the mean soft Dice: (B, K, Z, Y, X) floats, (B, Z, Y, X) whole numbers -> a scalar.

    The probabilities are the softmax of the logits over K. For each sample and each class but 0,
    the background,

        Dice = (2 * intersection + s) / (prediction + reference + s),   s = 0.00001

    are sums over the voxels of this sample alone: of probability times truth (1 where the target is
    this class, else 0), of the probabilities, of the truth. The loss is minus the mean of these
    B * (K - 1) numbers; its gradient reaches the logits.

    By hand: one sample of four voxels, two classes, all probabilities 1/2; one voxel is of class 1:

        intersection 0.5, prediction 2, reference 1: the Dice is 1 / 3, the loss -0.333
    """
    raise NotImplementedError


def deep_supervision(target, shapes):
    """8. What each head of the decoder is compared with, and how much it counts.

    target: a (B, Z, Y, X) tensor of labels. shapes: the (z, y, x) of each head, finest first.
    Returns two lists, as long as shapes: the weights, and the targets (B, z, y, x), which hold
    labels too, as whole numbers or as floats.

    The first head weighs 1, each further one half of the one before; the last of several weighs 0.
    Then all are divided by their sum.

    The target of a head has, for its voxel i along an axis, the target's voxel in which the centre
    of voxel i lies: the whole part of (i + 1/2) * old / new. Halved, that is 2 i + 1.

    By hand: one head alone weighs 1. Four heads have the weights 4/7, 2/7, 1/7 and 0. The labels
    0 1 2 0 along an axis are, for a head of half its length, 1 0.
    """
    raise NotImplementedError


def training_step(network, image, target, loss_of, optimizer, max_norm):
    """9. Changes the network's weights once; gives the batch's loss before that, a Python float.

    image (B, 1, Z, Y, X) and target (B, Z, Y, X) are a batch; loss_of(network(image), target) is a
    scalar tensor; optimizer is torch's, made for the network's weights. The gradient is of this
    batch alone. Before the weights change, the gradient of all weights together is shortened to the
    length max_norm where it is longer (torch has a function for that).

    By hand: two weights with the gradient (30, 40) are clipped at a max_norm of 5 to (3, 4); plain
    SGD with a learning rate of 0.1 then changes them by -0.3 and -0.4.
    """
    raise NotImplementedError


def blend_windows(network, image, weight):
    """10. A whole scan through a network that takes patches: (Z, Y, X) -> (K, Z, Y, X) floats.

    image: a normalised scan, a tensor at least as large as a patch. weight: how much each voxel of
    a patch counts, a tensor of the patch's shape, above 0. network: takes (1, 1, *patch) and gives
    logits (1, K, *patch).

    Along each axis the first window begins at 0 and the last ends with the scan's last voxel. They
    are evenly spread, in as few steps as make no step longer than half a patch; then their first
    voxels are rounded. Where the patch fills the axis, there is one window. Every combination along
    the three axes is a window. In a voxel, the result is the mean of the softmax of the windows
    that cover it, weighted by the weight of the voxel's place in each window. No gradient is kept.

    By hand: an axis of 3 voxels and a patch of 2 with the weights 1 and 3 have windows at 0 and 1.
    The middle voxel is second in the first window and first in the second, so

        (3 * first window's softmax + 1 * second window's softmax) / 4
    """
    raise NotImplementedError


def mirrored_mean(network, image):
    """11. The mean softmax of the eight mirror images: (B, 1, Z, Y, X) -> (B, K, Z, Y, X) floats.

    An image may be mirrored along Z or not, along Y or not, along X or not. network: gives logits
    (B, K, Z, Y, X) for an image. The softmax of each mirror image is mirrored back, so that each
    voxel lies where it was; the mean is over all eight. No gradient is kept.

    By hand: a network on an axis of two voxels, which always calls the first one tumor with
    probability 0.9 and the second with 0.3, whatever the image: both have 0.6.
    """
    raise NotImplementedError


def case_scores(prediction, reference):
    """12. (kidney, tumor, composite) of a case, three floats, from two (Z, Y, X) arrays of labels.

    The Dice of two masks is twice the number of voxels in both, divided by the number in the one
    plus the number in the other. Where neither has a voxel there is no score: float("nan"). The
    kidney's masks are all that is not background, tumor with it; the tumor's are label 2. The
    composite is the mean of both scores, NaN where one of them is.

    By hand, four voxels: prediction 1 1 2 0, reference 1 2 2 0:

        kidney 2 * 3 / (3 + 3) = 1; tumor 2 * 1 / (1 + 2) = 0.667; composite 0.833
    """
    raise NotImplementedError
