# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of samples with different acquisition dates and missing modalities.

Samples and batches are flat dictionaries of tensors, as in TorchGeo:

======================  =============================================================
``image_<name>``        ``(B, T, C, H, W)`` if temporal, else ``(B, C, H, W)``
``dates_<name>``        ``(B, T)`` int64, days since 1970-01-01; T = 1 for an image
``valid_<name>``        ``(B, T)`` bool, an image was acquired and is usable
``mask``, ``label``     targets; other tensors of one shape are allowed too
``instances``           ``(B, H, W)`` int64, field of each pixel; 0 is none. Pixels are those of ``mask``, or finer
                        by a whole factor
``bounds``              ``(B, 9)`` float64, location, if known
``coordinates``         ``(B, 2)`` float64, longitude and latitude, if known
``valid_location``      ``(B, 1)`` bool, ``coordinates`` may be used as a modality; True if it is absent
======================  =============================================================

``bounds`` are in TorchGeo's order, xmin, xmax, xres, ymin, ymax, yres, tmin, tmax, tres, in
metres of the dataset's ``crs`` and seconds since 1970-01-01; unknown values are NaN.
``coordinates`` are those of the centre of the tile in degrees (WGS 84), computed from ``bounds``
and ``crs`` before any augmentation; NaN where unknown.

A sample has the same keys without B. ``valid`` is the one mask for padding, unusable dates,
dropped modalities and missing modalities. NaN in a valid image is nodata.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchgeo.datasets.utils import Sample

from .modality import Modality
from .utils.tensors.coordinates import COORDINATES, LOCATION_VALID, centre_coordinates

#: Key of a batch whose samples are not scored. A rank with fewer batches than others gets such batches, because
#: evaluation steps contain collective operations.
FILLER = 'filler'


def collate(samples: Sequence[Sample], modalities: Mapping[str, Modality], crs: Any = None) -> Sample:
    """Join samples into a batch, with padding for shorter time series and missing modalities.

    Args:
        samples: Samples of one dataset, or of several that share *modalities*.
        modalities: Modalities that may occur, by name.
        crs: CRS of ``bounds``; None for samples that have ``coordinates`` or no location.

    Returns:
        Batch, without the keys of modalities that no sample has.

    Raises:
        ValueError: If a sample has a modality that is not in *modalities*, a wrong number of bands,
            or dates that do not match the images; or samples differ in size or in their other keys.
    """
    if not samples:
        raise ValueError('expected at least one sample to collate, got none')
    for index, sample in enumerate(samples):
        check(sample, modalities, where=f'sample {index}', batched=False)
    batch: Sample = {}
    for modality in modalities.values():
        if any(modality.image_key in sample for sample in samples):
            batch |= _collate_modality(samples, modality)
    if any(COORDINATES in sample for sample in samples):
        batch[COORDINATES] = torch.stack([_coordinates(sample, index, crs) for index, sample in enumerate(samples)])
    if any(LOCATION_VALID in sample for sample in samples):
        usable = torch.ones(1, dtype=torch.bool)
        batch[LOCATION_VALID] = torch.stack([sample.get(LOCATION_VALID, usable) for sample in samples])
    for key in dict.fromkeys(key for sample in samples for key in sample):
        if key not in batch:
            batch[key] = _stack(samples, key)
    if crs is not None and 'bounds' in batch and COORDINATES not in batch:
        batch[COORDINATES] = centre_coordinates(batch['bounds'], crs)
    return batch


def available(batch: Mapping[str, Tensor], modalities: Mapping[str, Modality]) -> Tensor:
    """Return which modalities each sample has, flags ``(B, M)`` in the order of *modalities*.

    Raises:
        ValueError: If the batch has none of the modalities, so that its size is unknown.
    """
    keys = [m.valid_key for m in modalities.values()]
    some = next((batch[key] for key in keys if key in batch), None)
    if some is None:
        raise ValueError(f'batch has the keys {sorted(batch)}, expected at least one of {keys}')
    absent = torch.zeros(len(some), dtype=torch.bool, device=some.device)
    columns = [batch[m.valid_key].any(-1) if m.valid_key in batch else absent for m in modalities.values()]
    return torch.stack(columns, dim=-1)


