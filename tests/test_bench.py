# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A backbone behind the interface of torchgeo-bench, with and without a stand-in for it."""

import importlib
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchgeo_omnisat import Modality, bench
from torchgeo_omnisat.tasks import OmniSatPretraining, export_hub


@dataclass(frozen=True)
class BandSpec:
    """The fields of torchgeo-bench's class."""

    sensor: str
    name: str
    source_name: str
    mean: float
    std: float
    min: float = 0
    max: float = 1
    wavelength_um: float | None = None


class BenchModel(nn.Module, ABC):
    """What torchgeo-bench calls: a sealed forward pass that normalises, then asks for features."""

    handles_own_normalization = False

    def __init__(self, bands: list[Any], normalization: str = 'bandspec_zscore', **_: object) -> None:
        super().__init__()
        assert normalization in ('bandspec_zscore', 'model_native', 'minmax', 'minmax_zscore', 'identity')
        self.bands, self.num_channels, self.normalization = list(bands), len(bands), normalization

    def normalize_inputs(self, images: Tensor) -> Tensor:
        raise AssertionError('the model normalises by itself')

    @abstractmethod
    def _forward_patch_features(self, images: Tensor) -> Tensor: ...

    def forward_patch_features(self, images: Tensor) -> Tensor:
        return self._forward_patch_features(self.normalize_inputs(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_patch_features(images)


S2 = Modality('s2', ('B02', 'B03', 'B04'), 10.0, True, 'optical', 'dn')
S1A = Modality('s1a', ('VV', 'VH', 'VV-VH'), 10.0, True, 'radar', 'db')
AERIAL = Modality('aerial', ('R', 'G'), 2.5, False, 'optical', 'dn')
MEAN = {'s2': [1000.0, 1100.0, 1200.0], 's1a': [-12.0, -18.0, 6.0], 'aerial': [100.0, 90.0]}
STD = {'s2': [500.0, 500.0, 600.0], 's1a': [3.0, 3.0, 3.0], 'aerial': [40.0, 40.0]}
BANDS = [
    BandSpec('s2', 'b04', 'B04', 1300, 700),
    BandSpec('s2', 'b02', 'B02', 900, 400),
    BandSpec('s2', 'b03', 'B03', 1000, 500),
    BandSpec('s1_asc', 'vv_asc', 'VV_asc', -12, 3),
    BandSpec('s1_asc', 'vh_asc', 'VH_asc', -18, 3),
    BandSpec('s1_asc', 'vv_vh_asc', 'VV/VH_asc', 6, 3),
    BandSpec('aerial', 'green', 'green', 90, 40),
    BandSpec('aerial', 'red', 'red', 100, 40),
]


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    known = [modality.as_dict() for modality in (S2, S1A, AERIAL)]
    task = OmniSatPretraining('omnisat_tiny', modalities=known, patch_size=40.0, mean=MEAN, std=STD)
    folder = tmp_path_factory.mktemp('bench') / 'hub'
    export_hub(task, folder)
    return str(folder)


@pytest.fixture(params=['absent', 'installed'])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Our module, imported without torchgeo-bench, and with the stand-in."""
    names = ('torchgeo_bench', 'torchgeo_bench.models', 'torchgeo_bench.models.interface')
    for name in names:
        stand: Any = ModuleType(name)
        stand.BenchModel = BenchModel
        monkeypatch.setitem(sys.modules, name, stand if request.param == 'installed' else None)
    yield importlib.reload(bench)
    monkeypatch.undo()
    importlib.reload(bench)


def images(count: int = 2, side: int = 16, seed: int = 0) -> Tensor:
    """Raw values of the bands of BANDS on one grid."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor([[band.mean, band.std] for band in BANDS])
    noise = torch.randn(count, len(BANDS), side, side, generator=generator)
    return centre[:, 0, None, None] + centre[:, 1, None, None] * noise


def test_embeds_and_offers_a_map_of_tokens(module: ModuleType, weights: str) -> None:
    model = module.OmniSatBenchModel(bands=BANDS, weights=weights, name='ignored', image_size=None)
    maps: list[Tensor] = []
    dict(model.named_modules())['dense'].register_forward_hook(lambda *call: maps.append(call[2]))
    found = model.train()(images())
    assert found.shape == (2, model.embed_dim)
    assert not any(part.training for part in model.modules())
    assert maps[0].shape == (2, model.embed_dim, 4, 4)
    assert torch.equal(found, maps[0].mean((2, 3)))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(images())[:1], model(images()[:1]), rtol=0, atol=1e-5)


def test_every_sensor_is_normalised_by_its_statistics(weights: str) -> None:
    model, raw = bench.OmniSatBenchModel(BANDS, weights=weights, gsd=2.5), images(side=32)
    batch = model.batch(raw)
    assert {key: tuple(value.shape) for key, value in batch.items() if key.startswith('image')} == {
        'image_s2': (2, 1, 3, 8, 8), 'image_s1a': (2, 1, 3, 8, 8), 'image_aerial': (2, 2, 32, 32),
    }  # fmt: skip
    torch.testing.assert_close(batch['image_aerial'][:, 0], (raw[:, 7] - 100) / 40)
    blocks = raw[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
    torch.testing.assert_close(batch['image_s2'][:, 0, 2], (blocks - 1200) / 600)
    assert batch['dates_s2'].tolist() == [[18078], [18078]]
    other = bench.OmniSatBenchModel(BANDS, weights=weights, gsd=2.5, statistics='dataset').batch(raw)
    torch.testing.assert_close(other['image_s2'][:, 0, 2], (blocks - 1300) / 700)


def test_order_of_bands_does_not_matter(weights: str) -> None:
    order = torch.randperm(len(BANDS), generator=torch.Generator().manual_seed(1)).tolist()
    one = bench.OmniSatBenchModel(BANDS, weights=weights)(images())
    two = bench.OmniSatBenchModel([BANDS[i] for i in order], weights=weights)(images()[:, order])
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_missing_and_unknown_bands(weights: str) -> None:
    with pytest.warns(UserWarning, match='s2 b8a'):
        model = bench.OmniSatBenchModel([BANDS[0], replace(BANDS[1], name='b8a', source_name='B8A')], weights=weights)
    batch = model.batch(images()[:, :2])
    assert list(model.modalities) == ['s2']
    assert batch['image_s2'].isnan().flatten(3).all(-1)[0, 0].tolist() == [True, True, False]
    assert model(images()[:, :2]).isfinite().all()
    with pytest.raises(ValueError, match='landsat'):
        bench.OmniSatBenchModel([replace(BANDS[0], sensor='landsat')], weights=weights)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        renamed = [replace(band, sensor='planet') for band in BANDS[:3]]
        assert list(bench.OmniSatBenchModel(renamed, weights=weights, sensors={'planet': 's2'}).modalities) == ['s2']


def test_weights_without_statistics_are_named(weights: str, tmp_path: Path) -> None:
    task = OmniSatPretraining('omnisat_tiny', modalities=[S2.as_dict()], patch_size=40.0, tile_weight=0, patch_weight=0)
    export_hub(task, tmp_path / 'hub')
    with pytest.raises(ValueError, match='mean'):
        bench.OmniSatBenchModel(BANDS[:3], weights=str(tmp_path / 'hub'))
    found = bench.OmniSatBenchModel(BANDS[:3], weights=str(tmp_path / 'hub'), statistics='dataset')(images()[:, :3])
    assert found.isfinite().all()
