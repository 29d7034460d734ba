"""Stage fit_flame: labels of faces from their landmarks.

table.fit_table          the stage
worker.fit_people        people as work units
solver.fit               many people at once, each apart from the others
problem.Problem          what is minimised, and its Gauss-Newton steps; normal_equations solves them
landmark_model.LandmarkModel  the head model as it moves landmarks

May import the levels below.
"""
