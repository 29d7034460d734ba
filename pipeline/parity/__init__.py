"""Fixtures of the published networks: whether ours compute the same.

check.check              all fixtures of a folder
cases.CASES              a case for each network; psi_cases has those of Psi
fixture.Fixture          what a case is given
numbers.NumberRule       numbers from a rule instead of weights

May import config, core, geometry and model.
"""
