# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Arrays in the units of the data give what a trainer predicts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatRegression, OmniSatSegmentation, Predictor
from torchgeo_omnisat.transforms import Normalize

from .helpers import MODALITIES, TOLD, make_loader, make_sample, make_trainer

MEAN = {name: [100.0 + k for k in range(len(m.bands))] for name, m in MODALITIES.items()}
STD = {name: [20.0 + k for k in range(len(m.bands))] for name, m in MODALITIES.items()}


def raw() -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]:
    """Raw images and dates, and the sample that has them."""
    sample = make_sample(1)
    for modality in MODALITIES.values():
        sample[modality.image_key] = sample[modality.image_key] * 20 + 100
    images = {name: sample[m.image_key].numpy() for name, m in MODALITIES.items()}
    dates = {name: sample[m.dates_key].numpy() for name, m in MODALITIES.items() if m.temporal}
    return images, dates, sample


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('predictor')
    torch.manual_seed(0)
    task, trainer = OmniSatSegmentation(mean=MEAN, std=STD, **TOLD), make_trainer(folder)
    trainer.fit(task, make_loader([make_sample(i) for i in range(2)]))
    trainer.save_checkpoint(folder / 'a.ckpt')
    return folder / 'a.ckpt'


def test_raw_images_are_normalised(checkpoint: Path) -> None:
    images, dates, sample = raw()
    result = Predictor(checkpoint)(images, dates)
    task = OmniSatSegmentation.load_from_checkpoint(checkpoint).eval()
    batch = Normalize(MODALITIES.values(), MEAN, STD)(collate([sample], MODALITIES))
    with torch.inference_mode():
        expected = task.without_ignored(task(batch)).softmax(1)[0].numpy()
    np.testing.assert_allclose(result['probabilities'], expected, atol=1e-6)
    assert (result['classes'] == expected.argmax(0)).all()
    assert result['probabilities'][4].max() == 0  # ignored


def test_dates_of_any_type_and_missing_modalities(checkpoint: Path) -> None:
    images, dates, _ = raw()
    predictor = Predictor(checkpoint)
    days = {name: value.astype('datetime64[D]') for name, value in dates.items()}
    words = {name: value.astype(str).tolist() for name, value in days.items()}
    first = predictor(images, dates)['probabilities']
    for other in (days, words):
        np.testing.assert_array_equal(predictor(images, other)['probabilities'], first)
    one = predictor({'s2': images['s2']}, {'s2': dates['s2']})['probabilities']
    assert one.shape == first.shape
    assert not np.allclose(one, first)


def test_coordinates_reach_the_location_and_the_prototypes_of_regions() -> None:
    images, dates, _ = raw()
    torch.manual_seed(0)
    args = {'encoders': {'location': 'scaled'}, 'context_degrees': 10.0}
    predictor = Predictor(OmniSatSegmentation(mean=MEAN, std=STD, **TOLD, backbone_args=args))
    unknown, place = predictor(images, dates), predictor(images, dates, (2.35, 48.85))
    nowhere = predictor(images, dates, (np.nan, np.nan))
    np.testing.assert_array_equal(nowhere['probabilities'], unknown['probabilities'])
    assert np.abs(place['probabilities'] - unknown['probabilities']).max() > 1e-6
    assert np.abs(predictor.embed(images, dates, (2.35, 48.85)) - predictor.embed(images, dates)).max() > 1e-3
    with pytest.raises(ValueError, match='latitude'):
        predictor(images, dates, (48.85, 102.35))


def test_xarray(checkpoint: Path) -> None:
    images, dates, _ = raw()
    predictor = Predictor(checkpoint)
    time = dates['s2'].astype('datetime64[D]').astype('datetime64[ns]')
    array = xarray.DataArray(images['s2'], dims=('time', 'band', 'y', 'x'), coords={'time': time})
    expected = predictor({'s2': images['s2']}, {'s2': dates['s2']})['probabilities']
    for given in ({'s2': array.transpose('y', 'x', 'band', 'time')}, xarray.Dataset({'s2': array})):
        np.testing.assert_array_equal(predictor(given)['probabilities'], expected)
    with pytest.raises(ValueError, match='dimensions'):
        predictor({'s2': array.rename(time='t')})


def test_embeddings() -> None:
    """Without convolutions and spatial attention, only the embeddings of the patches that change are others."""
    images, dates, _ = raw()
    torch.manual_seed(0)
    args = {'encoders': {'s2': 'monthly'}, 'depth': 0}
    predictor = Predictor(OmniSatSegmentation(mean=MEAN, std=STD, **TOLD, backbone_args=args))
    embeddings = predictor.embed(images, dates)
    assert embeddings.shape[:2] == (4, 4)
    changed = {**images, 's2': images['s2'].copy()}
    changed['s2'][..., :8, 8:] += 50
    moved = np.abs(predictor.embed(changed, dates) - embeddings).max(-1) > 1e-5
    assert moved[:2, 2:].all()  # top right
    assert moved.sum() == 4


@pytest.mark.parametrize('task', ['classification', 'regression'])
def test_other_tasks(task: str) -> None:
    told = {name: TOLD[name] for name in ('backbone', 'modalities', 'patch_size')} | {'mean': MEAN, 'std': STD}
    images, dates, _ = raw()
    if task == 'classification':
        result = Predictor(OmniSatClassification(label_names=['x', 'y', 'z'], **told))(images, dates)
        assert result['probabilities'].shape == (3,)
    else:
        model = OmniSatRegression(label_gsd=10.0, target_mean=7.0, target_std=2.0, **told)
        assert Predictor(model)(images, dates)['values'].shape == (16, 16)


def test_errors(checkpoint: Path) -> None:
    images, dates, _ = raw()
    predictor = Predictor(checkpoint)
    for wrong, when, words in [
        ({'s3': images['s2']}, {}, "'s3'"),
        ({}, {}, 'no modality'),
        ({'s2': images['s2'][:, :2]}, dates, '3 bands: B02, B03, B04'),
        ({'s2': images['s2']}, {}, 'dates of s2 are missing'),
        ({'s2': images['s2']}, {'s2': dates['s2'][:1]}, 'one per image'),
        ({'s2': images['s2']}, {'s2': ['soon'] * len(images['s2'])}, 'soon'),
    ]:
        with pytest.raises(ValueError, match=words):
            predictor(wrong, when)
    with pytest.raises(ValueError, match='no mean and std'):
        Predictor(OmniSatSegmentation(**TOLD))
