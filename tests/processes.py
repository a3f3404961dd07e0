# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Processes that may be killed, or be two: forks of one that has imported everything and done nothing.

An import of torch and TorchGeo takes ten seconds, a fork none. What is forked has no threads, no
sockets forbidden and no shapes checked, whatever the tests before did to their own process.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SERVER = multiprocessing.get_context('forkserver')
_SERVER.set_forkserver_preload(['torchgeo.main', 'torchgeo_omnisat.plugin', 'torchgeo_omnisat.evaluation'])


def run(folder: Path, target: Callable[..., object], *args: Any, timeout: float = 600) -> int:
    """Call a function of a module in a process of its own.

    Args:
        folder: Where its error goes, to ``error.txt``.
        target: The function.
        *args: What it is called with.
        timeout: Seconds after which it and what it started are ended.

    Returns:
        The exit status; that of a process ended by a signal is negative.
    """
    process = _SERVER.Process(target=_call, args=(folder, target, *args))
    process.start()
    process.join(timeout)
    with contextlib.suppress(ProcessLookupError, TypeError):
        os.killpg(process.pid, signal.SIGKILL)  # whatever it left behind, or itself
    process.join()
    return -signal.SIGALRM if process.exitcode is None else process.exitcode


def succeed(folder: Path, target: Callable[..., object], *args: Any, timeout: float = 600) -> None:
    """The same, which has to end well."""
    status = run(folder, target, *args, timeout=timeout)
    assert status == 0, (status, *(path.read_text() for path in folder.glob('error.txt')))


def _call(folder: Path, target: Callable[..., object], *args: Any) -> None:
    """Be the process."""
    os.setsid()
    torch.set_num_threads(1)
    if (base := sys.modules.get('torchgeo_omnisat.tasks.base')) is not None:
        base.OmniSatTask.allow_random = True  # as in the tests' own process, which draws no figures either
        sys.modules['torchgeo_omnisat.tasks.supervised'].SupervisedTask.figures = 0
    try:
        target(*args)
    except BaseException:
        (folder / 'error.txt').write_text(traceback.format_exc())
        raise
