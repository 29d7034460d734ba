"""The engine: work units in a fixed plan, done by one process or by many, with the same bytes, and resumable at every unit.

A unit is one shard: a name and a fixed list of items. Units are worked on in a scratch folder whose name depends on everything that matters
(`fingerprint`). A finished unit leaves `name.tar` with its sidecar and then `name.done.json`; a run that was stopped skips what has both.
`publish` shows the result under its final name in one step. `workers: 0` works in this process, otherwise Ray Data feeds a pool of actors
with one torch thread each. Who does a unit, and when, changes nothing in it, as workers draw their randomness from counters.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.errors import UserError
from pipeline.files import sha256, write_bytes, write_json
from pipeline.progress import progress
from pipeline.shards import Sample, ShardRecord, check_shard, sidecar_path, write_shard

SOURCE = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Unit:
    """One piece of work: the name of its shard (without .tar) and its items, JSON-able, in their order."""

    name: str
    items: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished unit: its shard (None when it made no samples) and the record that its worker returned, as read back from JSON."""

    name: str
    shard: ShardRecord | None
    record: dict[str, Any]


Work = Callable[[Unit], tuple[Iterable[Sample], dict[str, Any]]]  # the record may be completed while the samples are being consumed


class Machine(Protocol):
    """What is needed of the section `machine` of params.yaml."""

    workers: int
    device: str
    ray_address: str
    object_store_mb: int


def units_of(prefix: str, items: Sequence[Any], size: int) -> list[Unit]:
    """Cut `items` into units of `size`: prefix-000000, prefix-000001 and so on."""
    return [Unit(f"{prefix}-{start // size:06d}", list(items[start : start + size])) for start in range(0, len(items), size)]


