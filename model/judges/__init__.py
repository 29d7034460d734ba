"""Networks that judge images: identity, perceptual distance, expression and pose.

May import layers and sizes.
"""
