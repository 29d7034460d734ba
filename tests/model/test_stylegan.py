"""StyleGAN building blocks against direct formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from model.adversary.discriminator import Discriminator
from model.layers.stylegan import (
    Conv,
    FullyConnected,
    MappingNetwork,
    SynthesisLayer,
    SynthesisNetwork,
    append_deviation,
    blur,
    modulated_conv,
    resample_filter,
    upsample,
)
from model.sizes import DiscriminatorSizes, PsiSizes, Sizes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def test_upsampling_is_zero_stuffing_and_filtering() -> None:
    x = torch.randn(2, 3, 5, 5)
    stuffed = torch.zeros(2, 3, 10, 10)
    stuffed[:, :, ::2, ::2] = x
    padded = F.pad(stuffed, (2, 1, 2, 1))
    # Three of four values are zero.
    expected = blur(padded, resample_filter(), 0, gain=4.0)
    assert_close(upsample(x), expected)


def test_equalised_layer_scales_its_weights() -> None:
    layer = FullyConnected(7, 3, bias_init=1.0, lr_multiplier=0.01)
    x = torch.randn(2, 7)
    weight = layer.weight * 0.01 / math.sqrt(7)
    expected = x @ weight.T + 1.0
    assert_close(layer(x), expected)


@pytest.mark.parametrize("kernel", [1, 3])
def test_downsampling_convolution_halves(kernel: int) -> None:
    layer = Conv(4, 6, kernel, activation=False, down=True)
    x = torch.randn(2, 4, 8, 8)
    pad = kernel // 2
    padded = F.pad(x, (pad, pad, pad, pad))
    filtered = blur(padded, resample_filter(), 1)
    weight = layer.weight * layer.weight_gain
    # Every second result of the convolution is kept.
    wide = F.conv2d(filtered, weight, layer.bias)
    found = layer(x)
    assert_close(found, wide[:, :, ::2, ::2])
    assert found.shape == (2, 6, 4, 4)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulated_convolution_is_one_set_of_weights_per_image(up: bool, demodulate: bool) -> None:
    x = torch.randn(3, 4, 6, 6)
    weight = torch.randn(5, 4, 3, 3)
    style = torch.randn(3, 4)
    results = []
    for image, scales in zip(x, style, strict=True):
        own = weight * scales[None, :, None, None]
        if demodulate:
            energy = own.square().sum((1, 2, 3), keepdim=True)
            own = own / (energy + 1e-8).sqrt()
        alone = image[None]
        if up:
            transposed = own.transpose(0, 1)
            wanted = F.conv_transpose2d(alone, transposed, stride=2)
        else:
            wanted = F.conv2d(alone, own, padding=1)
        found = modulated_conv(alone, weight, scales[None], demodulate, up)
        assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        results.append(wanted)
    together = modulated_conv(x, weight, style, demodulate, up)
    assert_close(together, torch.cat(results), atol=1e-4, rtol=1e-4)


def test_noise_is_fixed_and_starts_at_strength_zero() -> None:
    layer = SynthesisLayer(4, 4, 8, resolution=8, up=True)
    x = torch.randn(1, 4, 4, 4)
    w = torch.randn(1, 8)
    without = layer(x, w, noise=False)
    assert torch.equal(layer(x, w), without)
    layer.noise_strength.data.fill_(1.0)
    noisy = layer(x, w)
    assert torch.equal(layer(x, w), noisy)
    assert not torch.equal(noisy, without)


def test_generator_and_mapping() -> None:
    generator = SynthesisNetwork(16, 16, 6, channel_base=128, channel_max=16)
    mapping = MappingNetwork(8, 5, 16, generator.num_ws, num_layers=2)
    z = torch.randn(3, 8)
    condition = torch.randn(3, 5)
    ws = mapping(z, condition)
    assert ws.shape == (3, 6, 16)
    assert generator(ws).shape == (3, 6, 16, 16)
    # A latent code counts by its direction.
    longer = mapping(10 * z, condition)
    assert_close(longer, ws, atol=1e-4, rtol=1e-4)
    # The average is still zero.
    average = mapping(z, condition, truncation=0.0)
    assert_close(average, torch.zeros_like(ws))
    mapping(z, condition, update_average=True)
    batch_mean = ws[:, 0].detach().mean(0)
    assert_close(mapping.w_avg, 0.002 * batch_mean)


def test_generator_wants_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="powers of two"):
        SynthesisNetwork(16, 24, 3)
    with pytest.raises(ValueError, match="first block"):
        SynthesisNetwork(16, 16, 3, first=32)
    assert SynthesisNetwork(16, 32, 3, first=16).resolutions == [16, 32]


def test_deviation_of_groups() -> None:
    x = torch.randn(4, 3, 2, 2)
    with_deviation = append_deviation(x, 2)
    # Images 0 and 2 are a group.
    difference = (x[0] - x[2]).abs()
    expected = (difference / 2).mean()
    first, _, third, _ = with_deviation[:, 3]
    assert_close(first, expected.expand(2, 2), atol=1e-4, rtol=1e-4)
    assert_close(third, first)
    # Of an odd number none is left alone: three are one group, of five one group has three.
    three = append_deviation(x[:3], 2)[:, 3]
    root = (x[:3].var(0, unbiased=False) + 1e-8).sqrt().mean()
    assert_close(three, root.expand(3, 2, 2))
    five = append_deviation(torch.cat([x, x[:1] + 1]), 2)[:, 3, 0, 0]
    assert five[0] == five[2] == five[4] != five[1] == five[3]
    # One image alone does not deviate.
    alone = append_deviation(x[:1], 2)
    assert torch.all(alone[:, 3] < 1e-3)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_discriminator_at_a_small_size_and_its_gradient_penalty(batch: int) -> None:
    sizes = Sizes(
        image=32,
        rays=16,
        plane_resolution=16,
        superresolution_channels=(8,),
        psi=PsiSizes(patch_stride=1),
        discriminator=DiscriminatorSizes(channel_base=256, channel_max=16, mapping_layers=2),
    )
    network = Discriminator(sizes)
    image = torch.randn(batch, 3, 32, 32, requires_grad=True)
    logits = network(
        image,
        torch.randn(batch, 3, 16, 16),
        torch.rand(batch, 1, 16, 16),
        torch.randn(batch, 3, 32, 32),
        torch.randn(batch, 25),
    )
    assert logits.shape == (batch, 1)
    (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    penalty = gradient.square().sum()
    penalty.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(grad.isfinite().all() for grad in gradients if grad is not None)
    assert network.b32.conv0.weight.grad.any()
