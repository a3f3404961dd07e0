# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Adapter of TorchGeo datasets to the keys of multimodal samples."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..modality import Modality, as_modalities
from ..utils.tensors.coordinates import COORDINATES, centre_coordinates
from ..utils.tensors.observed import MAX_RAW
from .base import MultimodalDataset
from .common.plotting import draw_any
from .common.series import DAY, parse_day
from .io.fingerprint import list_data_files
from .io.headers import refuse_complex
from .io.opening import sidecars


class MappedDataset(MultimodalDataset):
    """Adapter of a TorchGeo ``NonGeoDataset`` to the keys of multimodal samples.

    .. code-block:: python

        MappedDataset(
            SEN12MS(root),
            {'s1': Modality('s1', ('VV', 'VH'), 10, False), 's2': Modality('s2', S2_BANDS, 10, False)},
            {'s1': {'key': 'image', 'channels': [0, 1]}, 's2': {'key': 'image', 'channels': range(2, 15)}},
        )

    Args:
        dataset: TorchGeo dataset.
        modalities: Modalities of its images.
        keys: Key of the image of each modality, or ``{'key': ..., 'channels': [...]}`` to select
            channels. Optional entries are ``nodata``, and ``dates``: days such as
            ``['2019-07-01']``, or a key of the sample with seconds since 1970, by which the time
            series is sorted. Also the keys of the targets ``'mask'`` and ``'label'``; ``channels``
            selects a layer of the mask. ``continuous: true`` of the mask keeps its values, such as biomass, instead of
            classes; its ``nodata`` becomes NaN. Time series with shape ``(T * C, H, W)`` are split into dates.
            ``'coordinates': {'x': 'lon', 'y': 'lat'}`` names the keys of the position of a sample, in the CRS of
            the optional entry ``crs``, WGS 84 by default. Without it, the position is that of ``bounds``, if samples
            have bounds and they or the dataset a ``crs``. Other samples have no ``coordinates``, and encoders such as
            Presto omit the location.
        num_classes: Number of classes of a ``'label'`` that is a class index.
        path: Directory of the data, where statistics are stored.
        split: Name of the split.
        indices: Indices of the samples of *dataset* to use; None for all.

    Raises:
        ValueError: If *keys* does not fit *modalities*.
    """

    def __init__(
        self,
        dataset: Any,
        modalities: Sequence[Modality | Mapping[str, Any]] | Mapping[str, Modality | Mapping[str, Any]],
        keys: Mapping[str, str | Mapping[str, Any]],
        num_classes: int | None = None,
        path: str = '.',
        split: str = 'train',
        indices: Sequence[int] | None = None,
    ) -> None:
        self.dataset = dataset
        self.indices = range(len(dataset)) if indices is None else indices
        self.modalities = as_modalities(modalities)
        self.keys = {name: {'key': entry} if isinstance(entry, str) else dict(entry) for name, entry in keys.items()}
        expected = {*self.modalities}
        if not expected <= set(self.keys) or not set(self.keys) <= expected | {'mask', 'label', COORDINATES}:
            raise ValueError(
                f"keys has {list(self.keys)}, expected {sorted(expected)}, optionally 'mask', 'label', 'coordinates'"
            )
        place = self.keys.get(COORDINATES)
        if place is not None and not {'x', 'y'} <= set(place) <= {'x', 'y', 'crs'}:
            raise ValueError(f"'coordinates' among keys is {place}, expected keys of 'x' and 'y', optionally a 'crs'")
        self.num_classes = num_classes
        self.path, self.split = Path(path), split

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            ValueError: If keys or shapes do not match the arguments.
        """
        with sidecars():
            given = self.dataset[self.indices[index]]
        sample: Sample = {}
        for modality in self.modalities.values():
            sample |= self._image(given, modality)
        if 'mask' in self.keys:
            sample['mask'] = self._mask(self._get(given, 'mask'))
        if 'label' in self.keys:
            sample['label'] = self._label(self._get(given, 'label'))
        return sample | self._coordinates(given)

    def image_files(self, name: str, indices: Iterable[int]) -> list[str]:
        """Return the files of some samples, if they can be determined.

        These are the paths in ``files`` or ``samples`` of the dataset, if they have one entry per sample, else
        all data files below its ``root``, unless they are more than 100,000 (``fingerprint.walk``).
        """
        root = getattr(self.dataset, 'root', None)
        for listed in (getattr(self.dataset, what, None) for what in ('files', 'samples')):
            if isinstance(listed, Sequence) and len(listed) == len(self.dataset):
                found = [path for index in indices for path in _paths(listed[self.indices[index]], root)]
                if found:
                    return found
        return list_data_files(root) if isinstance(root, str | Path) else []

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot every modality of a sample, and its classes by index."""
        names = [str(index) for index in range(self.num_classes or 0)]
        return draw_any(sample, self.modalities, names, None, show_titles, suptitle)

    def _get(self, given: Mapping[str, Any], name: str) -> Tensor:
        key = self.keys[name]['key']
        if key not in given:
            raise ValueError(f'keys maps {name!r} to {key!r}, expected one of {sorted(given)}')
        return torch.as_tensor(given[key])

    def _coordinates(self, given: Mapping[str, Any]) -> Sample:
        """Return longitude and latitude of a sample, if its position is known."""
        place, bounds = self.keys.get(COORDINATES), given.get('bounds')
        if place is not None:
            if missing := {place['x'], place['y']} - set(given):
                raise ValueError(f"keys maps 'coordinates' to {sorted(missing)}, expected some of {sorted(given)}")
            # The position of several dates is their mean.
            x, y = (torch.as_tensor(given[place[axis]]).double().mean() for axis in 'xy')
            bounds, crs = torch.zeros(9, dtype=torch.float64), place.get('crs', 'EPSG:4326')
            bounds[0:2], bounds[3:5] = x, y
        else:
            crs = given.get('crs', getattr(self.dataset, 'crs', None))
        if not isinstance(bounds, Tensor) or bounds.shape != (9,) or crs is None:
            return {}
        return {COORDINATES: centre_coordinates(bounds, crs)}

    def _image(self, given: Mapping[str, Any], modality: Modality) -> Sample:
        entry, bands = self.keys[modality.name], len(modality.bands)
        image = self._get(given, modality.name)
        refuse_complex([str(image.dtype).removeprefix('torch.')], f'{entry["key"]!r} of {modality.name!r}')
        image = image.float()
        if 'channels' in entry:
            image = image[..., list(entry['channels']), :, :]
        if modality.temporal and image.ndim == 3 and len(image) % bands == 0:
            image = image.unflatten(0, (len(image) // bands, bands))
        if image.ndim != 3 + modality.temporal or image.shape[-3] != bands:
            raise ValueError(
                f'{entry["key"]!r} is {tuple(image.shape)} for {modality.name!r}, expected '
                f'{"T, " if modality.temporal else ""}{bands} channels, height and width; channels selects some'
            )
        if 'nodata' in entry:
            image = image.masked_fill(torch.eq(image, float(entry['nodata'])), torch.nan)
        image = image.masked_fill(~(image.abs() <= MAX_RAW), torch.nan)
        count = len(image) if modality.temporal else 1
        days = self._days(given, modality.name)
        days = torch.zeros(count, dtype=torch.int64) if days is None else days
        if len(days) != count:
            raise ValueError(f'dates of {modality.name!r} are {entry["dates"]}, {len(days)} instead of {count}')
        if modality.temporal and isinstance(entry.get('dates'), str):
            days, order = days.sort(stable=True)
            image = image[order]
        valid = (image if modality.temporal else image[None]).isfinite().flatten(1).any(1)
        return dict(zip(modality.keys, (image, days, valid), strict=True))

    def _days(self, given: Mapping[str, Any], name: str) -> Tensor | None:
        dates = self.keys[name].get('dates') or ()
        if isinstance(dates, str):
            if dates not in given:
                raise ValueError(f'dates of {name!r} are under {dates!r}, expected one of {sorted(given)}, or days')
            return torch.as_tensor(given[dates]).double().reshape(-1).div(DAY).floor().long()
        return torch.tensor([parse_day(day, f'dates of {name!r}') for day in dates]) if dates else None

    def _mask(self, mask: Tensor) -> Tensor:
        if self.keys['mask'].get('continuous'):
            refuse_complex([str(mask.dtype).removeprefix('torch.')], f'{self.keys["mask"]["key"]!r} of the mask')
            values = mask.float()
            if 'nodata' in self.keys['mask']:
                values = values.masked_fill(torch.eq(mask, float(self.keys['mask']['nodata'])), torch.nan)
            return self._layer(values.masked_fill(~(values.abs() <= MAX_RAW), torch.nan))
        if mask.is_complex() or (mask.is_floating_point() and not torch.equal(mask, mask.round())):
            found = mask.dtype if mask.is_complex() else mask[mask != mask.round()].unique()[:5].tolist()
            raise ValueError(f'{self.keys["mask"]["key"]!r} has pixels {found}, expected whole numbers as classes')
        return self._layer(mask.long())

    def _layer(self, mask: Tensor) -> Tensor:
        if 'channels' in self.keys['mask']:
            if mask.ndim != 3:
                raise ValueError(f'mask is {tuple(mask.shape)}, expected layers, or no channels among keys of the mask')
            mask = mask[list(self.keys['mask']['channels'])]
        return mask[0] if mask.ndim == 3 and len(mask) == 1 else mask

    def _label(self, label: Tensor) -> Tensor:
        if label.ndim == 1:
            return label.float()
        if self.num_classes is None:
            raise ValueError(f'label is the number {label.item()}, expected num_classes to be given')
        if not 0 <= label.item() < self.num_classes:
            raise ValueError(f'label is {label.item()}, expected a class from 0 to {self.num_classes - 1}')
        return torch.nn.functional.one_hot(label.long(), self.num_classes).float()


def _paths(entry: Any, root: Any) -> Iterator[str]:
    """Yield the paths of files in an entry of a list of samples: a path, or a dict, list or tuple with some."""
    if isinstance(entry, Mapping):
        entry = list(entry.values())
    if isinstance(entry, list | tuple):
        for part in entry:
            yield from _paths(part, root)
    elif isinstance(entry, str | Path):
        for path in (str(entry), os.path.join(root, entry) if isinstance(root, str | Path) else ''):
            if os.path.isfile(path):
                yield path
                return
