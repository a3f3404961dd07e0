# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Faults that are planted in tiles are named; untouched tiles are fine, whatever their season or place."""

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from torchgeo_omnisat.datamodules import MixedDataModule, SyntheticLandscapesDataModule
from torchgeo_omnisat.datamodules.common.plausibility import Guard, compare
from torchgeo_omnisat.datasets import PASTISMultimodal, SyntheticLandscapes, TreeSatAITimeSeries
from torchgeo_omnisat.modality import Modality

from ..conftest import SHARED

Pixels = np.ndarray[Any, Any]
THERMAL = Modality('lst', ('T10', 'T11'), 100.0, False, kind='thermal')


@pytest.fixture(scope='module')
def tiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Modality, Pixels]]:
    """Pixels of synthetic landscapes by modality, and temperatures."""
    dataset = SyntheticLandscapes(str(tmp_path_factory.mktemp('made')), num_tiles=16, size=32, dates=(3, 5))
    found = {name: (m, pixels_of(dataset, m)) for name, m in dataset.modalities.items()}
    kelvin = np.random.default_rng(0).normal((288, 286), (8, 7), (4000, 2))
    return {**found, 'lst': (THERMAL, kelvin)}


def pixels_of(dataset: Any, modality: Modality) -> Pixels:
    """Some valid pixels of every tile."""
    rng, parts = np.random.default_rng(0), []
    for index in range(len(dataset)):
        sample = dataset[index]
        if modality.image_key in sample and sample[modality.valid_key].any():
            image = sample[modality.image_key].double()
            frames = image[sample[modality.valid_key]] if modality.temporal else image[None]
            values = frames.movedim(1, -1).reshape(-1, len(modality.bands)).numpy()
            parts.append(values[rng.integers(0, len(values), 1500)])
    return np.concatenate(parts)


def statistics(pixels: Pixels) -> tuple[Pixels, Pixels]:
    return np.nanmean(pixels, 0), np.nanstd(pixels, 0)


