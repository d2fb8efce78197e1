"""What each exercise's answer must do: check_x(x) calls the student's x, and nothing else of ours.

What is wanted is worked out by hand, comes from numpy and torch, or follows from what must not
change. A failure is an AssertionError whose message begins with a word for the exercise and says
what is likely wrong. The order within a check is that in which a student would want to know.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# --- what a function gave -------------------------------------------------------------------------


def array(name, value, shape):
    """What a function gave, as a numpy array of this shape."""
    assert value is not None, f"{name}: gave None; is there a return at the function's end?"
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    value = np.asarray(value)
    assert value.shape == tuple(shape), f"{name}: gave shape {value.shape}, wanted {tuple(shape)}"
    assert not np.isnan(value.astype(float)).any(), f"{name}: gave NaN; what was divided by 0?"
    return value


def tensor(name, value, shape):
    """What a function gave, a torch tensor of this shape."""
    assert value is not None, f"{name}: gave None; is there a return at the function's end?"
    kind = type(value).__name__
    assert isinstance(value, torch.Tensor), f"{name}: gave a {kind}, wanted a torch tensor"
    gave = tuple(value.shape)
    assert gave == tuple(shape), f"{name}: gave shape {gave}, wanted {tuple(shape)}"
    assert not value.isnan().any(), f"{name}: gave NaN; what was divided by 0?"
    return value


def same(value, wanted, tolerance=1e-4):
    """Whether all numbers are those that were wanted, to rounding."""
    value = np.asarray(value, dtype=float)
    return np.allclose(value, np.asarray(wanted, dtype=float), rtol=tolerance, atol=tolerance)


def shown(values):
    """Numbers in a line, for a message: 0.5 0 -2.34"""
    return " ".join(f"{value:.3g}" for value in np.ravel(np.asarray(values, dtype=float)))


# --- 1 --------------------------------------------------------------------------------------------


def check_normalise(normalise):
    window_hu, mean_hu, sd_hu = (-79, 304), 101, 76.9
    image = np.array([[[-1000, -79, 101, 304, 3000]]], dtype=np.int16)
    before = image.copy()
    wanted = [-180 / 76.9, -180 / 76.9, 0, 203 / 76.9, 203 / 76.9]

    given = array("normalise", normalise(image, window_hu, mean_hu, sd_hu), image.shape).ravel()

    assert np.array_equal(image, before), (
        "normalise: the scan that was given is changed; work on a copy (np.clip makes one)"
    )
    clipped = np.clip(image.ravel(), *window_hu)
    if same(given, (image.ravel() - 101) / 76.9):
        raise AssertionError(
            f"normalise: -1000 HU became {given[0]:.1f}, which lies outside the window; clip while "
            "the numbers are still HU, before the mean is subtracted"
        )
    assert not same(given, (clipped - clipped.mean()) / clipped.std()), (
        "normalise: this scan's own mean and standard deviation are used; wanted mean_hu and "
        "sd_hu, so that one HU means the same in each scan"
    )
    assert not same(given, (clipped - 101) / 76.9**2), (
        "normalise: divided by the square of sd_hu, the variance; wanted sd_hu itself"
    )
    assert not same(given, (clipped + 79) / 383), (
        "normalise: the window became 0 to 1; wanted mean_hu subtracted and divided by sd_hu"
    )
    assert not np.array_equal(given, np.rint(given)), (
        f"normalise: whole numbers came out ({shown(given)}): the type of a scan is int16, make it "
        "float first"
    )
    assert same(given, wanted), (
        f"normalise: -1000 -79 101 304 3000 HU became {shown(given)}, wanted {shown(wanted)}"
    )

    constant = np.full((2, 2, 2), 101.0)
    given = array("normalise", normalise(constant, window_hu, mean_hu, sd_hu), (2, 2, 2))
    assert same(given, 0), "normalise: a scan of 101 HU everywhere did not become 0 everywhere"


# --- 2 --------------------------------------------------------------------------------------------


def torchs_matrix(size, new_size):
    """(new_size, size): each old voxel alone, interpolated by torch."""
    one_each = torch.eye(size, dtype=torch.float64)[None]
    return F.interpolate(one_each, new_size, mode="linear")[0].T.numpy()


def check_linear_matrix(linear_matrix):
    given = linear_matrix(3, 6)
    turned = np.shape(given) == (3, 6)
    assert not turned, "matrix: (old, new) came out; wanted a row for each new voxel, (new, old)"
    given = array("matrix", given, (6, 3))

    assert not same(given[1], [0.6, 0.4, 0]), (
        "matrix: the outer voxels' centres were laid on each other; wanted the outer edges: new "
        "voxel i lies at (i + 1/2) * size / new_size - 1/2"
    )
    assert not same(given[1], [0.5, 0.5, 0]), (
        "matrix: 3 to 6, voxel 1 lies at 0.5; wanted 0.25: centres lie half a voxel behind the "
        "edges, (i + 1/2) * size / new_size - 1/2"
    )
    sums = given.sum(axis=1)
    assert same(sums, 1), (
        f"matrix: the rows of 3 to 6 sum to {shown(sums)}, wanted 1 each: what lies beyond an end "
        "is taken of the outermost voxel"
    )
    assert given.min() >= -1e-6, (
        f"matrix: a weight of {given.min():.3g}; at the ends nothing is extrapolated, the "
        "outermost voxel is repeated"
    )
    assert not np.isin(given, (0, 1)).all(), (
        "matrix: each new voxel takes one old voxel whole; that is nearest neighbour (a whole "
        "number where a fraction is needed?)"
    )
    rows = [[1, 0, 0], [0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0.75, 0.25], [0, 0.25, 0.75]]
    for row, wanted in enumerate(rows):
        assert same(given[row], wanted), (
            f"matrix: row {row} of 3 to 6 is {shown(given[row])}, wanted {shown(wanted)}"
        )

    given = array("matrix", linear_matrix(4, 4), (4, 4))
    assert same(given, np.eye(4)), "matrix: 4 to 4 changes something; wanted the unit matrix"

    given = array("matrix", linear_matrix(6, 2), (2, 6))
    assert np.count_nonzero(np.abs(given) > 1e-6, axis=1).max() <= 2, (
        "matrix: 6 to 2 takes more than two old voxels; linear interpolation takes the two on "
        "either side, however far apart the new ones are"
    )

    for size, new_size in ((4, 2), (6, 2), (1, 3), (5, 1), (7, 5), (5, 13)):
        given = array("matrix", linear_matrix(size, new_size), (new_size, size))
        wanted = torchs_matrix(size, new_size)
        for row in range(new_size):
            assert same(given[row], wanted[row]), (
                f"matrix: row {row} of {size} to {new_size} is {shown(given[row])}, "
                f"wanted {shown(wanted[row])}"
            )


# --- 3 --------------------------------------------------------------------------------------------


def check_resample_labels(resample_labels):
    name = "labels"
    line = np.array([[[0, 0, 2, 2]]], dtype=np.uint8)
    before = line.copy()
    matrices = [np.eye(1), np.eye(1), torchs_matrix(4, 12)]

    given = array(name, resample_labels(line, matrices), (1, 1, 12))

    assert np.array_equal(line, before), f"{name}: the labels that were given are changed"
    assert given.flat[0] != 1, f"{name}: background became kidney: its own mask takes part, too"
    assert not (given == 1).any(), (
        f"{name}: a 1 appeared between 0 and 2: interpolate each structure's mask, not the label's "
        "number"
    )
    assert np.isin(given, (0, 2)).all(), (
        f"{name}: {shown(given)} came of 0 and 2; wanted labels alone, the largest mask's (argmax)"
    )
    assert np.array_equal(given.ravel(), [0] * 6 + [2] * 6), (
        f"{name}: 0 0 2 2 became {shown(given)}, wanted six 0, then six 2"
    )

    # one new voxel: 2 weighs 0.6 * 0.65, 1 weighs 0.35, 0 weighs 0.4 * 0.65
    corner = np.array([[[2, 1], [0, 1]]], dtype=np.uint8)
    matrices = [np.eye(1), np.array([[0.6, 0.4]]), np.array([[0.65, 0.35]])]
    (winner,) = array(name, resample_labels(corner, matrices), (1, 1, 1)).ravel()
    assert winner == 2, (
        f"{name}: where three meet (tumor 0.39, kidney 0.35, background 0.26) {winner} came out, "
        "wanted 2: the largest mask wins, also below 1/2, the background's being one of three"
    )

    for axis, letter in enumerate("ZYX"):
        shape = [2, 3, 4]
        labels = np.random.default_rng(axis).integers(0, 3, shape).astype(np.uint8)
        matrices = [np.eye(side) for side in shape]
        matrices[axis] = np.repeat(np.eye(shape[axis]), 3, axis=0)
        wanted = np.repeat(labels, 3, axis=axis)

        given = array(f"{name} along {letter}", resample_labels(labels, matrices), wanted.shape)

        assert np.array_equal(given, wanted), (
            f"{name}: each voxel thrice along {letter}, the other axes as they are: "
            f"{np.count_nonzero(given != wanted)} of {wanted.size} voxels are wrong; does each "
            "matrix multiply its own axis?"
        )

    labels = np.random.default_rng(3).integers(0, 3, (3, 4, 5))
    wanted, certain = largest_by_torch(labels, (5, 7, 3))
    matrices = [torchs_matrix(old, new) for old, new in zip((3, 4, 5), (5, 7, 3))]
    given = array(name, resample_labels(labels, matrices), (5, 7, 3))
    wrong = np.count_nonzero((given != wanted)[certain])
    assert wrong == 0, (
        f"{name}: 3 x 4 x 5 random labels on 5 x 7 x 3 voxels: {wrong} of {certain.sum()} are not "
        "those of the largest mask; is the largest taken once, after all three axes?"
    )


def largest_by_torch(labels, shape):
    """(labels on a grid of this shape, where the largest mask is the largest by far)."""
    one_hot = F.one_hot(torch.from_numpy(labels), 3).movedim(-1, 0).double()
    masks = F.interpolate(one_hot[None], shape, mode="trilinear")[0]
    first, second = masks.sort(dim=0, descending=True).values[:2]
    return masks.argmax(0).numpy(), (first - second > 1e-3).numpy()


# --- 4 --------------------------------------------------------------------------------------------


def check_downsampling_plan(downsampling_plan):
    plan = planned(downsampling_plan, (80, 160, 160))

    assert plan[0] == (1, 1, 1), (
        f"plan: the first stage has the stride {plan[0]}, wanted (1, 1, 1): it sees the patch whole"
    )
    assert set(np.ravel(plan)) <= {1, 2}, f"plan: strides {plan}, wanted 1 and 2 alone"
    deepest = deepest_side((80, 160, 160), plan)
    assert min(deepest) >= 4, (
        f"plan: 80 x 160 x 160 ends as {deepest}, wanted no side below 4: look at the half, not at "
        "the side, before an axis is halved"
    )
    assert deepest == (5, 5, 5), f"plan: 80 x 160 x 160 ends as {deepest}, wanted (5, 5, 5)"
    late = [z for z, _, _ in plan]
    assert late != [1, 2, 2, 2, 2, 1], (
        "plan: Z is halved in the first stages and rests in the last; wanted the other way round: "
        "thick slices first keep their thickness"
    )
    wanted = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert plan == wanted, f"plan: 80 x 160 x 160 has {plan}, wanted {wanted}"

    deepest = deepest_side((64, 64, 64), planned(downsampling_plan, (64, 64, 64)))
    assert deepest == (4, 4, 4), (
        f"plan: 64 x 64 x 64 ends as {deepest}, wanted (4, 4, 4): 8 is halved, for its half is at "
        "least 4"
    )
    deepest = deepest_side((36, 36, 36), planned(downsampling_plan, (36, 36, 36)))
    assert deepest == (9, 9, 9), (
        f"plan: 36 x 36 x 36 ends as {deepest}, wanted (9, 9, 9): an odd side is not halved, it "
        "would not come back the same on the way up"
    )

    plan = planned(downsampling_plan, (160, 40, 80))
    wanted = [(1, 1, 1), (2, 1, 1), (2, 1, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert plan == wanted, (
        f"plan: 160 x 40 x 80 has {plan}, wanted {wanted}: each axis has its own number of halvings"
    )
    plan = planned(downsampling_plan, (48, 64, 64))
    wanted = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert plan == wanted, (
        f"plan: 48 x 64 x 64 has {plan}, wanted {wanted}: it is the number of an axis's halvings "
        "that counts, not which axis is the longest at a stage"
    )
    plan = planned(downsampling_plan, (7, 7, 7))
    assert plan == [(1, 1, 1)], f"plan: 7 x 7 x 7 has {plan}, wanted the first stage alone"


def planned(downsampling_plan, patch):
    """The strides of a patch: a list of tuples of three ints."""
    given = downsampling_plan(patch)
    assert given is not None, "plan: gave None; is there a return at the function's end?"
    plan = [tuple(int(stride) for stride in stage) for stage in given]
    assert plan, "plan: gave no stage, wanted at least (1, 1, 1)"
    for stage in plan:
        assert len(stage) == 3, f"plan: {stage} is a stage's stride, wanted three, for Z, Y and X"
    return plan


def deepest_side(patch, plan):
    """The sides of the deepest maps."""
    return tuple(side // int(shrunk) for side, shrunk in zip(patch, np.prod(plan, axis=0)))


# --- 5 --------------------------------------------------------------------------------------------


def check_foreground_start(foreground_start):
    patch = (4, 6, 6)
    cases = (
        ((10, 15, 12), (8, 12, 9), "the patch's voxel patch // 2 is the one that was drawn"),
        ((10, 15, 2), (8, 12, 0), "no patch begins below 0"),
        ((19, 29, 29), (17, 26, 26), "at the high end the patch may stick out"),
    )
    for voxel, wanted, why in cases:
        labels = np.zeros((20, 30, 30), dtype=np.uint8)
        labels[voxel] = 1
        start = started(foreground_start, labels, patch, seed=0)
        assert start == wanted, (
            f"start: the only voxel of foreground is {voxel}, the patch {patch}: it begins at "
            f"{start}, wanted {wanted}: {why}"
        )

    labels = np.zeros((20, 30, 30), dtype=np.uint8)
    labels[10, 15, 12] = 2
    for seed in range(10):
        started(foreground_start, labels, patch, seed)

    labels[5:13, 10:20, 10:20] = 1  # 800 voxels
    labels[15:17, 25:27, 25:27] = 2  # 8 voxels
    again = [started(foreground_start, labels, patch, seed=5) for _ in range(10)]
    assert len(set(again)) == 1, (
        "start: the same rng gave different starts: something is drawn from np.random or random "
        "instead of rng"
    )
    before = labels.copy()
    voxels = drawn_voxels(foreground_start, labels, patch, draws=2000)
    assert np.array_equal(labels, before), "start: the labels that were given are changed"
    assert len(np.unique(voxels, axis=0)) > 1, (
        "start: 2,000 draws from one rng gave one patch: is a generator made anew in each call?"
    )
    drawn = labels[tuple(voxels.T)]
    outside = np.count_nonzero(drawn == 0)
    assert outside == 0, f"start: {outside} of 2,000 patches are centred on background"

    share = np.mean(drawn == 2)
    assert not share < 0.05, (
        f"start: {share:.1%} of 2,000 patches are centred on the tumor, which has 1 voxel to the "
        "kidney's 100: draw the structure first, then one of its voxels"
    )
    assert 0.45 < share < 0.55, (
        f"start: {share:.1%} of 2,000 patches are centred on the tumor, wanted about one half"
    )
    of_tumor, counts = np.unique(voxels[drawn == 2], axis=0, return_counts=True)
    assert len(of_tumor) == 8 and counts.min() > 60, (
        f"start: of the tumor's 8 voxels {len(of_tumor)} were drawn in 2,000 times, the rarest "
        f"{counts.min()} times; wanted each as likely as another, not its first or its middle"
    )

    labels[5:13, 10:20, 10:20] = 2  # now the tumor is large
    labels[5:7, 10:12, 10:12] = 1
    voxels = drawn_voxels(foreground_start, labels, patch, draws=500)
    share = np.mean(labels[tuple(voxels.T)] == 2)
    assert share < 0.6, (
        f"start: {share:.1%} of 500 patches are centred on the tumor where it is the larger, "
        "wanted about one half: the kidney's voxels are those of label 1 alone"
    )


def drawn_voxels(foreground_start, labels, patch, draws):
    """(draws, 3): the voxels that patches are centred on."""
    rng = np.random.default_rng(1)
    starts = np.array([foreground_start(labels, patch, rng) for _ in range(draws)])
    return starts + np.array(patch) // 2


def started(foreground_start, labels, patch, seed):
    """A start as a tuple of three ints, drawn from a fresh generator."""
    try:
        given = foreground_start(labels, patch, np.random.default_rng(seed))
    except (ValueError, IndexError) as error:
        there = [value for value in (1, 2) if value in labels]
        raise AssertionError(
            f"start: {type(error).__name__} ({error}) in a case whose structures are {there}; draw "
            "among those that are there (if you do, the mistake is another one)"
        ) from error
    return tuple(int(side) for side in array("start", given, (3,)))


# --- 6 --------------------------------------------------------------------------------------------


def check_preactivation_block(preactivation_block):
    def block(x, stride=(1, 1, 1), **weights):
        """What the block gives for a line of voxels along X, a line too."""
        x = torch.tensor(x).reshape(1, 1, 1, 1, -1)
        before = x.clone()
        shape = (*x.shape[:4], x.shape[4] // stride[2])
        given = preactivation_block(x, {**silent_weights(), **weights}, stride)
        assert torch.equal(x, before), "block: x is changed; is there a ReLU in place, or a +=?"
        return tensor("block", given, shape).detach().numpy().ravel()

    two, one = torch.tensor([2.0]), torch.tensor([1.0])

    given = block([-2.0, 4.0])
    assert not same(given, [0, 4]), (
        "block: with weights of 0 and no shortcut, -2 4 became 0 4: no ReLU after the sum, and x "
        "is added as it came (that is what makes it pre-activation)"
    )
    assert same(given, [-2, 4]), (
        f"block: with weights of 0 and no shortcut, -2 4 became {shown(given)}, wanted -2 4: what "
        "is added is x as it came, not after IN or ReLU"
    )

    shortcut = torch.full((1, 1, 1, 1, 1), 10.0)
    given = block([-2.0, 4.0], gain_1=two, offset_1=one, shortcut=shortcut)
    assert not same(given, [-20, 40]), (
        "block: the shortcut is taken of x as it came; with a shortcut it is what the first "
        "IN-ReLU gives"
    )
    assert not same(given, [-10, 30]), "block: the shortcut is taken before the first ReLU"
    assert not same(given, [0, 10]), "block: gain_1 and offset_1 are not used, or swapped"
    assert not same(given, [0, 10 * (1 + 2**0.5)]), (
        "block: IN divides by n - 1; wanted the mean of the squares, over n"
    )
    assert same(given, [0, 30]), (
        "block: -2 4, all 3x3x3 weights 0, gain_1 2, offset_1 1, a shortcut of 10: "
        f"{shown(given)} came out, wanted 0 30 (-1 3 after IN, 0 3 after ReLU)"
    )

    # 0 3 after the first IN-ReLU; -1 1 after the second IN, -4 2 with gain and offset, then 0 2
    body = {"gain_1": two, "offset_1": one, "gain_2": 3 * one, "offset_2": -one}
    given = block([-2.0, 4.0], conv_1=reads(0), conv_2=10 * reads(0), **body)
    assert same(given, [-2, 24]), (
        "block: -2 4, a first convolution that changes nothing and a second that multiplies by 10: "
        f"{shown(given)}, wanted -2 24: IN, ReLU, convolution (0 3), and again (0 20), then plus x"
    )
    given = block([-4.0, -1.0, 5.0], conv_1=reads(0), conv_2=reads(0), offset_2=one)
    wanted = np.array([-4, -1, 5]) + 1 + np.array([-1, -1, 2]) / 2**0.5
    assert same(given, wanted), (
        "block: -4 -1 5 through two convolutions that change nothing, offset_2 1, became "
        f"{shown(given)}, wanted {shown(wanted)}: the first convolution is given x after IN and "
        "ReLU, where -4 and -1 are both 0"
    )
    given = block([-2.0, 4.0], conv_1=reads(+1), conv_2=reads(0), **body)
    assert same(given, [0, 4]), (
        "block: with a first convolution that reads the next voxel along X, -2 4 became "
        f"{shown(given)}, wanted 0 4: is it padded with 0, and not turned?"
    )

    body = {"offset_1": two, "shortcut": torch.ones(1, 1, 1, 1, 1)}
    given = block([-3.0, -1.0, 1.0, 3.0], (1, 1, 2), conv_1=reads(0), conv_2=reads(0), **body)
    first, second = 2 - 3 / 5**0.5, 2 + 1 / 5**0.5
    assert same(given, [first, second + 1]), (
        f"block: -3 -1 1 3 with a stride of 2 along X became {shown(given)}, wanted "
        f"{shown([first, second + 1])}: the stride is the first convolution's and the shortcut's, "
        "so the second IN sees every other voxel"
    )

    # two samples of two maps, to one map: the shortcut takes the first map
    first, second = (
        torch.tensor([[-2.0, 4.0], [70.0, 50.0]]),
        torch.tensor([[5.0, 9.0], [0.0, 1.0]]),
    )
    weights = silent_weights(maps=2)
    weights["shortcut"] = torch.tensor([10.0, 0.0]).reshape(1, 2, 1, 1, 1)
    batch = torch.stack([first, second]).reshape(2, 2, 1, 1, 2)
    given = tensor("block", preactivation_block(batch, weights, (1, 1, 1)), (2, 1, 1, 1, 2))
    assert same(given.detach().flatten(), [0, 10, 0, 10]), (
        "block: two samples of two maps each: a map comes out otherwise when others lie beside it: "
        "IN is over the voxels of one map of one sample, not over the maps, not over the batch"
    )


def silent_weights(maps=1):
    """The weights of a block from so many maps to one, whose convolutions give 0."""
    one, many = torch.zeros(1, 1, 3, 3, 3), torch.zeros(1, maps, 3, 3, 3)
    return {
        **{"gain_1": torch.ones(maps), "offset_1": torch.zeros(maps), "conv_1": many},
        **{"gain_2": torch.ones(1), "offset_2": torch.zeros(1), "conv_2": one},
        "shortcut": None,
    }


def reads(step):
    """A 3x3x3 convolution that gives each voxel the one so many steps further along X."""
    kernel = torch.zeros(1, 1, 3, 3, 3)
    kernel[0, 0, 1, 1, 1 + step] = 1
    return kernel


# --- 7 --------------------------------------------------------------------------------------------


def check_soft_dice_loss(soft_dice_loss):
    half, target = torch.zeros(1, 2, 1, 2, 2), torch.tensor([1, 0, 0, 0]).reshape(1, 1, 2, 2)
    half.requires_grad_()

    loss = tensor("soft dice", soft_dice_loss(half, target), ())

    assert loss.requires_grad, (
        "soft dice: no gradient comes back to the logits: is there an argmax, a threshold, numpy, "
        "detach() or item() on the way? Dice is taken of the probabilities themselves"
    )
    loss = loss.item()
    with_sign = "soft dice: four voxels by hand gave"
    assert not same(loss, 1 / 3), f"{with_sign} +0.333, wanted -0.333: minus the Dice is minimised"
    assert not same(loss, 2 / 3), f"{with_sign} 1 - 0.333; wanted minus the Dice, -0.333"
    assert not same(loss, -(1 / 3 + 3 / 5) / 2), (
        f"{with_sign} {loss:.3f}, the mean with the background's; leave class 0 out"
    )
    assert not same(loss, -1 / 2), (
        f"{with_sign} -0.5: are squares of the probabilities in the denominator (wanted their "
        "sum)? or is s 1?"
    )
    assert not same(loss, -1 / 6) and not same(loss, -1 / 5), (
        f"{with_sign} {loss:.3f}, wanted -0.333: twice the intersection, by both sums"
    )
    assert not same(loss, 0), f"{with_sign} 0; are logits taken for probabilities, or rounded?"
    assert same(loss, -1 / 3), f"{with_sign} {loss:.3f}, wanted -0.333"

    thirds, target = torch.zeros(1, 3, 1, 2, 2), torch.tensor([1, 2, 0, 0]).reshape(1, 1, 2, 2)
    loss = soft_dice_loss(thirds, target).item()
    assert not same(loss, -1 / 3), (
        "soft dice: three classes with equal logits have the probabilities 1/2; wanted softmax, "
        "not a sigmoid"
    )
    assert not same(loss, -1 / 4), "soft dice: the softmax is not over K, axis 1 of the logits"
    assert same(loss, -2 / 7), (
        f"soft dice: three classes with equal logits gave {loss:.3f}, wanted -0.286: 2 / 3 of "
        "intersection by 4 / 3 + 1, for both structures"
    )

    right, missed = torch.zeros(4, 4, 4).long(), torch.zeros(4, 4, 4).long()
    right[:, 0], missed[0, 0, 0] = 1, 1
    logits = sure(torch.stack([right, torch.zeros_like(missed)]), classes=2)
    loss = soft_dice_loss(logits, torch.stack([right, missed])).item()
    assert same(loss, -1 / 2), (
        "soft dice: 16 voxels found in one sample, 1 missed in the other: "
        f"{loss:.3f}, wanted -0.5, the mean of 1 and 0: sum over the voxels of each sample, not "
        "over the batch, where the small one is lost in the large one"
    )

    kidney, both = right.clone(), right.clone()
    both[0, 3, 3] = 2
    loss = soft_dice_loss(sure(kidney[None], classes=3), both[None]).item()
    assert same(loss, -1 / 2), (
        f"soft dice: a kidney of 16 voxels found, a tumor of 1 missed: {loss:.3f}, wanted -0.5: "
        "each structure has its own Dice, and they count the same"
    )

    empty = torch.zeros(1, 4, 4, 4).long()
    loss = soft_dice_loss(sure(empty, classes=2), empty).item()
    assert not math.isnan(loss), (
        "soft dice: NaN where neither has a structure: 0 / 0, or the mean of none; s makes it 1"
    )
    assert same(loss, -1), (
        f"soft dice: where neither has the structure it is {loss:.3f}, wanted -1: s stands in the "
        "numerator too"
    )

    loss = soft_dice_loss(1000 * sure(kidney[None], classes=3), kidney[None]).item()
    assert not math.isnan(loss), (
        "soft dice: logits of 50,000 gave NaN: exp() of them is infinite; torch's softmax "
        "subtracts the largest first"
    )
    gradient_is_right(soft_dice_loss)


def gradient_is_right(soft_dice_loss):
    """A logit's gradient is what the loss changes by, per change of it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (2, 2, 2, 2), generator=generator)
    asked = logits.clone().requires_grad_()

    soft_dice_loss(asked, target).backward()

    for place in ((0, 0, 0, 0, 0), (0, 1, 1, 0, 1), (1, 2, 0, 1, 0)):
        step = torch.zeros_like(logits)
        step[place] = 1e-3
        change = soft_dice_loss(logits + step, target) - soft_dice_loss(logits - step, target)
        wanted, given = change.item() / 2e-3, asked.grad[place].item()
        assert abs(given - wanted) < 1e-3, (
            f"soft dice: the gradient of a logit is {given:.4f}, the loss changes by {wanted:.4f}: "
            "is a part of it detached, or rounded?"
        )


