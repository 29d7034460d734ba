"""Reading foreign files of weights as data: nothing of them is executed.

May import nothing of ours.
"""
