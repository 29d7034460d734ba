"""What all the rest stands on.

errors.UserError         what a person can mend, in words
files.write_bytes        writing a file so that half of one is never seen; write_json
files.sha256, key_of     the checksum of a file; the key of a sample from a path
progress.progress        a progress bar; in a log a line once a minute
device.choose_device     CPU or GPU; to_device brings data there
seeds.rng, torch_rng     generators that depend on names and numbers alone
prefetch.prefetch        the next item is loaded in a thread while the caller works; write_behind writes so
paths.DATA               where the graph keeps what its stages make
readable.readable_bytes  bytes, durations and counts for people
costs.Costs              seconds and memory of a stage
pictures.encode_jpeg     images for people; caption, beside and below make contact sheets
films.encode_mp4         films at any frame rate, in equal bytes
splits.split_folder      which files of a folder are for training, validation and test
batches.collate, take    dataclasses of arrays to batches, and rows of them
bad_frames.find_bad_frames  frames that a person has marked as bad
limits.cores, free_memory  what a container leaves to this process
curves.write_curves      the history of a training for DVC's plots
pages.fill_in            HTML from a template, with nothing loaded from elsewhere
threads                  one thread for NumPy, set before it is loaded

May import nothing of ours.
"""
