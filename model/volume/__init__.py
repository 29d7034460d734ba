"""Volume rendering: planes, rays, colours, super-resolution.

May import head, layers and sizes.
"""
