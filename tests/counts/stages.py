"""A stage in processes of its own: started, killed after its first work, and started again."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.train.watch import PLAIN_EVERY

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"step (\d+) of")
PATIENCE = 1800  # seconds that a stage may take to its first work


@dataclass
class Run:
    """What a run of a stage came to: its first work, peak memory in bytes, and what it said.

    `first` is by the clock, without the minute that a training is silent; `work` is what cores did until
    then, in seconds: a busy machine changes it little.
    """

    first: float = 0.0
    work: float = 0.0
    peak: int = 0
    said: list[str] = field(default_factory=list)
    status: int | None = None


@dataclass(frozen=True)
class Stage:
    """A stage of the graph and how one sees that it works.

    `work` is the scratch folder whose finished units count; without one it is a line of what is said.
    """

    command: str
    work: str = ""
    line: re.Pattern = STEP

    @property
    def trains(self) -> bool:
        """Whether it ends with a checkpoint when it is told to."""
        return not self.work

    @property
    def silent(self) -> float:
        """Seconds that a training works before it says a line."""
        return PLAIN_EVERY if self.line is STEP and self.trains else 0.0

    def run(self, folder: Path) -> Run:
        """Start it in `folder`, wait for its first new work, and end it with all of its processes."""
        found = Run()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", *f"stages.{self.command}".split()]
        before = self.done(folder)
        started, spent = time.monotonic(), 0.0
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        reader = threading.Thread(target=lambda: found.said.extend(process.stderr), daemon=True)
        reader.start()
        while process.poll() is None:
            found.peak = max(found.peak, memory(process.pid))
            spent = max(spent, core_seconds(process.pid))
            worked = self.done(folder) > before if self.work else any(map(self.line.search, found.said))
            if worked and not found.first:
                found.first, found.work = time.monotonic() - started - self.silent, spent
                self._end(process)
            if time.monotonic() - started > PATIENCE:
                self._end(process, signal.SIGKILL)
            time.sleep(1.0)
        found.status = process.wait()
        reader.join(5)
        return found

    def done(self, folder: Path) -> int:
        """How many units are finished."""
        return len(list(folder.glob(f".cache/psi4d/scratch/{self.work}/*/*.done.json"))) if self.work else 0

    def _end(self, process: subprocess.Popen, how: int = 0) -> None:
        """Kill all of its processes; a training is told to stop, as it then writes a checkpoint."""
        how = how or (signal.SIGTERM if self.trains else signal.SIGKILL)
        if how == signal.SIGTERM:
            process.send_signal(how)
            return
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()


def core_seconds(pid: int) -> float:
    """What cores have done for a process and its children that are still there."""
    total = 0.0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            times = process.cpu_times()
            total += times.user + times.system
    except psutil.Error:
        return total
    return total


def memory(pid: int) -> int:
    """What a process and its children need, bytes: their own memory and their parts of what they share.

    Pages of mapped files do not count: the system takes them back when others want memory.
    """
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += _own_memory(process.pid)
    except psutil.Error:
        return total
    return total


def _own_memory(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # The process has ended.
        return 0
    kilobytes = re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB$", text, re.MULTILINE)
    return 1024 * sum(map(int, kilobytes))
