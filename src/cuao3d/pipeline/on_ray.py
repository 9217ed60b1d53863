"""Jobs on a Ray cluster: workers that hold what they need, a job tried again where its worker or node died."""

import os
import re
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from cuao3d.console import note
from cuao3d.errors import InputError, NotFoundError, NotInstalledError, UserError

T = TypeVar("T")

ANSWER_SECONDS = 5.0
"""How long the address of a cluster may take to answer."""

ROOM_SECONDS = 60.0
"""How long a cluster without room for a worker may take to grow."""

POLL_SECONDS = 0.5
"""Time between two looks at a cluster."""

OBJECT_STORE = 80_000_000
"""Bytes for the objects of a cluster that is started here; only descriptions of scenes pass through them."""

ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # a node for this machine alone: Ray listens on loopback
    "RAY_AUTH_MODE": "token",
    "RAY_worker_niceness": "0",  # lifting is what this machine is for, and Ray would put it last: nice 15
}
"""Environment of a cluster that is started here."""


@dataclass(frozen=True)
class RayCluster:
    """Where jobs run, and what each worker takes of it."""

    address: str | None = None
    """HOST:PORT, ray://HOST:PORT, or "auto" for the cluster of this machine. None: that of `$RAY_ADDRESS`, or else one
    that is started here, listens on loopback and ends with the command."""
    num_gpus: float = 0.0
    """GPUs of a worker; Ray shows it no others."""
    num_cpus: int = 4
    """Cores of a worker, fewer where no node has so many."""
    num_workers: int | None = None
    """Workers at most; None: as many as there is room for, also on nodes that join later."""
    num_tries: int = 3
    """How often a job is begun at most, if its worker dies."""


def run_on_ray(
    prepare: Callable[[], Callable[[int], T]],
    jobs: Sequence[int],
    names: Sequence[str],
    cluster: RayCluster,
    on_done: Callable[[int, str], None],
) -> tuple[dict[int, T], dict[int, str]]:
    """Run jobs on the workers of a Ray cluster.

    Args:
        prepare: Called once by each worker; returns what does a job, by its number.
        jobs: Numbers of the jobs.
        names: Name of each job, by its number.
        cluster: The cluster.
        on_done: Called with the count of ended jobs and the name of the last one.

    Returns:
        The result of each job, and why others have none: their workers died too often.

    Raises:
        NotInstalledError: Ray is not installed.
        InputError: The cluster does not answer, or has no room.
        UserError: That of `prepare` or of a job.
    """
    with _joined(cluster) as ray:
        pool = _Pool(ray, cluster, prepare, names, deque(jobs))
        while len(pool.results) + len(pool.lost) < len(jobs):
            pool.fill()
            if (number := pool.wait()) is not None:
                on_done(len(pool.results) + len(pool.lost), names[number])
        pool.end()
    return pool.results, pool.lost


def check_sees(paths: Sequence[Path]) -> None:
    """Check that this node of a cluster sees the folders that the command was given.

    Raises:
        NotFoundError: It does not see one of them.
    """
    for path in paths:
        if not path.exists():
            raise NotFoundError(
                f"The node {socket.gethostname()} of the Ray cluster does not see {path}. Mount it there under the "
                "same path, or take the node out of the cluster."
            )


class _Worker:
    """A process on a node; Ray makes it an actor."""

    def __init__(self, folder: str, num_threads: int) -> None:
        with suppress(OSError):  # relative paths are those of the command, where the node has its folder
            os.chdir(folder)
        torch.set_num_threads(num_threads)

    def begin(self, prepare: Callable[[], Callable[[int], Any]]) -> None:
        """Get ready for jobs."""
        self.job = prepare()

    def do(self, number: int) -> Any:
        """Do a job."""
        return self.job(number)


@dataclass(frozen=True)
class _Job:
    """What a worker is doing."""

    worker: Any
    number: int | None = None
    """Number of the job; None: it begins."""