def fill(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a sample or a batch that is not scored and has no valid image.

    Args:
        batch: A sample or a batch; it is not changed.
    """
    absent = {key: torch.zeros_like(value) for key, value in batch.items() if key.startswith('valid_')}
    return {**batch, **absent, FILLER: torch.tensor(True)}


def drop(batch: Mapping[str, Tensor], modalities: Iterable[Modality]) -> Sample:
    """Return a batch without the keys of some modalities; it shares the remaining tensors.

    Args:
        batch: Batch or sample; it is not changed.
        modalities: Modalities to remove.
    """
    removed = {key for modality in modalities for key in modality.keys}
    return {key: value for key, value in batch.items() if key not in removed}


def check(
    batch: Mapping[str, Tensor], modalities: Mapping[str, Modality], where: str = 'batch', batched: bool = True
) -> None:
    """Validate the keys, shapes and data types of a batch or a sample; pixels are not read.

    Args:
        batch: Batch or sample.
        modalities: Modalities that may occur, by name.
        where: Name of the batch in error messages.
        batched: Whether there is a leading batch dimension.
    """
    known = {m.image_key for m in modalities.values()}
    unknown = [key for key in batch if key.startswith('image') and key not in known]
    if unknown:
        raise ValueError(f'{where} holds {unknown}, expected no images but {sorted(known)}')
    for modality in modalities.values():
        present = [key for key in modality.keys if key in batch]
        if not present:
            continue
        if len(present) < 3:
            raise ValueError(f'{where} has {present} alone, expected {list(modality.keys)}')
        image, dates, valid = (batch[key] for key in modality.keys)
        ndim = 3 + modality.temporal + batched
        if image.ndim != ndim or image.shape[-3] != len(modality.bands):
            expected = (
                ('B, ' if batched else '') + ('T, ' if modality.temporal else '') + f'{len(modality.bands)}, H, W'
            )
            raise ValueError(f'{modality.image_key} of {where} has shape {tuple(image.shape)}, expected ({expected})')
        lead = tuple(image.shape[:batched]) + (image.shape[batched] if modality.temporal else 1,)
        for key, value, dtype in ((modality.dates_key, dates, torch.int64), (modality.valid_key, valid, torch.bool)):
            if tuple(value.shape) != lead or value.dtype != dtype:
                raise ValueError(
                    f'{key} of {where} is {tuple(value.shape)} {value.dtype}, '
                    f'expected {lead} {dtype} as {modality.image_key} has {tuple(image.shape)}'
                )


def _collate_modality(samples: Sequence[Sample], modality: Modality) -> Sample:
    """Return image, dates and valid of one modality; missing entries are zero and not ``valid``."""
    image_key, dates_key, valid_key = modality.keys
    present = [sample for sample in samples if image_key in sample]
    shapes = {tuple(sample[image_key].shape[-2:]) for sample in present}
    if len(shapes) > 1:
        raise ValueError(f'{image_key} comes in sizes {sorted(shapes)}, expected tiles of one size in a batch')
    height, width = shapes.pop()
    length = max(1, *(len(sample[valid_key]) for sample in present))  # one invalid date if all series are empty
    size = (len(samples), length, len(modality.bands), height, width)
    image = torch.zeros(size if modality.temporal else size[:1] + size[2:], dtype=torch.float32)
    dates = torch.zeros(size[:2], dtype=torch.int64)
    valid = torch.zeros(size[:2], dtype=torch.bool)
    for row, sample in enumerate(samples):
        if image_key in sample:
            count = len(sample[valid_key])
            target = image[row, :count] if modality.temporal else image[row]
            target.copy_(sample[image_key])
            dates[row, :count] = sample[dates_key]
            valid[row, :count] = sample[valid_key]
    return {image_key: image, dates_key: dates, valid_key: valid}


def _coordinates(sample: Sample, index: int, crs: Any) -> Tensor:
    """Return longitude and latitude of a sample, from its bounds if it has no coordinates; NaN if unknown."""
    found = sample.get(COORDINATES)
    if found is None:
        unknown = torch.full((2,), torch.nan, dtype=torch.float64)
        return centre_coordinates(sample['bounds'], crs) if crs is not None and 'bounds' in sample else unknown
    # Infinite numbers are out of range too; NaN is not.
    if tuple(found.shape) != (2,) or (found.abs() > torch.tensor([360.0, 90.0])).any():
        raise ValueError(
            f'{COORDINATES} of sample {index} is {found.tolist()}, expected longitude from -360 to 360 and latitude '
            'from -90 to 90 in degrees, in this order, or NaN'
        )
    return found.double()


def _stack(samples: Sequence[Sample], key: str) -> Tensor:
    missing = [index for index, sample in enumerate(samples) if key not in sample]
    if missing:
        raise ValueError(f'{key!r} is missing in samples {missing}, expected it in all {len(samples)} or in none')
    values = [torch.as_tensor(sample[key]) for sample in samples]
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise ValueError(f'{key!r} comes in shapes {sorted(shapes)}, expected one shape in a batch')
    return torch.stack(values)
