"""People who do not exist: what `ingest.source: generated` makes.

generator.generate       all portraits and clips, and the truth about them
person.person            a person from a latent
scene.figure, pose       the person as a mesh
animation.clip, photo    what the person does
raster.render            a picture of it
shading, paint, skin, brushes  its colours

May import the levels below.
"""
