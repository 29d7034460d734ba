"""The stages of the graph: `python -m stages.<name>`, each a thin module with a section in params.yaml."""

import os

# How long threads that wait for each other spin before they sleep. The default (for ever, nearly) makes
# training ten times slower as soon as anything else wants a core; no spinning at all costs a third of the
# speed. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
