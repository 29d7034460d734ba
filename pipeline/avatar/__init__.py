"""The avatar: a photo and a video in, a moving head out, from any trained or imported Psi.

animate.animate          films of every photo by every driver, through the engine
saved.save, saved.load   all that depends on the photo alone, in one file
orbit.orbit              the head from other sides, without a driver
mesh.mesh_of             the head as a coloured mesh
view.view                an interactive page
skull.skull_of           the back of a mesh, which training has not seen
studio.Studio            the networks and the front end, for all of these

front_end.FrontEnd reads a photo and driver.read_driver a video as the stages ingest and fit_flame do;
animator.Animator is Psi on the fast path.

May import the levels below, ingest, fit_flame and evaluate.
"""
