"""Fixtures of the published networks: whether ours compute the same.

check.check              all fixtures of a folder
cases.CASES              a case for each network
numbers.NumberRule       numbers from a rule instead of weights

May import config, core, geometry and model.
"""
