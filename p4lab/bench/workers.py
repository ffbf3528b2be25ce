"""Calls that do not depend on one another, on the cores of this machine or on a Dask cluster.

`p4lab.bench.lanes` and `p4lab.experiments` train through it. joblib does the work on this machine. On a cluster it is
Dask's own client: joblib's backend of that name waits for ever for a call that Dask gives up, say because p4lab is not
installed where the worker runs, or because the worker dies whenever it tries.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from threading import RLock
from typing import Any

from p4lab.bench.timing import one_thread
from p4lab.errors import ConfigError
from p4lab.packages import require

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function, its arguments and its keywords: as ``joblib.delayed`` returns them."""
CLUSTER = "dask"
"""The name of the backend that is a cluster; all others are joblib's."""
_ONE_AT_A_TIME = RLock()


def parallel(
    calls: Iterable[Call],
    backend: str | None = None,
    n_jobs: int = -1,
    done: Callable[[int, Any], object] = lambda index, result: None,
) -> list[Any]:
    """Return the results of calls, in their order; each runs on one torch thread, and alone in its process.

    A call that was lost with its worker process is done again by another one if the backend is "dask"; joblib's own
    backends end with an error.

    Args:
        calls: from ``joblib.delayed``, or such tuples.
        backend: of joblib: None is its own (processes on this machine). "dask" is a cluster: that of the Client that
            there is, or else the one that Dask's setting ``scheduler-address`` names (the environment's
            ``DASK_SCHEDULER_ADDRESS``).
        n_jobs: calls at a time; -1 is one for each core, or as many as the cluster takes.
        done: called here with the place and the result of each call that ends, as soon as it does.

    Raises:
        ConfigError: joblib has no such backend, there is no cluster, or ``n_jobs`` is 0.
        MissingPackageError: joblib, or Dask, is not installed.
        Exception: whatever a call raises; with "dask" also ``distributed.KilledWorker`` if workers die of a call again
            and again.
    """
    if n_jobs == 0:
        raise ConfigError("n_jobs=0: expected a number of calls at a time, or -1 for one on each core")
    results = {}
    for index, result in (_by_dask if backend == CLUSTER else _by_joblib)(list(calls), backend, n_jobs):
        results[index] = result
        done(index, result)
    return [results[index] for index in range(len(results))]


def _by_joblib(calls: list[Call], backend: str | None, n_jobs: int) -> Iterator[tuple[int, Any]]:
    joblib = require("joblib", "lab")
    try:
        choice = joblib.parallel_config(backend=backend or "loky", n_jobs=n_jobs)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"backend={backend!r}: {error}") from error
    with choice:
        pool = joblib.Parallel(return_as="generator_unordered", batch_size=1)
    yield from pool(joblib.delayed(_alone)(index, call) for index, call in enumerate(calls))


def _by_dask(calls: list[Call], backend: str | None, n_jobs: int) -> Iterator[tuple[int, Any]]:
    distributed = require("distributed", "cluster")
    client = _client(distributed)
    waiting = enumerate(calls)

    def submit(number: int | None) -> list[Any]:
        return [client.submit(_alone, index, call, pure=False) for index, call in islice(waiting, number)]

    running = distributed.as_completed(submit(n_jobs if n_jobs > 0 else None))
    for future in running:
        result = future.result()
        future.release()  # a result that nobody waits for is not computed again when its worker dies
        running.update(submit(1))
        yield result


def _client(distributed: Any) -> Any:
    try:
        return distributed.Client.current()
    except ValueError as error:
        address = require("dask", "cluster").config.get("scheduler-address", None)
        if address is None:
            raise ConfigError(
                "backend='dask': there is no cluster. Make its client first, `client = distributed.Client(address)`, "
                "or name it in the environment, DASK_SCHEDULER_ADDRESS=tcp://host:8786"
            ) from error
    try:
        return distributed.Client(address)
    except (ValueError, OSError) as error:
        raise ConfigError(f"backend='dask': no cluster at {address}: {error}") from error


def _alone(index: int, call: Call) -> tuple[int, Any]:
    function, arguments, keywords = call
    # The threads of a process would share torch's random numbers, its number of threads, and the time.
    with _ONE_AT_A_TIME, one_thread():
        return index, function(*arguments, **keywords)
