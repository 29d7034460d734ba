"""Stage inputs: the manifest of the user's portraits and clips, on which `ingest` depends.

DVC runs it each time, so that files that came, went or changed are seen (pipeline/ingest/manifest.py). It
imports nothing that is slow to load.
"""

import sys

from pipeline.config.params import load_params
from pipeline.core.errors import UserError
from pipeline.core.paths import INPUTS
from pipeline.ingest.manifest import write_manifest


def main() -> None:
    write_manifest(load_params().ingest, INPUTS)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"inputs: {error}")