def fingerprint(*inputs: Any) -> str:
    """16 hexadecimal digits that depend on every input, on our source code and on the version of torch.

    A Path counts with what is in it: a folder with all its files, where a shard is taken by its sidecar, which holds its checksum. A
    dataclass or a pydantic model counts with its values, everything else as JSON. Raises UserError for a path that is not there.
    """
    code = [(path.relative_to(SOURCE).as_posix(), sha256(path)) for part in ("model", "pipeline") for path in sorted((SOURCE / part).rglob("*.py"))]
    text = json.dumps([torch.__version__, code, *(_summary(value) for value in inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _summary(value: Any) -> Any:
    if isinstance(value, Path):
        if value.is_file():
            return sha256(value)
        if not value.is_dir():
            raise UserError(f"{value} is missing. Run the stage that makes it: dvc repro.")
        files = sorted(path for path in value.rglob("*") if path.is_file() and not (path.suffix == ".tar" and sidecar_path(path).exists()))
        return [(path.relative_to(value).as_posix(), sha256(path)) for path in files]
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return value.model_dump() if hasattr(value, "model_dump") else value


def scratch_folder(stage: str, mark: str) -> Path:
    """The folder under the repository in which the stage does its work; `mark` is the fingerprint of its inputs."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".cache" / "psi4d" / "scratch" / stage / mark


def run_units(units: Sequence[Unit], make_worker: Callable[[], Work], scratch: str | Path, machine: Machine, label: str) -> list[Done]:
    """Do all units that are not done yet; the results in the order of `units`.

    `make_worker` (a class or a partial of one, picklable) is called once per process; the worker it makes is called with a unit and returns
    samples for the shard and a JSON-able record. It runs with one torch thread. A unit that fails does not stop the others; at the end
    UserError names the failed ones, and the next run tries only these again.
    """
    scratch = Path(scratch).resolve()
    if len({unit.name for unit in units}) != len(units):
        raise ValueError(f"{label}: two units have the same name")
    pending = [unit for unit in units if _finished(unit, scratch) is None]
    if machine.workers == 0 or len(pending) <= 1:  # one unit is not worth the start of Ray
        failures = _in_process(pending, make_worker, scratch)
    else:
        failures = _with_ray(pending, make_worker, scratch, machine)
    watched = progress(failures, label=label, total=len(units), initial=len(units) - len(pending))
    failed = {name: text for name, text in watched if text}
    if failed:
        name = min(failed)
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise UserError(f"{label}: the unit {name}{more} failed: {failed[name]} What is finished is kept: run again to go on.")
    done = [_finished(unit, scratch, verify=False) for unit in units]
    if None in done:
        raise UserError(f"{label}: the unit {units[done.index(None)].name} is not done although every worker has ended. Run again to go on.")
    return done


def publish(scratch: str | Path, out: str | Path) -> None:
    """Show the shards of `scratch` (and their sidecars) as the folder `out`, replacing it in one step, then remove the scratch folder."""
    scratch, out = Path(scratch), Path(out)
    shown = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        shown.mkdir(parents=True)
        for path in sorted(scratch.glob("*.tar")):
            for file in (path, sidecar_path(path)):
                try:
                    os.link(file, shown / file.name)
                except OSError:  # another file system, or one without links
                    shutil.copyfile(file, shown / file.name)
        if out.exists():
            shutil.rmtree(out)
        os.rename(shown, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}. Make the folder writable or free some space, then run again.") from error
    finally:
        shutil.rmtree(shown, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


def _mark(unit: Unit) -> str:
    return hashlib.sha256(json.dumps([unit.name, unit.items]).encode()).hexdigest()


def _finished(unit: Unit, scratch: Path, verify: bool = True) -> Done | None:
    """The result of a unit that is done, and whose shard is whole if that is to be verified; otherwise None."""
    try:
        content = json.loads((scratch / f"{unit.name}.done.json").read_bytes())
        if content["items"] != _mark(unit):
            return None
        shard = content["shard"] and ShardRecord(**content["shard"])
        if shard and verify and check_shard(scratch / shard.name) != shard:
            return None
        return Done(unit.name, shard, content["record"])
    except (OSError, ValueError, KeyError, TypeError, UserError):  # absent or damaged: the unit is simply done again
        return None


def _work(unit: Unit, worker: Work, scratch: Path) -> None:
    samples, record = worker(unit)
    samples = iter(samples)
    first = next(samples, None)
    shard = None
    if first is not None:
        shard = write_shard(scratch / f"{unit.name}.tar", _chain(first, samples))
    content = {"items": _mark(unit), "shard": shard and dataclasses.asdict(shard), "record": record}
    write_json(scratch / f"{unit.name}.done.json", content)


def _chain(first: Sample, rest: Iterator[Sample]) -> Iterator[Sample]:
    yield first
    yield from rest


def _attempt(unit: Unit, worker: Callable[[], Work], scratch: Path) -> str:
    """Do a unit; the reason in words if it failed, otherwise "". The traceback of a surprise goes to a file."""
    log = scratch / f"{unit.name}.error.txt"
    try:
        _work(unit, worker(), scratch)
        log.unlink(missing_ok=True)
        return ""
    except UserError as error:
        return str(error)
    except Exception as error:
        with contextlib.suppress(UserError):
            write_bytes(log, traceback.format_exc().encode())
        return f"{type(error).__name__}: {error} (see {log})."


class _Lazy:
    """Makes the worker at the first call, so that a failure to make it is the failure of a unit, in words."""

    def __init__(self, make: Callable[[], Work]):
        self.make = make
        self.worker: Work | None = None

    def __call__(self) -> Work:
        if self.worker is None:
            self.worker = self.make()
        return self.worker


def _set_torch(threads: int, deterministic: bool) -> tuple[int, bool]:
    """Both change the last bits of a result, so every unit is done under the same; returns what was set before."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False
    return before


def _in_process(units: Sequence[Unit], make_worker: Callable[[], Work], scratch: Path) -> Iterator[tuple[str, str]]:
    worker = _Lazy(make_worker)
    for unit in units:
        before = _set_torch(1, not torch.cuda.is_available())
        try:
            result = _attempt(unit, worker, scratch)
        finally:
            _set_torch(*before)
        yield unit.name, result


class _Actor:
    """One process of the pool."""

    def __init__(self, make_worker: Callable[[], Work], scratch: Path):
        _set_torch(1, not torch.cuda.is_available())
        self.worker = _Lazy(make_worker)
        self.scratch = scratch

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        unit = Unit(**json.loads(str(batch["unit"][0])))
        return {"name": [unit.name], "failure": [_attempt(unit, self.worker, self.scratch)]}


def _with_ray(units: Sequence[Unit], make_worker: Callable[[], Work], scratch: Path, machine: Machine) -> Iterator[tuple[str, str]]:
    import ray
    import ray.data
    from ray.exceptions import RayError

    workers = min(machine.workers, len(units))
    with _session(workers, machine):
        gpus = torch.cuda.device_count() / workers if machine.device != "cpu" and torch.cuda.is_available() else 0
        rows = [{"unit": json.dumps(dataclasses.asdict(unit))} for unit in units]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there is no other way yet to limit restarts
            results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_args=(make_worker, scratch),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                num_cpus=0.5,  # with a whole core each, a full pool would starve the task that feeds it
                num_gpus=gpus,
                max_restarts=2,  # what always kills its worker would restart it for ever
                max_task_retries=2,
            )
        try:
            for row in results.iter_rows():
                yield row["name"], row["failure"]
        except RayError as error:
            left = [unit.name for unit in units if _finished(unit, scratch, verify=False) is None]
            raise UserError(
                f"a worker process died again and again; not done yet: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}. "
                "Most often memory is short: lower machine.workers, then run again. machine.workers: 0 shows what a unit does."
            ) from error


@contextlib.contextmanager
def _session(workers: int, machine: Machine) -> Iterator[None]:
    """A quiet Ray: our own and local by default, or the cluster of `ray_address` (which sees our folder under the same path)."""
    path = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    os.environ |= quiet | {"PYTHONPATH": path, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # a local Ray inherits it
    import ray
    import ray.data

    folder = tempfile.mkdtemp(prefix="psi4d-")  # short: Ray puts sockets in it, whose paths may have 107 letters
    where: dict[str, Any] = {"address": machine.ray_address, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    if not machine.ray_address:
        where = {"address": "local", "num_cpus": workers + 1, "_temp_dir": folder, "include_dashboard": False}
        where["object_store_memory"] = machine.object_store_mb * 2**20
    try:
        if machine.ray_address:
            _check_answers(machine.ray_address)
        with _hushed():
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is said once, by us
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _check_answers(address: str) -> None:
    """Raises UserError when nobody listens at `address` (host:port): Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}. Mend machine.ray_address; empty means a local Ray.") from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without what native code writes to stderr (Ray tells its log level there, whatever the level)."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