def sure(labels, classes):
    """(B, K, Z, Y, X) logits that are sure of (B, Z, Y, X) labels."""
    return 50 * F.one_hot(labels, classes).movedim(-1, 1).float()


# --- 8 --------------------------------------------------------------------------------------------


def check_deep_supervision(deep_supervision):
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]).reshape(1, 1, 1, 8)
    shapes = [(1, 1, 8), (1, 1, 4), (1, 1, 2), (1, 1, 1)]
    weights, targets = supervised(deep_supervision, target, shapes)

    assert not same(weights, [8 / 15, 4 / 15, 2 / 15, 1 / 15]), (
        "supervision: the coarsest of the four heads counts; wanted 0 for it, before all are "
        "divided by their sum"
    )
    assert not same(weights, weights[0]), "supervision: all heads count the same; wanted halves"
    assert not same(weights, [0, 1 / 7, 2 / 7, 4 / 7]), (
        "supervision: the coarsest head counts most; the finest comes first, and counts most"
    )
    assert same(sum(weights), 1), (
        f"supervision: the weights {shown(weights)} sum to {sum(weights):.3f}, wanted 1: divide "
        "them by their sum when the last is 0 already"
    )
    assert same(weights, [4 / 7, 2 / 7, 1 / 7, 0]), (
        f"supervision: four heads weigh {shown(weights)}, wanted {shown([4 / 7, 2 / 7, 1 / 7, 0])}"
    )
    assert torch.equal(targets[0].long(), target), (
        "supervision: the finest head's target differs from the one that was given"
    )

    halved = targets[1].flatten().tolist()
    assert all(float(label).is_integer() for label in halved), (
        f"supervision: 0 1 2 0 1 2 0 1 became {shown(halved)}: labels were averaged; take one of "
        "the voxels as it is"
    )
    assert halved != [0, 2, 1, 0], (
        "supervision: voxels 0 2 4 6 were taken, wanted 1 3 5 7: (i + 1/2) * 2 is 1, 3, ...; "
        'torch\'s mode "nearest" begins at the edge, another one at the centre'
    )
    assert halved != [1, 2, 2, 1], (
        "supervision: of two voxels the larger label was taken; that makes structures grow"
    )
    assert halved == [1, 0, 2, 1], (
        f"supervision: 0 1 2 0 1 2 0 1 at half its length became {shown(halved)}, wanted 1 0 2 1"
    )
    quartered = targets[2].flatten().tolist()
    assert quartered == [2, 0], (
        f"supervision: 0 1 2 0 1 2 0 1 at a quarter of its length became {shown(quartered)}, "
        "wanted 2 0: voxels 2 and 6; go from the finest target to each, not from one to the next"
    )

    try:
        weights, _ = supervised(deep_supervision, target, shapes[:1])
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise AssertionError(
            "supervision: one head alone was given, and your code stopped with "
            f"{type(error).__name__}: {error}; one head weighs 1: it is the last of none"
        ) from error
    assert same(weights, [1]), (
        f"supervision: one head alone weighs {shown(weights)}, wanted 1: it is the last of none"
    )

    target = torch.arange(2 * 4 * 6 * 8).reshape(2, 4, 6, 8) % 3
    _, targets = supervised(deep_supervision, target, [(4, 6, 8), (4, 3, 4), (2, 3, 2)])
    wanted = (target, target[:, :, 1::2, 1::2], target[:, 1::2, 1::2, 2::4])
    for given, right in zip(targets, wanted):
        assert torch.equal(given.long(), right), (
            f"supervision: a target of 4 x 6 x 8 for a head of {tuple(right.shape[1:])} has other "
            "voxels than wanted: each axis has its own factor"
        )


