"""The processes of the engine: actors that Ray Data feeds with units, on this machine or on a cluster."""

import atexit
import contextlib
import dataclasses
import functools
import json
import logging
import os
import pickle
import shutil
import socket
import tempfile
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.core.errors import UserError
from pipeline.core.limits import free_memory
from pipeline.core.progress import hushed, say
from pipeline.core.readable import readable_bytes
from pipeline.engine.code_mark import SOURCE
from pipeline.engine.isolation import Maker, Outcome, attempt, set_torch
from pipeline.engine.work_unit import Work, WorkUnit, finished

# Restarts of an actor, and tries of a unit by Ray. `attempt` counts the deaths and gives up long before.
RESTARTS = 100
SHOWN = 5  # units that are named in a message
LONGEST_PLACE = 30  # letters; Ray's own folders and sockets below it have some 70
WORKER_BYTES = 1 << 30  # of memory that a worker takes, with its share of Ray


class WorkerSettings(Protocol):
    """What is needed of the section `machine` of params.yaml."""

    workers: int
    device: str
    ray_address: str
    object_store_mb: int


class _Actor:
    """One process of the pool."""

    def __init__(self, pickled: bytes, scratch: Path, run: str):
        """`pickled` makes the worker. It loads modules and networks, of which a process may die."""
        set_torch(1, not torch.cuda.is_available())
        # Only in `attempt`, which counts the deaths: Ray itself would start the process again without end.
        self.maker, self.scratch, self.run = Maker(lambda: pickle.loads(pickled)()), scratch, run

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        unit = WorkUnit(**json.loads(str(batch["unit"][0])))
        outcome = attempt(unit, self.maker, self.scratch, self.run)
        return {name: [value] for name, value in dataclasses.asdict(outcome).items()}


def with_ray(
    units: Sequence[WorkUnit],
    make_worker: Callable[[], Work],
    scratch: Path,
    machine: WorkerSettings,
    gpu: bool = False,
) -> Generator[Outcome]:
    """Do `units` with `machine.workers` actors, or with one for each GPU, if `gpu` is set and there is one.

    Raises UserError when they cannot be started or do not stay alive.
    """
    import ray
    import ray.data
    from ray import cloudpickle
    from ray.exceptions import RayError

    wanted = _affordable(min(machine.workers, len(units)), machine)
    rows = [{"unit": json.dumps(dataclasses.asdict(unit))} for unit in units]
    with _session(max(wanted, torch.cuda.device_count()), machine):
        # The GPUs of the cluster: this machine need not have any.
        found = int(ray.cluster_resources().get("GPU", 0)) if gpu and machine.device != "cpu" else 0
        workers = min(found, len(units)) or wanted
        with warnings.catch_warnings():
            # Ray has no other way yet to limit restarts than the one that it calls deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            # With a whole core each, a full pool would starve the task that feeds it.
            results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_args=(cloudpickle.dumps(make_worker), scratch, uuid.uuid4().hex),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                num_cpus=0.5,
                num_gpus=1 if found else 0,
                max_restarts=RESTARTS,
                max_task_retries=RESTARTS,
            )
        try:
            for row in results.iter_rows():
                yield Outcome(**row)
        except RayError as error:
            left = [unit.name for unit in units if finished(unit, scratch, verify=False) is None]
            more = " ..." if len(left) > SHOWN else ""
            raise UserError(
                f"a worker process died again and again; not done yet: {', '.join(left[:SHOWN])}{more}. "
                "Most often memory is short: lower machine.workers, then run again. machine.workers: 0 shows "
                "what a unit does."
            ) from error


def _affordable(wanted: int, machine: WorkerSettings) -> int:
    """How many of the workers the memory holds, at least one: too many would be killed for it in turn."""
    if machine.ray_address:
        return wanted
    free = free_memory() - machine.object_store_mb * 2**20
    most = max(1, free // WORKER_BYTES)
    if wanted > most:
        say(f"memory for {most} of {wanted} workers: {readable_bytes(free)} free, 1 GiB needed for each")
    return min(wanted, most)


def _ray_folder() -> str:
    """An empty folder for Ray, which puts sockets into it whose whole paths may have 107 letters.

    Raises UserError when there is no place with a short path.
    """
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    for place in places:
        if len(place) <= LONGEST_PLACE and os.access(place, os.W_OK):
            return tempfile.mkdtemp(prefix="psi4d-", dir=place)
    raise UserError(
        f"Ray needs a folder that can be written to and whose path has at most {LONGEST_PLACE} letters; "
        f"none of {', '.join(places)} is one. Set TMPDIR to one, or machine.workers: 0."
    )


@functools.cache
def _settle_home() -> None:
    """Give this process a home of its own, until it ends, where that of the user cannot be written to.

    Ray keeps files there and ends where it cannot; its token it makes once, for all starts in a process.
    """
    if os.access(os.path.expanduser("~"), os.W_OK):
        return
    os.environ["HOME"] = home = tempfile.mkdtemp(prefix="psi4d-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)


@contextlib.contextmanager
def _session(workers: int, machine: WorkerSettings) -> Iterator[None]:
    """A quiet Ray: our own and local by default, or the cluster of `ray_address`.

    A cluster has to see our folder under the same path.
    """
    path = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
    # One thread in matrix products, or the last bits would depend on the machine (pipeline/core/threads.py).
    inherited = {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    # A local Ray inherits this process's environment, a cluster gets it by its `runtime_env`.
    os.environ |= quiet | inherited | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    import ray
    import ray.data

    folder = _ray_folder()
    if machine.ray_address:
        where: dict[str, Any] = {"address": machine.ray_address, "runtime_env": {"env_vars": inherited}}
    else:
        where = {
            "address": "local",
            "num_cpus": workers + 1,
            "_temp_dir": folder,
            "include_dashboard": False,
            "object_store_memory": machine.object_store_mb * 2**20,
        }
    _settle_home()
    try:
        if machine.ray_address:
            _check_answers(machine.ray_address)
        _start(where)
        # What goes wrong is said once, by us.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start(where: dict[str, Any]) -> None:
    """Start or join a Ray. Raises UserError when that fails."""
    import ray

    try:
        with hushed():
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
    # Ray has no narrower type for, say, a machine that is too busy to start it in time.
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        advice = "Run again when less is going on here, or set machine.workers: 0."
        raise UserError(f"Ray does not start: {first_line} {advice}") from error


def _check_answers(address: str) -> None:
    """Raises UserError when nothing listens at `address` (host:port): Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        advice = "Mend machine.ray_address; empty means a local Ray."
        raise UserError(f"no Ray cluster answers at {address}: {error}. {advice}") from error
