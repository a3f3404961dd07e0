# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Predictions and embeddings of arrays in Python, without a datamodule or a trainer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ...batch import collate
from ...modality import Modality
from ...transforms import Normalize
from ...utils.plurals import counted
from ...utils.tensors.coordinates import COORDINATES
from ...utils.tensors.devices import movable
from ..checkpoints import read_checkpoint
from ..classification import OmniSatClassification
from ..regression import OmniSatRegression
from ..segmentation import OmniSatSegmentation
from ..supervised import SupervisedTask

#: Task of a checkpoint by a hyper-parameter that only this task has.
_TASKS: Mapping[str, type[SupervisedTask]] = {
    'label_names': OmniSatClassification,
    'target_mean': OmniSatRegression,
    'num_classes': OmniSatSegmentation,
}


class Predictor:
    """Trained model for single tiles as arrays, in the units of the training data.

    Images are normalised here, with the mean and standard deviation of the checkpoint. Do not normalise them before.

    Args:
        checkpoint: Checkpoint of a task for segmentation, classification or regression, or the task.
        device: Device of the model.

    Raises:
        ValueError: If the checkpoint is of another task, or has no mean and standard deviation, or several.
    """

    def __init__(self, checkpoint: str | Path | SupervisedTask, device: str | torch.device = 'cpu') -> None:
        self.task = checkpoint if isinstance(checkpoint, SupervisedTask) else _load(Path(checkpoint).expanduser())
        self.task.to(device).eval()
        self.device = torch.device(device)
        hparams = self.task.hparams
        if hparams['mean'] is None or hparams['std'] is None or hparams.get('sources'):
            raise ValueError(
                f'{checkpoint} has {"statistics of several sources" if hparams.get("sources") else "no mean and std"}, '
                'expected the mean and standard deviation of a training on one source'
            )
        self._normalise = Normalize(self.task.modalities.values(), hparams['mean'], hparams['std']).to(device)

    @property
    def modalities(self) -> dict[str, Modality]:
        """Modalities of the model by name: bands in the order of the channels, GSD, kind and unit."""
        return self.task.modalities

    @torch.inference_mode()
    def __call__(
        self,
        images: Mapping[str, Any],
        dates: Mapping[str, Any] | None = None,
        coordinates: Sequence[float] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Predict a tile.

        Args:
            images: Raw images of the same ground by name of the modality: ``(T, C, H, W)`` for a time series, else
                ``(C, H, W)``, each at its own GSD; NaN is nodata. Modalities may be missing. With the dimensions
                ``time``, ``band``, ``y`` and ``x``, the values may be ``xarray.DataArray``, also as the variables of
                an ``xarray.Dataset``; their dates are those of ``time``.
            dates: Acquisition dates of the time series: ``datetime64``, ISO dates, or days since 1970-01-01.
            coordinates: Longitude and latitude of the centre of the tile in degrees (WGS 84); None if unknown.

        Returns:
            ``probabilities`` ``(K, H, W)`` and ``classes`` ``(H, W)`` of a segmentation, ``probabilities`` ``(K,)`` of
            a classification, ``values`` ``(H, W)`` of a regression.

        Raises:
            ValueError: If a name, a shape, a date or a coordinate is wrong.
        """
        logits, _ = self.task.infer(self._batch(images, dates, coordinates))
        task = self.task
        if isinstance(task, OmniSatSegmentation):
            found = {'probabilities': task.without_ignored(logits).softmax(1), 'classes': task.classes(logits)}
        else:
            name = 'values' if isinstance(task, OmniSatRegression) else 'probabilities'
            found = {name: task.answer(logits)}
        return {name: value[0].cpu().numpy() for name, value in found.items()}

    @torch.inference_mode()
    def embed(
        self,
        images: Mapping[str, Any],
        dates: Mapping[str, Any] | None = None,
        coordinates: Sequence[float] | None = None,
    ) -> NDArray[Any]:
        """Return the fused embedding of each patch of a tile, ``(rows, columns, D)``; see :meth:`__call__`."""
        fused = self.task.model.backbone(self._batch(images, dates, coordinates)).fused[0]
        side = round(len(fused) ** 0.5)
        if side * side != len(fused):
            raise ValueError(f'the tile has {len(fused)} patches, expected a square tile')
        return fused.unflatten(0, (side, side)).cpu().numpy()

    def _batch(
        self, images: Mapping[str, Any], dates: Mapping[str, Any] | None, coordinates: Sequence[float] | None
    ) -> Sample:
        """Return the normalised batch of one sample."""
        names = [str(name) for name in getattr(images, 'data_vars', images)]
        unknown = [name for name in [*names, *(dates or {})] if name not in self.modalities]
        if unknown or not names:
            raise ValueError(f'images and dates are for {unknown or "no modality"}, expected {list(self.modalities)}')
        sample: dict[str, Tensor] = {}
        for name in names:
            modality, value = self.modalities[name], images[name]
            days = (dates or {}).get(name)
            if hasattr(value, 'dims'):
                order = ('time', 'band', 'y', 'x') if modality.temporal else ('band', 'y', 'x')
                if set(value.dims) != set(order):
                    raise ValueError(f'{name} has the dimensions {tuple(value.dims)}, expected {order}')
                days = value['time'].values if days is None and modality.temporal else days
                value = value.transpose(*order).values
            sample |= _entries(modality, np.asarray(value), days)
        if coordinates is not None:
            sample[COORDINATES] = torch.tensor(coordinates, dtype=torch.float64)
        batch = collate([sample], self.modalities)
        moved, kept = movable(batch, self.device)
        return self._normalise({key: value.to(self.device) for key, value in moved.items()} | kept)


def _entries(modality: Modality, image: NDArray[Any], dates: Any) -> dict[str, Tensor]:
    """Return the keys of a modality in a sample."""
    shape = '(T, C, H, W)' if modality.temporal else '(C, H, W)'
    bands = len(modality.bands)
    if image.ndim != 3 + modality.temporal or image.shape[-3] != bands:
        raise ValueError(
            f'{modality.name} has shape {image.shape}, expected {shape} with {counted(bands, "band")}: '
            f'{", ".join(modality.bands)}'
        )
    days = np.zeros(1, np.int64)
    if modality.temporal:
        days = _days(modality.name, dates)
        if days.shape != (len(image),):
            raise ValueError(f'dates of {modality.name} have shape {days.shape}, expected one per image, {len(image)}')
    return {
        modality.image_key: torch.from_numpy(image.astype(np.float32)),
        modality.dates_key: torch.from_numpy(days),
        modality.valid_key: torch.ones(len(days), dtype=torch.bool),
    }


def _days(name: str, dates: Any) -> NDArray[np.int64]:
    """Return days since 1970-01-01."""
    if dates is None:
        raise ValueError(f'dates of {name} are missing, expected one date per image of the time series')
    values = np.asarray(dates)
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int64)
    try:
        return values.astype('datetime64[D]').astype(np.int64)
    except (ValueError, TypeError) as error:
        raise ValueError(f'dates of {name} are {values.tolist()}, expected datetime64 or ISO dates: {error}') from error


def is_supervised(hparams: Mapping[str, Any]) -> bool:
    """Return whether the hyper-parameters are those of a task for :class:`Predictor`."""
    return any(name in hparams for name in _TASKS)


def _load(path: Path) -> SupervisedTask:
    _, hparams = read_checkpoint(path)
    kind: Any = next((kind for name, kind in _TASKS.items() if name in hparams), None)
    if kind is None:
        names = ' or '.join(kind.__name__ for kind in _TASKS.values())
        raise ValueError(f'{path} is not a checkpoint of {names}')
    task: SupervisedTask = kind.load_from_checkpoint(path, map_location='cpu')
    return task
