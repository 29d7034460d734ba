"""Volume rendering: planes, rays, colours, super-resolution.

May import layers and sizes.
"""
