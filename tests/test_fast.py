"""The fast form of a network (minikits/fast.py) beside the readable one: the same numbers."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import TINY
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from minikits import fast
from minikits.fast import FastConvolution, FastNorm, FixedBatch, PatchNorm, faster, padded
from minikits.losses import segmentation_loss
from minikits.paper import ARCHITECTURES
from minikits.prediction import predict_probabilities
from minikits.training import freeze_coarsest_head, sgd, training_step
from minikits.unet import build_unet

CPU, GPU = torch.device("cpu"), torch.device("cuda")

# Stages of 5, 10, 11 and of 3, 6, 11 feature maps, none of them a multiple of 4; three heads,
# of which the coarsest is frozen in training.
UNEVEN = replace(
    TINY,
    patch=(8, 16, 16),
    stage_strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 1, 2)),
    residual_blocks=(1, 2, 2, 1),
    plain_features=5,
    residual_features=3,
    max_features=11,
    learning_rate=0.05,
    momentum=0.9,
)


each_norm = pytest.mark.parametrize("norm", [FastNorm, PatchNorm])


def trained_network(arch, recipe=UNEVEN):
    """Float64, every weight at random: gains and offsets are not 1 and 0, so that each counts."""
    torch.manual_seed(3)
    network = build_unet(arch, recipe).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(mean=0 if name.endswith("bias") else 1)
    freeze_coarsest_head(network)
    return network


def batch(number=0, dtype=torch.float64):
    """(2, 1, Z, Y, X) and (2, Z, Y, X), another for each number."""
    generator = torch.Generator().manual_seed(number)
    image = torch.randn(2, 1, *UNEVEN.patch, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (2, *UNEVEN.patch), generator=generator)
    return image.to(dtype), target


def logits_and_gradients(model, parameters, dtype):
    """What the model gives for a batch, and the gradient of the loss in each of the parameters."""
    image, target = batch(dtype=dtype)
    for parameter in parameters:
        parameter.grad = None
    logits = model(image)
    segmentation_loss(logits, target).backward()
    gradients = [p.grad for p in parameters if p.grad is not None]
    return [head.detach() for head in logits], gradients


def relative_difference(found, wanted):
    """The largest difference of any value, over the largest value that was wanted."""
    assert [each.shape for each in found] == [each.shape for each in wanted]
    difference = max((a - b).abs().max().item() for a, b in zip(found, wanted))
    return difference / max(each.abs().max().item() for each in wanted)


@each_norm
@pytest.mark.parametrize("multiple", [1, 4, 7])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_and_gradients_are_the_readable_networks(arch, multiple, norm):
    network = trained_network(arch)
    parameters = list(network.parameters())
    wanted, wanted_gradients = logits_and_gradients(network, parameters, torch.float64)

    model = faster(network, multiple=multiple, norm=norm)
    found, gradients = logits_and_gradients(model, parameters, torch.float64)

    assert len(found) == 3 and len(gradients) > 20
    assert relative_difference(found, wanted) < 1e-12
    assert relative_difference(gradients, wanted_gradients) < 1e-12
    for one, other in zip(gradients, wanted_gradients):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)


@each_norm
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_in_float32_they_agree_to_a_hundred_thousandth(arch, norm):
    network = trained_network(arch).float()
    parameters = list(network.parameters())
    wanted, wanted_gradients = logits_and_gradients(network, parameters, torch.float32)

    model = faster(network, multiple=4, norm=norm)
    found, gradients = logits_and_gradients(model, parameters, torch.float32)

    assert relative_difference(found, wanted) < 1e-5
    assert relative_difference(gradients, wanted_gradients) < 1e-5


@each_norm
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_twenty_steps_train_the_same_weights(arch, norm):
    network = trained_network(arch)
    twin = copy.deepcopy(network)
    model = faster(network, multiple=4, norm=norm)
    optimizer, other_optimizer = sgd(network, UNEVEN), sgd(twin, UNEVEN)

    for number in range(20):
        image, target = batch(number)
        loss = training_step(model, image, target, optimizer, UNEVEN)
        wanted = training_step(twin, image, target, other_optimizer, UNEVEN)
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-7), number

    for (name, value), other in zip(network.named_parameters(), twin.parameters()):
        assert torch.allclose(value, other, rtol=1e-6, atol=1e-6), name
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert frozen and all(name.startswith("heads.0.") for name in frozen)


def test_float32_steps_stay_together_for_a_while():
    network = trained_network("residual").float()
    twin = copy.deepcopy(network)
    model = faster(network, multiple=4)
    optimizer, other_optimizer = sgd(network, UNEVEN), sgd(twin, UNEVEN)

    for number in range(20):
        image, target = batch(number, torch.float32)
        loss = training_step(model, image, target, optimizer, UNEVEN)
        wanted = training_step(twin, image, target, other_optimizer, UNEVEN)
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-3), number


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_padding_stays_zero_through_every_layer(arch):
    model = faster(trained_network(arch), multiple=4)
    seen = []

    def look(layer, _, output):
        kind = "norm"
        features = layer.weight.shape[0]
        if isinstance(layer, FastConvolution):
            kind = "convolution"
            features = layer.weight.shape[1 if layer.transposed else 0]
        assert not output[:, features:].any()
        assert output[:, :features].any()
        seen.append((kind, output.shape[1] - features))

    for layer in model.modules():
        if isinstance(layer, (FastConvolution, FastNorm)):
            layer.register_forward_hook(look)
    logits = model(batch()[0])

    kinds = [kind for kind, _ in seen]
    assert kinds.count("convolution") > 10 and kinds.count("norm") > 10
    assert sum(more == 0 for _, more in seen) == len(logits) == 3  # the heads alone are not padded
    assert all(0 <= more < 4 for _, more in seen)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_networks_have_one_set_of_parameters(arch):
    network = trained_network(arch)
    model = faster(network, multiple=4)

    names = [name for name, _ in network.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == list(network.state_dict())
    assert all(a is b for a, b in zip(model.parameters(), network.parameters()))

    network.float()  # as a move to another device does
    assert model(batch(dtype=torch.float32)[0])[0].dtype == torch.float32
    model.double()
    assert network(batch()[0])[0].dtype == torch.float64


def test_the_readable_network_stays_as_it_was():
    network = trained_network("plain")
    layers = [type(layer) for layer in network.modules()]
    wanted = network(batch()[0])

    faster(network, multiple=4)

    assert [type(layer) for layer in network.modules()] == layers
    assert all(torch.equal(a, b) for a, b in zip(network(batch()[0]), wanted))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_in_eval_mode_the_finest_logits_alone(arch):
    network = trained_network(arch)
    model = faster(network, multiple=4).eval()
    assert network.training

    with torch.inference_mode():
        finest = model(batch()[0])
        wanted = network(batch()[0])[0]

    assert finest.shape == (2, 3, *UNEVEN.patch)
    assert torch.allclose(finest, wanted, rtol=1e-9, atol=1e-9)


def test_sides_that_do_not_come_back_the_same_are_refused_too():
    model = faster(trained_network("plain"), multiple=4)
    with pytest.raises(ValueError, match="multiples"):
        model(torch.zeros(1, 1, 8, 16, 18, dtype=torch.float64))


@each_norm
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_channels_lie_side_by_side_throughout(arch, norm):
    """The first convolution too, though an image of one channel lies the same way in both. In
    float32: a CPU's convolutions of float64 know no other layout than the usual."""
    model = faster(trained_network(arch).float(), multiple=4, norm=norm)
    layouts = []

    def look(layer, inputs, output):
        layouts.append(output.is_contiguous(memory_format=torch.channels_last_3d))
        layouts.append(not output.is_contiguous())

    for name, layer in model.named_modules():
        if isinstance(layer, (FastConvolution, FastNorm)) and not name.startswith("heads"):
            layer.register_forward_hook(look)
    model(batch(dtype=torch.float32)[0])

    assert len(layouts) > 40 and all(layouts)


