"""Data and orchestration.

A package imports from those on lower levels alone; import-linter holds that (pyproject.toml).

6  stages     one thin module per stage, outside of this package
5  cli, doctor, stage
4  pretrain, caches
3  ingest, fit_flame, synthetic, train, render, evaluate, bench
2  engine, networks, parity
1  config, geometry, store
0  core
"""

# First of all: it sets what NumPy reads when it is loaded.
from pipeline.core import threads  # noqa: F401
