"""The head model as a function, its files, its rasteriser and the deformation that follows it.

May import weights and foreign.
"""
