"""Stage fit_flame: labels of faces from their landmarks.

table.fit_table          the stage
worker.fit_clips         clips as work units
solver.fit               the least-squares problem
landmark_model.LandmarkModel  the head model as it moves landmarks

May import the levels below.
"""
