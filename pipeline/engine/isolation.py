"""Doing one unit, whatever its items do to the process: an error or a death costs the item that causes it, never the run.

A unit is done as a whole. When that raises, or the process died of it before, the unit's items are tried one by one; those that raise twice,
or that the process dies of twice, are given up, and the unit is done as a whole without them. A shard thus depends on the items it holds
and on nothing else: the batches that its worker makes of them are the same whoever did the unit, and after whatever mishaps.

What was going on when a process died is read in `name.tries.json`, which is on disk before anything starts. A death counts when the process
that drives the run outlived it, or was itself the one that worked; when everything was killed together, it says nothing of an item.
"""

import contextlib
import dataclasses
import errno
import json
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes, write_json
from pipeline.engine.work_unit import Reject, Work, WorkUnit, finished, mark, record_path
from pipeline.store.shards import Sample, write_shard

TRIES = 2  # of an item, alone
TRIES_TOGETHER = 3  # of a whole unit: two may be bad luck
KILLERS = 3  # so many items kill the worker and none has passed: it is not the items
LONGEST = 500  # letters of a reason
START, TOGETHER = (
    "start",
    "together",
)  # what else can be going on than one item: the worker is being made, the unit is done as a whole
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
}
MACHINE |= {errno.EMFILE, errno.ENFILE}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of a try of a unit: why it failed ("" when it is done), and whether other units would fail as well, as on a full disk."""

    name: str
    failure: str = ""
    stop: bool = False


class Maker:
    """Makes the worker of a process when it is first needed, so that a failure to make it is the failure of a unit, in words."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self.new = make
        self.worker: Work | None = None

    def make(self) -> Work:
        if self.worker is None:
            self.worker = self.new()
        return self.worker


def attempt(unit: WorkUnit, maker: Maker, scratch: Path, run: str) -> Outcome:
    """Do `unit` unless it is done. `run` names the run, and begins with HERE when the driving process works itself.

    The traceback of a surprise goes to `name.error.txt`. A failed unit is forgotten: the next run begins it anew.
    """
    if finished(unit, scratch, verify=False):  # by a worker that died before it could say so
        return Outcome(unit.name)
    log = scratch / f"{unit.name}.error.txt"
    tries = None
    try:
        tries = _Tries(unit, scratch, run)
        _Attempt(unit, scratch, tries).run(maker)
        outcome = Outcome(unit.name)
        log.unlink(missing_ok=True)
    except UserError as error:
        outcome = Outcome(
            unit.name, str(error), isinstance(error.__cause__, OSError) and error.__cause__.errno in MACHINE
        )
    except (Exception, SystemExit) as error:
        with contextlib.suppress(UserError):
            write_bytes(log, traceback.format_exc().encode())
        outcome = Outcome(unit.name, f"{type(error).__name__}: {error} (see {log}).")
    if tries:
        tries.forget()
    return outcome


