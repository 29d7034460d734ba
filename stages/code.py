"""Stage code: the marks of the code of all other stages, data/code/<stage>.txt, on which those depend.

DVC runs it each time. A stage is then out of date when its mark has changed (pipeline/engine/code_mark.py
says when that is), not when some file has. It takes a second, as it imports nothing that is slow to load.
"""

import shutil
import sys

from pipeline.core.errors import UserError
from pipeline.core.paths import MARKS
from pipeline.engine.code_mark import stage_marks, stage_names


def main() -> None:
    marks = {name: mark for stage in stage_names() for name, mark in stage_marks(stage).items()}
    # The files may be links into DVC's cache: to write into them would damage it.
    shutil.rmtree(MARKS, ignore_errors=True)
    MARKS.mkdir(parents=True)
    for name, mark in marks.items():
        (MARKS / f"{name}.txt").write_text(mark, newline="\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"code: {error}")
