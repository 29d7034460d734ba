"""The MLP that turns a tri-plane feature into colour and density: one hidden layer of softplus units (paper section 3.1, facts 2.3)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.stylegan import FullyConnected

CHUNK = 8192  # points; what is in between stays in a core's cache
LARGEST = 80.0  # exp of it is finite in float32


class ColourDecoder(nn.Module):
    """Plane features (..., C) to colours (..., F), about [0, 1], the first three RGB, and raw densities sigma (...)."""

    def __init__(self, plane_channels: int, hidden: int, features: int) -> None:
        super().__init__()
        self.net = nn.Sequential(FullyConnected(plane_channels, hidden))
        self.out_sigma = FullyConnected(hidden, 1)
        self.out_rgb = FullyConnected(hidden, features)
        nn.init.zeros_(self.out_sigma.weight)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """On the CPU the fused version of `reference`, with the same result up to rounding; it cannot be differentiated twice."""
        if feature.device.type != "cpu":
            return self.reference(feature)
        hidden, out = self.net[0].scaled(), [layer.scaled() for layer in (self.out_rgb, self.out_sigma)]
        weight, bias = (torch.cat(parts) for parts in zip(*out, strict=True))
        colour, sigma = _Decode.apply(feature.flatten(0, -2), *hidden, weight, bias)
        return colour.view(*feature.shape[:-1], -1), sigma.view(feature.shape[:-1])

    def reference(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The readable version of `forward`."""
        hidden = F.softplus(self.net(feature))
        return torch.sigmoid(self.out_rgb(hidden)) * 1.002 - 0.001, self.out_sigma(hidden)[..., 0]


class _Decode(torch.autograd.Function):
    """Chunk by chunk, so that each step finds its input in a core's cache; only the hidden layer and the colours are kept."""

    @staticmethod
    def forward(
        ctx, feature_MC: Tensor, weight_HC: Tensor, bias_H: Tensor, weight_OH: Tensor, bias_O: Tensor
    ) -> tuple[Tensor, Tensor]:
        count, colours = feature_MC.shape[0], weight_OH.shape[0] - 1
        hidden = feature_MC.new_empty(count, weight_HC.shape[0])
        colour, sigma = feature_MC.new_empty(count, colours), feature_MC.new_empty(count)
        for feature_m, hidden_m, colour_m, sigma_m in _chunks(feature_MC, hidden, colour, sigma):
            torch.addmm(bias_H, feature_m, weight_HC.T, out=hidden_m)
            if hidden_m.amax() > LARGEST:
                hidden_m.copy_(F.softplus(hidden_m))
            else:  # the same within 1e-7, at a third of the time of the library's log1p
                hidden_m.exp_().add_(1.0).log_()
            out = F.linear(hidden_m, weight_OH, bias_O)
            torch.sigmoid(out[:, :colours], out=colour_m).mul_(1.002).sub_(0.001)
            sigma_m.copy_(out[:, colours])
        ctx.save_for_backward(feature_MC, hidden, colour, weight_HC, weight_OH)
        return colour, sigma

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_colour_MF: Tensor, grad_sigma_M: Tensor) -> tuple[Tensor, ...]:
        feature_MC, hidden, colour, weight_HC, weight_OH = ctx.saved_tensors
        grad_feature = torch.empty_like(feature_MC)
        grad_weight_HC, grad_bias_H = torch.zeros_like(weight_HC), weight_HC.new_zeros(weight_HC.shape[0])
        grad_weight_OH, grad_bias_O = torch.zeros_like(weight_OH), weight_OH.new_zeros(weight_OH.shape[0])
        pieces = _chunks(feature_MC, hidden, colour, grad_colour_MF, grad_sigma_M, grad_feature)
        for feature_m, hidden_m, colour_m, grad_colour_m, grad_sigma_m, grad_feature_m in pieces:
            share = (colour_m + 0.001).div_(1.002)  # the sigmoid
            grad_out = torch.cat(
                [(1.0 - share).mul_(share).mul_(grad_colour_m).mul_(1.002), grad_sigma_m[:, None]], 1
            )
            grad_weight_OH.addmm_(grad_out.T, hidden_m)
            grad_bias_O += grad_out.sum(0)
            # The derivative of softplus is 1 / (1 + exp(-x)) = 1 - exp(-softplus(x)).
            grad_hidden = (grad_out @ weight_OH).mul_(hidden_m.neg().exp_().neg_().add_(1.0))
            grad_weight_HC.addmm_(grad_hidden.T, feature_m)
            grad_bias_H += grad_hidden.sum(0)
            torch.mm(grad_hidden, weight_HC, out=grad_feature_m)
        return grad_feature, grad_weight_HC, grad_bias_H, grad_weight_OH, grad_bias_O


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(t.split(CHUNK) for t in tensors), strict=True)