def test_zeros_stand_behind_each_part():
    values = torch.arange(1.0, 7.0)
    assert padded(values, 0, 4).tolist() == [1, 2, 3, 4, 5, 6, 0, 0]
    assert padded(values, 0, 4, parts=2).tolist() == [1, 2, 3, 0, 4, 5, 6, 0]
    assert padded(values, 0, 3, parts=2) is values
    assert padded(torch.ones(2, 3), 1, 2).tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]


def norm_of(x, norm=FastNorm):
    """A norm with a gain and an offset for each channel, and nn.InstanceNorm3d with the same."""
    layer = nn.InstanceNorm3d(x.shape[1], affine=True)
    torch.manual_seed(0)
    with torch.no_grad():
        layer.weight.normal_(mean=1)
        layer.bias.normal_()
    return norm(layer, 1), layer


@pytest.mark.parametrize("mean, error", [(0, 1e-6), (3, 1e-5), (100, 2e-3)])
def test_what_the_difference_of_squares_loses(mean, error, generator):
    """Values of standard deviation 1 around a mean, in float32; beside the slow form in float64."""
    x = mean + torch.randn(2, 4, 16, 32, 32, generator=generator)
    norm = FastNorm(nn.InstanceNorm3d(4, affine=True), 1)

    found = norm(x).detach().double()

    exact = x.double()
    centred = exact - exact.mean((2, 3, 4), keepdim=True)
    wanted = centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()
    assert (found - wanted).abs().max() < error * wanted.abs().max()


