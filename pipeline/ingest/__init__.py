"""Stage ingest: portraits and clips to tables and shards of aligned faces.

worker.ingest            the stage
reader.read_frames       pictures and videos, whatever is wrong with them
detector.FaceFinder      the face in a picture
crop.fit_crop            the square around a face

May import the levels below.
"""