def supervised(deep_supervision, target, shapes):
    """(weights, targets), as many as there are heads, each of its shape."""
    given = deep_supervision(target.clone(), shapes)
    assert given is not None, "supervision: gave None; is there a return at the function's end?"
    assert len(given) == 2, "supervision: wanted two lists, the weights and the targets"

    weights, targets = given
    counts = f"{len(weights)} weights and {len(targets)} targets"
    assert len(weights) == len(targets) == len(shapes), (
        f"supervision: {counts} for {len(shapes)} heads"
    )
    for one, shape in zip(targets, shapes):
        tensor("supervision", one, (len(target), *shape))
    return [float(weight) for weight in weights], targets


# --- 9 --------------------------------------------------------------------------------------------


class Slope(nn.Module):
    """Two weights, each of which the output rises with by its `steepness` times the image's mean:
    that is the loss's gradient, wherever the weights are."""

    def __init__(self, steepness=(1.0, 1.0)):
        super().__init__()
        self.first = nn.Parameter(torch.ones(()))
        self.second = nn.Parameter(torch.ones(()))
        self.steepness = steepness

    def forward(self, image):
        one, other = self.steepness
        return (one * self.first + other * self.second) * image.mean()

    def weights(self):
        """Both, as numbers."""
        return np.array([self.first.item(), self.second.item()])


