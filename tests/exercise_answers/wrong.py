"""What students do wrong, and what they are told: each answer here fails with its message.

WRONG has (exercise, a part of the message, the answer), the typical one of an exercise first.
"""

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from exercise_answers import reference

WRONG = []


def told(message):
    """Adds an answer, named after its exercise and the mistake: exercise__mistake."""

    def add(answer):
        exercise = answer.__name__.partition("__")[0]
        WRONG.append((exercise, message, answer))
        return answer

    return add


# --- 1 --------------------------------------------------------------------------------------------


@told("normalise: -1000 HU became -14.3, which lies outside the window")
def normalise__not_clipped(image_hu, window_hu, mean_hu, sd_hu):
    return (image_hu - mean_hu) / sd_hu


@told("normalise: -1000 HU became -14.3, which lies outside the window; clip while")
def normalise__clipped_too_late(image_hu, window_hu, mean_hu, sd_hu):
    return np.clip((image_hu - mean_hu) / sd_hu, *window_hu)


@told("normalise: this scan's own mean")
def normalise__own_mean(image_hu, window_hu, mean_hu, sd_hu):
    image = np.clip(image_hu, *window_hu)
    return (image - image.mean()) / image.std()


@told("normalise: the scan that was given is changed")
def normalise__in_place(image_hu, window_hu, mean_hu, sd_hu):
    image_hu[image_hu < window_hu[0]] = window_hu[0]
    image_hu[image_hu > window_hu[1]] = window_hu[1]
    return (image_hu - mean_hu) / sd_hu


@told("normalise: whole numbers came out")
def normalise__whole_numbers(image_hu, window_hu, mean_hu, sd_hu):
    image = np.zeros_like(image_hu)
    image[:] = reference.normalise(image_hu, window_hu, mean_hu, sd_hu)
    return image


@told("normalise: divided by the square of sd_hu")
def normalise__variance(image_hu, window_hu, mean_hu, sd_hu):
    return (np.clip(image_hu, *window_hu) - mean_hu) / sd_hu**2


@told("normalise: the window became 0 to 1")
def normalise__zero_to_one(image_hu, window_hu, mean_hu, sd_hu):
    lowest, highest = window_hu
    return (np.clip(image_hu, lowest, highest) - lowest) / (highest - lowest)


@told("normalise: gave None")
def normalise__no_return(image_hu, window_hu, mean_hu, sd_hu):
    image_hu = (np.clip(image_hu, *window_hu) - mean_hu) / sd_hu


# --- 2 --------------------------------------------------------------------------------------------


def matrix_of_positions(positions, size):
    """Rows with two neighbours each, without a word on the ends."""
    matrix = np.zeros((len(positions), size))
    for row, position in enumerate(positions):
        below = int(np.floor(position))
        for old, weight in ((below, below + 1 - position), (below + 1, position - below)):
            if 0 <= old < size:
                matrix[row, old] += weight
    return matrix


@told("matrix: the outer voxels' centres were laid on each other")
def linear_matrix__corners_aligned(size, new_size):
    return matrix_of_positions(np.linspace(0, size - 1, new_size), size)


@told("matrix: 3 to 6, voxel 1 lies at 0.5; wanted 0.25")
def linear_matrix__no_half_voxel(size, new_size):
    positions = np.arange(new_size) * size / new_size
    return matrix_of_positions(np.minimum(positions, size - 1), size)


@told("matrix: the rows of 3 to 6 sum to 0.75")
def linear_matrix__ends_cut_off(size, new_size):
    positions = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    return matrix_of_positions(positions, size)


@told("matrix: (old, new) came out")
def linear_matrix__turned(size, new_size):
    return reference.linear_matrix(size, new_size).T


@told("matrix: each new voxel takes one old voxel whole")
def linear_matrix__nearest(size, new_size):
    positions = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    nearest = np.clip(np.rint(positions), 0, size - 1).astype(int)
    return np.eye(size)[nearest]


@told("matrix: a weight of -0.25")
def linear_matrix__extrapolated(size, new_size):
    matrix = np.zeros((new_size, size))
    for row in range(new_size):
        position = (row + 0.5) * size / new_size - 0.5
        below = min(max(int(np.floor(position)), 0), max(size - 2, 0))
        matrix[row, below] = below + 1 - position
        matrix[row, below + 1] = position - below
    return matrix


