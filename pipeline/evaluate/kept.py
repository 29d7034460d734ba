"""An evaluation that goes on where it was killed.

What each of its parts has added up lies in `<part>.safetensors`, sealed; the JSON beside it says of how many
pieces. A killed run begins with the piece behind them, and ends with the same numbers.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load, save

from pipeline.core.errors import UserError
from pipeline.core.prefetch import prefetch
from pipeline.core.progress import say
from pipeline.core.readable import readable_count, readable_time
from pipeline.engine.scratch import write_plan
from pipeline.evaluate.sums import Sums
from pipeline.store.sealed import read_sealed, recover, remove_sealed, write_sealed

Piece = TypeVar("Piece", bound=Sequence)
Loaded = TypeVar("Loaded")
# Of its time a run spends about this share on keeping, whatever the size of the sums.
SHARE = 0.05
SAID_EVERY = 30.0  # seconds


class Kept:
    """What lies in the scratch folder of one evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved, self.cost = 0.0, 0.0  # when the last file was written, and how long that took

    def left(
        self,
        part: str,
        pieces: Sequence[Piece],
        sums: Sums,
        load_piece: Callable[[Piece], Loaded],
        noun: str = "pairs",
    ) -> Iterator[tuple[Piece, Loaded]]:
        """The pieces that are not in `sums` yet, and what `load_piece` makes of them.

        First `sums` becomes what an earlier run kept of the part. The caller adds each piece to it; while it
        does, the next one is loaded in a thread. What pieces have is counted in `noun` for people.
        """
        total = sum(map(len, pieces))
        write_plan(self.folder, {"part": part, "total": total, "noun": noun})
        done = self._restore(part, sums)
        before = through = sum(map(len, pieces[:done]))
        started, said = time.monotonic(), 0.0
        for number, loaded in prefetch(lambda i: load_piece(pieces[i]), done, len(pieces)):
            yield pieces[number], loaded
            through += len(pieces[number])
            last, now = through == total, time.monotonic()
            pace = (through - before) / (now - started)
            if last or now - self.saved > self.cost / SHARE:
                self._keep(part, sums, {"pieces": number + 1, "through": through, "pace": pace})
            if last or now - said > SAID_EVERY:
                said = now
                rest = "" if last else f", {readable_time((total - through) / pace)} left"
                counted = f"{through:,} of {readable_count(total, noun)}"
                say(f"evaluate: {part}: {counted}, {pace:.3g} a second{rest}")

    def forget(self) -> None:
        """Remove all of it, once the results stand where they belong."""
        for path in self.folder.glob("*.safetensors"):
            remove_sealed(path)
        write_plan(self.folder, {"part": "", "total": 0, "noun": "pairs"})

    def _restore(self, part: str, sums: Sums) -> int:
        """The number of pieces that were kept, and are in `sums` now."""
        path = self._path(part)
        if not path.exists():
            return 0
        recover(path)
        try:
            data, facts = read_sealed(path, "This part of the evaluation begins anew.")
        except UserError as error:
            say(str(error))
            return 0
        sums.restore(load(data))
        return facts["pieces"]

    def _keep(
        self,
        part: str,
        sums: Sums,
        facts: dict[str, float],
    ) -> None:
        started = time.monotonic()
        tensors = {name: tensor.cpu().contiguous() for name, tensor in sums.tensors().items()}
        write_sealed(self._path(part), save(tensors), facts)
        self.saved = time.monotonic()
        self.cost = self.saved - started

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.safetensors"
