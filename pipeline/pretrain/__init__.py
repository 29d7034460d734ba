"""Stage pretrain: the frozen networks that the paper takes from elsewhere.

perception.pretrain_perception  the judges
motion.pretrain_motion   the motion encoder
genhead.pretrain_genhead GenHead
published.PUBLISHED      the published ones instead

May import the levels below.
"""
