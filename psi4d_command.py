"""The command `psi4d`: it runs the code beside this file, whatever else is called `pipeline` on the path.

This is the one module that is installed. The names of the packages are too common to stand among those of
others, and the code is of no use without the graph beside it.
"""

import sys
from pathlib import Path


def main() -> None:
    folder = Path(__file__).resolve().parent
    if not (folder / "dvc.yaml").is_file():
        sys.exit("psi4d: this works in a clone of its repository alone. Clone it and run `make demo` there.")
    sys.path.insert(0, str(folder))
    from pipeline.cli import main as command

    command()
