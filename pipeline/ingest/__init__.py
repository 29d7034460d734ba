"""Stage ingest: portraits and clips to tables and shards of aligned faces.

worker.ingest            the stage
files.find_files         what lies in a folder, and why what is not read is passed over
video.Video              the frames of a video, in order and as a player shows them
sequence.open_clip       a video, or a folder of numbered pictures, as a clip
picture.read_picture     a picture as a viewer shows it
shots.find_shots         the parts of a clip that show one thing
splits.split_clips       which clips are trained on
detector.FaceFinder      the face in a picture
crop.fit_crop            the square around a face
gather.portrait_table    what the units found, for tables and metrics

May import the levels below.
"""
