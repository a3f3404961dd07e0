# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Published weights of U-TAE: download, verification and conversion."""

import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from torch import Tensor, nn
from torchvision.models._api import Weights, WeightsEnum

from ...utils.atomic import atomic_file, cache_folder
from .bands import add_missing
from .published import UTAE_NAMES, renamed
from .registry import register_encoder
from .series.temporal import SinusoidDates
from .series.utae import UTAE, UTAEEncoder

#: Zenodo record of the weights, with the names and MD5 sums of its files.
RECORD = 'https://zenodo.org/api/records/5172293'
#: Maximum size in bytes, more than a million parameters and the optimizer state need.
_MOST_BYTES = 2**28


def _pastis(fold: int) -> Weights:
    return Weights(
        url=RECORD,
        transforms=nn.Identity,
        meta={
            'dataset': 'PASTIS',
            'fold': fold,
            'model': 'U-TAE',
            'publication': 'https://arxiv.org/abs/2107.07933',
            'repo': 'https://github.com/VSainteuf/utae-paps',
            'bands': ['B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12'],
            'num_classes': 20,
            'member': f'Fold_{fold}/model.pth.tar',
        },
    )


class UTAE_Weights(WeightsEnum):
    """U-TAE weights trained on each fold of PASTIS (Zenodo record 5172293).

    Folds are as in ``PASTISMultimodalDataModule``: ``PASTIS_FOLD1`` was trained on folds 1, 2
    and 3 and validated on 4; test it on 5. The bands are those of Sentinel-2 in
    ``meta['bands']``, standardised with their mean and standard deviation.

    The names and MD5 sums of the files are read from the record. To pin a file, call
    ``UTAE_Weights.PASTIS_FOLD1.get_state_dict(md5='...')``.
    """

    PASTIS_FOLD1 = _pastis(1)
    PASTIS_FOLD2 = _pastis(2)
    PASTIS_FOLD3 = _pastis(3)
    PASTIS_FOLD4 = _pastis(4)
    PASTIS_FOLD5 = _pastis(5)

    def get_state_dict(
        self, progress: bool = True, check_hash: bool = True, weights_only: bool = True, md5: str | None = None
    ) -> dict[str, Tensor]:
        """Download the weights and return the parameters under their published names.

        The file and its record are cached in the folder of :func:`torch.hub.get_dir`. The
        archive is not unpacked to disk.

        Args:
            progress: Whether to show the progress of a download.
            check_hash: Whether to compare the file with the MD5 of the record.
            weights_only: Must be True: only tensors and plain types are read.
            md5: Expected MD5 of the file; defaults to that of the record.

        Raises:
            ValueError: If *weights_only* is False, or the record or the file is invalid.
            RuntimeError: If the file has another MD5; it is deleted.
            OSError: If the record cannot be reached.
        """
        if not weights_only:
            raise ValueError('weights_only is False, expected True: a pickle may hold any code')
        folder = cache_folder() / 'checkpoints' / 'utae_pastis'
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / '.download.lock') if os.access(folder, os.W_OK) else nullcontext()
        with lock:
            files = _files(folder, self.url)
        for file in files:
            path, stated = folder / file['key'], file['checksum'].removeprefix('md5:')
            with lock:  # one process downloads and verifies, the others wait
                if not path.exists():
                    with atomic_file(path) as temporary:
                        torch.hub.download_url_to_file(file['links']['self'], str(temporary), progress=progress)
                _check(path, md5 or (stated if check_hash else None))
            member = _member(path, self.meta['member'])
            if member is not None:
                return read_published(member, f'{self.meta["member"]} of {path}')
        raise ValueError(f'the files of {self.url} hold no {self.meta["member"]}, expected it in a zip or tar archive')


def utae(weights: UTAE_Weights | str | None = None, **kwargs: Any) -> UTAE:
    """Build a U-TAE, which returns logits ``(B, K, H, W)``; it has 20 classes by default.

    Without weights it uses GroupNorm, so that neither padding nor other samples of the
    batch affect training. With weights it is the published model with BatchNorm, in
    evaluation mode (see :class:`UTAE`).

    Args:
        weights: Published weights, their name such as ``'PASTIS_FOLD1'``, or their file.
        **kwargs: Arguments of :class:`UTAE`; with weights, only *reference_date*.

    Raises:
        ValueError: If the weights are unknown or do not fit.
    """
    if weights is None:
        return UTAE(**kwargs)
    if unfit := sorted(set(kwargs) - {'reference_date'}):
        raise ValueError(f'published weights are those of one model, got {unfit} beside them; expected none')
    return UTAE.from_published(published(weights), **kwargs)


def published(weights: UTAE_Weights | str) -> dict[str, Tensor]:
    """Return parameters under their published names, from weights, their name or a file."""
    if isinstance(weights, str) and (path := Path(weights).expanduser()).is_file():
        return read_published(path, weights)
    try:
        chosen: UTAE_Weights = UTAE_Weights.verify(weights)
    except KeyError:
        names = [str(known) for known in UTAE_Weights.__members__.values()]
        raise ValueError(f'weights are {weights!r}, expected a file or one of {names}') from None
    return chosen.get_state_dict(progress=True, check_hash=True, weights_only=True)


class FrozenBatchNorm(nn.BatchNorm1d):
    """BatchNorm with the statistics of the weights; its scale and offset are trained."""

    def train(self, mode: bool = True) -> 'FrozenBatchNorm':
        """Stay in evaluation mode."""
        super().train(False)
        return self