def set_torch(threads: int, deterministic: bool) -> tuple[int, bool]:
    """Both change the last bits of a result, so every unit is done under the same; returns what was set before."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore[missing-attribute]
    return before


class _Raised(Exception):
    """The worker raised its cause, which is told apart in this way from an error in writing the shard."""

    def cause(self, machine: bool = True) -> BaseException:
        """What was raised; itself raised again if the computer is to blame and not the item, unless `machine`."""
        error = self.__cause__
        assert error
        memory = (
            isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        )  # torch's, of a GPU
        if not machine and (memory or (isinstance(error, OSError) and error.errno in MACHINE)):
            raise error from None
        return error


class _Attempt:
    """One try of a unit by one process."""

    def __init__(self, unit: WorkUnit, scratch: Path, tries: "_Tries") -> None:
        self.unit, self.scratch, self.tries = unit, scratch, tries

    def run(self, maker: Maker) -> None:
        """Raises whatever the unit fails of."""
        tries, items = self.tries, self.unit.items
        if tries.together >= TRIES_TOGETHER:
            raise UserError(
                f"its worker process died {tries.together} times, though of no item alone. Most often memory is short: "
                "lower machine.workers. machine.workers: 0 shows what a unit does."
            )
        with tries.running(START) if maker.worker is None else contextlib.nullcontext():
            work = maker.make()
        surprise = None
        if tries.clean:
            try:
                with tries.running(TOGETHER):
                    return self._finish(work, list(range(len(items))))
            except _Raised as raised:
                surprise = raised.cause(machine=False)
        self._sift(work)
        good = [number for number, verdict in enumerate(tries.verdicts) if verdict == ""]
        if not good and len(items) > 1:  # then it is not the items; of a single one nobody knows
            raise surprise or UserError(f"every item of it fails: {tries.verdicts[0]}.")
        try:
            with tries.running(TOGETHER):
                self._finish(work, good)
        except _Raised as raised:
            raise raised.cause() from None

    def _sift(self, work: Work) -> None:
        """Try every item alone that has no verdict yet."""
        tries = self.tries
        for number, item in enumerate(self.unit.items):
            if tries.verdicts[number] is not None:
                continue
            if tries.alone[number] >= TRIES:
                tries.verdicts[number] = "killed its worker twice"
                if sum(deaths >= TRIES for deaths in tries.alone) >= KILLERS and "" not in tries.verdicts:
                    raise UserError(
                        f"the first {KILLERS} items that were tried alone killed their worker; machine.workers: 0 shows how."
                    )
                continue
            with tries.running(number):
                tries.verdicts[number] = self._alone(work, item)

    def _alone(self, work: Work, item: Any) -> str:
        """Do one item and throw the result away; the reason if it fails each time, otherwise ""."""
        reason = ""
        for _ in range(TRIES):
            try:
                deque(_samples(work, WorkUnit(self.unit.name, [item]))[0], maxlen=0)
                return ""
            except _Raised as raised:
                error = raised.cause(machine=False)
                reason = " ".join(
                    (
                        str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                    ).split()
                )[:LONGEST]
        return reason

    def _finish(self, work: Work, numbers: list[int]) -> None:
        """Do the items with these numbers together and write shard and record."""
        started = time.monotonic()
        items = self.unit.items
        samples, record = (
            _samples(work, WorkUnit(self.unit.name, [items[number] for number in numbers]))
            if numbers
            else (iter(()), {})
        )
        first = next(samples, None)
        shard = first and write_shard(self.scratch / f"{self.unit.name}.tar", _chain(first, samples))
        verdicts = self.tries.verdicts
        rejects = [
            dataclasses.asdict(Reject(item, verdict))
            for item, verdict in zip(items, verdicts, strict=True)
            if verdict
        ]
        content = {
            "items": mark(self.unit),
            "shard": shard and dataclasses.asdict(shard),
            "record": record,
            "rejects": rejects,
        }
        write_json(
            record_path(self.unit, self.scratch), content | {"seconds": round(time.monotonic() - started, 3)}
        )


class _Tries:
    """What has been tried of a unit, kept on disk. `together` and `alone` count deaths, `verdicts` has "" for an item that passed alone."""

    def __init__(self, unit: WorkUnit, scratch: Path, run: str) -> None:
        self.path, self.mark, self.name = scratch / f"{unit.name}.tries.json", mark(unit), run
        count = len(unit.items)
        self.together, self.alone = 0, [0] * count
        self.verdicts: list[str | None] = [None] * count
        try:
            content = json.loads(self.path.read_bytes())
            if content["items"] != self.mark:
                return
            self.together, self.alone, self.verdicts = (
                content["together"],
                content["alone"],
                content["verdicts"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return
        running = content["running"]
        if running is None or (content["run"] != run and not content["run"].startswith(HERE)):
            return
        if running in (START, TOGETHER):
            self.together += 1
        if running == TOGETHER and count == 1:  # the only item of a unit is always alone
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
        except BaseException:  # stopped from outside
            self._save(None)
            raise

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)

    def _save(self, running: int | str | None) -> None:
        state = {"together": self.together, "alone": self.alone, "verdicts": self.verdicts}
        write_json(self.path, {"items": self.mark, "run": self.name, "running": running} | state)


def _samples(work: Work, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
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


def _chain(first: Sample, rest: Iterator[Sample]) -> Iterator[Sample]:
    yield first
    yield from rest
