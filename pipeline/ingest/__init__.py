"""Stage ingest: portraits and clips to tables and shards of aligned faces.

worker.ingest            the stage
files.find_files         what lies in a folder, and why what is not read is passed over
video.Video              the frames of a video, in order and as a player shows them
picture.read_picture     a picture as a viewer shows it
detector.FaceFinder      the face in a picture
crop.fit_crop            the square around a face

May import the levels below.
"""
