"""Activation checkpointing: what a part of a network computed is not kept for the backward pass but computed there once more.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from model.background import Background
from model.colour_decoder import ColourDecoder
from model.encoders import DetailEncoder, GlobalEncoder
from model.stylegan import SynthesisBlock
from model.transformer import MotionBlock
from model.triplane_decoder import TriplaneDecoder

# Together nearly all that Psi keeps: the encoders, the transformer blocks, the decoders of planes and points, each doubling of the image.
PARTS = (GlobalEncoder, DetailEncoder, MotionBlock, TriplaneDecoder, Background, ColourDecoder, SynthesisBlock)


def recompute(network: nn.Module) -> None:
    """From now on `network` keeps no more than inputs and results of its PARTS. Its gradients stay the same: a part draws nothing at random."""
    for part in network.modules():
        if isinstance(part, PARTS):
            part.forward = partial(checkpoint, part.forward, use_reentrant=False, preserve_rng_state=False)