@dataclass
class _Pool:
    """The workers of a cluster, and the jobs that are waiting, running, done and lost."""

    ray: Any
    cluster: RayCluster
    prepare: Callable[[], Callable[[int], Any]]
    names: Sequence[str]
    queue: "deque[int]"
    results: dict[int, Any] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    tries: "Counter[int | None]" = field(default_factory=Counter)
    running: dict[Any, _Job] = field(default_factory=dict)
    workers: list[Any] = field(default_factory=list)
    had_room: float = field(default_factory=time.monotonic)

    def fill(self) -> None:
        """Start workers where there is room for them and work; raise InputError where there never is."""
        cores, room = self._room()
        wanted = min(room, self.cluster.num_workers or room, len(self.queue) + sum(self._at_work()))
        if room:
            self.had_room = time.monotonic()
        elif time.monotonic() - self.had_room > ROOM_SECONDS and not any(self._at_work()):
            gpus = f" and {self.cluster.num_gpus:g} GPU" if self.cluster.num_gpus else ""
            raise InputError(
                f"No node of the Ray cluster has room for a worker, which takes {cores} cores{gpus}; `ray status` "
                "tells what there is."
            )
        for _ in range(wanted - len(self.workers)):
            kind = self.ray.remote(_Worker)
            how = {"num_cpus": cores, "num_gpus": self.cluster.num_gpus, "scheduling_strategy": "SPREAD"}
            worker = kind.options(**how, max_restarts=0).remote(os.getcwd(), cores)
            self.workers.append(worker)
            self.running[worker.begin.remote(self.prepare)] = _Job(worker)

    def wait(self) -> int | None:
        """Look what has ended, and give its worker another job; return the job that ended for good, if there is one."""
        ended, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS) if self.running else ([], [])
        if not ended:
            time.sleep(0 if self.running else POLL_SECONDS)
            return None
        job = self.running.pop(ended[0])
        try:
            result = self.ray.get(ended[0])
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except self.ray.exceptions.RayError as error:
            self._bury(job, error)
            return job.number if job.number in self.lost else None
        if job.number is not None:
            self.results[job.number] = result
        if self.queue:
            number = self.queue.popleft()
            self.running[job.worker.do.remote(number)] = _Job(job.worker, number)
        else:
            self.workers.remove(job.worker)
            self.ray.kill(job.worker)
        return job.number

    def _at_work(self) -> Iterator[bool]:
        """Say of each worker whether it does a job, and so has begun."""
        return (job.number is not None for job in self.running.values())

    def end(self) -> None:
        """End the workers that are left."""
        for worker in self.workers:
            self.ray.kill(worker)

    def _bury(self, job: _Job, error: Exception) -> None:
        """Let the job of a dead worker be done again, unless it died too often."""
        self.workers.remove(job.worker)
        with suppress(Exception):  # it may live on, out of reach
            self.ray.kill(job.worker)
        self.tries[job.number] += 1
        why, tries = _first_line(error), self.tries[job.number]
        if job.number is None:
            if tries >= self.cluster.num_tries and not self.workers:
                raise InputError(f"No worker could begin on the Ray cluster, in {tries} tries: {why}")
            return
        name = self.names[job.number]
        if tries < self.cluster.num_tries:
            note(f"{name}: its worker died, it is begun anew ({why})")
            self.queue.append(job.number)
        else:
            self.lost[job.number] = f"its worker died {tries} times: {why}"

    def _room(self) -> tuple[int, int]:
        """Return the cores of a worker, and how many workers there is room for."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        cores = max(1, min([self.cluster.num_cpus, int(max((node.get("CPU", 0) for node in nodes), default=0))]))
        of_node = [int(node.get("CPU", 0)) // cores for node in nodes]
        if gpus := self.cluster.num_gpus:
            of_node = [min(n, int(node.get("GPU", 0) / gpus)) for n, node in zip(of_node, nodes, strict=True)]
        return cores, sum(of_node)


@contextmanager
def _joined(cluster: RayCluster) -> Iterator[Any]:
    """Join a cluster, or start one here; yield the module of Ray. A process that has joined one already stays there."""
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        for key, value in {**ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
            os.environ.setdefault(key, value)
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise NotInstalledError("--ray needs Ray, which is not installed: pip install 'cuao3d[cluster]'") from None
    if ray.is_initialized():
        yield ray
        return
    how: dict[str, Any] = {"address": address}
    if address == "local":
        how |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "object_store_memory": OBJECT_STORE}
    elif address != "auto":
        _check_answers(address)
    try:
        ray.init(**how, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _cannot_be_joined(address, _first_line(error)) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise InputError unless something answers at an address."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+?)\]?:([0-9]{1,5})", address)
    if found is None:
        raise InputError(f"--ray is {address!r}; expected HOST:PORT, ray://HOST:PORT, auto or nothing.")
    try:
        with socket.create_connection((found[1], int(found[2])), ANSWER_SECONDS):
            pass
    except (OSError, OverflowError) as error:
        raise _cannot_be_joined(address, str(error)) from None


def _cannot_be_joined(address: str, why: str) -> InputError:
    return InputError(
        f"The Ray cluster at {address} cannot be joined: {why}. See that it runs (`ray status`), or "
        "leave the address out to start Ray on this machine."
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
