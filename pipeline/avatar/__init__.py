"""The avatar: a photo and a video in, a moving head out, from any trained or imported Psi.

animate.animate          films of every photo by every video, through the engine
saved.save, saved.load   all that depends on the photo alone, in one file
front_end.FrontEnd       a photo, as the stages ingest and fit_flame read it
driver.read_driver       a video, frame by frame, as those stages read it
animator.Animator        Psi on the fast path
film.encode_film         pictures at the times of the driver, with its sound

May import the levels below, ingest and fit_flame.
"""
