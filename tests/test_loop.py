"""The loop that trains (minikits/training.py), beside one that is written out by hand."""

import copy
from dataclasses import asdict, replace

import pytest
import torch
from conftest import TINY

from minikits.losses import segmentation_loss
from minikits.training import Progress, freeze_coarsest_head, sgd, train_epoch, training_step
from minikits.unet import build_unet

STEPS = replace(
    TINY,
    epochs=4,
    batches_per_epoch=5,
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=0.01,
    max_gradient_norm=0.9,  # so that some are clipped
    patch=(8, 8, 8),
    stage_strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
)  # three heads


def random_batch(iteration):
    """(2, 1, 8, 8, 8) float64, (2, 8, 8, 8): another for each number."""
    generator = torch.Generator().manual_seed(100 + iteration)
    image = torch.randn(2, 1, *STEPS.patch, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (2, *STEPS.patch), generator=generator)
    return image, target


def loss_by_hand(heads, target):
    """Cross-entropy and soft Dice of three heads, weighing 2/3, 1/3 and nothing."""
    loss = 0
    for weight, logits in zip((2 / 3, 1 / 3), heads):
        step = [full // small for full, small in zip(target.shape[1:], logits.shape[2:])]
        z, y, x = (slice(each // 2, None, each) for each in step)
        small = target[:, z, y, x]
        truth = torch.nn.functional.one_hot(small, 3).permute(0, 4, 1, 2, 3).double()
        probabilities = logits.softmax(1)
        cross_entropy = -(truth * probabilities.log()).sum(1).mean()
        both = (truth * probabilities)[:, 1:].sum((2, 3, 4))
        either = truth[:, 1:].sum((2, 3, 4)) + probabilities[:, 1:].sum((2, 3, 4))
        dice = (2 * both + 1e-5) / (either + 1e-5)
        loss = loss + weight * (cross_entropy - dice.mean())
    return loss


def train_by_hand(network, recipe):
    """20 steps written out; (the mean loss of each epoch, how many gradients were clipped)."""
    velocity = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    means, clipped = [], 0
    for epoch in range(4):
        rate = 0.05 * (1 - epoch / 4) ** 0.9
        losses = []
        for batch in range(5):
            image, target = random_batch(5 * epoch + batch)
            loss = loss_by_hand(network(image), target)
            parameters = dict(network.named_parameters())
            names = [name for name in velocity if name != "heads.0.weight"]  # of the coarsest
            gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
            norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
            scale = min(0.9 / (norm.item() + 1e-6), 1)
            clipped += scale < 1
            with torch.no_grad():
                for name, gradient in zip(names, gradients):
                    gradient = scale * gradient + 0.01 * parameters[name]
                    velocity[name] = 0.9 * velocity[name] + gradient
                    parameters[name] -= rate * (gradient + 0.9 * velocity[name])
            losses.append(loss.item())
        means.append(sum(losses) / 5)
    return means, clipped


def test_twenty_steps_of_the_loop_equal_those_written_by_hand():
    """In float64, four epochs of five batches; rounding grows over the steps."""
    torch.manual_seed(5)
    ours = build_unet("plain", STEPS).double()
    by_hand = copy.deepcopy(ours)

    drawn = []

    def draw(iteration):
        drawn.append(iteration)
        return random_batch(iteration)

    rows, progress = [], Progress()
    optimizer = sgd(ours, STEPS)
    for epoch in range(4):
        ours.eval()  # as scoring leaves it
        rows.append(train_epoch(ours, draw, optimizer, STEPS, epoch, progress))
        progress = Progress(progress.iteration)
    losses, clipped = train_by_hand(by_hand, STEPS)

    assert drawn == list(range(20)) and 0 < clipped < 20
    for name, value in ours.state_dict().items():
        assert (value - by_hand.state_dict()[name]).abs().max() < 1e-8, name
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=1e-8)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    rates = [0.05 * (1 - epoch / 4) ** 0.9 for epoch in range(4)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)


def test_the_log_has_the_learning_rate_that_the_optimizer_used():
    network = build_unet("plain", STEPS).double()
    optimizer = sgd(network, STEPS)
    used = []
    optimizer.register_step_pre_hook(lambda *_: used.append(optimizer.param_groups[0]["lr"]))

    row = train_epoch(network, random_batch, optimizer, STEPS, 2, Progress(10))

    assert used == [row["learning_rate"]] * 5 == [pytest.approx(0.05 * 0.5**0.9)] * 5


def test_the_coarsest_head_is_frozen_and_nothing_else():
    network = build_unet("plain", STEPS).double()
    freeze_coarsest_head(network)
    before = copy.deepcopy(network.state_dict())

    train_epoch(network, random_batch, sgd(network, STEPS), STEPS, 0, Progress())

    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    same = [
        name for name, value in network.state_dict().items() if torch.equal(value, before[name])
    ]
    assert frozen == same == ["heads.0.weight"]


def test_a_single_head_is_trained():
    recipe = replace(TINY, patch=(8, 8, 8))
    network = build_unet("plain", recipe)
    assert len(network.heads) == 1
    freeze_coarsest_head(network)
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_convolutions_have_the_precision_that_was_asked_for_and_the_loss_float32(precision):
    network = build_unet("plain", STEPS).train()
    seen = set()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(lambda module, given, result: seen.add(result.dtype))
    image, target = random_batch(0)

    loss = training_step(
        network, image.float(), target, sgd(network, STEPS), STEPS, precision=precision
    )

    assert (
        seen == {precision}
        and loss.dtype == torch.float32
        and loss.ndim == 0
        and not loss.requires_grad
    )


def test_the_loss_may_be_a_compiled_one():
    """Here one that is a tenth of it, told to the loop as to the step."""
    network = build_unet("plain", STEPS).double()
    twin = copy.deepcopy(network)

    def tenth(logits, target):
        return 0.1 * segmentation_loss(logits, target)

    row = train_epoch(
        network, random_batch, sgd(network, STEPS), STEPS, 0, Progress(), loss_of=tenth
    )

    slower = replace(STEPS, learning_rate=0.005, weight_decay=0.1, max_gradient_norm=9.0)
    usual = train_epoch(twin, random_batch, sgd(twin, slower), slower, 0, Progress())
    assert row["loss"] == pytest.approx(0.1 * usual["loss"])


def test_an_epoch_in_two_parts_is_the_epoch_in_one():
    torch.manual_seed(6)
    whole = build_unet("plain", STEPS).double()
    parts = copy.deepcopy(whole)
    row = train_epoch(whole, random_batch, sgd(whole, STEPS), STEPS, 1, Progress(5))

    optimizer, progress = sgd(parts, STEPS), Progress(5)
    answers = iter([False, True])
    first = train_epoch(
        parts, random_batch, optimizer, STEPS, 1, progress, pause=lambda: next(answers)
    )
    assert progress.iteration == 7 and first["loss"] == progress.loss_sum / 2
    progress = Progress(**asdict(progress))  # as a checkpoint keeps it
    assert progress.seconds_computing > 0
    progress.seconds_computing, progress.seconds_waiting = 1000, 500  # on a slow machine
    second = train_epoch(parts, random_batch, optimizer, STEPS, 1, progress)

    assert second["loss"] == row["loss"] and progress.iteration == 10
    assert (
        second["seconds_computing"] > 1000 and second["seconds_waiting"] > 500
    )  # of the whole epoch
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name

    again = train_epoch(parts, random_batch, optimizer, STEPS, 1, progress)  # nothing is left of it
    assert again["loss"] == row["loss"]
    assert torch.equal(parts.heads[1].weight, whole.heads[1].weight)


def test_a_loss_that_is_not_finite_ends_the_training():
    network = build_unet("plain", STEPS)
    advice = {
        torch.float32: "a recipe with a lower learning_rate",
        torch.bfloat16: "--precision fp32",
    }

    def damaged(iteration):
        image, target = random_batch(iteration)
        return image.float() * torch.nan, target

    for precision, helps in advice.items():
        with pytest.raises(ValueError, match=f"epoch 3: the loss is nan, .*{helps}"):
            train_epoch(
                network, damaged, sgd(network, STEPS), STEPS, 2, Progress(10), precision=precision
            )
