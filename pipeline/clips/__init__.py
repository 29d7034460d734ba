"""The clips of people whom no network is trained on.

held_out.CachedClips     their frames in the multi-view cache
held_out.IngestedClips   their frames before there is a cache
held_out.Frame           a frame as the synthesizers see it
times.clip_times         when the frames of a clip were taken

May import the levels below.
"""