def height(logits, target):
    """A loss that falls as its logits do."""
    return logits - target.float().mean()


def check_training_step(training_step):
    image, target = torch.ones(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2)

    network = Slope()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.5)
    loss = training_step(network, image, target, height, optimizer, 1000.0)
    weights = network.weights()
    assert loss is not None, "training: gave None; wanted the loss, a float"
    assert not isinstance(loss, torch.Tensor), (
        "training: the loss is a tensor, which keeps the whole graph in memory; wanted loss.item()"
    )
    assert not same(weights, 1), (
        "training: the weights did not change: is there backward(), then optimizer.step(), and no "
        "zero_grad() between the two?"
    )
    assert same(weights, 0.9), (
        f"training: weights of 1 with a gradient of 1 became {shown(weights)} at a learning rate "
        "of 0.1, wanted 0.9"
    )
    assert same(loss, 2), (
        f"training: the loss was 2 before the weights changed; gave {float(loss):.2f}"
    )

    training_step(network, image, target, height, optimizer, 1000.0)
    weights = network.weights()
    assert not same(weights, 0.65), (
        "training: in the second step the gradient is twice as long: that of the first batch is "
        "still there, backward() adds to it; zero_grad() is missing"
    )
    assert not same(weights, 0.8), (
        "training: the second step has no momentum: is another optimizer made in each step? The "
        "one that is given remembers"
    )
    assert same(weights, 0.75), (
        f"training: after two steps, momentum 0.5, the weights are {shown(weights)}, wanted 0.75"
    )

    change = change_of_weights(training_step, steepness=(30.0, 40.0))
    assert not same(change, [-3, -4]), (
        "training: a gradient of (30, 40) was not clipped to max_norm 5; between backward() and "
        "optimizer.step(), not behind both"
    )
    assert not same(change, [-0.5, -0.5]), (
        "training: each part of the gradient was clipped by itself, which turns its direction; "
        "wanted the length of all together (clip_grad_norm_)"
    )
    assert same(change, [-0.3, -0.4]), (
        "training: a gradient of (30, 40), max_norm 5 and a learning rate of 0.1 changed the "
        f"weights by {shown(change)}, wanted -0.3 -0.4"
    )
    change = change_of_weights(training_step, steepness=(0.3, 0.4))
    assert same(change, [-0.03, -0.04]), (
        "training: a gradient of (0.3, 0.4), shorter than max_norm 5, changed the weights by "
        f"{shown(change)}, wanted -0.03 -0.04: only a longer one is clipped"
    )
    learns_by_heart(training_step)


