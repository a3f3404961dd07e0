# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.landscapes.flair import GROUND, FLAIRRecipe, render_aerial, write_flair
from torchgeo_omnisat.batch import check
from torchgeo_omnisat.datasets import FLAIR
from torchgeo_omnisat.datasets.flair import CLASSES
from torchgeo_omnisat.datasets.synthetic.landscape import CROPS, draw_landscape
from torchgeo_omnisat.datasets.synthetic.writing import Recipe, is_synthetic, write_landscapes

SMALL = FLAIRRecipe(zones=5, size=12, dates=6)


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('synthetic') / 'new' / 'root'
    write_flair(root, SMALL)
    return root


def digest(root: Path) -> str:
    value = hashlib.sha256()
    for path in sorted(root.rglob('*')):
        value.update(str(path.relative_to(root)).encode())
        value.update(path.read_bytes() if path.suffix in ('.npy', '.txt', '.json') else b'')
    return value.hexdigest()


class TestWriteFLAIR:
    def test_reads_as_flair(self, root: Path) -> None:
        assert is_synthetic(root)
        for split, count in (('train', 12), ('val', 4), ('test', 4)):
            dataset = FLAIR(root, split)
            assert len(dataset) == count
            for sample in map(dataset.__getitem__, range(count)):
                check(sample, dataset.modalities, batched=False)
                assert sample['image_aerial'].shape == (5, 256, 256)
                assert sample['image_s2'].shape == (6, 10, 5, 5)
                assert sample['image_s2'].isfinite().all()
                assert sample['dates_aerial'].item() > 17900
                assert sample['label'].any()

    def test_seed_determines_it(self, root: Path, tmp_path: Path) -> None:
        write_flair(tmp_path / 'again', SMALL)
        assert digest(tmp_path / 'again') == digest(root)
        write_flair(root, SMALL)
        with pytest.raises(ValueError, match=r'seed=0.*seed=1'):
            write_flair(root, replace(SMALL, seed=1))

    def test_another_layout_is_refused(self, root: Path, tmp_path: Path) -> None:
        write_landscapes(tmp_path / 'pastis', Recipe(1, 0, 8, (1, 1)))
        with pytest.raises(ValueError, match=r'layout=None.* expected .*layout=FLAIR'):
            write_flair(tmp_path / 'pastis', SMALL)
        (tmp_path / 'notes').write_text('mine')
        with pytest.raises(ValueError, match='holds other files'):
            write_flair(tmp_path, SMALL)

    @pytest.mark.parametrize(
        ('change', 'match'),
        [
            ({'zones': 0}, 'zones must be at least 1, got 0'),
            ({'seed': -1}, 'seed must be at least 0, got -1'),
            ({'tile': 300}, 'tile must be a multiple of 256 pixels, .* got 300'),
            ({'size': 6}, r'size must be more than 6\.12 pixels of 10 m, got 6'),
            ({'dates': 81}, 'dates must be at most 80, got 81'),
        ],
    )
    def test_bad_recipes(self, change: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            replace(SMALL, **change)

    def test_aerial_and_series_see_the_same_ground(self, root: Path) -> None:
        """Greenness of both agrees best where they are not shifted against each other."""
        near, far = [], []
        for split in FLAIR.splits:
            dataset = FLAIR(root, split)
            for sample in map(dataset.__getitem__, range(len(dataset))):
                aerial = sample['image_aerial']
                close = torch.nn.functional.adaptive_avg_pool2d((aerial[3] - aerial[0])[None], 5)[0]
                clear = sample['image_s2'][sample['valid_s2']]
                green = ((clear[:, 6] - clear[:, 2]) / (clear[:, 6] + clear[:, 2])).mean(0)
                near.append(np.corrcoef(close.ravel(), green.ravel())[0, 1])
                far.append(np.corrcoef(close.flip(0, 1).ravel(), green.ravel())[0, 1])
        assert np.mean(near) > np.mean(far) + 0.2


class TestRenderAerial:
    def test_heights_and_colours_follow_the_labels(self) -> None:
        rng = np.random.default_rng(4)
        land = draw_landscape(rng, 20)
        kinds = rng.permutation(list(GROUND)).tolist() * len(land.covers)
        image, label = render_aerial(rng, replace(land, covers=tuple(kinds[: len(land.covers)])))
        assert (image.shape, image.dtype, label.shape) == ((5, 1000, 1000), np.uint8, (1000, 1000))
        found = {CLASSES[k - 1]: image[:, label == k].mean(1) for k in np.unique(label)}
        assert set(found) == {ground.name for ground in GROUND.values()}
        assert found['impervious surface'][4] < 5 < found['building'][4] < found['deciduous'][4]
        assert found['herbaceous vegetation'][3] > found['herbaceous vegetation'][0] + 30

    def test_a_series_tells_what_a_texture_does_not(self) -> None:
        meadow, fodder = CROPS[1], CROPS[14]
        assert meadow.spot == fodder.spot
        assert GROUND[meadow].name != GROUND[fodder].name
        assert meadow.s2 != fodder.s2
