"""Work in several processes of this machine, or on a cluster by Ray. The results do not depend on who does it.

`Pool.submit` begins a job, `in_order` gives the results of many in the order of the jobs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, Protocol, TypeVar

from mega_model.core.errors import InputError
from mega_model.core.workers import watch_parent

from ..ros.signals import ended_as_by_ctrl_c

Engine = Literal["local", "ray"]
ATTEMPTS = 3
"""How often a job is begun whose worker dies."""
PREFETCH = 2
"""Jobs per worker that are submitted before the first result is needed."""

Item = TypeVar("Item")
Job = TypeVar("Job")
Result = TypeVar("Result")


class Pool(Protocol):
    """Workers."""

    size: int
    """How many there are."""
    prefetch: int
    """How many jobs to submit before the first result is needed, if there are more than can be held at once."""

    def submit(self, work: Callable[[Job], Result], job: Job) -> Callable[[], Result | None]:
        """Begins a job. What is returned gives its result: None if the worker died `ATTEMPTS` times.

        `work` is a function of a module. What it raises is raised when the result is asked for.
        """
        ...


def in_order(
    pool: Pool, work: Callable[[Job], Result], jobs: Iterable[tuple[Item, Job]], prefetch: int | None = None
) -> Iterator[tuple[Item, Result | None]]:
    """Items with the results of their jobs, in the order of the jobs; see `Pool.submit`.

    prefetch: how many jobs are submitted before the first result is given, by default `pool.prefetch`.
    """
    waiting: deque[tuple[Item, Callable[[], Result | None]]] = deque()
    prefetch = pool.prefetch if prefetch is None else prefetch
    for item, job in jobs:
        waiting.append((item, pool.submit(work, job)))
        if len(waiting) > prefetch:
            first, result = waiting.popleft()
            yield first, result()
    for item, result in waiting:
        yield item, result()


class Here:
    """This process, which does each job when its result is needed."""

    size, prefetch = 1, 0

    def submit(self, work: Callable[[Job], Result], job: Job) -> Callable[[], Result | None]:
        return partial(work, job)


HERE = Here()


@contextmanager
def open_pool(engine: Engine, workers: int) -> Iterator[Pool]:
    """workers: processes of this machine; Ray uses the CPUs that it has."""
    if engine == "ray":
        with _ray() as pool:
            yield pool
    elif workers == 1:
        yield HERE
    else:
        processes = _Processes(workers)
        try:
            yield processes
        except BaseException:
            processes.interrupt()
            raise
        finally:
            processes.close()


class _Processes:
    """Pools of one process each, so that a death names its job. They are not forked: that is unsafe with threads."""

    def __init__(self, size: int) -> None:
        self.size, self.prefetch = size, PREFETCH * size
        self._context = multiprocessing.get_context("spawn")
        # A terminal sends Ctrl-C to the workers, too, but only this process interrupts them: two signals would
        # interrupt their cleaning up. These threads start them, and a process begins with its thread's signal mask.
        without_ctrl_c = signal.SIG_BLOCK, {signal.SIGINT}
        self._threads = ThreadPoolExecutor(size, initializer=signal.pthread_sigmask, initargs=without_ctrl_c)
        self._interrupted = False
        self._idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        for _ in range(size):
            self._idle.put(self._process())

    def submit(self, work: Callable[[Job], Result], job: Job) -> Callable[[], Result | None]:
        return self._threads.submit(self._attempt, work, job).result

    def _attempt(self, work: Callable[[Job], Result], job: Job) -> Result | None:
        process = self._idle.get()
        try:
            for _ in range(ATTEMPTS):
                if self._interrupted:
                    break
                try:
                    return process.submit(_interruptible, work, job).result()
                except BrokenProcessPool:
                    process.shutdown()
                    process = self._process()
            return None
        finally:
            self._idle.put(process)

    def _process(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self._context, watch_parent)

    def interrupt(self) -> None:
        """End the jobs, after an error or a signal: a job may be a long input."""
        self._interrupted = True
        for child in multiprocessing.active_children():
            child.terminate()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().shutdown()


def _interruptible(work: Callable[[Job], Result], job: Job) -> Result:
    """In a worker: SIGTERM raises KeyboardInterrupt, so that a job leaves nothing unfinished."""
    with ended_as_by_ctrl_c():
        return work(job)


@contextmanager
def _ray() -> Iterator[Pool]:
    """The cluster of RAY_ADDRESS, the one that was started on this machine, or one of its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds: no such cluster, no room, too slow
        raise InputError(f"--engine ray: Ray does not start: {' '.join(str(error).split())[:200]}") from error
    try:
        yield _Cluster(ray)
    finally:
        ray.shutdown()


class _Cluster:
    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._tasks: dict[Any, Any] = {}
        self.size = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.prefetch = PREFETCH * self.size

    def submit(self, work: Callable[[Job], Result], job: Job) -> Callable[[], Result | None]:
        if work not in self._tasks:
            self._tasks[work] = self._ray.remote(max_retries=ATTEMPTS - 1)(work)
        return partial(self._result, self._tasks[work].remote(job))

    def _result(self, task: Any) -> Any:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError:  # what `work` raised
            raise
        except self._ray.exceptions.RayError:  # the worker or its machine died, or lacked memory
            return None
