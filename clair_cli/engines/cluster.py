"""An ordered map over a Ray cluster: every job is a task, and a lost one is run again elsewhere."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, TypeVar

from clair_cli._version import __version__
from clair_cli.errors import NoVerdict, UsageError, in_one_line
from clair_cli.here import call_machine

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Tasks per processor of the cluster that are begun or done before their results are asked for."""
RETRIES = 3
"""How often a task is begun again whose worker or machine was lost."""
TICK = 0.1
"""Seconds between two chances to answer a signal."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
MISSING = "needs the library Ray; install clair-cli[ray]"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray reports its use to its makers unless told not to
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
CLUSTER = "RAY_ADDRESS"
"""The variable in which Ray looks for the address of a cluster."""


class RayEngine:
    """Tasks of a cluster, each on one processor; at most AHEAD of them per processor are on the way.

    The cluster is the one that RAY_ADDRESS names, else one that runs on this machine, else one that
    is started here and ends with this process.
    """

    def map(
        self,
        job: Callable[[Item], Result],
        items: Iterable[Item],
        at: Callable[[Item], str] | None = None,
    ) -> Iterator[Result]:
        """Items are asked for as there is room. `at` names the machine that an item had better run on.

        Raises what a job raises, UsageError where there is no cluster that can run clair, and NoVerdict
        where a task was lost too often.
        """
        ray = connected()
        held, run = ray.put(job), ray.remote(_run)
        most = max(int(AHEAD * ray.cluster_resources().get("CPU", 1)), AHEAD)
        on_the_way: deque[Any] = deque()
        left = iter(items)
        try:
            while True:
                for item in islice(left, most - len(on_the_way)):
                    task = run.options(**_options(ray, at(item) if at else ""))
                    on_the_way.append(task.remote(__version__, [held], item))
                if not on_the_way:
                    return
                yield _result(ray, on_the_way.popleft())
        finally:
            for task in on_the_way:
                with suppress(Exception):
                    ray.cancel(task, force=False)

    def everywhere(self, job: Callable[[], object], seconds: float = 10.0) -> None:
        """Run the job once on every machine, as far as it is done in time."""
        ray = connected()
        run = ray.remote(_once)
        tasks = [
            run.options(**(_options(ray, node["NodeID"], soft=False) | {"num_cpus": 0})).remote(job)
            for node in ray.nodes()
            if node["Alive"]
        ]
        ray.wait(tasks, num_returns=len(tasks), timeout=seconds)


def _options(ray: Any, machine: str, soft: bool = True) -> dict[str, Any]:
    where: Any = "SPREAD"
    if machine:
        kind = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        where = kind(node_id=machine, soft=soft)
    return {"num_cpus": 1, "max_retries": RETRIES, "scheduling_strategy": where}


def connected() -> Any:
    """The library, connected to a cluster. Raises UsageError where it is not there, or no cluster is."""
    os.environ |= {name: os.environ.get(name, value) for name, value in QUIET.items()}
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise UsageError(f"--engine ray: {MISSING}") from None
    if not ray.is_initialized():
        if os.environ.get(CLUSTER, "").startswith("ray://"):
            text = "is a client's address; run clair on a machine of the cluster, or as a Ray job"
            raise UsageError(f"--engine ray: {CLUSTER} {text}")
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        try:
            with _own_signals():
                ray.init(
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    configure_logging=False,
                )
        except Exception as error:
            text = f"no cluster: {in_one_line(error)}; see {CLUSTER}"
            raise UsageError(f"--engine ray: {text}") from None
        # lost tasks are told of on stdout, which no setting changes
        ray._private.worker.print_to_stdstream = _unsaid
    call_machine(ray.get_runtime_context().get_node_id())
    return ray


def _unsaid(*_: object, **__: object) -> None:
    """What Ray would print: what matters of it is raised."""


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts its own answer to signals in place of ours; ours come back when the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit:  # Ray's answer to SIGTERM
        if callable(answer := ours[signal.SIGTERM]):
            answer(signal.SIGTERM, None)
        raise
    finally:
        for number, answer in ours.items():
            signal.signal(number, answer)


# --- on a worker

_jobs: dict[str, Callable[[Any], Any]] = {}
"""The job of the map that this process works for. What all items share is unpacked once."""


def _run(version: str, held: list[Any], item: Any) -> tuple[Any, Exception | None]:
    """What the job makes of the item, or what it raises."""
    import ray

    if version != __version__:
        text = f"a worker has clair {__version__}, and {version} is needed"
        return None, UsageError(f"--engine ray: {text}; install the same on every machine")
    call_machine(ray.get_runtime_context().get_node_id())
    key = held[0].hex()
    if key not in _jobs:
        _jobs.clear()
        _jobs[key] = ray.get(held[0])
    try:
        return _jobs[key](item), None
    except Exception as error:
        return None, error


def _once(job: Callable[[], object]) -> None:
    job()


# --- here again


def _result(ray: Any, task: Any) -> Any:
    try:
        while not ray.wait([task], timeout=TICK)[0]:
            pass  # Python answers signals here
        result, error = ray.get(task)
    except SystemError as error:  # what answers a signal, raised within Ray's compiled code
        raise (error.__cause__ or error) from None
    except ray.exceptions.RayTaskError as failure:
        text = f"a worker cannot run clair: {in_one_line(failure.cause or failure)}"
        remedy = "install clair-cli[ray] of this version on every machine"
        raise UsageError(f"--engine ray: {text}; {remedy}") from None
    except ray.exceptions.RayError as failure:
        text = f"a task was lost {RETRIES + 1} times: {in_one_line(failure)}"
        raise NoVerdict(f"--engine ray: {text}; run again") from None
    if error is not None:
        raise error
    return result
