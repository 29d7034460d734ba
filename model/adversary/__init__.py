"""The discriminator.

May import layers and sizes.
"""