@each_norm
@pytest.mark.parametrize("autocast", [True, False])
def test_statistics_are_float32_where_values_are_bfloat16(autocast, norm, generator):
    """Around 100 the squares are about 10,000, which bfloat16 knows to 64: so to no variance."""
    x = (100 + torch.randn(1, 3, 32, 32, 32, generator=generator)).bfloat16()
    fast_norm, slow = norm_of(x, norm)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = fast_norm(x)

    wanted = slow(x.float())
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_patches_are_normalised_each_by_itself(generator):
    """Means 0 and 50 in one batch, and each patch comes out as if it were alone."""
    x = torch.randn(2, 3, 8, 8, 8, generator=generator)
    x[1] += 50
    norm, slow = norm_of(x, PatchNorm)

    found = norm(x)

    assert torch.allclose(found, slow(x), atol=1e-4)
    assert torch.allclose(found[1:], norm(x[1:]), atol=1e-6)


def test_a_channel_of_one_value_becomes_its_offset():
    """Rounding makes the mean of squares less than the square of the mean in some of these."""
    values = torch.linspace(999, 1001, 50)
    x = values[:, None, None, None].expand(1, 50, 4, 5, 6)
    norm, _ = norm_of(x)
    found = norm(x)
    offset, gain = (each[:, None, None, None] for each in (norm.bias, norm.weight))
    assert ((found - offset) / gain).abs().max() < 0.2


@each_norm
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bfloat16_convolutions_under_autocast(arch, norm):
    """As near to float32 as the readable network's own."""
    network = trained_network(arch).float()
    model = faster(network, multiple=4, norm=norm)
    image, _ = batch(dtype=torch.float32)

    exact = network(image)[0]
    with torch.autocast("cpu", torch.bfloat16):
        readable, fast_form = network(image)[0], model(image)[0]

    assert fast_form.dtype == torch.bfloat16
    theirs = (readable.float() - exact).square().mean()
    ours = (fast_form.float() - exact).square().mean()
    assert 0 < ours < 2 * theirs


def test_processes_that_share_a_batch_average_the_readable_parameters_gradients():
    """DistributedDataParallel around the fast form, here of one process."""
    network = trained_network("residual")
    twin = copy.deepcopy(network)
    optimizer, other_optimizer = sgd(network, UNEVEN), sgd(twin, UNEVEN)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(faster(network, multiple=4))
        for number in range(3):
            image, target = batch(number)
            training_step(model, image, target, optimizer, UNEVEN)
            training_step(twin, image, target, other_optimizer, UNEVEN)
    finally:
        distributed.destroy_process_group()

    for (name, value), other in zip(network.named_parameters(), twin.parameters()):
        assert torch.allclose(value, other, rtol=1e-8, atol=1e-8), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_compiler_gets_it_in_one_piece(arch):
    """Without a word of Python in between, for the way there and back, in both modes."""
    two_stages = replace(UNEVEN, stage_strides=UNEVEN.stage_strides[:2], residual_blocks=(1, 1))
    network = trained_network(arch, two_stages)
    parameters = list(network.parameters())
    wanted, wanted_gradients = logits_and_gradients(network, parameters, torch.float64)
    model = faster(network, multiple=4)

    model.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    found, gradients = logits_and_gradients(model, parameters, torch.float64)
    with torch.inference_mode():
        finest = model.eval()(batch()[0])

    assert relative_difference(found, wanted) < 1e-12
    assert relative_difference(gradients, wanted_gradients) < 1e-12
    assert torch.allclose(finest, wanted[0], rtol=1e-9, atol=1e-9)
    assert list(model.state_dict()) == list(network.state_dict())


@pytest.mark.parametrize(
    "compiling, device, pays, wanted",
    [
        ("off", GPU, True, False),
        ("on", GPU, False, True),
        ("on", CPU, True, True),
        ("auto", GPU, True, True),
        ("auto", GPU, False, False),
        ("auto", CPU, True, False),
    ],
)
def test_when_it_is_compiled(compiling, device, pays, wanted, monkeypatch):
    monkeypatch.setattr(fast, "what_compiling_lacks", lambda device: "")
    assert fast.compiles(compiling, device, pays=pays, say=print) is wanted


