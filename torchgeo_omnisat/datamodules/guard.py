# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Guard: the first tiles of a test or prediction are compared with the statistics of the model."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..modality import Modality, as_modalities
from .plausibility import compare

#: What happens where tiles are implausible.
GuardMode = Literal['warn', 'error', 'off']
#: Tiles of each modality that are compared, tiles after which the guard stops to wait for them, and pixels of a tile.
TILES, LIMIT, PIXELS = 16, 64, 2048


def check_mode(guard: str) -> None:
    """Raise a ValueError for an unknown mode."""
    if guard not in get_args(GuardMode):
        raise ValueError(f'guard is {guard!r}, expected one of {list(get_args(GuardMode))}')


class Guard:
    """Comparison of the first tiles with mean and standard deviation of a model.

    Args:
        modalities: The modalities of the tiles, by name.
        mean: Mean of each band by modality, as the model has it; modalities that it lacks are not compared.
        std: Standard deviation of each band by modality, as the model has it.
        mode: Whether findings are a warning or an error.
        total: Number of batches that there are, if that is known: the guard concludes with the last.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        mean: Mapping[str, Any],
        std: Mapping[str, Any],
        mode: GuardMode,
        total: float = float('inf'),
    ) -> None:
        self.modalities = {name: m for name, m in modalities.items() if name in mean and name in std}
        self.mean, self.std, self.mode, self.total = mean, std, mode, total
        self.seen = self.batches = 0
        self.tiles = dict.fromkeys(self.modalities, 0)
        self.pixels: dict[str, list[Tensor]] = {name: [] for name in self.modalities}
        self.dates: dict[str, set[int]] = {name: set() for name in self.modalities}
        self.done = not self.modalities
        self._generator = torch.Generator().manual_seed(0)

    def look(self, batch: Mapping[str, Tensor]) -> None:
        """Look at a batch in raw units, and conclude if it is enough.

        Args:
            batch: The batch; it is not changed.

        Raises:
            ValueError: If the tiles are implausible and the mode is ``'error'``.
        """
        if self.done:
            return
        self.batches += 1
        self.seen += max((len(batch[m.image_key]) for m in self.modalities.values() if m.image_key in batch), default=0)
        for name, modality in self.modalities.items():
            if modality.image_key in batch and self.tiles[name] < TILES:
                self._add(name, *(batch[key] for key in modality.keys))
        if min(self.tiles.values()) >= TILES or self.seen >= LIMIT or self.batches >= self.total:
            self.conclude()

    def conclude(self) -> None:
        """Compare the observed values, and warn or raise.

        Raises:
            ValueError: If the tiles are implausible and the mode is ``'error'``.
        """
        if self.done:
            return
        self.done = True
        found: list[str] = []
        for name, modality in self.modalities.items():
            if self.pixels[name]:
                pixels = torch.cat(self.pixels[name]).numpy()
                counts = self.tiles[name], len(self.dates[name])
                found += compare(modality, pixels, self.mean[name], self.std[name], *counts)
        self.pixels.clear()
        if not found:
            return
        text = 'the first tiles do not look like what the model was trained on: ' + '; '.join(found)
        advice = 'mend the files or their settings (unit, scale, nodata, order of bands)'
        if self.mode == 'error':
            raise ValueError(f'{text}. Expected the units and bands of the checkpoint: {advice}, or use guard: warn')
        warnings.warn(f'{text}. Results are wrong if that is so: {advice}; guard: off silences this', stacklevel=2)

    def _add(self, name: str, image: Tensor, dates: Tensor, valid: Tensor) -> None:
        """Add some valid pixels of each tile."""
        if not self.modalities[name].temporal:
            image = image.unsqueeze(1)
        for tile, days, flags in zip(image, dates, valid, strict=True):
            frames = tile[flags]
            if self.tiles[name] >= TILES or not len(frames):
                continue
            count = frames.shape[0] * frames.shape[2] * frames.shape[3]
            some = torch.randint(count, (min(PIXELS, count),), generator=self._generator).to(frames.device)
            pixels = frames.detach().movedim(1, -1).reshape(count, -1)[some].cpu().double()
            if pixels.isfinite().any():
                self.tiles[name] += 1
                self.pixels[name].append(pixels)
                self.dates[name] |= set(days[flags].tolist())


def make_guard(
    trainer: Any,
    modalities: Mapping[str, Modality],
    measured: Mapping[str, Any],
    named: Mapping[str, str],
    mode: GuardMode,
) -> Guard:
    """Return the guard of a run; it compares nothing if the model has no statistics.

    Args:
        trainer: The trainer, with the model.
        modalities: Modalities of the datamodule by name.
        measured: What :meth:`.OmniSatTask.statistics_of` takes, under the names of the datamodule.
        named: What modalities of the datamodule are called in the model; their own names by default.
        mode: What happens where tiles are implausible.
    """
    task = getattr(trainer.lightning_module, 'task', trainer.lightning_module)  # the robustness test has one
    hparams: Any = getattr(task, 'hparams', {})
    ours = {name: named.get(name, name) for name in modalities}
    statistics: Mapping[str, Any] = {kind: hparams.get(kind) or {} for kind in ('mean', 'std')}
    if hasattr(task, 'statistics_of'):
        plain = {
            kind: measured[kind] and {ours[name]: [float(x) for x in v] for name, v in measured[kind].items()}
            for kind in ('mean', 'std')
        }
        statistics = task.statistics_of({**measured, **plain}, list(ours.values()))[1]
    mean, std = ({n: statistics[kind][o] for n, o in ours.items() if o in statistics[kind]} for kind in ('mean', 'std'))
    told = as_modalities(hparams['modalities']) if hparams.get('modalities') else {}
    known = {name: _with_facts(modality, told.get(ours[name])) for name, modality in modalities.items()}
    counts = {'validate': 'num_val_batches', 'test': 'num_test_batches', 'predict': 'num_predict_batches'}
    total = sum(getattr(trainer, counts[trainer.state.fn])) or float('inf')
    return Guard(known, mean, std, mode, total)


def _with_facts(modality: Modality, told: Modality | None) -> Modality:
    """Return a modality with the kind and wavelengths that the checkpoint knows, where the data do not say."""
    if told is None or told.bands != modality.bands:
        return modality
    kind, wavelengths = modality.kind or told.kind, modality.wavelengths or told.wavelengths
    return replace(modality, kind=kind, wavelengths=wavelengths)
