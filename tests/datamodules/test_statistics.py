# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchgeo_omnisat.datamodules.common import statistics
from torchgeo_omnisat.datamodules.common.statistics import (
    FILENAME,
    Entries,
    Moments,
    is_measured,
    load_statistics,
    measure,
    partial_of,
    read_statistics,
    save_statistics,
)
from torchgeo_omnisat.modality import Modality


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

    def test_no_float64_image(self) -> None:
        image = torch.randn(1, 4, 512, 512)
        image[0, 0, :9] = torch.nan
        streamed = Moments(4)
        tracemalloc.start()
        streamed.add(image)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # Two copies in float32 and flags; one in float64 more would be 2 times the image.
        assert peak < 3 * image.nbytes

    @pytest.mark.parametrize('offset', [0.0, 1e4, -3e5])
    def test_merging_is_measuring_together(self, offset: float) -> None:
        rng = np.random.default_rng(1)
        image = (rng.normal(size=(5, 2, 40, 40)) + offset).astype(np.float32)
        image[1, 0] = np.nan
        parts = [Moments(2) for _ in image]
        for part, frame in zip(parts, image, strict=True):
            part.add(torch.from_numpy(frame))
        merged = Moments(2)
        for part in parts:
            merged.merge(Moments.restore(json.loads(json.dumps(part.state()))))
        values = image.astype(np.float64)
        assert merged.as_dict()['mean'] == pytest.approx(np.nanmean(values, (0, 2, 3)), rel=1e-9, abs=1e-9)
        assert merged.as_dict()['std'] == pytest.approx(np.nanstd(values, (0, 2, 3)), rel=1e-6)


class Series:
    """Six samples of two dates, of which one is not valid, and an image that only some have; counts what is read."""

    modalities = {'a': Modality('a', ('x', 'y'), 10, True), 'b': Modality('b', ('z',), 1, False)}
    groups = ['one', 'two', 'one', 'two', 'one', 'two']

    def __init__(self, fail: int | None = None) -> None:
        self.fail, self.read = fail, list[int]()

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.read.append(index)
        if index == self.fail:
            raise KeyboardInterrupt
        image = torch.randn((2, 2, 4, 4), generator=torch.Generator().manual_seed(index))
        image[1] = 1e9
        sample = {'image_a': image, 'dates_a': torch.arange(2), 'valid_a': torch.tensor([True, False])}
        if index > 1:
            sample |= {'image_b': torch.full((1, 2, 2), float(index)), 'dates_b': torch.zeros(1)}
            sample |= {'valid_b': torch.tensor([index < 5])}
        return sample


def run(series: Series, **arguments: Any) -> Entries:
    return measure(series, series.modalities, series.groups, **arguments)


class TestMeasure:
    def test_valid_images_by_group(self) -> None:
        entries = run(Series())
        images = torch.stack([Series()[index]['image_a'][0] for index in (0, 2, 4)]).double()
        assert entries['a']['one']['mean'] == pytest.approx(images.mean((0, 2, 3)).tolist())
        assert entries['a']['one']['std'] == pytest.approx(images.std((0, 2, 3), correction=0).tolist())
        assert (entries['b']['one']['mean'], entries['b']['one']['std']) == ([3.0], [1.0])
        assert entries['b']['two'] == {'mean': [3.0], 'std': [0.0], 'samples': 3, 'of': 3}

    def test_workers_change_nothing(self) -> None:
        assert run(Series(), num_workers=2) == run(Series())

    def test_some_samples(self) -> None:
        series = Series()
        entries = run(series, most=3)
        assert series.read == [0, 2, 5]
        assert [(entries['a'][g]['samples'], entries['a'][g]['of']) for g in ('one', 'two')] == [(2, 3), (1, 3)]

    def test_goes_on_where_it_was_cut_off(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics, 'EVERY', 0)
        keep = tmp_path / 'partial'
        with pytest.raises(KeyboardInterrupt):
            run(Series(fail=4), keep=keep)
        assert json.loads(keep.read_text())['done'] == 4
        other, same = Series(), Series()
        assert run(other, keep=tmp_path / 'elsewhere') == run(same, keep=keep)
        assert (other.read, same.read) == ([0, 1, 2, 3, 4, 5], [4, 5])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize('change', [{'about': 'other'}, {'most': 5}])
    def test_never_goes_on_with_another_pass(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
    ) -> None:
        monkeypatch.setattr(statistics, 'EVERY', 0)
        keep = tmp_path / 'partial'
        with pytest.raises(KeyboardInterrupt):
            run(Series(fail=4), keep=keep)
        series = Series()
        assert run(series, keep=keep, **change) == run(Series(), **change)
        assert series.read[0] == 0

    @pytest.mark.parametrize('damage', ['', '{', '[]', '{"pass": 1}'])
    def test_damaged_partial_is_as_good_as_none(self, tmp_path: Path, damage: str) -> None:
        keep = tmp_path / 'partial'
        keep.write_text(damage)
        assert run(Series(), keep=keep) == run(Series())