def test_without_a_compiler_it_is_said_and_goes_on(monkeypatch):
    def compile_nothing(function, **options):
        def run(*given):
            raise RuntimeError("\nCannot find a working triton installation.\nSee the docs.")

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    said = []
    network = trained_network("plain")

    model, loss_of = fast.for_training(network, compiling="on", steps=1, say=said.append)

    assert said == [
        "torch.compile does not work here, so it goes on without: "
        "Cannot find a working triton installation."
    ]
    image, target = batch()
    assert loss_of is segmentation_loss and loss_of(model(image), target).isfinite()


def test_a_short_training_is_not_compiled_and_a_long_one_is(monkeypatch):
    compiled = []
    monkeypatch.setattr(fast, "suited_multiple", lambda device: 4)
    monkeypatch.setattr(
        fast, "compiles", lambda compiling, device, *, pays, say: compiled.append(pays)
    )
    network = trained_network("plain")

    fast.for_training(network, compiling="auto", steps=fast.STEPS_THAT_PAY - 1, say=print)
    fast.for_training(network, compiling="auto", steps=fast.STEPS_THAT_PAY, say=print)

    assert compiled == [False, True]


def test_on_a_cpu_channels_last_without_the_compiler():
    network = trained_network("residual")

    model, loss_of = fast.for_training(network, compiling="auto", steps=10**6, say=print)

    layers = [type(layer) for layer in model.modules()]
    assert PatchNorm in layers and FastConvolution in layers and FastNorm not in layers
    assert loss_of is segmentation_loss
    assert all(a is b for a, b in zip(model.parameters(), network.parameters()))


@pytest.mark.parametrize(
    ("maps", "precision", "last"),
    [
        (8, torch.bfloat16, False),
        (8, torch.float32, True),
        (fast.FEWEST_MAPS_THAT_PAY, torch.bfloat16, True),
    ],
)
def test_few_maps_in_bfloat16_stay_as_they_are_on_a_cpu(maps, precision, last):
    network = build_unet("plain", replace(UNEVEN, plain_features=maps, max_features=64))

    alone = fast.on_its_own(network, CPU, precision)
    trained, _ = fast.for_training(
        network, compiling="off", steps=1, precision=precision, say=print
    )
    (predicts,) = fast.for_prediction(
        [network],
        compiling="off",
        windows=1,
        at_once=2,
        device=CPU,
        precision=precision,
        say=print,
    )

    for model in (alone, trained, predicts):
        assert (model is not network) is last


def test_on_a_gpu_the_network_itself_without_the_compiler():
    with torch.device("meta"):  # as a GPU it is no CPU
        network = build_unet("plain", UNEVEN)

    model, loss_of = fast.for_training(network, compiling="off", steps=10**6, say=print)

    assert model is network and loss_of is segmentation_loss


def test_network_and_loss_are_compiled_for_training(monkeypatch):
    """Neither kernels nor weights depend on what sizes may come: they are fixed."""
    asked = []

    def note(function, **options):
        asked.append((function, options))
        return function

    monkeypatch.setattr(fast, "compiles", lambda *given, **named: True)
    monkeypatch.setattr(torch, "compile", note)
    network = trained_network("plain")

    model, loss_of = fast.for_training(network, compiling="on", steps=1, say=print)

    assert loss_of is segmentation_loss
    assert FastNorm in [type(layer) for layer in model.modules()]
    assert [function for function, _ in asked] == [model._call_impl, segmentation_loss]
    assert all(options == {"dynamic": False} for _, options in asked)


TWO_STAGES = replace(
    UNEVEN,
    stage_strides=UNEVEN.stage_strides[:2],
    residual_blocks=(1, 1),
)


@pytest.fixture
def graphs(monkeypatch):
    """Padded to multiples of 4; the graphs that the compiler is given are run as they are, and kept
    in this list."""
    kept, compile = [], torch.compile

    def as_it_is(graph, inputs):
        kept.append(graph)
        return graph.forward

    monkeypatch.setattr(fast, "suited_multiple", lambda device: 4)
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile(function, backend=as_it_is, **options)
    )
    torch.compiler.reset()
    yield kept
    torch.compiler.reset()


def networks_to_predict(archs):
    """Of one architecture or several, each with other weights; float32, eval mode."""
    networks = []
    for number, arch in enumerate(archs):
        torch.manual_seed(number)
        networks.append(build_unet(arch, TWO_STAGES).eval())
    return networks


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled_networks_predict_what_the_readable_ones_do(arch, graphs):
    """Two networks in turn, nine windows in fours: all by one graph, as it was compiled. What
    what_compiling_lacks tries is a graph too."""
    networks = networks_to_predict([arch, arch])
    image = torch.randn(8, 32, 32, generator=torch.Generator().manual_seed(4))
    wanted = predict_probabilities(networks, image, TWO_STAGES, mirroring=False)

    models = fast.for_prediction(
        networks, compiling="on", windows=1, at_once=4, device=CPU, say=print
    )
    found = predict_probabilities(models, image, TWO_STAGES, mirroring=False, at_once=4)

    assert len(graphs) == 1 + 1
    assert (found - wanted).abs().max() < 1e-5
    assert (found.argmax(0) == wanted.argmax(0)).float().mean() > 0.999


