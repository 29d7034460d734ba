"""Stage pretrain: the frozen networks that the paper takes from elsewhere.

perception.pretrain_perception  the judges; unseen measures them, onnx_export writes one of them as ONNX
motion.pretrain_motion   the motion encoder; motion_teacher has what teaches it
genhead.pretrain_genhead GenHead
published.PUBLISHED      the published ones instead
faces, motion_faces, portraits  what each of the three is trained on; other_sides turns faces

May import the levels below.
"""