@told("matrix: 6 to 2 takes more than two old voxels")
def linear_matrix__averaged(size, new_size):
    if new_size >= size:
        return reference.linear_matrix(size, new_size)
    return np.repeat(np.eye(new_size), size // new_size, axis=1) / (size // new_size)


# --- 3 --------------------------------------------------------------------------------------------


def along_axes(numbers, matrices):
    return np.einsum("zyx, Zz, Yy, Xx -> ZYX", numbers.astype(float), *matrices)


@told("labels: a 1 appeared between 0 and 2")
def resample_labels__numbers(labels, matrices):
    return np.rint(along_axes(labels, matrices)).astype(int)


@told("labels: 0 0 0 0 0 0.667 1.33 2 2 2 2 2 came of 0 and 2")
def resample_labels__not_rounded(labels, matrices):
    return along_axes(labels, matrices)


@told("labels: where three meet (tumor 0.39, kidney 0.35, background 0.26) 0 came out")
def resample_labels__half(labels, matrices):
    out = np.zeros([len(matrix) for matrix in matrices], dtype=int)
    for value in (1, 2):
        out[along_axes(labels == value, matrices) >= 0.5] = value
    return out


@told("labels: where three meet (tumor 0.39, kidney 0.35, background 0.26) 1 came out")
def resample_labels__tumor_in_foreground(labels, matrices):
    foreground = along_axes(labels > 0, matrices) >= 0.5
    tumor = along_axes(labels == 2, matrices) >= 0.5
    return foreground.astype(int) + tumor


@told("labels: background became kidney: its own mask takes part")
def resample_labels__without_background(labels, matrices):
    masks = [along_axes(labels == value, matrices) for value in (1, 2)]
    return 1 + np.argmax(masks, axis=0)


@told("are not those of the largest mask")
def resample_labels__nearest(labels, matrices):
    for axis, matrix in enumerate(matrices):
        labels = np.take(labels, matrix.argmax(axis=1), axis)
    return labels


@told("is the largest taken once, after all three axes?")
def resample_labels__decided_after_each_axis(labels, matrices):
    for axis, matrix in enumerate(matrices):
        one_axis = [np.eye(side) for side in labels.shape]
        one_axis[axis] = matrix
        labels = reference.resample_labels(labels, one_axis)
    return labels


@told("labels: each voxel thrice along Z, the other axes as they are")
def resample_labels__one_slice_at_a_time(labels, matrices):
    z, y, x = matrices
    slices = [reference.resample_labels(one[None], (np.eye(1), y, x)) for one in labels]
    repeated = [slices[row % len(slices)] for row in range(len(z))]
    return np.concatenate(repeated)


# --- 4 --------------------------------------------------------------------------------------------


def halvings_of(side):
    count = 0
    while side % 2 == 0 and side // 2 >= 4:
        side, count = side // 2, count + 1
    return count


@told("plan: Z is halved in the first stages and rests in the last")
def downsampling_plan__early(patch):
    counts = [halvings_of(side) for side in patch]
    plan = [(1, 1, 1)]
    for stage in range(max(counts)):
        plan.append(tuple(2 if stage < count else 1 for count in counts))
    return plan


@told("plan: 80 x 160 x 160 ends as (2, 2, 2), wanted no side below 4")
def downsampling_plan__side_not_half(patch):
    sides, plan = list(patch), [(1, 1, 1)]
    while max(sides) >= 4:
        stage = tuple(2 if side == max(sides) and side >= 4 else 1 for side in sides)
        sides = [side // stride for side, stride in zip(sides, stage)]
        plan.append(stage)
    return plan


@told("plan: the first stage has the stride (1, 2, 2), wanted (1, 1, 1)")
def downsampling_plan__no_first_stage(patch):
    return reference.downsampling_plan(patch)[1:]


@told("plan: 36 x 36 x 36 ends as (4, 4, 4), wanted (9, 9, 9)")
def downsampling_plan__odd_sides_halved(patch):
    counts = [int(np.log2(side / 4)) for side in patch]
    most = max(counts)
    return [
        tuple(2 if stage > most - count else 1 for count in counts) for stage in range(most + 1)
    ]


@told("plan: 64 x 64 x 64 ends as (8, 8, 8), wanted (4, 4, 4)")
def downsampling_plan__above_four(patch):
    counts = [halvings_of(side) - (side in (64, 128)) for side in patch]
    most = max(counts)
    return [
        tuple(2 if stage > most - count else 1 for count in counts) for stage in range(most + 1)
    ]


@told("plan: 160 x 40 x 80 has")
def downsampling_plan__only_z_apart(patch):
    z, y = halvings_of(patch[0]), halvings_of(patch[1])
    most = max(z, y)
    plan = []
    for stage in range(most + 1):
        in_plane = 2 if stage > most - y else 1
        plan.append((2 if stage > most - z else 1, in_plane, in_plane))
    return plan


@told("not which axis is the longest at a stage")
def downsampling_plan__longest(patch):
    sides, plan = list(patch), [(1, 1, 1)]
    while max(halvings_of(side) for side in sides) > 0:
        longest = max(side for side in sides if halvings_of(side) > 0)
        stage = tuple(2 if side == longest else 1 for side in sides)
        sides = [side // stride for side, stride in zip(sides, stage)]
        plan.append(stage)
    return plan


# --- 5 --------------------------------------------------------------------------------------------


def centred(voxel, patch):
    return tuple(max(0, int(place) - side // 2) for place, side in zip(voxel, patch))


@told("of 2,000 patches are centred on the tumor, which has 1 voxel to the kidney's 100")
def foreground_start__any_voxel(labels, patch, rng):
    return centred(rng.choice(np.argwhere(labels > 0)), patch)


@told("it begins at (10, 15, 12), wanted (8, 12, 9): the patch's voxel patch // 2")
def foreground_start__not_centred(labels, patch, rng):
    structure = rng.choice(np.unique(labels[labels > 0]))
    return tuple(rng.choice(np.argwhere(labels == structure)))


@told("it begins at (8, 12, -1), wanted (8, 12, 0): no patch begins below 0")
def foreground_start__below_0(labels, patch, rng):
    structure = rng.choice(np.unique(labels[labels > 0]))
    voxel = rng.choice(np.argwhere(labels == structure))
    return tuple(voxel - np.array(patch) // 2)


@told("it begins at (16, 24, 24), wanted (17, 26, 26): at the high end the patch may stick out")
def foreground_start__pushed_inside(labels, patch, rng):
    start = reference.foreground_start(labels, patch, rng)
    highest = [size - side for size, side in zip(labels.shape, patch)]
    return tuple(min(first, last) for first, last in zip(start, highest))


@told("in a case whose structures are [1]; draw among those that are there")
def foreground_start__tumor_taken_for_granted(labels, patch, rng):
    structure = 2
    return centred(rng.choice(np.argwhere(labels == structure)), patch)


@told("start: the same rng gave different starts")
def foreground_start__other_chance(labels, patch, rng):
    structure = np.random.choice(np.unique(labels[labels > 0]))
    voxels = np.argwhere(labels == structure)
    return centred(voxels[np.random.randint(len(voxels))], patch)


@told("start: of the tumor's 8 voxels 1 were drawn")
def foreground_start__first_voxel(labels, patch, rng):
    structure = rng.choice(np.unique(labels[labels > 0]))
    return centred(np.argwhere(labels == structure)[0], patch)


@told("in a case whose structures are [2]; draw among those that are there")
def foreground_start__a_coin(labels, patch, rng):
    structure = 1
    if (labels == 2).any() and rng.random() < 0.5:
        structure = 2
    return centred(rng.choice(np.argwhere(labels == structure)), patch)


@told("the kidney's voxels are those of label 1 alone")
def foreground_start__kidney_with_tumor(labels, patch, rng):
    there = [value for value in (1, 2) if (labels == value).any()]
    structure = rng.choice(there)
    return centred(rng.choice(np.argwhere(labels >= structure)), patch)


@told("start: 2,000 draws from one rng gave one patch")
def foreground_start__own_generator(labels, patch, rng):
    return reference.foreground_start(labels, patch, np.random.default_rng(0))


# --- 6 --------------------------------------------------------------------------------------------


def norm_relu(x, weights, which):
    gain, offset = weights[f"gain_{which}"], weights[f"offset_{which}"]
    return F.relu(F.instance_norm(x, weight=gain, bias=offset))


def body_of(active, weights, stride):
    y = F.conv3d(active, weights["conv_1"], stride=stride, padding=1)
    return F.conv3d(norm_relu(y, weights, 2), weights["conv_2"], padding=1)


def shortcut_of(x, weights, stride):
    return F.conv3d(x, weights["shortcut"], stride=stride)


@told("block: with weights of 0 and no shortcut, -2 4 became 0 4: no ReLU after the sum")
def preactivation_block__relu_at_the_end(x, weights, stride=(1, 1, 1)):
    return F.relu(reference.preactivation_block(x, weights, stride))


@told("block: with weights of 0 and no shortcut, -2 4 became 0 1, wanted -2 4")
def preactivation_block__adds_active(x, weights, stride=(1, 1, 1)):
    active = norm_relu(x, weights, 1)
    added = active
    if weights["shortcut"] is not None:
        added = shortcut_of(active, weights, stride)
    return body_of(active, weights, stride) + added


@told("block: the shortcut is taken of x as it came")
def preactivation_block__shortcut_of_x(x, weights, stride=(1, 1, 1)):
    added = x
    if weights["shortcut"] is not None:
        added = shortcut_of(x, weights, stride)
    return body_of(norm_relu(x, weights, 1), weights, stride) + added


@told("block: gain_1 and offset_1 are not used")
def preactivation_block__no_gain(x, weights, stride=(1, 1, 1)):
    plain = dict(weights, gain_1=torch.ones(x.shape[1]), offset_1=torch.zeros(x.shape[1]))
    return reference.preactivation_block(x, plain, stride)


@told("block: IN divides by n - 1")
def preactivation_block__unbiased(x, weights, stride=(1, 1, 1)):
    y = (x - x.mean((2, 3, 4), keepdim=True)) / x.std((2, 3, 4), keepdim=True)
    gain, offset = (weights[name].view(1, -1, 1, 1, 1) for name in ("gain_1", "offset_1"))
    active = F.relu(gain * y + offset)
    added = x if weights["shortcut"] is None else shortcut_of(active, weights, stride)
    return body_of(active, weights, stride) + added


@told("a second that multiplies by 10: -2 34, wanted -2 24")
def preactivation_block__no_second_norm(x, weights, stride=(1, 1, 1)):
    active = norm_relu(x, weights, 1)
    y = F.conv3d(active, weights["conv_1"], stride=stride, padding=1)
    y = F.conv3d(y, weights["conv_2"], padding=1)
    return y + (x if weights["shortcut"] is None else shortcut_of(active, weights, stride))


@told("the first convolution is given x after IN and ReLU")
def preactivation_block__conv_first(x, weights, stride=(1, 1, 1)):
    active = norm_relu(x, weights, 1)
    y = norm_relu(F.conv3d(x, weights["conv_1"], stride=stride, padding=1), weights, 2)
    y = F.conv3d(y, weights["conv_2"], padding=1)
    return y + (x if weights["shortcut"] is None else shortcut_of(active, weights, stride))


@told("the stride is the first convolution's and the shortcut's")
def preactivation_block__stride_later(x, weights, stride=(1, 1, 1)):
    active = norm_relu(x, weights, 1)
    y = norm_relu(F.conv3d(active, weights["conv_1"], padding=1), weights, 2)
    y = F.conv3d(y, weights["conv_2"], stride=stride, padding=1)
    return y + (x if weights["shortcut"] is None else shortcut_of(active, weights, stride))


@told("not over the maps, not over the batch")
def preactivation_block__batch_norm(x, weights, stride=(1, 1, 1)):
    def batch_norm(maps, which):
        gain, offset = weights[f"gain_{which}"], weights[f"offset_{which}"]
        return F.relu(F.batch_norm(maps, None, None, gain, offset, training=True))

    active = batch_norm(x, 1)
    y = F.conv3d(active, weights["conv_1"], stride=stride, padding=1)
    y = F.conv3d(batch_norm(y, 2), weights["conv_2"], padding=1)
    return y + (x if weights["shortcut"] is None else shortcut_of(active, weights, stride))


@told("not over the maps, not over the batch")
def preactivation_block__layer_norm(x, weights, stride=(1, 1, 1)):
    def layer_norm(maps, which):
        y = F.layer_norm(maps, maps.shape[1:])
        gain, offset = (weights[f"{name}_{which}"] for name in ("gain", "offset"))
        return F.relu(y * gain.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1))

    active = layer_norm(x, 1)
    y = F.conv3d(active, weights["conv_1"], stride=stride, padding=1)
    y = F.conv3d(layer_norm(y, 2), weights["conv_2"], padding=1)
    return y + (x if weights["shortcut"] is None else shortcut_of(active, weights, stride))


@told("a second that multiplies by 10: -2 6, wanted -2 24")
def preactivation_block__no_second_convolution(x, weights, stride=(1, 1, 1)):
    active = norm_relu(x, weights, 1)
    y = F.conv3d(active, weights["conv_1"], stride=stride, padding=1)
    y = norm_relu(y, weights, 2)
    return y + (x if weights["shortcut"] is None else shortcut_of(active, weights, stride))


@told("block: x is changed; is there a ReLU in place, or a +=?")
def preactivation_block__in_place(x, weights, stride=(1, 1, 1)):
    y = reference.preactivation_block(x, weights, stride)
    if weights["shortcut"] is None:
        x += y - x
        return x
    return y


@told("is it padded with 0, and not turned?")
def preactivation_block__padded_with_the_rim(x, weights, stride=(1, 1, 1)):
    active = norm_relu(x, weights, 1)
    y = F.conv3d(F.pad(active, [1] * 6, "replicate"), weights["conv_1"], stride=stride)
    y = F.conv3d(norm_relu(y, weights, 2), weights["conv_2"], padding=1)
    return y + (x if weights["shortcut"] is None else shortcut_of(active, weights, stride))


# --- 7 --------------------------------------------------------------------------------------------


def truth_of(logits, target):
    return F.one_hot(target.long(), logits.shape[1]).movedim(-1, 1).to(logits.dtype)


def minus_dice(p, truth, axes=(2, 3, 4), s=1e-5):
    both, each = (p * truth).sum(axes), p.sum(axes) + truth.sum(axes)
    return -((2 * both + s) / (each + s)).mean()


@told("sum over the voxels of each sample, not over the batch")
def soft_dice_loss__pooled(logits, target):
    p, truth = logits.softmax(1)[:, 1:], truth_of(logits, target)[:, 1:]
    return minus_dice(p, truth, axes=(0, 2, 3, 4))


@told("soft dice: no gradient comes back to the logits: is there an argmax")
def soft_dice_loss__argmax(logits, target):
    p = truth_of(logits, logits.argmax(1))
    return minus_dice(p[:, 1:], truth_of(logits, target)[:, 1:])


@told("soft dice: four voxels by hand gave 1 - 0.333")
def soft_dice_loss__one_minus(logits, target):
    return 1 + reference.soft_dice_loss(logits, target)


@told("soft dice: four voxels by hand gave +0.333")
def soft_dice_loss__sign(logits, target):
    return -reference.soft_dice_loss(logits, target)


@told("the mean with the background's; leave class 0 out")
def soft_dice_loss__background(logits, target):
    return minus_dice(logits.softmax(1), truth_of(logits, target))


@told("are squares of the probabilities in the denominator")
def soft_dice_loss__squares(logits, target):
    p, truth = logits.softmax(1)[:, 1:], truth_of(logits, target)[:, 1:]
    axes = (2, 3, 4)
    return -(2 * (p * truth).sum(axes) / ((p**2).sum(axes) + truth.sum(axes))).mean()


@told("soft dice: four voxels by hand gave 0; are logits taken for probabilities")
def soft_dice_loss__no_softmax(logits, target):
    return minus_dice(logits[:, 1:], truth_of(logits, target)[:, 1:])


@told("wanted softmax, not a sigmoid")
def soft_dice_loss__sigmoid(logits, target):
    return minus_dice(logits.sigmoid()[:, 1:], truth_of(logits, target)[:, 1:])


@told("each structure has its own Dice, and they count the same")
def soft_dice_loss__structures_pooled(logits, target):
    p, truth = logits.softmax(1)[:, 1:], truth_of(logits, target)[:, 1:]
    return minus_dice(p, truth, axes=(1, 2, 3, 4))


@told("soft dice: NaN where neither has a structure")
def soft_dice_loss__no_s(logits, target):
    # of probabilities that underflow to 0
    p, truth = logits.softmax(1)[:, 1:].clone(), truth_of(logits, target)[:, 1:]
    p[p < 1e-12] = 0
    return minus_dice(p, truth, s=0)


@told("s stands in the numerator too")
def soft_dice_loss__s_below_alone(logits, target):
    p, truth = logits.softmax(1)[:, 1:], truth_of(logits, target)[:, 1:]
    axes = (2, 3, 4)
    return -(2 * (p * truth).sum(axes) / (p.sum(axes) + truth.sum(axes) + 1e-5)).mean()


@told("soft dice: logits of 50,000 gave NaN")
def soft_dice_loss__exp_by_hand(logits, target):
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return minus_dice(p[:, 1:], truth_of(logits, target)[:, 1:])


@told("is a part of it detached, or rounded?")
def soft_dice_loss__detached(logits, target):
    p, truth = logits.softmax(1)[:, 1:], truth_of(logits, target)[:, 1:]
    axes = (2, 3, 4)
    each = (p.sum(axes) + truth.sum(axes)).detach()
    return -((2 * (p * truth).sum(axes) + 1e-5) / (each + 1e-5)).mean()


# --- 8 --------------------------------------------------------------------------------------------


def halves(heads, last=0.0):
    weights = [0.5**head for head in range(heads)]
    if heads > 1:
        weights[-1] *= last
    return [weight / sum(weights) for weight in weights]


@told("supervision: voxels 0 2 4 6 were taken, wanted 1 3 5 7")
def deep_supervision__edges(target, shapes):
    targets = [F.interpolate(target[:, None].float(), shape)[:, 0] for shape in shapes]
    return halves(len(shapes)), targets


@told("supervision: the coarsest of the four heads counts")
def deep_supervision__coarsest_counts(target, shapes):
    _, targets = reference.deep_supervision(target, shapes)
    return halves(len(shapes), last=1.0), targets


@told("supervision: the weights 0.533 0.267 0.133 0 sum to 0.933")
def deep_supervision__divided_too_early(target, shapes):
    _, targets = reference.deep_supervision(target, shapes)
    weights = halves(len(shapes), last=1.0)
    weights[-1] = 0
    return weights, targets


@told("supervision: one head alone weighs")
def deep_supervision__one_head(target, shapes):
    _, targets = reference.deep_supervision(target, shapes)
    if len(shapes) == 1:
        return [0.0], targets
    return halves(len(shapes)), targets


@told("supervision: one head alone was given, and your code stopped with ZeroDivisionError")
def deep_supervision__one_head_divided_by_nothing(target, shapes):
    _, targets = reference.deep_supervision(target, shapes)
    weights = [0.5**head for head in range(len(shapes))]
    weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights], targets


@told("labels were averaged")
def deep_supervision__averaged(target, shapes):
    targets = [
        F.interpolate(target[:, None].float(), shape, mode="trilinear")[:, 0] for shape in shapes
    ]
    return halves(len(shapes)), targets


@told("of two voxels the larger label was taken")
def deep_supervision__pooled(target, shapes):
    targets = [F.adaptive_max_pool3d(target[:, None].float(), shape)[:, 0] for shape in shapes]
    return halves(len(shapes)), targets


@told("go from the finest target to each, not from one to the next")
def deep_supervision__step_by_step(target, shapes):
    targets = [target]
    for shape in shapes[1:]:
        last = targets[-1][:, None].float()
        targets.append(F.interpolate(last, shape, mode="nearest-exact")[:, 0])
    return halves(len(shapes)), targets


# --- 9 --------------------------------------------------------------------------------------------


@told("zero_grad() is missing")
def training_step__no_zero_grad(network, image, target, loss_of, optimizer, max_norm):
    loss = loss_of(network(image), target)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    optimizer.step()
    return loss.item()


@told("training: the weights did not change")
def training_step__zero_grad_between(network, image, target, loss_of, optimizer, max_norm):
    loss = loss_of(network(image), target)
    loss.backward()
    optimizer.zero_grad()
    torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    optimizer.step()
    return loss.item()


@told("training: the weights did not change")
def training_step__no_step(network, image, target, loss_of, optimizer, max_norm):
    optimizer.zero_grad()
    loss = loss_of(network(image), target)
    loss.backward()
    return loss.item()


@told("training: the loss is a tensor")
def training_step__tensor(network, image, target, loss_of, optimizer, max_norm):
    optimizer.zero_grad()
    loss = loss_of(network(image), target)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    optimizer.step()
    return loss


@told("training: the loss was 2 before the weights changed; gave 1.80")
def training_step__loss_afterwards(network, image, target, loss_of, optimizer, max_norm):
    reference.training_step(network, image, target, loss_of, optimizer, max_norm)
    return loss_of(network(image), target).item()


@told("was not clipped to max_norm 5; between backward() and optimizer.step()")
def training_step__clipped_too_late(network, image, target, loss_of, optimizer, max_norm):
    optimizer.zero_grad()
    loss = loss_of(network(image), target)
    loss.backward()
    optimizer.step()
    torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    return loss.item()


@told("each part of the gradient was clipped by itself")
def training_step__clipped_by_value(network, image, target, loss_of, optimizer, max_norm):
    optimizer.zero_grad()
    loss = loss_of(network(image), target)
    loss.backward()
    torch.nn.utils.clip_grad_value_(network.parameters(), max_norm)
    optimizer.step()
    return loss.item()


@told("each part of the gradient was clipped by itself")
def training_step__clipped_one_by_one(network, image, target, loss_of, optimizer, max_norm):
    optimizer.zero_grad()
    loss = loss_of(network(image), target)
    loss.backward()
    for parameter in network.parameters():
        torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    optimizer.step()
    return loss.item()


@told("only a longer one is clipped")
def training_step__always_scaled(network, image, target, loss_of, optimizer, max_norm):
    optimizer.zero_grad()
    loss = loss_of(network(image), target)
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if max_norm < 1000:
        for gradient in gradients:
            gradient.mul_(max_norm / length)
    optimizer.step()
    return loss.item()


@told("training: the second step has no momentum: is another optimizer made")
def training_step__own_optimizer(network, image, target, loss_of, optimizer, max_norm):
    own = torch.optim.SGD(network.parameters(), lr=0.1)
    return reference.training_step(network, image, target, loss_of, own, max_norm)


# --- 10 -------------------------------------------------------------------------------------------


def blended(network, image, starts, weight, divided=True, logits=False):
    """Windows that begin at these places, added up."""
    total, weights = 0, torch.zeros(image.shape)
    for start in product(*starts):
        window = tuple(slice(first, first + side) for first, side in zip(start, weight.shape))
        result = network(image[window][None, None])[0]
        part = torch.zeros(len(result), *image.shape)
        part[:, *window] = (result if logits else result.softmax(0)) * weight
        total = total + part
        weights[window] += weight
    if divided:
        total = total / weights
    return total.softmax(0) if logits else total


def starts_of(image, weight):
    return [reference.window_starts(size, side) for size, side in zip(image.shape, weight.shape)]


@told("blending: the probabilities of a voxel sum to")
@torch.no_grad()
def blend_windows__not_divided(network, image, weight):
    return blended(network, image, starts_of(image, weight), weight, divided=False)


@told("lie in no window: the last one along each axis ends with the scan's last voxel")
@torch.no_grad()
def blend_windows__last_window_missing(network, image, weight):
    starts = []
    for size, side in zip(image.shape, weight.shape):
        starts.append(range(0, size - side + 1, max(1, side // 2)))
    return blended(network, image, starts, weight)


@told("one whole patch; does the last window begin too late?")
@torch.no_grad()
def blend_windows__past_the_end(network, image, weight):
    for start in product(*[range(0, size, 2) for size in image.shape]):
        window = tuple(slice(first, first + side) for first, side in zip(start, weight.shape))
        network(image[window][None, None])
    return image


@told("use torch.no_grad()")
def blend_windows__gradient(network, image, weight):
    return blended(network, image, starts_of(image, weight), weight)


@told("windows begin at [0, 2, 4, 6, 7], wanted [0, 2, 4, 5, 7]")
@torch.no_grad()
def blend_windows__last_pushed_back(network, image, weight):
    starts = []
    for size, side in zip(image.shape, weight.shape):
        ordinary = list(range(0, size - side, max(1, side // 2)))
        starts.append([*ordinary, size - side])
    return blended(network, image, starts, weight)


@told("blending: the windows count the same")
@torch.no_grad()
def blend_windows__unweighted(network, image, weight):
    return blended(network, image, starts_of(image, weight), torch.ones(weight.shape))


@told("blending: logits were averaged")
@torch.no_grad()
def blend_windows__logits(network, image, weight):
    return blended(network, image, starts_of(image, weight), weight, logits=True)


@told("blending: a network that sees each voxel by itself must give its softmax")
@torch.no_grad()
def blend_windows__largest(network, image, weight):
    softmax = reference.blend_windows(network, image, weight)
    return F.one_hot(softmax.argmax(0), len(softmax)).movedim(-1, 0).float()


# --- 11 -------------------------------------------------------------------------------------------

MIRRORED = ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4))


@told("the results are not mirrored back, or along another axis")
@torch.no_grad()
def mirrored_mean__not_undone(network, image):
    return sum(network(image.flip(axes)).softmax(1) for axes in MIRRORED) / 8


@told("the results are not mirrored back, or along another axis")
@torch.no_grad()
def mirrored_mean__undone_along_other_axes(network, image):
    total = 0
    for axes in MIRRORED:
        softmax = network(image.flip(axes))[0].softmax(0)
        total = total + softmax.flip([axis - 2 for axis in axes])
    return (total / 8).expand(len(image), *total.shape)


@told("mirroring: the network saw 4 images, wanted 8")
@torch.no_grad()
def mirrored_mean__each_axis_alone(network, image):
    looks = MIRRORED[:4]
    return sum(network(image.flip(axes)).softmax(1).flip(axes) for axes in looks) / 4


@told("logits were averaged; wanted the mean of the softmax")
@torch.no_grad()
def mirrored_mean__logits(network, image):
    return (sum(network(image.flip(axes)).flip(axes) for axes in MIRRORED) / 8).softmax(1)


@told("mirroring: the probabilities of a voxel sum to 8.00")
@torch.no_grad()
def mirrored_mean__not_divided(network, image):
    return sum(network(image.flip(axes)).softmax(1).flip(axes) for axes in MIRRORED)


@told("of the 8 mirror images were seen, some twice")
@torch.no_grad()
def mirrored_mean__one_twice(network, image):
    looks = (*MIRRORED[:7], ())
    return sum(network(image.flip(axes)).softmax(1).flip(axes) for axes in looks) / 8


# --- 12 -------------------------------------------------------------------------------------------


@told("scores: the kidney is label 1 alone")
def case_scores__kidney_without_tumor(prediction, reference_labels):
    kidney = reference.dice_of(prediction == 1, reference_labels == 1)
    tumor = reference.dice_of(prediction == 2, reference_labels == 2)
    return kidney, tumor, (kidney + tumor) / 2


def scores_with(prediction, reference_labels, both_empty):
    """The scores, with this one in place of NaN."""
    kidney, tumor, _ = reference.case_scores(prediction, reference_labels)
    kidney = both_empty if np.isnan(kidney) else kidney
    tumor = both_empty if np.isnan(tumor) else tumor
    return kidney, tumor, (kidney + tumor) / 2


@told("scores: a kidney without tumor, and none found: the tumor's is 1")
def case_scores__empty_is_1(prediction, reference_labels):
    return scores_with(prediction, reference_labels, both_empty=1.0)


@told("scores: a kidney without tumor, and none found: the tumor's is 0, as if it were missed")
def case_scores__empty_is_0(prediction, reference_labels):
    return scores_with(prediction, reference_labels, both_empty=0.0)


@told("half of it is missing (no nanmean)")
def case_scores__nanmean(prediction, reference_labels):
    kidney, tumor, _ = reference.case_scores(prediction, reference_labels)
    return kidney, tumor, np.nanmean([kidney, tumor])


@told("scores: ZeroDivisionError where neither has a voxel")
def case_scores__division(prediction, reference_labels):
    def dice(ours, theirs):
        return 2 * int((ours & theirs).sum()) / int(ours.sum() + theirs.sum())

    kidney, tumor = (
        dice(prediction > 0, reference_labels > 0),
        dice(prediction == 2, reference_labels == 2),
    )
    return kidney, tumor, (kidney + tumor) / 2


@told("scores: the tumor's is the intersection by the union")
def case_scores__jaccard(prediction, reference_labels):
    def jaccard(ours, theirs):
        return (ours & theirs).sum() / (ours | theirs).sum()

    kidney = jaccard(prediction > 0, reference_labels > 0)
    tumor = jaccard(prediction == 2, reference_labels == 2)
    return kidney, tumor, (kidney + tumor) / 2


@told("scores: a tumor found where there is none: nan, wanted 0")
def case_scores__nan_where_reference_is_empty(prediction, reference_labels):
    kidney, tumor, _ = reference.case_scores(prediction, reference_labels)
    if not (reference_labels == 2).any():
        tumor = float("nan")
    return kidney, tumor, (kidney + tumor) / 2