def change_of_weights(training_step, steepness):
    """What one step changes both weights by, at a learning rate of 0.1 and a max_norm of 5."""
    network = Slope(steepness)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    image, target = torch.ones(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2)

    training_step(network, image, target, height, optimizer, 5.0)

    return network.weights() - 1


def learns_by_heart(training_step):
    """One small patch, in 120 steps."""
    image, target = one_patch()
    network = tiny_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    losses = []
    for _ in range(120):
        losses.append(training_step(network, image, target, F.cross_entropy, optimizer, 12.0))
    with torch.no_grad():
        found = network(image).argmax(1) == 2

    tumor = target == 2
    dice = 2 * (found & tumor).sum() / (found.sum() + tumor.sum())
    assert dice > 0.9, (
        f"training: after 120 steps on one patch the tumor's Dice is {dice:.2f}, wanted above 0.9; "
        f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f}"
    )


def one_patch():
    """A kidney with a darker tumor, in noise: (1, 1, 6, 12, 12) image, (1, 6, 12, 12) labels."""
    target = torch.zeros(1, 6, 12, 12, dtype=torch.long)
    target[:, 1:5, 2:10, 2:10] = 1
    target[:, 2:4, 4:8, 4:8] = 2
    brightness = torch.tensor([-1.0, 1.0, 0.3])
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    return (brightness[target] + 0.4 * noise)[:, None], target


