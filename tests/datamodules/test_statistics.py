# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from torchgeo_omnisat.datamodules.statistics import Moments, keep_statistics, read_statistics


def moments(value: float) -> Moments:
    made = Moments(2)
    made.add(torch.tensor([value, 2 * value]).view(2, 1, 1))
    return made


class TestMoments:
    def test_matches_all_at_once(self) -> None:
        rng = np.random.default_rng(0)
        image = (rng.normal(size=(7, 3, 5, 5)) * [[[1]], [[10]], [[100]]] + 5).astype(np.float32)
        image[rng.random(image.shape) < 0.2] = np.nan
        image[4] = np.nan
        streamed = Moments(3)
        streamed.add(torch.from_numpy(image[:4]))
        streamed.add(torch.from_numpy(image[4]))
        streamed.add(torch.from_numpy(image[5:]))
        entry = streamed.as_dict()
        assert entry['mean'] == pytest.approx(np.nanmean(image.astype(float), (0, 2, 3)))
        assert entry['std'] == pytest.approx(np.nanstd(image.astype(float), (0, 2, 3)))

    def test_large_mean_costs_no_digits(self) -> None:
        streamed = Moments(1)
        for sign in (-1, 1) * 50:
            streamed.add(torch.full((1, 1, 4, 4), 1e6 + sign))
        assert streamed.as_dict() == {'mean': [pytest.approx(1e6)], 'std': [pytest.approx(1.0, abs=1e-9)]}

    def test_says_when_there_was_nothing(self) -> None:
        streamed = Moments(2)
        assert streamed.as_dict() == {'mean': [], 'std': []}
        streamed.add(torch.tensor([1.0, torch.nan]).view(2, 1, 1))
        assert streamed.as_dict() == {'mean': [], 'std': []}


class TestKeepStatistics:
    def test_measures_once(self, tmp_path: Path) -> None:
        asked = []

        def measure(key: str) -> Moments:
            asked.append(key)
            return moments(float(key[-1]))

        first = keep_statistics(tmp_path, 'S.json', {'Fold_1': 3, 'Fold_2': 4}, measure)
        again = keep_statistics(tmp_path, 'S.json', {'Fold_2': 4, 'Fold_1': 3}, measure)
        assert asked == ['Fold_1', 'Fold_2']
        assert first == again == json.loads((tmp_path / 'S.json').read_text())
        assert first['Fold_2'] == {'mean': [2.0, 4.0], 'std': [0.0, 0.0], 'samples': 4}
        keep_statistics(tmp_path, 'S.json', {'Fold_3': 1}, measure)
        assert set(json.loads((tmp_path / 'S.json').read_text())) == {'Fold_1', 'Fold_2', 'Fold_3'}
        keep_statistics(tmp_path, 'S.json', {'Fold_1': 9}, measure)
        assert asked == ['Fold_1', 'Fold_2', 'Fold_3', 'Fold_1']

    @pytest.mark.parametrize('damage', ['', '{', '[]', '{"Fold_1": {}}', '{"Fold_1": {"mean": [1], "samples": 1}}'])
    def test_damaged_file_is_as_good_as_none(self, tmp_path: Path, damage: str) -> None:
        (tmp_path / 'S.json').write_text(damage)
        kept = keep_statistics(tmp_path, 'S.json', {'Fold_1': 1}, lambda _: moments(1))
        assert json.loads((tmp_path / 'S.json').read_text()) == kept

    def test_read_only_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
        root = tmp_path / 'file'  # below a file nothing can be written, whoever asks
        root.write_text('')
        kept = keep_statistics(root, 'S.json', {'Fold_1': 1}, lambda _: moments(1))
        (place,) = (tmp_path / 'cache').rglob('S.json')
        assert json.loads(place.read_text()) == kept
        assert keep_statistics(root, 'S.json', {'Fold_1': 1}, lambda _: moments(2)) == kept
        other = tmp_path / 'other'
        other.write_text('')
        assert keep_statistics(other, 'S.json', {'Fold_1': 1}, lambda _: moments(2)) != kept

    def test_nowhere_to_write(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = tmp_path / 'file'
        root.write_text('')
        monkeypatch.setenv('TORCH_HOME', str(root))
        with pytest.warns(UserWarning, match=r'statistics could not be kept in any of .*S\.json'):
            kept = keep_statistics(root, 'S.json', {'Fold_1': 1}, lambda _: moments(1))
        assert kept['Fold_1']['mean'] == [1.0, 2.0]

    def test_many_at_once(self, tmp_path: Path) -> None:
        def keep(_: int) -> dict[str, dict[str, object]]:
            return keep_statistics(tmp_path, 'S.json', {'Fold_1': 1}, lambda _: moments(1))

        with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
            warnings.simplefilter('error')
            found = list(pool.map(keep, range(40)))
        assert all(entry == found[0] for entry in found)
        assert [p.name for p in tmp_path.iterdir()] == ['S.json']


class TestReadStatistics:
    @pytest.mark.parametrize(
        'text',
        [
            '{',
            '{}',
            '[]',
            '{"Fold_1": {"mean": [1, 2]}}',
            '{"Fold_1": {"mean": [1], "std": [1]}}',
            '{"Fold_1": {"mean": [1, NaN], "std": [1, 1]}}',
            '{"Fold_1": {"mean": [1, 2], "std": [1, -1]}}',
            '{"Fold_1": {"mean": ["a", 2], "std": [1, 1]}}',
        ],
    )
    def test_refuses(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / 'NORM_S2_patch.json'
        path.write_text(text)
        with pytest.raises(
            ValueError, match=r"NORM_S2_patch\.json .*expected 'Fold_1' with 'mean' and 'std' of 2 finite"
        ):
            read_statistics(path, 'Fold_1', 2)
