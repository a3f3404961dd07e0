# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Numbers that no sensor measures: they count as not observed, and are counted."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.prediction.areas import TOLD as AREA
from tests.prediction.areas import PlaneDataModule, PlaneTiles
from tests.tasks.helpers import MODALITIES, TOLD, make_batch, make_loader, make_sample
from torchgeo_omnisat.datamodules.common.statistics import Moments, read_statistics
from torchgeo_omnisat.modality import Modality
from torchgeo_omnisat.models import omnisat_tiny
from torchgeo_omnisat.prediction import GeoTIFFWriter
from torchgeo_omnisat.prediction.raster import MapBands
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation, export_hub, load_hub
from torchgeo_omnisat.transforms import Normalize
from torchgeo_omnisat.utils.tensors.observed import (
    MAX_NORMALISED,
    ImplausibleCounts,
    all_observed,
    finite,
    observed,
    observed_pixels,
)

STRANGE = [-math.inf, 1e30, 3.4e38, 2e6]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_observed(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -5.0, 60000.0, math.nan, math.inf, -math.inf, 1e30], dtype=dtype)
    assert observed(values).tolist() == [True] * 3 + [False] * 4
    assert finite(values).tolist() == [True] * 3 + [False] * 4
    assert observed(torch.tensor([1, 2**30])).all()
    assert [all_observed(values[: length + 1]) for length in range(7)] == [True] * 3 + [False] * 4
    assert not any(all_observed(value) for value in values[3:])
    assert all_observed(torch.tensor([1, 2**30]))
    assert all_observed(values[:0])
    assert observed_pixels(values.view(1, 7, 1, 1)).all()
    assert observed_pixels(values.view(7, 1, 1, 1)).flatten().tolist() == observed(values).tolist()


def test_counts() -> None:
    counts = ImplausibleCounts()
    image = torch.zeros(2, 2, 1, 2, 2)
    image[:, 0, 0, 0] = torch.tensor([math.inf, math.nan])
    image[1, 1] = -1e30
    counts.add('s2', image, torch.tensor([[True, True], [True, False]]))
    counts.add('s2', image[:1], torch.ones(1, 2, dtype=torch.bool))
    counts.add('dem', torch.full((2, 1, 2, 2), 3.0), torch.ones(2, 1, dtype=torch.bool))
    with pytest.warns(UserWarning, match=f'3 of s2: .*{MAX_NORMALISED:g}'.replace('+', r'\+')):
        counts.warn()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        counts.warn()


def batch_with(value: float) -> dict[str, Tensor]:
    batch = make_batch(2)
    for modality in MODALITIES.values():
        batch[modality.image_key][0, ..., 1, 2] = value
    return batch


