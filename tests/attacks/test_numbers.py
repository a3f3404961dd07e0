# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Numbers that no sensor measures: they count as not observed, and are counted."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from tests.prediction.areas import TOLD as AREA
from tests.prediction.areas import PlaneDataModule, PlaneTiles
from tests.tasks.helpers import MODALITIES, TOLD, make_batch, make_loader, make_sample
from torchgeo_omnisat.datamodules.statistics import Moments, read_statistics
from torchgeo_omnisat.modality import Modality
from torchgeo_omnisat.prediction import GeoTIFFWriter
from torchgeo_omnisat.prediction.raster import Bands
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.transforms import Normalize
from torchgeo_omnisat.utils.observed import GREATEST, ImplausibleCounts, finite, observed

STRANGE = [-math.inf, 1e30, 3.4e38, 2e6]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_observed(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -5.0, 60000.0, math.nan, math.inf, -math.inf, 1e30], dtype=dtype)
    assert observed(values).tolist() == [True] * 3 + [False] * 4
    assert finite(values).tolist() == [True] * 3 + [False] * 4
    assert observed(torch.tensor([1, 2**30])).all()


def test_counts() -> None:
    counts = ImplausibleCounts()
    image = torch.zeros(2, 2, 1, 2, 2)
    image[:, 0, 0, 0] = torch.tensor([math.inf, math.nan])
    image[1, 1] = -1e30
    counts.add('s2', image, torch.tensor([[True, True], [True, False]]))
    counts.add('s2', image[:1], torch.ones(1, 2, dtype=torch.bool))
    counts.add('dem', torch.full((2, 1, 2, 2), 3.0), torch.ones(2, 1, dtype=torch.bool))
    with pytest.warns(UserWarning, match=f'beyond {GREATEST:g} .*: 3 of s2'.replace('+', r'\+')):
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
    with pytest.warns(UserWarning, match=f'count as not observed: .* of {key.removeprefix("image_")}'):
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
        counted = [str(w.message) for w in said if 'count as not observed' in str(w.message)]
        assert len(counted) == (not math.isnan(number))
        with rasterio.open(tmp_path / f'{number}.tif') as file:
            maps.append(file.read())
    assert np.array_equal(*maps)
    assert (maps[0][0] == 255).sum() == 16


def test_no_probability_is_nodata() -> None:
    bands = Bands(['a', 'b'], ['s2'])
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
    with pytest.warns(UserWarning, match='constant bands are 0 after normalisation'):
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
