"""Cameras, labels and head models: where a point of a head is, and where it is seen.

camera.pack, project     the conventions of cameras; sample_look_at draws one
camera_path.orbit        along which films show a head; front, yaw_sweep, turntable
label.Label              the 437 numbers of a label; landmarks puts them into an image
rotations                between matrices and axis-angle vectors
neck.TurningNeck         how much of a head's turn is the camera's, and the field that undoes the rest
landmarks.landmarks_70   from the face mesh to our 70 landmarks
triangulation.triangulate  points in space from where several cameras see them
expression.ExpressionOffsets  how far expressions move landmarks
head_model.load          FLAME or the stand-in
standin.standin          the stand-in head model, from the modules standin_*

May import core and model.head.
"""
