"""The MLP that turns a tri-plane feature into colour and density (paper section 3.1, facts 2.3).

One hidden layer of softplus units; colours are a sigmoid, stretched by a thousandth on both sides so that
black and white can be reached.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.stylegan import FullyConnected

CHUNK = 8192  # points; what is in between stays in a core's cache
LARGEST = 80.0  # exp of it is finite in float32
STRETCH, SHIFT = 1.002, 0.001  # colour = sigmoid * STRETCH - SHIFT


class ColourDecoder(nn.Module):
    """Plane features (..., C) to colours (..., F), about [0, 1], first RGB, and raw densities (...)."""

    def __init__(
        self,
        plane_channels: int,
        hidden: int,
        features: int,
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(FullyConnected(plane_channels, hidden))
        self.out_sigma = FullyConnected(hidden, 1)
        self.out_rgb = FullyConnected(hidden, features)
        nn.init.zeros_(self.out_sigma.weight)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """On the CPU a fused version of `reference`: the same up to rounding, with no second derivative."""
        if feature.device.type != "cpu":
            return self.reference(feature)
        weight_HC, bias_H = self.net[0].scaled()
        colour_weight, colour_bias = self.out_rgb.scaled()
        sigma_weight, sigma_bias = self.out_sigma.scaled()
        weight_OH = torch.cat((colour_weight, sigma_weight))
        bias_O = torch.cat((colour_bias, sigma_bias))
        feature_MC = feature.flatten(0, -2)
        layers = (weight_HC, bias_H, weight_OH, bias_O)
        colour_MF, sigma_M = _Decode.apply(feature_MC, *layers)
        shape = feature.shape[:-1]
        colour = colour_MF.view(*shape, -1)
        return colour, sigma_M.view(shape)

    def reference(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The readable version of `forward`."""
        hidden = F.softplus(self.net(feature))
        share = torch.sigmoid(self.out_rgb(hidden))
        colour = share * STRETCH - SHIFT
        sigma = self.out_sigma(hidden)
        return colour, sigma[..., 0]


class _Decode(torch.autograd.Function):
    """The MLP chunk by chunk, so that each step finds its input in a core's cache.

    Only the hidden layer and the colours are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx,
        feature_MC: Tensor,
        weight_HC: Tensor,
        bias_H: Tensor,
        weight_OH: Tensor,
        bias_O: Tensor,
    ) -> tuple[Tensor, Tensor]:
        count = feature_MC.shape[0]
        colours = weight_OH.shape[0] - 1
        hidden_MH = feature_MC.new_empty(count, weight_HC.shape[0])
        colour_MF = feature_MC.new_empty(count, colours)
        sigma_M = feature_MC.new_empty(count)
        chunks = _chunks(feature_MC, hidden_MH, colour_MF, sigma_M)
        for feature, hidden, colour, sigma in chunks:
            torch.addmm(bias_H, feature, weight_HC.T, out=hidden)
            if hidden.amax() > LARGEST:
                hidden.copy_(F.softplus(hidden))
            else:
                # softplus(x) = log(1 + exp(x)): within 1e-7 of the library's, which takes log1p, at a third
                # of its time.
                hidden.exp_().add_(1.0).log_()
            out = F.linear(hidden, weight_OH, bias_O)
            torch.sigmoid(out[:, :colours], out=colour)
            colour.mul_(STRETCH).sub_(SHIFT)
            sigma.copy_(out[:, colours])
        ctx.save_for_backward(feature_MC, hidden_MH, colour_MF, weight_HC, weight_OH)
        return colour_MF, sigma_M

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_colour_MF: Tensor, grad_sigma_M: Tensor) -> tuple[Tensor, ...]:
        feature_MC, hidden_MH, colour_MF, weight_HC, weight_OH = ctx.saved_tensors
        grad_feature_MC = torch.empty_like(feature_MC)
        grad_weight_HC = torch.zeros_like(weight_HC)
        grad_bias_H = weight_HC.new_zeros(weight_HC.shape[0])
        grad_weight_OH = torch.zeros_like(weight_OH)
        grad_bias_O = weight_OH.new_zeros(weight_OH.shape[0])
        given = (feature_MC, hidden_MH, colour_MF, grad_colour_MF, grad_sigma_M)
        chunks = _chunks(*given, grad_feature_MC)
        for feature, hidden, colour, grad_colour, grad_sigma, grad_feature in chunks:
            # With s = sigmoid(x) the derivative of the colour is STRETCH s (1 - s).
            share = (colour + SHIFT).div_(STRETCH)
            slope = (1.0 - share).mul_(share)
            grad_rgb = slope.mul_(grad_colour)
            grad_rgb.mul_(STRETCH)
            grad_out = torch.cat([grad_rgb, grad_sigma[:, None]], 1)
            grad_weight_OH.addmm_(grad_out.T, hidden)
            grad_bias_O += grad_out.sum(0)
            # The derivative of softplus is 1 / (1 + exp(-x)) = 1 - exp(-softplus(x)).
            slope = hidden.neg().exp_()
            slope.neg_().add_(1.0)
            grad_hidden = (grad_out @ weight_OH).mul_(slope)
            grad_weight_HC.addmm_(grad_hidden.T, feature)
            grad_bias_H += grad_hidden.sum(0)
            torch.mm(grad_hidden, weight_HC, out=grad_feature)
        return grad_feature_MC, grad_weight_HC, grad_bias_H, grad_weight_OH, grad_bias_O


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    parts = [tensor.split(CHUNK) for tensor in tensors]
    return zip(*parts, strict=True)
