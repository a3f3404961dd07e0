# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Processes that may be killed, or be two: forks of the tests' process as it was before the first test.

An import of torch and TorchGeo takes ten seconds, a fork none. What is forked has no threads and no sockets
forbidden, whatever the tests have done to their own process since.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

_FORK = multiprocessing.get_context('fork')
#: Connections to the process that forks itself, at most one.
_servers: list[Connection] = []


def start_server() -> None:
    """Fork this process, before it runs a test, into one that forks itself for each call of :func:`run`.

    It ends with this process.
    """
    if not _servers:
        ours, theirs = multiprocessing.Pipe()
        if not os.fork():
            try:
                ours.close()
                _serve(theirs)
            finally:
                os._exit(0)
        theirs.close()
        _servers.append(ours)


def run(folder: Path, target: Callable[..., object], *args: Any, timeout: float = 600) -> int:
    """Call a function of a module in a separate process.

    Args:
        folder: Where its error goes, to ``error.txt``.
        target: The function.
        *args: Its arguments.
        timeout: Seconds after which it and what it started are ended.

    Returns:
        The exit status; that of a process ended by a signal is negative.
    """
    (server,) = _servers
    server.send((folder, target, *args))
    pid = server.recv()
    ended = server.poll(timeout)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # also what it left behind
    status: int = server.recv()
    return status if ended else -signal.SIGALRM


def succeed(folder: Path, target: Callable[..., object], *args: Any, timeout: float = 600) -> None:
    """Call a function as :func:`run` does; it must end without an error."""
    status = run(folder, target, *args, timeout=timeout)
    assert status == 0, (status, *(path.read_text() for path in folder.glob('error.txt')))


def call_unchecked(module: str, function: str = 'main', *args: Any) -> None:
    """Import a module again without the shape checks of the tests, and call one of its functions."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith('jaxtyping')]
    for name in [name for name in sys.modules if name.partition('.')[0] in ('torchgeo_omnisat', 'tests')]:
        del sys.modules[name]
    getattr(import_module(module), function)(*args)


def _serve(connection: Connection) -> None:
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        process = _FORK.Process(target=_call, args=request)
        process.start()
        connection.send(process.pid)
        process.join()
        connection.send(process.exitcode)


def _call(folder: Path, target: Callable[..., object], *args: Any) -> None:
    os.setsid()
    torch.set_num_threads(1)
    try:
        assert not torch.cuda._is_in_bad_fork(), 'an imported module looks for a GPU: mark its tests gpu instead'
        target(*args)
    except BaseException:
        (folder / 'error.txt').write_text(traceback.format_exc())
        raise