def tiny_network():
    """Three convolutions; always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8, affine=True), nn.LeakyReLU()),
            *(nn.Conv3d(8, 8, 3, padding=1), nn.InstanceNorm3d(8, affine=True), nn.LeakyReLU()),
            nn.Conv3d(8, 3, 1),
        )


# --- 10 -------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """A network that notes what it was given, and of which weight a gradient would be kept."""

    def __init__(self, logits_of):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.logits_of = logits_of
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.one * self.logits_of(x)


def logits_of_voxels(x):
    """(B, 1, Z, Y, X) -> (B, 3, Z, Y, X): each voxel's logits follow from itself alone."""
    return torch.cat([x, -2 * x, torch.sin(3 * x)], dim=1)


def logits_of_places(x):
    """(B, 1, Z, Y, X) -> (B, 2, Z, Y, X): logits that follow from a voxel's place alone."""
    places = torch.arange(x[0].numel(), dtype=torch.float32).reshape(x[:1].shape)
    places = (places * 0.7 - 1).expand_as(x)
    return torch.cat([places, -places], dim=1)


def check_blend_windows(blend_windows):
    patch = (2, 3, 4)
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(patch, generator=generator) + 0.1
    image = torch.randn((4, 7, 9), generator=generator)
    network = Watched(logits_of_voxels)

    given = blend_windows(network, image.clone(), weight.clone())

    assert given is not None, "blending: gave None; is there a return at the function's end?"
    for window in network.seen:
        shape = tuple(window.shape)
        assert shape == (1, 1, *patch), (
            f"blending: the network was given {shape}, wanted {(1, 1, *patch)}: one whole patch; "
            "does the last window begin too late?"
        )
    kept = isinstance(given, torch.Tensor) and given.requires_grad
    assert not kept, "blending: the gradient's graph of all windows is kept; use torch.no_grad()"
    assert tuple(given.shape) == (3, 4, 7, 9), (
        f"blending: gave shape {tuple(given.shape)}, wanted (K, Z, Y, X), {(3, 4, 7, 9)}"
    )
    unseen = given.isnan() | (given.sum(dim=0) == 0)
    assert not unseen.any(), (
        f"blending: {int(unseen[0].sum())} of {image.numel()} voxels lie in no window: the last "
        "one along each axis ends with the scan's last voxel"
    )
    sums = given.sum(dim=0)
    assert same(sums, 1), (
        f"blending: the probabilities of a voxel sum to {sums.min():.2f} to {sums.max():.2f}, "
        "wanted 1: divide by the sum of the weights of the windows that cover it (or is the "
        "softmax missing?)"
    )
    wanted = logits_of_voxels(image[None, None])[0].softmax(dim=0)
    assert same(given, wanted), (
        "blending: a network that sees each voxel by itself must give its softmax, in each window "
        f"the same; {share_wrong(given, wanted)} of the voxels differ: does a window's result go "
        "where the window was?"
    )

    windows_are_even(blend_windows)
    weights_count(blend_windows)


