"""The one error that a user is meant to see, and how a process ends with it."""

import os
import sys
from pathlib import Path
from typing import NoReturn

# A variable of the environment of processes that are launched together: the folder for their last words.
LAST_WORDS = "PSI4D_LAST_WORDS"


class UserError(Exception):
    """Something the user can mend.

    The message says what is wrong, where (stage, file, key) and what to do. The command line prints it alone.
    """


def end_process(stage: str, message: str) -> NoReturn:
    """End this process with status 1 and `message` on stderr, behind the name of the stage.

    Processes that were launched together often fail for one reason. They leave their messages to the
    launcher, which says the first of them once.
    """
    folder = os.environ.get(LAST_WORDS)
    if folder is None:
        sys.exit(f"{stage}: {message}")
    Path(folder, str(os.getpid())).write_text(message)
    sys.exit(1)


def first_words(folder: Path) -> str:
    """The first message that a process left in `folder`, or nothing."""
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return files[0].read_text() if files else ""
