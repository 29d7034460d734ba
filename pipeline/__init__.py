"""Data and orchestration."""

import os

# With more threads the matrix products of NumPy have other last bits, so what is made would depend on the number of cores. Read when NumPy
# is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