def test_five_networks_of_each_architecture_are_compiled_once_for_each(graphs):
    networks = networks_to_predict([arch for arch in ARCHITECTURES for _ in range(5)])

    models = fast.for_prediction(
        networks, compiling="on", windows=1, at_once=2, device=CPU, say=print
    )
    with torch.inference_mode():
        for model in models:
            model(torch.zeros(2, 1, *UNEVEN.patch))

    assert len(graphs) == 1 + 3


def test_networks_that_predict_are_themselves_where_compiling_does_not_pay(monkeypatch):
    asked = []

    def compiles(compiling, device, *, pays, say):
        asked.append((compiling, device, pays))
        return False

    monkeypatch.setattr(fast, "compiles", compiles)
    networks = networks_to_predict(["plain", "residual"])

    for windows in (fast.WINDOWS_THAT_PAY - 1, fast.WINDOWS_THAT_PAY):
        models = fast.for_prediction(
            networks, compiling="auto", windows=windows, at_once=4, device=GPU, say=print
        )
        assert all(model is network for model, network in zip(models, networks))

    assert asked == [("auto", GPU, False), ("auto", GPU, True)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_on_a_cpu_networks_predict_in_channels_last(arch):
    networks = networks_to_predict([arch])
    image = torch.randn(8, 16, 40, generator=torch.Generator().manual_seed(4))
    wanted = predict_probabilities(networks, image, TWO_STAGES, mirroring=False)

    models = fast.for_prediction(
        networks, compiling="auto", windows=1, at_once=2, device=CPU, say=print
    )
    found = predict_probabilities(models, image, TWO_STAGES, mirroring=False)

    (model,) = models
    layers = [type(layer) for layer in model.modules()]
    assert PatchNorm in layers and FastConvolution in layers and FastNorm not in layers
    assert not any(module.training for module in model.modules())
    assert (found - wanted).abs().max() < 1e-5


def test_a_network_that_predicts_is_compiled_in_eval_mode_for_fixed_sizes(monkeypatch):
    asked = []

    def note(function, **options):
        asked.append(options)
        return function

    monkeypatch.setattr(fast, "compiles", lambda *given, **named: True)
    monkeypatch.setattr(torch, "compile", note)

    (model,) = fast.for_prediction(
        networks_to_predict(["plain"]), compiling="on", windows=1, at_once=2, device=CPU, say=print
    )

    assert asked == [{"dynamic": False}]
    assert not any(module.training for module in model.model.modules())


def test_a_batch_that_is_short_is_filled_up():
    """Three of four: the first comes twice, and what the fourth gives is gone."""
    seen = []

    class Twice(nn.Module):
        def forward(self, x):
            seen.append(x.flatten().tolist())
            return 2 * x

    model = FixedBatch(Twice(), 4)
    x = torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1, 1)

    assert model(x[:3]).flatten().tolist() == [2, 4, 6]
    assert model(x).flatten().tolist() == [2, 4, 6, 8]
    assert seen == [[1, 2, 3, 1], [1, 2, 3, 4]]


def test_gpus_get_multiples_that_their_kernels_like():
    assert fast.suited_multiple(GPU) == 32 and fast.suited_multiple(CPU) == 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("form", ["readable", "fast"])
def test_a_step_asks_its_device_for_no_value(arch, form, monkeypatch):
    """On "meta", whose tensors have no values: whoever looks at one, to print it, to decide or to
    carry it to the CPU, as would wait for a GPU each time, gets an error."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())  # not there
    with torch.device("meta"):
        network = build_unet(arch, UNEVEN)
        image = torch.empty(2, 1, *UNEVEN.patch)
        target = torch.empty(2, *UNEVEN.patch, dtype=torch.uint8)
    with pytest.raises((RuntimeError, NotImplementedError)):
        image.sum().item()
    model = faster(network, multiple=32) if form == "fast" else network

    loss = training_step(model, image, target, sgd(network, UNEVEN), UNEVEN)
    with torch.inference_mode():
        finest = model.eval()(image).softmax(dim=1)

    assert loss.is_meta and loss.shape == ()
    assert finest.shape == (2, 3, *UNEVEN.patch)
