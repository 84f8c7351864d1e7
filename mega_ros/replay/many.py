"""One function over many inputs, in several processes of this machine or on a cluster by Ray.

Each input is computed by itself, in one process, so results do not depend on the number of workers.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from queue import SimpleQueue
from typing import Literal, TypeVar

from mega_model.core.errors import InputError

Engine = Literal["local", "ray"]
ATTEMPTS = 3
"""How often an input is begun whose worker dies."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def run(
    work: Callable[[Job], Result], jobs: Sequence[Job], engine: Engine, workers: int
) -> Iterator[tuple[Job, Result | None]]:
    """Jobs with their results, in the order in which they end. None: the worker died `ATTEMPTS` times.

    `work` is a function of a module. workers: processes of this machine; Ray uses the CPUs that it has. What `work`
    raises is raised here.
    """
    if engine == "ray":
        yield from _on_ray(work, jobs)
    elif workers == 1:
        yield from ((job, work(job)) for job in jobs)
    else:
        yield from _in_processes(work, jobs, workers)


def _in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, Result | None]]:
    """Pools of one process each, so that a death names its job. They are not forked: that is unsafe with threads."""
    context = multiprocessing.get_context("spawn")
    pools: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
    for _ in range(workers):
        pools.put(ProcessPoolExecutor(1, context))

    def attempt(job: Job) -> Result | None:
        pool = pools.get()
        try:
            for _ in range(ATTEMPTS):
                try:
                    return pool.submit(work, job).result()
                except BrokenProcessPool:
                    pool.shutdown()
                    pool = ProcessPoolExecutor(1, context)
            return None
        finally:
            pools.put(pool)

    with ThreadPoolExecutor(workers) as threads:
        waiting = {threads.submit(attempt, job): job for job in jobs}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            threads.shutdown(cancel_futures=True)  # after an error, or Ctrl-C, which the workers get, too
            while not pools.empty():
                pools.get().shutdown()


def _on_ray(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | None]]:
    """On the cluster of RAY_ADDRESS, on the one that was started on this machine, or on one of its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds: no such cluster, no room, too slow
        raise InputError(f"--engine ray: Ray does not start: {' '.join(str(error).split())[:200]}") from error
    try:
        task = ray.remote(max_retries=ATTEMPTS - 1)(work)
        waiting = {task.remote(job): job for job in jobs}
        while waiting:
            (done,), _ = ray.wait([*waiting], num_returns=1)
            job = waiting.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError:  # what `work` raised
                raise
            except ray.exceptions.RayError:  # the worker or its machine died, or lacked memory
                result = None
            yield job, result
    finally:
        ray.shutdown()
