# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Work: what is finished of a map, so that a later run or another process goes on from there."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from .tiling import Strip


class WorkFolder:
    """A hidden folder beside the output that holds its finished strips.

    Its name holds a digest of everything that the strips depend on, so another checkpoint
    or another area never mixes with what is there.

    Args:
        output: The file that is to be.
        key: What the strips depend on, in plain types.
    """

    def __init__(self, output: Path, key: Mapping[str, Any]) -> None:
        self.output, self.key = output, dict(key)
        text = json.dumps(self.key, sort_keys=True)
        self.path = output.parent / f'.{output.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}'
        self._lock = FileLock(self.path / 'lock')

    def open(self, claim: bool) -> None:
        """Make the folder, and claim it for this run if this is its first process.

        Args:
            claim: Whether to refuse if another run works in it.

        Raises:
            RuntimeError: If another run does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not claim:
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f'{self.output} is being predicted by another run, which works in {self.path}: '
                'expected to be the only one, or another output'
            ) from None
        self._write('manifest.json', lambda path: path.write_text(json.dumps(self.key, indent=1)))

    def done(self) -> set[Strip]:
        """The strips that are finished."""
        found = (path.stem.split('-') for path in self.path.glob('*-*.npz'))
        return {Strip(int(band), int(row)) for band, row in found}

    def save(self, strip: Strip, bands: NDArray[Any]) -> None:
        """Keep a finished strip, ``(bands, rows, columns)``.

        A process that repeats a strip, for want of another, may come when the map is finished
        and the folder gone: then there is nothing to keep.
        """
        try:
            self._write(_name(strip), lambda path: _compress(path, bands))
        except FileNotFoundError:
            if self.path.exists():
                raise

    def load(self, strip: Strip) -> NDArray[Any]:
        """A finished strip.

        Raises:
            ValueError: If its file is broken.
        """
        path = self.path / _name(strip)
        try:
            with np.load(path) as file:
                return file['bands']
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f'{path} cannot be read ({error}), expected a finished strip: remove it') from error

    def temporary(self, name: str) -> Path:
        """A place for a file that is not yet whole, on the file system of the output."""
        path = self.path / name
        path.unlink(missing_ok=True)
        return path

    def close(self, finished: bool = False) -> None:
        """Let go of the folder, and remove it if it is no longer needed."""
        self._lock.release()
        if finished:
            shutil.rmtree(self.path, ignore_errors=True)

    def others(self) -> list[Path]:
        """Folders that unfinished runs with other arguments left for the same output."""
        return sorted(path for path in self.output.parent.glob(f'.{escape(self.output.name)}.*') if path != self.path)

    def _write(self, name: str, write: Any) -> None:
        """Have a file written under another name, which is then its own."""
        part = self.path / f'{name}.{os.getpid()}.part'
        write(part)
        part.replace(self.path / name)


def digest_state(state: Mapping[str, Any]) -> str:
    """SHA-256 of the tensors of a model."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        if hasattr(tensor, 'detach'):
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def _name(strip: Strip) -> str:
    """File of a strip."""
    return f'{strip.band:04d}-{strip.row:06d}.npz'


def _compress(path: Path, bands: NDArray[Any]) -> None:
    """Write an archive as numpy does, but packed in a fifth of the time."""
    packed = zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed as archive, archive.open('bands.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array(file, bands, allow_pickle=False)
