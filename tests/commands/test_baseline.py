# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torchgeo.datasets.utils import Sample

from tests.geo_tree import write
from torchgeo_omnisat.commands import baseline
from torchgeo_omnisat.commands.baseline import main, pixel_features, score_classes, score_pixels
from torchgeo_omnisat.datasets import PASTISMultimodal, SyntheticLandscapes
from torchgeo_omnisat.modality import Modality

S2 = Modality('s2', ('B04', 'B08'), 10.0, True)
SPOT = Modality('spot', ('R',), 1.0, False)
CALENDAR = np.arange(0, 41, 10)


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('baseline') / 'root'
    SyntheticLandscapes(root, num_tiles=20, size=16)
    return root


def series() -> dict[str, torch.Tensor]:
    """Bands that grow by 1 and 2 a day, and a date without an image."""
    dates = torch.tensor([0, 7, 20, 40])
    image = (dates[:, None] * torch.tensor([1.0, 2.0]))[..., None, None] + torch.arange(6.0).reshape(2, 3)
    image[1] = 999
    return {'image_s2': image, 'dates_s2': dates, 'valid_s2': torch.tensor([True, False, True, True])}


def test_series_are_interpolated_between_valid_dates() -> None:
    features = pixel_features(series(), S2, CALENDAR, (2, 3))
    assert features.shape == (6, 2 * (5 + 3))
    expected = (CALENDAR[:, None] * np.array([1, 2]))[None] + np.arange(6.0)[:, None, None]
    assert np.allclose(features[:, :10].reshape(6, 5, 2), expected)


def test_neighbours_are_not_seen() -> None:
    sample = series()
    before = pixel_features(sample, S2, CALENDAR, (2, 3))
    sample['image_s2'][..., 0, 1:] = 5000
    sample['image_s2'][..., 1, :] = torch.nan
    after = pixel_features(sample, S2, CALENDAR, (2, 3))
    assert np.array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])


def test_image_is_averaged_over_the_pixel() -> None:
    image = torch.arange(16.0).reshape(1, 4, 4)
    sample = {'image_spot': image, 'dates_spot': torch.zeros(1, dtype=torch.int64), 'valid_spot': torch.tensor([True])}
    assert pixel_features(sample, SPOT, CALENDAR, (2, 2)).ravel().tolist() == [2.5, 4.5, 10.5, 12.5]


@pytest.mark.parametrize(('modality', 'width'), [(S2, 16), (SPOT, 1)])
def test_absent_modality_is_nan(modality: Modality, width: int) -> None:
    features = pixel_features({}, modality, CALENDAR, (2, 3))
    assert features.shape == (6, width)
    assert np.isnan(features).all()


def test_features_without_a_value_are_left_out() -> None:
    features = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    features[:, 1] = np.nan
    target = (features[:, 0] > 0.5).astype(np.int64)
    for model in baseline._classifiers(baseline.CLASSIFIERS, len(target), 0).values():
        assert (baseline._fit_quietly(model, features, target).predict(features) == target).mean() > 0.8


def test_score_is_between_chance_and_perfect(root: Path) -> None:
    splits = [PASTISMultimodal(root, folds, ('s2',), missing='allow') for folds in ((1, 2, 3), (5,))]
    score = score_pixels(*splits, max_pixels=2000)
    assert 0.15 < score < 0.9
    assert score == score_pixels(*splits, max_pixels=2000)


