"""One thread for the matrix products of NumPy.

With more threads their last bits differ, so what is made would depend on the number of cores. NumPy reads the
variable when it is loaded, so `pipeline` imports this module before anything else. A module, so that the
closure of a stage's imports counts it.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
