"""params.yaml: what it may say, the presets, and messages for people who made a mistake in it.

params.load_params       the parameters of a file, checked
scales.scale_params      those of a preset; scale_text gives its file

May import core and model.sizes.
"""
