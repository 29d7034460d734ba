"""Doing one unit, whatever its items do to the process.

An error or a death costs the item that causes it, never the run. A unit is done as a whole. When that raises,
or the process died of it before, its items are tried one by one. Those that raise twice, or kill the process
twice, are given up, and the unit is done as a whole without them. A shard thus depends on the items that it
holds and on nothing else: its worker makes the same batches of them in any process and after any mishap.

What was going on when a process died is read in `name.tries.json`, which is on disk before anything starts. A
death counts when the process that drives the run outlived it, or was itself the one that worked. When all
processes were killed together, it says nothing about an item.
"""

import contextlib
import dataclasses
import errno
import json
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pipeline.core.device import set_deterministic
from pipeline.core.errors import UserError
from pipeline.core.files import sha256, write_bytes, write_json
from pipeline.engine.work_unit import Reject, Work, WorkUnit, finished, mark, record_path, table_path
from pipeline.store.shards import Sample, write_shard
from pipeline.store.tables import Rows, write_table

TRIES = 2  # of an item, alone
TRIES_TOGETHER = 3  # of a whole unit: two may be bad luck
LOADS = 3  # of a worker whose process dies before it has begun
KILLERS = 3  # so many items kill the worker and none has passed: it is not the items
LONGEST = 500  # letters of a reason
# What else can be going on than one item: the worker is being made, or the unit is done as a whole.
START, TOGETHER = "start", "together"
HERE = "here"  # how the name of a run in the driving process itself begins
# The computer is in trouble, not the item: memory, disk, rights, too many open files.
MACHINE = {
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of a try of a unit.

    `failure` says why it failed, "" when it is done; `stop` that others would fail as well, as on a full
    disk.
    """

    name: str
    failure: str = ""
    stop: bool = False


class Maker:
    """Makes the worker of a process when it is first needed."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self.new = make
        self.worker: Work | None = None

    def make(self) -> Work:
        """The worker. Raises _Unloadable when it cannot be made."""
        if self.worker is None:
            try:
                self.worker = self.new()
            except (Exception, SystemExit) as error:
                raise _Unloadable(f"its worker cannot be made: {_words(error)}") from error
        return self.worker


def attempt(unit: WorkUnit, maker: Maker, scratch: Path, run: str) -> Outcome:
    """Do `unit` unless it is done. Raises nothing: what went wrong is in the outcome.

    `run` names the run, and begins with HERE when the driving process works itself. The traceback of an
    unexpected error goes to `name.error.txt`. A failed unit is forgotten: the next run begins it anew.
    """
    # A worker that did it may have died before it could say so.
    if finished(unit, scratch, verify=False):
        return Outcome(unit.name)
    log = scratch / f"{unit.name}.error.txt"
    tries = None
    try:
        tries = _Tries(unit, scratch, run)
        _Attempt(unit, scratch, tries).run(maker)
        outcome = Outcome(unit.name)
        log.unlink(missing_ok=True)
    except _Unloadable as error:
        failure = str(error)
        # Without a cause its process died, which leaves no traceback.
        if error.__cause__:
            _keep_traceback(log)
            failure = f"{failure.removesuffix('.')} (see {log})."
        outcome = Outcome(unit.name, failure, stop=True)
    except UserError as error:
        outcome = Outcome(unit.name, str(error), stop=_blames_machine(error.__cause__))
    except (Exception, SystemExit) as error:
        _keep_traceback(log)
        outcome = Outcome(unit.name, f"{type(error).__name__}: {error} (see {log}).")
    if tries:
        tries.forget()
    return outcome


def _keep_traceback(log: Path) -> None:
    """Write what is being handled to `log`. Where that cannot be written, the outcome has to do."""
    with contextlib.suppress(UserError):
        write_bytes(log, traceback.format_exc().encode())


def _words(error: BaseException) -> str:
    """An error in one line."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:LONGEST]


def was_interrupted(unit: WorkUnit, scratch: Path) -> bool:
    """Whether a process that was trying `unit` has not come to an end of it."""
    return _tries_path(unit, scratch).exists()


def set_torch(threads: int, deterministic: bool) -> tuple[int, bool]:
    """Set both, and return what was set before.

    Both change the last bits of a result, so every unit is done under the same.
    """
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    set_deterministic(deterministic)
    return before


def _blames_machine(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in MACHINE


class _Unloadable(UserError):
    """The worker cannot be made: no other unit could be done either."""


class _Raised(Exception):
    """The worker raised its cause. Errors in writing the shard are not wrapped, and so told apart."""

    def reason(self) -> BaseException:
        """What was raised."""
        assert self.__cause__
        return self.__cause__

    def reason_of_item(self) -> BaseException:
        """What was raised, as long as an item may be to blame. Raises it if it is the computer."""
        error = self.reason()
        # The name is that of torch's error about the memory of a GPU.
        memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if memory or _blames_machine(error):
            raise error from None
        return error


class _Attempt:
    """One try of a unit by one process."""

    def __init__(self, unit: WorkUnit, scratch: Path, tries: "_Tries") -> None:
        self.unit, self.scratch, self.tries = unit, scratch, tries

    def run(self, maker: Maker) -> None:
        """Raises whatever the unit fails of."""
        tries, items = self.tries, self.unit.items
        if tries.loads >= LOADS:
            raise _Unloadable(
                f"its worker process died {tries.loads} times while it was loading, before any item. Most "
                "often memory is short: lower machine.workers. machine.workers: 0 shows what it dies of."
            )
        if tries.together >= TRIES_TOGETHER:
            raise UserError(
                f"its worker process died {tries.together} times, though of no item alone. Most often memory "
                "is short: lower machine.workers. machine.workers: 0 shows what a unit does."
            )
        with tries.running(START) if maker.worker is None else contextlib.nullcontext():
            work = maker.make()
        surprise = None
        if tries.clean:
            try:
                with tries.running(TOGETHER):
                    self._finish(work, items)
                return
            except _Raised as raised:
                surprise = raised.reason_of_item()
        self._sift(work)
        good = [item for item, verdict in zip(items, tries.verdicts, strict=True) if verdict == ""]
        # When all fail it is not the items. Of a single one that cannot be known.
        if not good and len(items) > 1:
            raise surprise or UserError(f"every item of it fails: {tries.verdicts[0]}.")
        try:
            with tries.running(TOGETHER):
                self._finish(work, good)
        except _Raised as raised:
            raise raised.reason() from None

    def _sift(self, work: Work) -> None:
        """Try every item alone that has no verdict yet."""
        tries = self.tries
        for number, item in enumerate(self.unit.items):
            if tries.verdicts[number] is not None:
                continue
            if tries.alone[number] < TRIES:
                with tries.running(number):
                    tries.verdicts[number] = self._alone(work, item)
                continue
            tries.verdicts[number] = "killed its worker twice"
            killers = sum(deaths >= TRIES for deaths in tries.alone)
            if killers >= KILLERS and "" not in tries.verdicts:
                killed = f"the first {KILLERS} items that were tried alone killed their worker"
                raise UserError(f"{killed}; machine.workers: 0 shows how.")

    def _alone(self, work: Work, item: Any) -> str:
        """Do one item and throw the result away; the reason if it fails each time, otherwise ""."""
        # Its samples cannot be kept: done together with others, the same item may have other last bits.
        reason = ""
        for _ in range(TRIES):
            try:
                samples, _ = _samples(work, WorkUnit(self.unit.name, [item]))
                deque(samples, maxlen=0)
                return ""
            except _Raised as raised:
                reason = _words(raised.reason_of_item())
        return reason

    def _finish(self, work: Work, items: Sequence[Any]) -> None:
        """Do these items together and write shard, tables and record."""
        started = time.monotonic()
        samples: Iterator[Sample] = iter(())
        record: dict[str, Any] = {}
        if items:
            samples, record = _samples(work, WorkUnit(self.unit.name, list(items)))
        # A unit that makes no sample has no shard: an empty tar would be one more thing for readers to know.
        first = next(samples, None)
        shard = None
        if first:
            written = write_shard(self.scratch / f"{self.unit.name}.tar", chain([first], samples))
            shard = dataclasses.asdict(written)
        rejects = []
        for item, verdict in zip(self.unit.items, self.tries.verdicts, strict=True):
            if verdict:
                rejects.append(dataclasses.asdict(Reject(item, verdict)))
        content = {
            "mark": mark(self.unit),
            "inputs": mark(self.unit, code=False),
            "shard": shard,
            "tables": self._write_tables(record),
            "record": {name: value for name, value in record.items() if not isinstance(value, Rows)},
            "rejects": rejects,
            "seconds": round(time.monotonic() - started, 3),
        }
        write_json(record_path(self.unit, self.scratch), content)

    def _write_tables(self, record: dict[str, Any]) -> dict[str, str]:
        """Write the tables of a record; their checksums by name."""
        sums = {}
        for name, value in record.items():
            if isinstance(value, Rows):
                path = write_table(table_path(self.unit.name, name, self.scratch), value.table())
                sums[name] = sha256(path)
        return sums


class _Tries:
    """What has been tried of a unit, kept on disk.

    `loads`, `together` and `alone` count deaths; `verdicts` has "" for an item that passed alone, a reason
    for one that is given up and None where nothing is known.
    """

    def __init__(self, unit: WorkUnit, scratch: Path, run: str) -> None:
        self.path, self.mark, self.name = _tries_path(unit, scratch), mark(unit), run
        count = len(unit.items)
        self.loads, self.together, self.alone = 0, 0, [0] * count
        self.verdicts: list[str | None] = [None] * count
        try:
            content = json.loads(self.path.read_bytes())
            if content["items"] == self.mark:
                self.loads = content["loads"]
                self.together, self.alone = content["together"], content["alone"]
                self.verdicts = content["verdicts"]
                self._count_death(content["running"], content["run"])
        # Absent or damaged: nothing is known.
        except (OSError, ValueError, KeyError, TypeError):
            return

    def _count_death(self, running: int | str | None, run: str) -> None:
        """Count the death of a process of `run` that was at `running`, if this run outlived it."""
        if running is None or (run != self.name and not run.startswith(HERE)):
            return
        if running == START:
            self.loads += 1
        if running == TOGETHER:
            self.together += 1
        # The only item of a unit is always alone.
        if running == TOGETHER and len(self.alone) == 1:
            running = 0
        if isinstance(running, int):
            self.alone[running] += 1

    @property
    def clean(self) -> bool:
        """Whether nothing has happened yet that an item may be to blame for."""
        return not self.together and all(verdict is None for verdict in self.verdicts)

    @contextlib.contextmanager
    def running(self, what: int | str) -> Iterator[None]:
        """While this lasts, a death is one of the item with this number, or of START or TOGETHER."""
        self._save(what)
        try:
            yield
        except Exception:
            raise
        # Stopped from outside: no death of an item.
        except BaseException:
            self._save(None)
            raise

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)

    def _save(self, running: int | str | None) -> None:
        state = {
            "loads": self.loads,
            "together": self.together,
            "alone": self.alone,
            "verdicts": self.verdicts,
        }
        write_json(self.path, {"items": self.mark, "run": self.name, "running": running} | state)


def _tries_path(unit: WorkUnit, scratch: Path) -> Path:
    return scratch / f"{unit.name}.tries.json"


def _samples(work: Work, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
    """The samples and the record of a unit. Raises _Raised, also while the samples are being taken."""
    try:
        samples, record = work(unit)
    except (Exception, SystemExit) as error:
        raise _Raised from error
    return _guarded(samples), record


def _guarded(samples: Iterable[Sample]) -> Iterator[Sample]:
    try:
        yield from samples
    except (Exception, SystemExit) as error:
        raise _Raised from error
