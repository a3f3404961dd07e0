# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Fresh interpreters at the price of a fork: they have imported the libraries below, and nothing of TorchGeo or ours.

PyTorch has called our entry point, as it does at the end of every ``import torch``.
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

LIBRARIES = ('torch', 'lightning.pytorch.cli', 'torchvision', 'kornia.augmentation', 'rasterio', 'geopandas', 'timm')


class Interpreters:
    """A process that forks itself for every program that it is to run; :meth:`close` ends it."""

    def __init__(self) -> None:
        code = 'from tests.interpreters import serve; serve()'
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
        words = [sys.executable, '-c', code]
        pipes: Any = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        self._process = subprocess.Popen(words, env=environment, text=True, **pipes)

    def run(
        self, folder: Path, words: Sequence[str] = (), code: str = '', environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end.

        Args:
            folder: Its working directory.
            words: A script and its arguments, or ``-m``, a module and its arguments.
            code: Python code to run instead.
            environment: Variables that it has beside those of the tests.
        """
        request = {'folder': str(folder), 'words': list(words), 'code': code, 'environment': dict(environment or {})}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        out, err = ((folder / name).read_text() for name in ('stdout.txt', 'stderr.txt'))
        return subprocess.CompletedProcess(list(words), status, out, err)

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """Run what is requested, a line each, and print the exit statuses."""
    for name in LIBRARIES:
        import_module(name)
    assert not [name for name in sys.modules if name.partition('.')[0] == 'torchgeo']
    answers, requests = os.fdopen(os.dup(1), 'w'), os.fdopen(os.dup(0))
    for line in requests:
        child = os.fork()
        if not child:
            _execute(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _execute(folder: str, words: list[str], code: str, environment: dict[str, str]) -> None:
    """Run a program in this process, which ends with it."""
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in enumerate((os.devnull, 'stdout.txt', 'stderr.txt')):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    status: Any = 0
    try:
        if code:
            exec(code, {'__name__': '__main__'})
        elif words[0] == '-m':
            sys.argv = ['-m', *words[2:]]
            runpy.run_module(words[1], run_name='__main__', alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name='__main__')
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status or 0)
