"""Sizes of networks that are small enough for every test."""

from pipeline.config.scales import scale_params

SMOKE_SIZES = scale_params("smoke").networks
