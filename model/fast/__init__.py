"""Psi without gradients, fast: the same pictures.

psi.FastPsi              made from a trained Psi

May import psi, volume, head and layers.
"""