@register_encoder('utae_published', temporal=True)
def published_encoder(in_channels: int = 10) -> UTAEEncoder:
    """Build the encoder of the published U-TAE with frozen BatchNorm, for :func:`load_encoder`."""
    dates = SinusoidDates(256, 16, 1000)
    encoder = UTAEEncoder(in_channels, dim=256, dates=dates, padding_mode='reflect', batch_norm=True)
    layer: Any = encoder.temporal.mlp[0]
    layer[1] = FrozenBatchNorm(layer[1].num_features).eval()
    return encoder


def load_encoder(encoder: nn.Module, weights: UTAE_Weights | str | Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Initialise a U-TAE encoder from the published model.

    All parameters fit :func:`published_encoder`. The default encoder takes the convolutions
    and the attention if *widths* are the published (64, 64, 64, 128), but not the date
    encoding and the norm after the attention.

    Args:
        encoder: :class:`UTAEEncoder`, or a module that contains one; modified in place.
        weights: See :func:`utae`; or the parameters under their published names.

    Returns:
        Names of the tensors that are ``'loaded'``, ``'new'`` and ``'ignored'``.

    Raises:
        ValueError: If the encoder does not exist, or its bands or widths differ.
    """
    target = next((module for module in encoder.modules() if isinstance(module, UTAEEncoder)), None)
    if target is None:
        raise ValueError(f'{type(encoder).__name__} holds no U-TAE encoder, expected one to initialise')
    state = weights if isinstance(weights, Mapping) else published(weights)
    prefix = 'encoder.'
    found = {k.removeprefix(prefix): v for k, v in renamed(state, UTAE_NAMES).items() if k.startswith(prefix)}
    own = target.state_dict()
    found = add_missing(found, own)
    norm = 'temporal.mlp.0.1.'
    if norm + 'running_mean' not in own:  # the scale of a BatchNorm does not fit a LayerNorm
        found = {key: value for key, value in found.items() if not key.startswith(norm)}
    for key in found.keys() & own.keys():
        if found[key].shape != own[key].shape:
            here, there = tuple(own[key].shape), tuple(found[key].shape)
            raise ValueError(
                f'{key} of the encoder is {here}, expected {there} as published: '
                f'{found["in_conv.0.0.weight"].shape[1]} bands and widths (64, 64, 64, 128)'
            )
    loaded = [key for key in own if key in found]
    target.load_state_dict({key: found[key] for key in loaded}, strict=False)
    ignored = [key for key in found if key not in own] + [k for k in state if not k.startswith(('in_', 'down', 'temp'))]
    return {'loaded': loaded, 'new': [key for key in own if key not in found], 'ignored': ignored}


def read_published(file: Path | io.BytesIO, name: str) -> dict[str, Tensor]:
    """Return the parameters in a file of the published code.

    Args:
        file: File with a ``state_dict``.
        name: Name of the file in errors.

    Raises:
        ValueError: If it holds anything but tensors and plain types, or no ``state_dict``.
    """
    try:
        content = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'{name} cannot be read by torch.load(weights_only=True): {reason}') from error
    state = content.get('state_dict') if isinstance(content, dict) else None
    if not isinstance(state, dict) or 'in_conv.conv.conv.0.weight' not in state:
        raise ValueError(f"{name} holds no state_dict of U-TAE, expected names such as 'in_conv.conv.conv.0.weight'")
    return state


def _files(folder: Path, url: str) -> list[dict[str, Any]]:
    """Return the files of the record, which is cached in *folder*."""
    kept = folder / 'record.json'
    known = kept.is_file()
    if known:
        text = kept.read_bytes()
    else:
        request = Request(url, headers={'Accept': 'application/json', 'User-Agent': 'torchgeo_omnisat'})
        with urlopen(request, timeout=60) as response:
            text = response.read(2**20)
    try:
        files = [f for f in json.loads(text)['files'] if f['key'].endswith(('.zip', '.tar', '.tar.gz', '.tgz'))]
        for file in files:
            if not re.fullmatch(r'md5:[0-9a-f]{32}', file['checksum']) or not re.fullmatch(r'[\w.-]+', file['key']):
                raise ValueError(f'{file["key"]!r} has the checksum {file["checksum"]!r}, expected md5')
            if not isinstance(file['links']['self'], str):
                raise TypeError(f'{file["key"]!r} has no link')
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{url} gave {text[:80]!r} ..., expected a record with key, checksum and link: {error}'
        ) from error
    if not known:
        with atomic_file(kept) as temporary:
            temporary.write_bytes(text)
    return files


def _check(path: Path, md5: str | None) -> None:
    if md5 is None:
        return
    with path.open('rb') as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        path.unlink()
        raise RuntimeError(f'{path} has the MD5 {found}, expected {md5}; it was deleted')


def _member(path: Path, member: str) -> io.BytesIO | None:
    """Read the file of an archive whose path ends with *member*; None if there is none."""
    pattern = re.compile(rf'(.*/)?{re.escape(member)}')
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if pattern.fullmatch(info.filename) and info.file_size <= _MOST_BYTES:
                    return io.BytesIO(archive.read(info))
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            for entry in tar:
                held = tar.extractfile(entry) if pattern.fullmatch(entry.name) and entry.size <= _MOST_BYTES else None
                if held is not None:
                    return io.BytesIO(held.read())
    return None