ENTRIES: Entries = {'a': {'one': {'mean': [1.0, 2.0], 'std': [0.0, 0.5], 'samples': 2, 'of': 2}}}
MORE: Entries = {'a': {'two': {'mean': [], 'std': [], 'samples': 1, 'of': 1}}, 'b': ENTRIES['a']}


class TestFile:
    def test_adds_to_what_is_there(self, tmp_path: Path) -> None:
        assert load_statistics(tmp_path) == {}
        assert save_statistics(tmp_path, ENTRIES) == tmp_path / FILENAME
        save_statistics(tmp_path, MORE)
        assert load_statistics(tmp_path) == {'a': ENTRIES['a'] | MORE['a'], 'b': MORE['b']}
        assert [path.name for path in tmp_path.iterdir()] == [FILENAME]

    def test_holds_for_the_samples_that_there_are(self) -> None:
        assert is_measured(ENTRIES, 'a', {'one': 2}, 2)
        assert is_measured(MORE, 'a', {'two': 1}, 2)
        for name, groups, bands in (('a', {'one': 3}, 2), ('a', {'one': 2, 'two': 1}, 2), ('a', {'one': 2}, 3)):
            assert not is_measured(ENTRIES, name, groups, bands)
        assert not is_measured(ENTRIES, 'b', {'one': 2}, 2)
        by_hand: Entries = {'a': {'one': {'mean': [1.0], 'std': [1.0]}}}
        assert is_measured(by_hand, 'a', {'one': 77}, 1)

    @pytest.mark.parametrize(
        'damage', ['', '{', '[]', '{"a": []}', '{"a": {"one": {}}}', '{"a": {"one": {"mean": [1], "std": []}}}',
                   '{"a": {"one": {"mean": [NaN], "std": [1]}}}', '{"a": {"one": {"mean": "x", "std": "y"}}}'],
    )  # fmt: skip
    def test_damaged_file_is_as_good_as_none(self, tmp_path: Path, damage: str) -> None:
        (tmp_path / FILENAME).write_text(damage)
        assert not load_statistics(tmp_path).get('a')
        save_statistics(tmp_path, ENTRIES)
        assert load_statistics(tmp_path) == ENTRIES

    def test_read_only_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
        root, other = tmp_path / 'file', tmp_path / 'other'  # below a file nothing can be written, whoever asks
        for path in (root, other):
            path.write_text('')
        place = save_statistics(root, ENTRIES)
        assert place == next((tmp_path / 'cache').rglob(FILENAME))
        assert load_statistics(root) == ENTRIES
        assert load_statistics(other) == {}
        keep = partial_of(root)
        assert keep is not None
        assert keep.parent == place.parent
        root.unlink()
        newer: Entries = {'a': {'one': {'mean': [7.0], 'std': [7.0]}}}
        save_statistics(root, newer)
        assert load_statistics(root) == newer, 'what lies beside the data comes before what the cache has'

    def test_nowhere_to_write(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = tmp_path / 'file'
        root.write_text('')
        monkeypatch.setenv('TORCH_HOME', str(root))
        with pytest.warns(UserWarning, match=r'STATISTICS\.json'):
            assert save_statistics(root, ENTRIES) is None
        assert partial_of(root) is None

    def test_many_at_once(self, tmp_path: Path) -> None:
        with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
            warnings.simplefilter('error')
            list(pool.map(lambda _: save_statistics(tmp_path, ENTRIES), range(40)))
        assert load_statistics(tmp_path) == ENTRIES
        assert [p.name for p in tmp_path.iterdir()] == [FILENAME]


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