@pytest.mark.parametrize('value', STRANGE, ids=str)
@pytest.mark.parametrize('task', [OmniSatSegmentation, OmniSatPretraining])
def test_batch_made_in_python(task: Any, value: float) -> None:
    """A pixel of a strange value is as one of NaN."""
    told = {key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')} if task is OmniSatPretraining else TOLD
    torch.manual_seed(0)
    model = task(**told).eval().model.backbone
    with torch.no_grad():
        strange, absent = (model(batch_with(x)) for x in (value, math.nan))
    assert strange.fused.isfinite().all()
    assert torch.equal(strange.fused, absent.fused)
    assert all(torch.equal(strange.maps[name].seen, absent.maps[name].seen) for name in absent.maps)


@pytest.mark.parametrize('value', [math.inf, 1e30], ids=str)
@pytest.mark.parametrize('stage', ['fit', 'test'])
def test_run(stage: str, value: float, tmp_path: Path) -> None:
    """A run ends with finite scores and one warning of what it counted, by modality."""
    sample = make_sample(0)
    key = next(key for key in sample if key.startswith('image_'))
    sample[key] = sample[key].clone()
    sample[key][..., 0, 0] = value
    task = OmniSatSegmentation(**TOLD)
    task.allow_random = True
    quiet = {'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False}
    trainer = Trainer(accelerator='cpu', max_epochs=1, default_root_dir=tmp_path, enable_model_summary=False, **quiet)
    loaders = make_loader([sample])
    with pytest.warns(UserWarning, match=f' of {key.removeprefix("image_")}: .*nodata'):
        trainer.fit(task, loaders) if stage == 'fit' else trainer.test(task, loaders, verbose=False)
    assert all(p.isfinite().all() for p in task.parameters())
    assert all(math.isfinite(v) for k, v in trainer.callback_metrics.items() if 'loss' in k)


class SpoiltTiles(PlaneTiles):
    """Tiles of an area of which 16 pixels have a value that no sensor measures."""

    value = math.nan

    def __getitem__(self, window: Any) -> dict[str, Tensor]:
        sample = super().__getitem__(window)
        row, column, height, width = window
        rows, columns = np.arange(row, row + height), np.arange(column, column + width)
        spoilt = torch.from_numpy(np.outer((rows >= 20) & (rows < 24), (columns >= 20) & (columns < 24)))
        sample['image_s2'][..., spoilt] = self.value
        return sample


@pytest.mark.parametrize('value', [3.4e38, 1e9], ids=str)
def test_map(value: float, tmp_path: Path) -> None:
    """The map is that of the same pixels as NaN, and nothing else of it is lost."""
    maps = []
    for number in (math.nan, value):
        torch.manual_seed(0)
        task = OmniSatSegmentation(**AREA)
        task.allow_random = True
        data = PlaneDataModule(48, 64)
        data.predict_dataset = SpoiltTiles(['s2'])
        data.predict_dataset.value = number
        writer = GeoTIFFWriter(str(tmp_path / f'{number}.tif'), overview=False)
        quiet = {'logger': False, 'enable_progress_bar': False, 'enable_model_summary': False}
        trainer = Trainer(accelerator='cpu', callbacks=[writer], default_root_dir=tmp_path, **quiet)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            trainer.predict(task, data)
        counted = [str(w.message) for w in said if 'treated as nodata' in str(w.message)]
        assert len(counted) == (not math.isnan(number))
        with rasterio.open(tmp_path / f'{number}.tif') as file:
            maps.append(file.read())
    assert np.array_equal(*maps)
    assert (maps[0][0] == 255).sum() == 16


def test_no_probability_is_nodata() -> None:
    bands = MapBands(['a', 'b'], ['s2'])
    probabilities = np.zeros((2, 1, 3), np.float32)
    probabilities[1, 0, 0] = 1
    probabilities[:, 0, 1] = np.nan
    with np.errstate(invalid='ignore'):
        encoded = bands.encode(probabilities, np.ones((1, 3), np.uint16))
    assert encoded[0].tolist() == [[1, 255, 255]]


@pytest.mark.parametrize('scale', [1e-12, 1.0, 1e12, 1e18, 1e20, 1e30])
def test_moments(scale: float) -> None:
    values = np.random.default_rng(0).normal(size=(1, 2, 16, 16)).astype(np.float32) * np.float32(scale)
    moments = Moments(2)
    moments.add(torch.from_numpy(values))
    true = values.astype(np.float64).std((0, 2, 3))
    np.testing.assert_allclose(moments.as_dict()['std'], true, rtol=1e-5)


S2 = Modality('s2', ('B02',), 10.0, True)


@pytest.mark.parametrize('std', [0.0, 1e-45, 1e-30])
def test_tiny_deviation(std: float) -> None:
    image = torch.randn(1, 2, 1, 4, 4)
    with pytest.warns(UserWarning, match='normalised to 0'):
        normalize = Normalize([S2], {'s2': [0.0]}, {'s2': [std]})
    assert (normalize({'image_s2': image})['image_s2'] == 0).all()


@pytest.mark.parametrize('value', [1e19, 1e30, math.inf], ids=str)
def test_normalize_by_image(value: float) -> None:
    """Large values leave float32 when they are squared; values that no sensor measures do not count."""
    image = torch.randn(1, 1, 1, 4, 4) * (1e19 if value == 1e19 else 1.0)
    image[..., 0, 0] = value
    batch = {'image_s2': image, 'valid_s2': torch.ones(1, 1, dtype=torch.bool)}
    normal = Normalize([S2])(batch)['image_s2'][finite(image)]
    assert normal.isfinite().all()
    assert 0.9 < normal.std(correction=0) < 1.1


@pytest.mark.parametrize(
    'text',
    [
        '{"train": {"mean": [0.0], "std": [-1.0]}}',
        '{"train": {"mean": [NaN], "std": [1.0]}}',
        '{"train": {"mean": [0.0], "std": [Infinity]}}',
        '{"train": {"mean": [0.0, 1.0], "std": [1.0, 1.0]}}',
        '{"train": {"mean": ["a"], "std": [1.0]}}',
        '{"train": {"mean": [1e999], "std": [1.0]}}',
        '{"train": {}}',
        '{"train": {"mean": [0.0], "std": [1.0]}, "train": {"mean": [5.0], "std": [1.0]}}',
        '[' * 100_000,
    ],
    ids=lambda text: text[:60],
)
def test_statistics_file(text: str, tmp_path: Path) -> None:
    (tmp_path / 'NORM.json').write_text(text)
    with pytest.raises(ValueError, match=r'NORM\.json'):
        read_statistics(tmp_path / 'NORM.json', 'train', 1)


@pytest.fixture(scope='module')
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    statistics = {n: [1.0] * len(m.bands) for n, m in MODALITIES.items()}
    told = {key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')}
    folder = tmp_path_factory.mktemp('hub')
    export_hub(OmniSatPretraining(**told, mean=statistics, std=statistics), folder)
    return folder


S2_DICT = MODALITIES['s2'].as_dict()


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'mean': {'s2': [math.nan] * 3}}, 'mean'),
        ({'mean': {'s2': [1.0, math.inf, 1.0]}}, 'mean'),
        ({'std': {'s2': [0.0, 0.0, 0.0]}}, 'std'),
        ({'std': {'s2': [1.0, -1.0, 1.0]}}, 'std'),
        ({'std': {'s2': [1.0, math.nan, 1.0]}}, 'std'),
        ({'sources': {'a': {'mean': {'s2': [0.0]}, 'std': {'s2': [-1.0]}}}}, "std of 's2' of the source 'a'"),
        ({'patch_size': math.inf}, 'patch_size'),
        ({'patch_size': math.nan}, 'patch_size'),
        ({'patch_size': 1e-9}, 'patch_size'),
        ({'patch_size': 0}, 'patch_size'),
        ({'patch_size': -40.0}, 'patch_size'),
        ({'patch_size': 'a'}, "'a'"),
        ({'label_gsd': math.inf}, 'label_gsd'),
        ({'label_gsd': -1}, 'label_gsd'),
        ({'backbone_args': {'depth': 10**6}}, 'depth'),
        ({'backbone_args': {'depth': -1}}, 'depth'),
        ({'backbone_args': {'depth': 2.5}}, 'depth'),
        ({'backbone_args': {'embed_dim': 10**9}}, 'embed_dim'),
        ({'backbone_args': {'embed_dim': 16384}}, 'embed_dim'),
        ({'backbone_args': {'embed_dim': 0}}, 'embed_dim'),
        ({'backbone_args': {'num_heads': 0}}, 'num_heads'),
        ({'backbone_args': {'num_heads': math.nan}}, 'num_heads'),
        ({'backbone_args': {'widths': [10**9, 32, 64]}}, 'widths'),
        ({'backbone_args': {'widths': [0, 32, 64]}}, 'widths'),
        ({'backbone_args': {'image_widths': [10**9] * 4}}, 'image_widths'),
        ({'backbone_args': 7}, ''),
        ({'modalities': 10**9}, ''),
        ({'modalities': [S2_DICT | {'gsd': 0}]}, 'gsd'),
        ({'modalities': [S2_DICT | {'gsd': math.inf}]}, 'gsd'),
        ({'modalities': [S2_DICT | {'bands': 10**9}]}, ''),
        ({'modalities': [S2_DICT | {'bands': [f'b{i}' for i in range(20_000)]}]}, 'bands'),
    ],
    ids=lambda change: str(change)[:60],
)
def test_hub_configuration(hub: Path, change: dict[str, Any], named: str, tmp_path: Path) -> None:
    config = json.loads((hub / 'config.json').read_text())
    (tmp_path / 'model.safetensors').symlink_to(hub / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f'(?s){tmp_path}.*{named}'):
        load_hub(tmp_path)


@pytest.mark.parametrize('value', [math.nan, math.inf], ids=str)
def test_hub_weights(hub: Path, value: float, tmp_path: Path) -> None:
    tensors = load_file(hub / 'model.safetensors')
    next(iter(tensors.values())).flatten()[0] = value
    save_file(tensors, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').symlink_to(hub / 'config.json')
    with pytest.raises(ValueError, match=r'model\.safetensors.*NaN'):
        load_hub(tmp_path)


@pytest.mark.parametrize('value', [math.inf, math.nan, 0.0, -10.0, 1e-9], ids=str)
def test_sizes(value: float) -> None:
    with pytest.raises(ValueError, match='pixels'):
        Modality('s2', ('B02',), 7.0, True).pixels(value)
    with pytest.raises(ValueError, match='patch_size'):
        omnisat_tiny(MODALITIES, patch_size=value)
    if value != 1e-9:
        with pytest.raises(ValueError, match='gsd'):
            Modality('s2', ('B02',), value, True)


def test_batch_of_none() -> None:
    batch = {key: value[:0] for key, value in make_batch(1).items()}
    with pytest.raises(ValueError, match=r'\b0\b'):
        omnisat_tiny(MODALITIES)(batch)