def windows_are_even(blend_windows):
    """Where the windows begin, on lines along each axis."""
    starts = {
        (10, 4): [0, 2, 4, 6],  # three steps of 2
        (11, 4): [0, 2, 4, 5, 7],  # four of 1.75
        (9, 6): [0, 3],  # one of 3: half a patch
        (10, 6): [0, 2, 4],  # two of 2
        (6, 6): [0],
    }
    for axis, letter in enumerate("ZYX"):
        for (size, side), wanted in starts.items():
            shape, patch = [1, 1, 1], [1, 1, 1]
            shape[axis], patch[axis] = size, side
            network = Watched(lambda x: torch.cat([x, x], dim=1))

            blend_windows(network, torch.arange(size).float().reshape(shape), torch.ones(patch))

            given = sorted(int(window.flatten()[0]) for window in network.seen)
            assert len(set(given)) == len(given), (
                f"blending: {size} voxels along {letter}, a patch of {side}: windows begin at "
                f"{given}: one of them twice"
            )
            assert given == wanted, (
                f"blending: {size} voxels along {letter}, a patch of {side}: windows begin at "
                f"{given}, wanted {wanted}: as few even steps as are at most half a patch"
            )


def weights_count(blend_windows):
    """The middle of three voxels, which is second in one window and first in the other."""
    weight = torch.tensor([1.0, 3.0]).reshape(1, 1, 2)
    network = Watched(logits_of_places)
    given = blend_windows(network, torch.zeros(1, 1, 3), weight)[0].flatten()

    logits = torch.tensor([[-1.0, 1.0], [-0.3, 0.3]])  # of the first place and of the second
    first, second = logits.softmax(dim=1)[:, 0]
    assert same(given[[0, 2]], [first, second]), (
        f"blending: three voxels, each end in one window: {shown(given[[0, 2]])}, wanted "
        f"{shown([first, second])}"
    )
    middle = given[1].item()
    assert not same(middle, (first + second) / 2), (
        "blending: the windows count the same; wanted each voxel's weight at its place in a window"
    )
    assert not same(middle, (3 * first + second) / 4), (
        "blending: the weights are the wrong way round, as if turned with the window"
    )
    assert not same(middle, torch.tensor([[-0.475], [0.475]]).softmax(dim=0)[0], 1e-5), (
        "blending: logits were averaged; wanted the mean of the softmax of each window"
    )
    assert same(middle, (3 * second + first) / 4, 1e-5), (
        f"blending: the middle of three voxels is {middle:.4f}, wanted "
        f"(3 * {second:.4f} + {first:.4f}) / 4"
    )


def share_wrong(given, wanted):
    """A percentage of voxels, of (K, Z, Y, X)."""
    return f"{((given - wanted).abs().amax(dim=0) > 1e-4).float().mean():.0%}"


# --- 11 -------------------------------------------------------------------------------------------


