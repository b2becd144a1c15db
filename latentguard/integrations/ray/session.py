"""Being connected to a Ray: one of our own, that nobody else can reach, or a cluster by its address."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from latentguard.errors import DataError, MissingDependencyError

# Ray has no other way to listen on the loopback address alone; without it,
# anybody on the network could reach the ports of a Ray on this machine.
_LOOPBACK_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_OBJECT_STORE_BYTES = 2**28
_MOST_STORE_BYTES_A_WORKER = 2**27
_SECONDS_TO_ANSWER = 10.0


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[None]:
    """Connects to the cluster at ``address``; without one, starts a Ray on this machine, with a core for each worker.

    A Ray of our own listens on the loopback address alone, asks for a token that is made anew, sends no usage
    statistics, and ends with the block. If the process is connected already, that connection is used and stays.

    Raises:
        MissingDependencyError: Ray isn't installed.
        DataError: there is no such cluster, its address is one of Ray Client's, or a Ray of our own would be open to
            the network.
    """
    if address is not None:
        _check_address(address)
    elif "ray" not in sys.modules:
        _close_to_others()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is raised as an exception as well
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError("the engine ray needs Ray: pip install 'latentguard[ray]'") from error
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        if address is None:
            _start(workers)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "a Ray on this machine" if address is None else f"the Ray cluster {address}"
        raise DataError(f"{where} can't be used: {' '.join(str(error).split())[:300]}") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.data\.")  # on tuning Ray Data
            yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    if "://" in address:
        raise DataError(
            f"the Ray cluster {address} can't be used: through Ray Client, files of this machine can't be read; "
            "give its address as HOST:PORT, or auto, on a machine that belongs to it"
        )
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    # Ray itself would try for minutes.
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise DataError(f"the Ray cluster {address} can't be used: {error}") from error


def _close_to_others() -> None:
    """Sets what Ray reads when it is imported."""
    os.environ.update(_LOOPBACK_ALONE)
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start(workers: int) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES + workers * _MOST_STORE_BYTES_A_WORKER,
    )
    if not ip_address(ray.util.get_node_ip_address()).is_loopback:
        ray.shutdown()
        raise RuntimeError("it would listen on the network; Ray was imported before, so start it yourself (ray.init)")
