"""The stages of the graph: `python -m stages.<name>`, each a thin module named like its section of params.yaml."""

import os

# Threads that wait for each other while spinning are ten times slower as soon as anything else wants a core. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
