"""The speed of inference beside what the machine can do.

inference.bench          `psi4d bench`
floor.floor              the least time by measured rates

May import the levels below.
"""
