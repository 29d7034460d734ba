"""What the stages have done, from what their runs write into scratch folders: `psi4d status`.

It reads files alone, so it answers from any terminal, while a run goes on and after it was stopped or killed.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.readable import readable_count, readable_time
from pipeline.engine.scratch import (
    is_running,
    last_error,
    last_folder,
    read_plan,
    stages,
    units_folder,
)
from pipeline.engine.work_unit import WorkUnit, finished, record_path

DONE, RUNNING, STOPPED, FAILED = "done", "running", "stopped", "failed"


@dataclass(frozen=True)
class Status:
    """How far a stage is.

    `state` is one of the above. `progress`, `speed` and `given_up` are phrases for people, empty where
    nothing is known; `error` is the last thing that went wrong.
    """

    stage: str
    state: str
    progress: str
    speed: str = ""
    given_up: str = ""
    error: str = ""

    def lines(self) -> list[str]:
        """The status in words, what went wrong in a line of its own."""
        known = [part for part in (self.progress, self.speed, self.given_up) if part]
        lines = [f"{self.stage:20} {self.state:8} {'; '.join(known)}".rstrip()]
        if self.error:
            lines.append(f"{'':20} last error: {self.error}")
        return lines


def statuses(stage: str | None = None) -> list[Status]:
    """The status of all stages that have worked here, or of one.

    Raises UserError when it, or any, has not.
    """
    known = stages()
    if not known:
        raise UserError("no stage has worked here yet; `dvc repro` runs them.")
    if stage is not None and stage not in known:
        raise UserError(f"{stage} has not worked here. These have: {', '.join(known)}.")
    return [_status(name) for name in ([stage] if stage else known)]


@dataclass(frozen=True)
class _Work:
    """Of a run: what is done, as a phrase, how much is left of it, and how fast it goes, both in `noun`."""

    progress: str
    left: int
    speed: float
    noun: str
    given_up: int = 0
    error: str = ""

    def pace(self) -> str:
        """Speed and the time that is left, as far as they are known."""
        if not self.left:
            return ""
        if not self.speed:
            return "speed not known yet"
        seconds = self.left / self.speed
        return f"{self.speed:.3g} {self.noun}/s, about {readable_time(seconds)} left"


def _status(stage: str) -> Status:
    folder = last_folder(stage)
    error = last_error(stage)
    plan = read_plan(folder) if folder else {}
    if not folder or not plan:
        state = FAILED if error else STOPPED
        return Status(stage, state, "nothing is known of it", error=error)
    # Only trainings count in steps, and only an evaluation has parts.
    if "steps" in plan:
        work = _training(folder, plan)
    elif "part" in plan:
        work = _evaluation(folder, plan)
    else:
        work = _units(folder, plan)
    state = _state(folder, plan, work, error)
    given_up = f"{work.given_up:,} given up" if work.given_up else ""
    speed = work.pace() if state == RUNNING else _pause(folder, plan, work, state)
    return Status(stage, state, work.progress, speed, given_up, error or work.error)


def _state(folder: Path, plan: Mapping[str, Any], work: _Work, error: str) -> str:
    # Records lie there once the results are published, so that nothing is left to do.
    published = folder == units_folder(folder.name)
    if not published and work.left and is_running(plan):
        return RUNNING
    if error:
        return FAILED
    return DONE if published or not work.left else STOPPED


def _pause(folder: Path, plan: Mapping[str, Any], work: _Work, state: str) -> str:
    """What is left of a run that does not go on by itself, and since when it stands still."""
    if state == DONE or not work.left:
        return ""
    last = max(path.stat().st_mtime for path in folder.iterdir())
    clock = time.strftime("%Y-%m-%d %H:%M", time.localtime(last))
    pace = f" at {work.speed:.3g} {work.noun}/s" if work.speed else ""
    left = f"{work.left:,} {work.noun} left{pace}"
    # The number of the process tells on a shared machine whose run it was.
    process = plan.get("pid", "?")
    return f"{left}; nothing since {clock}, process {process}"


def _units(folder: Path, plan: Mapping[str, Any]) -> _Work:
    """The work of the engine: a record lies in the folder for each unit that is done."""
    units = [WorkUnit(**unit) for unit in plan["units"]]
    noun = plan.get("noun", "items")
    started = plan.get("started", time.time())
    total = done_items = done_units = given_up = fresh = 0
    last, reason = started, ""
    for unit in units:
        total += len(unit.items)
        done = finished(unit, folder, verify=False)
        if done is None:
            continue
        done_units += 1
        done_items += len(unit.items)
        given_up += len(done.rejects)
        reason = done.rejects[-1].reason if done.rejects else reason
        written = record_path(unit, folder).stat().st_mtime
        # What earlier runs did says nothing about the speed of this one.
        if written > started:
            fresh += len(unit.items)
            last = max(last, written)
    speed = fresh / (last - started) if fresh else 0.0
    share = f"{done_units:,} of {readable_count(len(units), 'shards')}"
    progress = f"{share}, {done_items:,} of {readable_count(total, noun)}"
    return _Work(progress, total - done_items, speed, noun, given_up, _last_log(folder) or reason)


def _evaluation(folder: Path, plan: Mapping[str, Any]) -> _Work:
    """An evaluation: what it keeps tells how far the part is that it is at."""
    part, total, noun = plan["part"], plan["total"], plan["noun"]
    if not part:
        return _Work("all is measured", 0, 0.0, noun)
    try:
        facts = json.loads((folder / f"{part}.json").read_bytes())
        through, pace = facts["through"], facts["pace"]
    # Nothing of the part is kept yet.
    except (OSError, ValueError, LookupError):
        through, pace = 0, 0.0
    progress = f"{part}: {through:,} of {readable_count(total, noun)}"
    # Behind the last one there is the report at least.
    return _Work(progress, max(total - through, 1), pace, noun)


def _training(folder: Path, plan: Mapping[str, Any]) -> _Work:
    """A training: its curves and its checkpoints tell the steps that are done."""
    steps, batch = plan["steps"], plan["batch"]
    step, seen = plan["start"], plan["started"]
    # Both are written at times of their own: the later step is how far the run is.
    for path, found in [*_curve_steps(plan), *_checkpoint_steps(folder)]:
        if found > step:
            step = found
            seen = path.stat().st_mtime
    took = seen - plan["started"]
    images = (step - plan["start"]) * batch
    speed = images / took if took > 0 else 0.0
    of_images = f"{step * batch:,} of {steps * batch:,} images"
    progress = f"step {step:,} of {steps:,}, {of_images}"
    left = (steps - step) * batch
    return _Work(progress, left, speed, "images")


def _curve_steps(plan: Mapping[str, Any]) -> list[tuple[Path, int]]:
    """The last step in the curves of a training, if this run has written them."""
    path = Path(plan["curves"])
    try:
        if path.stat().st_mtime < plan["started"]:
            return []
        rows = json.loads(path.read_bytes())
        return [(path, rows[-1]["step"])]
    # The file of another version, or of another program, says nothing.
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _checkpoint_steps(folder: Path) -> list[tuple[Path, int]]:
    """The steps of the checkpoints, which their names tell."""
    found = []
    for path in folder.glob("checkpoint-*.safetensors"):
        _, _, number = path.stem.partition("-")
        if number.isdecimal():
            found.append((path, int(number)))
    return found


def _last_log(folder: Path) -> str:
    """The last line of the traceback of the unit that failed last."""
    logs = sorted(folder.glob("*.error.txt"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return ""
    newest = logs[-1]
    lines = newest.read_text().strip().splitlines()
    return f"{lines[-1]} ({newest})" if lines else ""
