"""The networks.

genhead    GenHead, whole: it needs head, volume and layers
fast       Psi without gradients, fast
checkpointing  activations that are computed again instead of kept
instruments  what papers measure with: published networks and their crops
psi, judges, adversary   whole networks
volume     volume rendering
head, layers             what they are made of
foreign, weights, sizes  files of weights, and how large the networks are

A package imports from those below it in this list alone; import-linter holds that (pyproject.toml).
"""
