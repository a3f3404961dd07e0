"""TESSERA against the source model, and what must not matter."""

import copy
from datetime import date

import pytest
import torch
from torchgeo.models import Tessera_Weights, tessera
from torchgeo.models.tessera import TransformerEncoder

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import OmniSatSegmenter, TesseraEncoder, omnisat_tiny
from torchgeo_omnisat.models.encoders.pretrained.series.tessera import ENTRIES, day_of_year, spaced_evenly

from ....conftest import SPOT
from ..invariances import INVARIANCES, check

#: Order of the channels of the source model.
S2 = ('B04', 'B02', 'B03', 'B08', 'B8A', 'B05', 'B06', 'B07', 'B11', 'B12')
S1 = ('VV', 'VH')
SMALL = {'latent_dim': 8, 'num_heads': 2, 'depth': 1, 'hidden_dim': 16, 'dates': 6}


def source(bands):
    torch.manual_seed(0)
    return TransformerEncoder(len(bands), 8, 2, 1, 16).eval()


def build(bands=S2, unit='dn', weights=None, **kwargs):
    weights = source(bands).state_dict() if weights is None else weights
    return TesseraEncoder(bands, unit, weights=weights, **SMALL | kwargs).eval()


def series(bands=S2, dates=6, size=2, side=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(size, dates, len(bands), side, side, generator=generator)
    image = image * 4000 + 100 if len(bands) > 2 else image * 20 - 24
    start = (date(2021, 1, 9) - date(1970, 1, 1)).days
    days = start + torch.stack([torch.randperm(340, generator=generator)[:dates].sort().values for _ in range(size)])
    return image, days, torch.ones(size, dates, dtype=torch.bool)


def reference(pixel, doy, bands):
    """Embedding of one pixel ``(T, C)`` in digital numbers or decibels, by the source model."""
    if bands == S1:
        pixel = ((20 * (10 ** (pixel / 10)).log10() + 50) * 200).clamp(0, 32767)
    x = torch.cat([pixel, doy.float().unsqueeze(-1)], -1)
    x = ENTRIES['s1' if bands == S1 else 's2'].transforms(x.clone())
    with torch.no_grad():
        return source(bands)(x.unsqueeze(0))[0]


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize('bands', [S2, S1])
def test_maps_equal_the_source_model(bands):
    image, dates, valid = series(bands)
    for chunk in (256, 3):
        (out,) = build(bands, 'dn' if bands == S2 else 'db', chunk=chunk)(image, dates, valid)
        assert out.shape == (2, 32, 2, 2)
        for sample, row, column in ((0, 0, 1), (1, 1, 0)):
            doy = day_of_year(dates)[sample]
            same(out[sample, :, row, column], reference(image[sample, :, :, row, column], doy, bands))


def test_full_size_is_that_of_torchgeo():
    with torch.device('meta'):
        full = tessera().state_dict()
        for bands, prefix in ((S2, 's2_backbone.'), (S1, 's1_backbone.')):
            own = TesseraEncoder(bands, 'dn' if bands == S2 else 'db').encoder.state_dict()
            theirs = {key.removeprefix(prefix): value for key, value in full.items() if key.startswith(prefix)}
            assert {key: value.shape for key, value in own.items()} == {k: v.shape for k, v in theirs.items()}


def test_weights_of_the_whole_model():
    state = {f's2_backbone.{key}': value for key, value in source(S2).state_dict().items()}
    state |= {f's1_backbone.{key}': value for key, value in source(S1).state_dict().items()}
    for bands, unit in ((S2, 'dn'), (S1, 'db')):
        inputs = series(bands)
        encoder = build(bands, unit, state)
        assert encoder.origin.tensors == len(source(bands).state_dict())
        same(encoder(*inputs)[0], build(bands, unit)(*inputs)[0], 0)


def test_dates_are_spaced_evenly_and_repeated():
    usable = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    assert spaced_evenly(usable, 3).tolist() == [[1, 3, 5], [1, 3, 5], [4, 4, 4]]
    assert spaced_evenly(usable, 6).tolist() == [[0, 1, 2, 3, 4, 5], [1, 1, 3, 3, 5, 5], [4] * 6]


@pytest.mark.parametrize(('count', 'kept'), [(4, [0, 2, 3, 5]), (12, [i // 2 for i in range(12)])])
def test_a_fixed_number_of_dates_is_taken(count, kept):
    image, dates, valid = series()
    (out,) = build(dates=count)(image, dates, valid)
    doy = day_of_year(dates)[0][kept]
    same(out[0, :, 0, 0], reference(image[0, kept, :, 0, 0], doy, S2))


def test_day_of_the_year():
    dates = [[(date(*day) - date(1970, 1, 1)).days for day in ((2020, 1, 1), (2020, 12, 31), (2021, 12, 31))]]
    assert day_of_year(torch.tensor(dates)).tolist() == [[1, 366, 365]]


def test_permuted_bands_give_the_same_maps():
    image, dates, valid = series()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    (expected,) = build()(image, dates, valid)
    bands = [S2[index].replace('B0', 'b') for index in order]
    (out,) = TesseraEncoder(bands, 'dn', weights=source(S2).state_dict(), **SMALL).eval()(
        image[:, :, order], dates, valid
    )
    assert torch.equal(out, expected)


def test_statistics_and_units_are_undone():
    image, dates, valid = series()
    mean, std = torch.linspace(500, 3000, 10), torch.linspace(100, 1000, 10)
    (expected,) = build()(image, dates, valid)
    normalised = (image - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    same(build(mean=mean.tolist(), std=std.tolist())(normalised, dates, valid)[0], expected, 1e-4)
    same(build(unit='reflectance')(image / 1e4, dates, valid)[0], expected, 1e-4)
    image, dates, valid = series(S1)
    (expected,) = build(S1, 'db')(image, dates, valid)
    same(build(S1, 'power')(10 ** (image / 10), dates, valid)[0], expected, 1e-4)


@pytest.mark.parametrize('cache_size', [0, 2**10])
def test_what_must_not_matter(cache_size):
    image, dates, valid = series(dates=9)
    image[0, 3, 2, 1, 1] = torch.nan  # a date with a missing band is not used
    encoder = build(cache_size=cache_size)
    (expected,) = encoder(image, dates, valid)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    same(encoder(image[:, order], dates[:, order], valid)[0], expected)
    for fill in (0.0, 1e5, torch.nan):
        padded = torch.cat([image, torch.full_like(image[:, :4], fill)], 1)
        longer = torch.cat([dates, dates[:, :4] - 3000], 1), torch.cat([valid, ~valid[:, :4]], 1)
        same(encoder(padded, *longer)[0], expected)
    other = torch.cat([image[:1], image[1:] * 2]), torch.stack([dates[0], dates[0] + 200]), valid
    same(encoder(*other)[0][0], expected[0])
    others = [0, 1, 2, 4, 5, 6, 7, 8]
    same(
        encoder(image[:1, others], dates[:1, others], valid[:1, others])[0][0, :, 1, 1],
        expected[0, :, 1, 1],
    )
    assert not encoder(image, dates, torch.zeros_like(valid))[0].any()
    assert not encoder(image * torch.nan, dates, valid)[0].any()


def test_cache():
    image, dates, valid = series()
    encoder = build()
    (first,) = encoder(image, dates, valid)
    assert torch.equal(encoder(image.flip(-1), dates, valid)[0], first.flip(-1))
    assert encoder.cache.hits == 8
    assert not torch.equal(encoder(image, dates + 31, valid)[0], first)
    trained = build(freeze=False)
    trained(image, dates, valid)
    assert not trained.cache.slots


def test_frozen_weights_stay_without_dropout_and_others_train():
    image, dates, valid = series()
    for frozen in (True, False):
        encoder = build(freeze=frozen, standardise=False)
        expected = encoder(image, dates, valid)[0]
        encoder.train()
        head = torch.nn.Conv2d(32, 2, 1)
        (out,) = encoder(image, dates, valid)
        assert torch.equal(out, expected) == frozen
        parameters = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]
        before = copy.deepcopy(encoder.state_dict())
        head(out).square().mean().backward()
        torch.optim.AdamW(parameters, lr=0.1).step()
        changed = [name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])]
        assert bool(changed) != frozen


def test_by_name_and_checkpoint(tmp_path):
    small = {**SMALL}
    path = tmp_path / 'tessera.pt'
    torch.save(source(S2).state_dict(), path)
    modality = Modality('s2', S2, 10.0, True, 'optical', 'dn')
    spec = {'name': 'tessera', 'weights': str(path)} | small
    encoder = omnisat_tiny([modality], encoders={'s2': spec}).encoders['s2']
    assert isinstance(encoder, TesseraEncoder)
    assert (encoder.origin.source, encoder.origin.licence) == (str(path), None)
    again = omnisat_tiny([modality], encoders={'s2': spec | {'load': False}}).encoders['s2']
    again.load_state_dict(encoder.state_dict())
    assert again.origin.tensors == 0
    with pytest.raises(ValueError, match='TESSERA_SENTINEL2_ENCODER'):
        omnisat_tiny([modality], encoders={'s2': 'tessera'})


@pytest.mark.parametrize(
    ('bands', 'unit', 'kwargs', 'match'),
    [
        (S2[:9], 'dn', {}, 'B12'),
        ((*S2, *S1), 'dn', {}, 'VV'),
        (('B4', *S2), 'dn', {}, 'B4'),
        (S2, 'db', {}, "'db'"),
        (S1, 'unknown', {}, "'unknown'"),
        (S2, 'dn', {'dates': 0}, 'dates'),
        (S2, 'dn', {'mean': [1.0], 'std': [1.0] * 10}, 'mean'),
        (S2, 'dn', {'weights': 'nowhere'}, 'nowhere'),
        (S2, 'dn', {'weights': {'a': torch.zeros(1)}}, 'fit'),
    ],
)
def test_unfit_arguments(bands, unit, kwargs, match):
    with pytest.raises(ValueError, match=match):
        TesseraEncoder(bands, unit, **SMALL | kwargs)


def test_weights_of_the_other_sensor(monkeypatch):
    monkeypatch.setattr(Tessera_Weights, 'get_state_dict', lambda *_, **__: source(S1).state_dict())
    with pytest.raises(ValueError, match='fit'):
        TesseraEncoder(S2, 'dn', weights=Tessera_Weights.TESSERA_SENTINEL1_ENCODER, **SMALL)
    assert build(S1, 'db', 'TESSERA_SENTINEL1_ENCODER').origin.weights == 'Tessera_Weights.TESSERA_SENTINEL1_ENCODER'


@pytest.fixture(scope='module')
def segmenter():
    s2, s1 = Modality('s2', S2, 10.0, True), Modality('s1a', S1, 10.0, True)
    torch.manual_seed(0)
    encoders = {
        's2': TesseraEncoder(S2, 'dn', [1500.0] * 10, [800.0] * 10, **SMALL | {'dates': 4}),
        's1a': TesseraEncoder(S1, 'db', [-14.0] * 2, [4.0] * 2, **SMALL | {'dates': 4}),
    }
    return OmniSatSegmenter(omnisat_tiny([s2, s1, SPOT], encoders=encoders), num_classes=5, label_gsd=10.0)


@pytest.mark.parametrize('name', INVARIANCES)
def test_invariances_of_the_model(segmenter, name):
    check(name, segmenter)
