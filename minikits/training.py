"""The loop that trains a network: one step, and an epoch of them. [paper 2.3]

train.py, the tests and the comparison with nnU-Net v1 (benchmarks/parity.py) drive the same."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import torch

from minikits.losses import segmentation_loss
from minikits.recipe import Recipe
from minikits.sampling import fetch_ahead


@dataclass
class Progress:
    """How many batches of the whole training are done, and sums for the log over the batches of
    the epoch that it is in."""

    iteration: int = 0
    loss_sum: float = 0.0  # of the epoch's batches so far
    seconds_computing: float = 0.0  # of the epoch so far
    seconds_waiting: float = 0.0  # for its batches to be drawn


def freeze_coarsest_head(network: torch.nn.Module) -> None:
    """Trains all but the coarsest of several heads, the network's first: it has no weight in the
    loss, and processes that share a batch would wait for its gradient. A single head is trained."""
    # pyrefly: ignore[bad-argument-type]  # torch does not say that heads is a list
    if len(network.heads) > 1:
        network.heads[0].requires_grad_(False)


def sgd(network: torch.nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Stochastic gradient descent [paper 2.3] with Nesterov's momentum and weight decay on all that
    is trained, norms and biases too [nnU-Net v1 nnUNetTrainerV2.py:164]."""
    parameters = list(network.parameters())
    on_gpu = parameters[0].device.type == "cuda"
    return torch.optim.SGD(
        parameters,
        recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
        fused=on_gpu,
    )


def training_step(
    model: torch.nn.Module,
    image: torch.Tensor,
    target: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    *,
    precision: torch.dtype = torch.float32,
    loss_of: Callable = segmentation_loss,
) -> torch.Tensor:
    """Changes the weights once, and gives the batch's loss, a scalar.

    image (B, 1, Z, Y, X) floats, target (B, Z, Y, X) ints; the model is in training mode and on
    their device. precision: the dtype of its convolutions; the loss is taken in float32. loss_of:
    of logits and target, compiled or not. The gradient's global norm is clipped
    [nnU-Net v1 nnUNetTrainerV2.py:254]. Nothing here waits for a GPU."""
    with torch.autocast(image.device.type, precision, enabled=precision != torch.float32):
        logits = model(image)
    loss = loss_of(logits, target)

    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
    optimizer.step()
    return loss.detach()


def train_epoch(
    model: torch.nn.Module,
    draw: Callable,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    epoch: int,
    progress: Progress,
    *,
    precision: torch.dtype = torch.float32,
    loss_of: Callable = segmentation_loss,
    pause: Callable[[], bool] = lambda: False,
    average: Callable[[float], float] = float,
) -> dict:
    """Trains what is left of an epoch, counted from 0, or until pause() is true, asked after every
    batch; `progress` counts on.

    draw(i): (image, target) of batch i of the whole training, on the model's device; the next one
    is drawn meanwhile. average: the mean of a number over the processes that share the run.
    Returns the epoch's row of the log: its number from 1, the mean loss of its batches so far, the
    optimizer's learning rate, seconds. ValueError where the loss is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(epoch)
    model.train()

    first = epoch * recipe.batches_per_epoch
    left = range(progress.iteration, first + recipe.batches_per_epoch)
    device = next(model.parameters()).device
    loss_sum = progress.loss_sum
    waited = 0.0
    began = asked = monotonic()

    for image, target in fetch_ahead(draw, left, device):
        waited += monotonic() - asked
        loss = training_step(
            model, image, target, optimizer, recipe, precision=precision, loss_of=loss_of
        )
        loss_sum = loss_sum + loss  # stays on the device: no waiting for it before the epoch's end
        progress.iteration += 1
        if pause():
            break
        asked = monotonic()

    progress.loss_sum = average(float(loss_sum))
    progress.seconds_waiting += waited
    progress.seconds_computing += monotonic() - began - waited

    mean = progress.loss_sum / (progress.iteration - first)
    check_finite_loss(mean, epoch, precision)
    return {
        "epoch": epoch + 1,
        "loss": mean,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "seconds_computing": progress.seconds_computing,
        "seconds_waiting": progress.seconds_waiting,
    }


def check_finite_loss(loss: float, epoch: int, precision: torch.dtype) -> None:
    """ValueError, with what may help, for a loss that is no finite number."""
    if math.isfinite(loss):
        return
    advice = "--resume with --precision fp32"
    if precision == torch.float32:
        advice = "a recipe with a lower learning_rate may have one"
    raise ValueError(f"epoch {epoch + 1}: the loss is {loss}, wanted a finite one; {advice}")