class WithoutVoid(PASTISMultimodal):
    """Nothing to be seen where the label is void."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        sample['image_s2'][..., sample['mask'] == 19] = -1.0
        return sample


def test_void_is_neither_learnt_nor_scored(root: Path) -> None:
    scores = []
    for kind in (PASTISMultimodal, WithoutVoid):
        splits = [kind(root, folds, ('s2',), missing='allow') for folds in ((1, 2, 3), (5,))]
        scores.append(score_pixels(*splits, max_pixels=2000))
    assert scores[0] == scores[1]


def test_command_prints_two_scores_and_that_they_are_synthetic(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['--root', str(root), '--max-pixels', '500']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'synthetic landscapes' in lines[0]
    assert [line.split()[:3] for line in lines[1:]] == [['s2', 'mean', 'IoU'], ['s1a+s1d+s2+spot', 'mean', 'IoU']]


def test_classifiers_are_of_other_data_only(root: Path) -> None:
    with pytest.raises(ValueError, match='forest'):
        main(['--root', str(root), '--classifiers', 'forest'])


def test_command_writes_landscapes_only_where_it_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match='Dataset not found'):
        main(['--root', str(tmp_path / 'mistyped')])
    monkeypatch.setattr(baseline, 'SYNTHETIC_ROOT', str(tmp_path / 'own'))
    monkeypatch.setattr(baseline, 'SyntheticLandscapes', lambda root: SyntheticLandscapes(root, num_tiles=10, size=8))
    assert main(['--max-pixels', '200']) == 0
    assert (tmp_path / 'own' / 'metadata.geojson').exists()


def test_gaps_of_a_series_are_interpolated() -> None:
    whole, gap = series(), series()
    gap['image_s2'][2, :, 0, 0] = torch.nan  # day 20 of 0, 20 and 40
    gap['image_s2'][0, :, 0, 1] = torch.nan
    expected, found = (pixel_features(one, S2, CALENDAR, (2, 3))[:, :10].reshape(6, 5, 2) for one in (whole, gap))
    assert np.allclose(found[[0, 2, 3, 4, 5]], expected[[0, 2, 3, 4, 5]])  # they grow linearly
    assert np.allclose(found[1, :3], expected[1, 2])
    assert np.allclose(found[1, 3:], expected[1, 3:])


class Tiles:
    """Two tiles of 8 x 8 pixels whose band is the class, with a pixel without a label."""

    modalities = {'s2': Modality('s2', ('B04',), 10.0, True)}

    def __init__(self, tiles: int = 2) -> None:
        self.tiles, self.masks = tiles, torch.arange(64).reshape(8, 8) // 8 % 3
        self.masks[0, 0] = 255

    def __len__(self) -> int:
        return self.tiles

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.masks.float().expand(2, 1, 8, 8).clone()
        dates, valid = torch.tensor([18000, 18010]), torch.ones(2, dtype=torch.bool)
        return {'image_s2': image, 'dates_s2': dates, 'valid_s2': valid, 'mask': self.masks}


def test_classifiers_find_classes_that_the_bands_separate() -> None:
    found = score_classes(Tiles(), Tiles(3), 3, 255)
    assert (found.trained, found.scored) == (2 * 63, 3 * 63)
    assert list(found.scores) == [baseline.MAJORITY, *baseline.CLASSIFIERS]
    assert all(found.scores[name]['AverageJaccardIndex'] == 1 for name in baseline.CLASSIFIERS)
    assert found.scores[baseline.MAJORITY]['OverallAccuracy'] == pytest.approx(24 / 63)


def test_training_pixels_are_a_uniform_sample() -> None:
    tiles = Tiles(40)
    features, target = baseline._uniform_pixels(tiles, baseline._calendar_of(tiles), 255, 300, 0)
    assert len(features) == len(target) == 300
    assert set(target.tolist()) == {0, 1, 2}
    assert np.array_equal(features[:, 0], target)
    assert np.bincount(target) == pytest.approx(300 * np.array([23, 24, 16]) / 63, abs=40)


def test_tiles_without_labels_or_masks_are_errors() -> None:
    tiles = Tiles()
    tiles.masks = torch.full((8, 8), 255)
    with pytest.raises(ValueError, match='no pixel of 2 training tiles'):
        score_classes(tiles, Tiles(), 3, 255)
    with pytest.raises(ValueError, match='no pixel of 2 test tiles'):
        score_classes(Tiles(), tiles, 3, 255)
    with pytest.raises(ValueError, match=r"'label'.*expected mask"):
        baseline._mask_of({'label': torch.zeros(3)})


def test_command_scores_any_datamodule_on_its_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crops = np.arange(32 * 64).reshape(32, 64) % 64 // 4 % 2
    for day in ('20210301', '20210601'):
        write(tmp_path / f's2/S2_{day}.tif', (1000 * crops + 500).astype(np.uint16))
    write(tmp_path / 'labels/crops.tif', crops.astype(np.uint8))
    settings: dict[str, Any] = {
        'root': str(tmp_path),
        'rasters': {'s2': {'path': 's2', 'gsd': 10}},
        'mask': {'path': 'labels'},
        'labels': ['wheat', 'maize'],
        'tile_size': 80,
        'split': {'axis': 'x', 'fractions': [0.5, 0.5, 0]},
    }
    config = {'data': {'class_path': 'MultimodalGeoDataModule', 'init_args': settings}}
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    words = ['--config', str(tmp_path / 'config.yaml'), '--max-pixels', '500', '--classifiers', 'forest', 'mlp']
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'trained on 500 pixels' in lines[0]
    assert '1024 labelled pixels of the val split' in lines[0]
    assert lines[-3].split() == ['random', 'forest', '1.000', '1.000', '1.000']
    assert lines[-2].split() == ['pixel-wise', 'MLP', '1.000', '1.000', '1.000']
    assert lines[-1].startswith('500 training pixels are few')
    assert not any('boosting' in line for line in lines)