def replaced(pixels: Pixels, value: float) -> Pixels:
    pixels = pixels.copy()
    pixels[: len(pixels) // 10] = value
    return pixels


def band(pixels: Pixels, index: int, change: Any) -> Pixels:
    pixels = pixels.copy()
    pixels[:, index] = change(pixels[:, index])
    return pixels


#: What is planted, by what must be named: modality, change, words of the cause, bands.
FAULTS: dict[str, tuple[str, Any, str, str]] = {
    'divided by 10000': ('s2', lambda x: x / 1e4, 'divided by 10000', 'B02'),
    'times 10000': ('s2', lambda x: x * 1e4, 'multiplied by 10000', 'B02'),
    'divided by 255': ('spot', lambda x: x / 255, 'divided by 255', 'R'),
    'times 255': ('spot', lambda x: x * 255, 'multiplied by 255', 'R'),
    'per cent': ('s2', lambda x: x / 100, 'divided by 100', 'B02'),
    'power': ('s1a', lambda x: 10 ** (x / 10), 'linear power where the checkpoint has decibels', 'VV'),
    'amplitude': ('s1a', lambda x: 10 ** (x / 20), 'amplitude where the checkpoint has decibels', 'VV'),
    'polarisations': ('s1a', lambda x: x[:, [1, 0, 2]] * [1, 1, -1], 'swapped', 'VV, VH'),
    'offset': ('s2', lambda x: x + 1000, 'offset of +1000', 'B12'),
    'no offset': ('s2', lambda x: x - 1000, 'lacks an offset of 1000', 'B12'),
    'reverse order': ('s2', lambda x: x[:, ::-1], 'reverse order', 'B12'),
    'red and near infrared': ('s2', lambda x: x[:, [0, 1, 6, 3, 4, 5, 2, 7, 8, 9]], 'swapped', 'bands B04, B08:'),
    'blue and red': ('spot', lambda x: x[:, ::-1], 'swapped', 'R'),
    'constant band': ('s2', lambda x: band(x, 3, lambda b: 0 * b + 7), 'constant', 'band B05:'),
    'all zero': ('s2', lambda x: 0 * x, 'every pixel is 0', 'B02'),
    'nodata -9999': ('s2', lambda x: replaced(x, -9999), '-9999', 'B02'),
    'nodata 65535': ('s2', lambda x: replaced(x, 65535), '65535', 'B02'),
    'nodata 0': ('s1a', lambda x: replaced(x, 0), 'nodata', 'VV'),
    'sign': ('s1a', lambda x: -x, 'opposite sign', 'VV'),
    'celsius': ('lst', lambda x: x - 273.15, 'Celsius', 'T10, T11'),
    'normalised': ('s2', lambda x: (x - x.mean(0)) / x.std(0), 'normalised already', 'B02'),
    'clipped': ('s2', lambda x: x.clip(0, 255).round(), 'clipped at 255', 'B02'),
    '8 bit': ('s2', lambda x: (x / np.percentile(x, 98) * 255).clip(0, 255).round(), '8-bit', 'B02'),
    'one band': ('s2', lambda x: band(x, 8, lambda b: b / 1e4), 'divided by 10000', 'band B11:'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_planted_fault_is_named(fault: str, tiles: dict[str, tuple[Modality, Pixels]]) -> None:
    name, change, cause, bands = FAULTS[fault]
    modality, pixels = tiles[name]
    found = compare(modality, change(pixels), *statistics(pixels), tiles=16, dates=40)
    assert len(found) == 1
    assert all(word in found[0] for word in (f'{name}: ', cause, bands))


@pytest.mark.parametrize('name', ['s2', 's1a'])
def test_a_checkpoint_in_the_other_unit_is_named(name: str, tiles: dict[str, tuple[Modality, Pixels]]) -> None:
    modality, pixels = tiles[name]
    there = pixels / 1e4 if name == 's2' else 10 ** (pixels / 10)
    (found,) = compare(modality, pixels, *statistics(there), tiles=16, dates=40)
    assert ('multiplied by 10000' if name == 's2' else 'decibels where the checkpoint has linear power') in found


#: Digital numbers of Sentinel-2 as nobody trained on.
SCENES = {
    'snow': (8000, 8000, 8000, 7800, 7500, 7300, 7000, 6800, 900, 700),
    'clouds': (12000, 11800, 11500, 11500, 11500, 11300, 11800, 11000, 6500, 5200),
    'water': (600, 500, 300, 250, 200, 180, 150, 120, 50, 30),
    'night': (60, 70, 70, 100, 190, 220, 230, 250, 120, 70),
    'desert': (1500, 2200, 3000, 3300, 3500, 3600, 3800, 3900, 5200, 4800),
    'fog': (2600, 2500, 2450, 2500, 2900, 3000, 3050, 3100, 2300, 1700),
    'forest': (150, 300, 200, 500, 1700, 2100, 2200, 2400, 1000, 450),
}


@pytest.mark.parametrize('scene', SCENES)
@pytest.mark.parametrize('scale', [1.0, 1e-4])
def test_no_scene_is_a_fault(scene: str, scale: float, tiles: dict[str, tuple[Modality, Pixels]]) -> None:
    modality, pixels = tiles['s2']
    rng = np.random.default_rng(1)
    for spread in (0.05, 0.3):
        light, noise = rng.normal(0, spread, (3000, 1)), rng.normal(0, 0.05, (3000, 10))
        values = np.array(SCENES[scene]) * np.exp(light + noise)
        mean, std = statistics(pixels)
        for dates in (1, 9):
            assert compare(modality, values * scale, mean * scale, std * scale, 16, dates) == []


def test_heights_differ_from_place_to_place() -> None:
    heights = np.random.default_rng(0).normal(1800, 300, (3000, 1))
    for kind in ('elevation', None):
        dem = Modality('dem', ('height',), 30.0, False, kind=kind)  # type: ignore[arg-type]
        assert compare(dem, heights, [20.0], [6.0], 16) == []
        assert compare(dem, np.zeros((3000, 1)), [20.0], [6.0], 2) == []
        assert len(compare(dem, replaced(heights, -9999), [20.0], [6.0], 16)) == 1


def test_a_band_that_was_constant_in_training_may_be() -> None:
    modality = Modality('s2', ('B02', 'B03'), 10.0, True, kind='optical')
    pixels = np.random.default_rng(0).normal(900, 100, (999, 2))
    pixels[:, 1] = 5
    assert compare(modality, pixels, [900, 5], [100, 0]) == []
    assert 'B03' in compare(modality, pixels, [900, 900], [100, 100])[0]


@cache
def real_tiles() -> dict[str, list[tuple[str, Modality, Pixels]]]:
    """Images ``(T, C, H, W)`` of all the real data, by kind of source, each with the place where it was taken."""
    found: dict[str, list[tuple[str, Modality, Pixels]]] = {}
    datasets: dict[str, Any] = {
        'pastis': [PASTISMultimodal(str(SHARED / 'pastis-r-mini'))],
        'treesatai': [TreeSatAITimeSeries(str(SHARED / f), split=None) for f in ('treesatai-ts', 'treesatai-ts-more')],
    }
    for place, several in datasets.items():
        for dataset in several:
            for sample in (dataset[index] for index in range(len(dataset))):
                for name, modality in dataset.modalities.items():
                    if modality.image_key in sample and sample[modality.valid_key].any():
                        image = sample[modality.image_key].numpy()
                        frames = image[sample[modality.valid_key].numpy()] if modality.temporal else image[None]
                        found.setdefault(name, []).append((place, modality, frames))
    for name, facts in {'s2': ('optical', 'dn'), 's1': ('radar', 'db')}.items():
        frames = []
        for path in sorted((SHARED / 'belgium-crops' / name).glob('*.tif')):
            with rasterio.open(path) as file:
                frames.append(file.read(masked=True).astype(float).filled(np.nan))
                bands = tuple(file.descriptions)
        modality = Modality(name, bands, 10.0, True, *facts)  # type: ignore[arg-type]
        for row in range(0, 48, 24):
            found.setdefault(name, []).append(('belgium', modality, np.stack(frames)[:, :, row : row + 24]))
    for path in sorted((SHARED / 'flair-mini').rglob('*.tif')):
        with rasterio.open(path) as file:
            if file.count == 5:
                aerial = Modality('aerial', ('N', 'R', 'G', 'B'), 0.2, False, kind='optical')
                image = file.read([4, 1, 2, 3])[None, :, ::4, ::4].astype(float)
                found.setdefault('aerial', []).append(('flair', aerial, image))
    return found


def pieces() -> Iterator[tuple[str, str, Modality, Pixels, Modality, Pixels]]:
    """Every real series: whole, and a date after the other, beside the pixels of every place of such a series."""
    for tiles in real_tiles().values():
        for place in dict.fromkeys(tile[0] for tile in tiles):
            there = [(m, flat(frames)) for where, m, frames in tiles if where == place]
            reference, pixels = there[0][0], np.concatenate([part for _, part in there])
            for where, modality, frames in tiles:
                step = max(1, len(frames) // 6)
                for part in (frames, *(frames[i : i + 1] for i in range(0, len(frames), step))):
                    if np.isfinite(part).any():
                        yield where, place, modality, flat(part), reference, pixels


def flat(frames: Pixels) -> Pixels:
    values = np.moveaxis(frames, 1, -1).reshape(-1, frames.shape[1])
    return values[:: max(1, len(values) // 2000)].astype(float)


@pytest.mark.skipif(not SHARED.is_dir(), reason='needs real data')
def test_no_untouched_real_tile_is_a_fault() -> None:
    """Winter, clouds, single dates, and statistics that were measured on other ground."""
    count, wrong = 0, []
    for where, place, modality, values, reference, pixels in pieces():
        common = [band for band in modality.bands if band in reference.bands]
        if len(common) < min(2, len(modality.bands)):
            continue
        ours, theirs = ([m.bands.index(b) for b in common] for m in (modality, reference))
        mean, std = statistics(pixels[:, theirs])
        found = compare(modality.select(common), values[:, ours], mean, std, 1, 1 if len(values) < 2000 else 3)
        count += 1
        wrong += [(where, place, text) for text in found]
    assert wrong == []
    assert count > 200


class Toy(LightningModule):
    """A model of nothing that has statistics."""

    def __init__(self, mean: Any = None, std: Any = None, modalities: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        return None

    validation_step = predict_step = test_step


def make_datamodule(root: Path, **kwargs: Any) -> SyntheticLandscapesDataModule:
    settings: dict[str, Any] = {'num_tiles': 20, 'dates': (2, 3), 'batch_size': 2, 'modalities': ('s2', 's1a')}
    return SyntheticLandscapesDataModule(root=str(root), **{**settings, **kwargs})


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('landscapes')


@pytest.fixture(scope='module')
def model(root: Path) -> Toy:
    """A model that was trained on reflectance from 0 to 1."""
    datamodule = make_datamodule(root)
    datamodule.setup('test')
    factor = {'s2': 1e-4, 's1a': 1.0}
    parts = ({k: (v * factor[k]).tolist() for k, v in part.items()} for part in (datamodule.mean, datamodule.std))
    return Toy(*parts)


def make_trainer() -> Trainer:
    return Trainer(accelerator='cpu', devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)


@pytest.mark.parametrize('stage', ['test', 'validate', 'predict'])
def test_every_stage_is_guarded(stage: str, root: Path, model: Toy) -> None:
    run = {name: getattr(make_trainer(), name) for name in ('test', 'validate', 'predict')}[stage]
    with pytest.warns(UserWarning, match=r's2: .*B02.*10000') as said:
        run(model, datamodule=make_datamodule(root))
    assert len([w for w in said if 'multiplied' in str(w.message)]) == 1
    assert 's1a' not in str(said[-1].message)


def test_guard_refuses_or_is_silent(root: Path, model: Toy) -> None:
    with pytest.raises(ValueError, match=r's2: .*B02.*10000'):
        make_trainer().test(model, datamodule=make_datamodule(root, guard='error'))
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'the first tiles')
        make_trainer().test(model, datamodule=make_datamodule(root, guard='off'))
        make_trainer().test(Toy(), datamodule=make_datamodule(root, guard='error'))
    with pytest.raises(ValueError, match='maybe'):
        make_datamodule(root, guard='maybe')


def test_a_mixture_is_compared_under_its_names(root: Path, model: Toy) -> None:
    named = {kind: {'other' if k == 's2' else k: v for k, v in model.hparams[kind].items()} for kind in ('mean', 'std')}
    parts = {'made': make_datamodule(root, guard='error')}
    mixture = MixedDataModule(parts, rename={'made': {'s2': 'other'}})
    with pytest.raises(ValueError, match=r's2: .*B02.*10000'):
        make_trainer().test(Toy(**named), datamodule=mixture)


def make_batch(value: float, count: int = 4) -> dict[str, Tensor]:
    image = torch.normal(value, abs(value) / 4, (count, 2, 2, 8, 8))
    dates, valid = torch.arange(2).repeat(count, 1), torch.tensor([[True, False]] * count)
    image[:, 1] = -9999.0  # what is not valid does not count
    return {'image_s2': image, 'dates_s2': dates, 'valid_s2': valid}


def test_the_guard_concludes_after_some_tiles() -> None:
    known = {'s2': Modality('s2', ('B02', 'B03'), 10.0, True, kind='optical')}
    guard = Guard(known, {'s2': [0.2, 0.2]}, {'s2': [0.05, 0.05]}, 'error')
    for _ in range(3):
        guard.look(make_batch(2000.0))
    with pytest.raises(ValueError, match='B02, B03'):
        guard.look(make_batch(2000.0))
    guard.look(make_batch(2000.0))
    good = Guard(known, {'s2': [0.2, 0.2]}, {'s2': [0.05, 0.05]}, 'error', total=1)
    good.look(make_batch(0.2))
    assert good.done