def check_mirrored_mean(mirrored_mean):
    image = torch.randn((2, 1, 2, 3, 4), generator=torch.Generator().manual_seed(0))
    before = image.clone()
    network = Watched(logits_of_voxels)
    shape = (2, 3, 2, 3, 4)

    given = tensor("mirroring", mirrored_mean(network, image), shape)

    assert torch.equal(image, before), "mirroring: the image that was given is changed"
    assert not given.requires_grad, "mirroring: the gradient's graph is kept; use torch.no_grad()"
    wanted = logits_of_voxels(image).softmax(dim=1)
    assert same(given.sum(dim=1), 1), (
        f"mirroring: the probabilities of a voxel sum to {given.sum(dim=1).max():.2f}, wanted 1: "
        "the softmax is over K, the mean over eight"
    )
    assert same(given, wanted), (
        "mirroring: a network that sees each voxel by itself must give its softmax, mirrored or "
        "not: the results are not mirrored back, or along another axis (Z is axis 2 of "
        "(B, K, Z, Y, X))"
    )

    wanted_looks = all_mirrored(image)
    seen = [look for look in wanted_looks if any(torch.equal(look, x) for x in network.seen)]
    assert len(network.seen) == 8, (
        f"mirroring: the network saw {len(network.seen)} images, wanted 8: each axis mirrored or "
        "not, all combinations"
    )
    assert len(seen) == 8, f"mirroring: {len(seen)} of the 8 mirror images were seen, some twice"

    line = torch.zeros(1, 1, 1, 1, 2)
    first, second = 0.9, 0.3

    def knows_its_place(x):
        odds = torch.tensor([first / (1 - first), second / (1 - second)]).log()
        logits = odds.expand_as(x)
        return torch.cat([torch.zeros_like(x), logits], dim=1)

    given = tensor("mirroring", mirrored_mean(Watched(knows_its_place), line), (1, 2, 1, 1, 2))
    tumor = given[0, 1].flatten()
    assert not same(tumor, [first, second]), (
        "mirroring: a network that knows its place says 0.9 and 0.3; their mean over mirror images "
        "is 0.6 in both: the results are not mirrored back"
    )
    assert not same(tumor, torch.tensor(27 / 7).sqrt() / (1 + torch.tensor(27 / 7).sqrt())), (
        f"mirroring: 0.9 and 0.3 became {tumor[0]:.3f}: logits were averaged; wanted the mean of "
        "the softmax, 0.6"
    )
    assert same(tumor, 0.6), f"mirroring: 0.9 and 0.3 became {shown(tumor)}, wanted 0.6 in both"


def all_mirrored(image):
    """The eight mirror images of (B, 1, Z, Y, X)."""
    looks = [image]
    for axis in (2, 3, 4):
        looks += [look.flip(axis) for look in looks]
    return looks


# --- 12 -------------------------------------------------------------------------------------------


def check_case_scores(case_scores):
    def scores(prediction, reference):
        """Three floats, of labels in a line."""
        prediction = np.array(prediction, dtype=np.uint8).reshape(1, 1, -1)
        reference = np.array(reference, dtype=np.uint8).reshape(1, 1, -1)
        try:
            given = case_scores(prediction, reference)
        except ZeroDivisionError as error:
            raise AssertionError(
                'scores: ZeroDivisionError where neither has a voxel; wanted float("nan")'
            ) from error
        assert given is not None, "scores: gave None; is there a return at the function's end?"
        assert len(given) == 3, f"scores: gave {given}, wanted kidney, tumor and composite"
        return tuple(float(score) for score in given)

    kidney, tumor, composite = scores([1, 1, 2, 0], [1, 2, 2, 0])
    assert not same(kidney, 2 / 3), (
        "scores: the kidney is label 1 alone; a tumor is part of its kidney: all that is above 0"
    )
    assert not same(tumor, 1 / 2), (
        "scores: the tumor's is the intersection by the union (Jaccard); Dice is twice the "
        "intersection by the two numbers of voxels"
    )
    assert same([kidney, tumor], [1, 2 / 3]), (
        f"scores: prediction 1 1 2 0, reference 1 2 2 0 have kidney {kidney:.3f}, tumor "
        f"{tumor:.3f}, wanted 1 and 0.667"
    )
    assert same(composite, 5 / 6), (
        f"scores: the composite of 1 and 0.667 is {composite:.3f}, wanted their mean, 0.833"
    )

    kidney, tumor, composite = scores([1, 1, 0, 0], [1, 0, 0, 0])
    assert same(kidney, 2 / 3), f"scores: 2 voxels found of 1: kidney {kidney:.3f}, wanted 0.667"
    assert not same(tumor, 1), (
        "scores: a kidney without tumor, and none found: the tumor's is 1; there is no score: NaN, "
        "which a mean over cases leaves out"
    )
    assert not same(tumor, 0), (
        "scores: a kidney without tumor, and none found: the tumor's is 0, as if it were missed; "
        "there is no score: NaN"
    )
    assert math.isnan(tumor), f"scores: a kidney without tumor has tumor {tumor}, wanted NaN"
    assert math.isnan(composite), (
        f"scores: a kidney without tumor has composite {composite:.3f}, wanted NaN: half of it is "
        "missing (no nanmean)"
    )

    kidney, tumor, composite = scores([1, 2, 0, 0], [1, 1, 0, 0])
    assert same(tumor, 0), f"scores: a tumor found where there is none: {tumor:.3f}, wanted 0"
    assert same(composite, 1 / 2), f"scores: composite {composite:.3f} of 1 and 0, wanted 0.5"
    kidney, tumor, composite = scores([0, 0, 0, 0], [1, 2, 0, 0])
    assert same([kidney, tumor, composite], 0), (
        "scores: nothing found where there is kidney and tumor: "
        f"{shown([kidney, tumor, composite])}, wanted 0 0 0"
    )

    given = scores([0, 0, 0, 0], [0, 0, 0, 0])
    assert all(math.isnan(score) for score in given), (
        f"scores: both empty have {shown(given)}, wanted NaN three times"
    )


CHECKS = {
    "normalise": check_normalise,
    "linear_matrix": check_linear_matrix,
    "resample_labels": check_resample_labels,
    "downsampling_plan": check_downsampling_plan,
    "foreground_start": check_foreground_start,
    "preactivation_block": check_preactivation_block,
    "soft_dice_loss": check_soft_dice_loss,
    "deep_supervision": check_deep_supervision,
    "training_step": check_training_step,
    "blend_windows": check_blend_windows,
    "mirrored_mean": check_mirrored_mean,
    "case_scores": check_case_scores,
}
