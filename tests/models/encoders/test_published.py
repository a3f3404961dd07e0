"""The published models, number for number."""

from pathlib import Path

import pytest
import torch

from torchgeo_omnisat.models import UTAE, ImagePatchEncoder, SeriesPatchEncoder
from torchgeo_omnisat.models.encoders.series.temporal import PUBLISHED_REFERENCE

from ..conftest import assert_same

FIXTURES = Path(__file__).parents[3].parent / 'shared' / 'fixtures'
pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason='the numeric fixtures are not here')


def load(name):
    return torch.load(FIXTURES / f'{name}.pt', weights_only=True)


def test_utae():
    fixture = load('utae')
    model = UTAE.from_published(fixture['state_dict'], **fixture['ctor'])
    image, dates = fixture['x'], fixture['dates'] + PUBLISHED_REFERENCE
    valid = image.flatten(2).abs().sum(-1) > 0
    logits = model(image, dates, valid)
    assert_same(logits[0], fixture['out'][0], 1e-4)
    assert_same(logits[1], fixture['out_sample1_unpadded'][0], 1e-4)
    for ours, theirs in zip(model.features(image, dates, valid), fixture['maps'], strict=True):
        assert_same(ours[0], theirs[0], 1e-4)
    _, weights = model.encoder.attend(image, dates, valid)
    assert_same(weights[0], fixture['attn'][:, 0].transpose(0, 1), 1e-5)
    assert sum(p.numel() for p in model.parameters()) == 1_087_260


@pytest.mark.parametrize('name', ['ltae_pastis_s2', 'ltae_pastis_s1', 'ltae_pixel_s2'])
def test_series_patch_encoder(name):
    fixture = load(name)
    model = SeriesPatchEncoder.from_published(fixture['state_dict'], **fixture['ctor'])
    image, dates = fixture['x'], fixture['dates'] + PUBLISHED_REFERENCE
    valid = torch.ones_like(dates, dtype=torch.bool)
    valid[1, fixture['attn_sample1_unpadded'].shape[-1] :] = False
    tokens = model(image, dates, valid).transpose(1, 2)
    assert_same(tokens[0], fixture['out'][0].flatten(1), 1e-4)
    assert_same(tokens[1], fixture['out_sample1_unpadded'][0].flatten(1), 1e-4)


@pytest.mark.parametrize('name', ['patch_image_40', 'patch_image_50'])
def test_image_patch_encoder(name):
    fixture = load(name)
    model = ImagePatchEncoder.from_published(fixture['state_dict'], **fixture['ctor'])
    assert_same(model(fixture['x']), fixture['out'], 1e-4)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'agg_mode': 'mean'}, "agg_mode='mean' of U-TAE is not supported, expected 'att_group'"),
        ({'depth': 3}, "U-TAE has no argument 'depth'"),
    ],
)
def test_unsupported_arguments_are_refused(changes, message):
    fixture = load('utae')
    with pytest.raises(ValueError, match=message):
        UTAE.from_published(fixture['state_dict'], **fixture['ctor'] | changes)
