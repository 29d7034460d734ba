"""params.yaml: what it may say, the presets, and messages for people who made a mistake in it.

params.load_params       the parameters of a file, checked
messages.refusal         what is wrong in a file, in one message
disk.frame_bytes         what a sample of each cache takes on disk
scales.scale_params      those of a preset; scale_text gives its file

May import core and model.sizes.
"""
