"""Presto against the source model, the published weights and what must not matter."""

import copy
from datetime import date
from pathlib import Path

import pytest
import torch
from torchgeo.models import presto

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import OmniSatSegmenter, omnisat_tiny
from torchgeo_omnisat.models.encoders.pretrained.adapter import canonical
from torchgeo_omnisat.models.encoders.pretrained.series.composites import median
from torchgeo_omnisat.models.encoders.pretrained.series.presto import CHANNELS, PrestoEncoder
from torchgeo_omnisat.tasks import OmniSatSegmentation

from ....conftest import MODALITIES
from ....conftest import S1A as RADAR
from ....conftest import S2 as SERIES
from ..invariances import INVARIANCES, check

SHARED = Path(__file__).parents[5].parent / 'shared'
WEIGHTS, FIXTURE = SHARED / 'data/weights/presto_default_model.pt', SHARED / 'fixtures/presto_pooled.pt'
SMALL = {
    'encoder_embedding_size': 32,
    'encoder_depth': 1,
    'encoder_num_heads': 4,
    'decoder_embedding_size': 16,
    'decoder_depth': 1,
    'decoder_num_heads': 2,
}
S2 = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
S1 = ('VV', 'VH')


@pytest.fixture
def state():
    torch.manual_seed(0)
    return presto(None, **SMALL).state_dict()


def days(year, month, day=1):
    return (date(year + (month - 1) // 12, (month - 1) % 12 + 1, day) - date(1970, 1, 1)).days


def build(state, bands=S2, unit='dn', **kwargs):
    arguments = {'latlon': (50.9, 5.3), **SMALL, **kwargs}
    return PrestoEncoder(bands, unit, weights=state, **arguments).eval()


def series(bands=10, months=6, size=2, side=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(size, months, bands, side, side, generator=generator) * 4000 + 100
    dates = torch.tensor([[days(2020, 11 + month, 5) for month in range(months)]] * size)
    return image, dates, torch.ones(size, months, dtype=torch.bool)


def pooled(model, x, mask, month, latlon=(50.9, 5.3)):
    """The published pooling, computed by the source model from its own input."""
    norm, model.encoder.norm = model.encoder.norm, torch.nn.Identity()
    cover = torch.full(x.shape[:2], 9)
    with torch.no_grad():
        tokens, _, _ = model.encoder(x, cover, torch.tensor([latlon] * len(x)), mask, month)
        out = norm(tokens.mean(1))
    model.encoder.norm = norm
    return out


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.skipif(not FIXTURE.is_file(), reason='needs the published weights')
@pytest.mark.parametrize('case', ['s2', 's1', 's1+s2', 's2 T 7'])
def test_published_embeddings(case):
    """Raw images of single pixels give the embeddings of the published code."""
    found = torch.load(FIXTURE, weights_only=True, map_location='cpu')[case]
    names = [band for band in (*S1, *S2) if not found['mask'][0, 0, CHANNELS.index(canonical(band))]]
    raw = found['x'][..., [CHANNELS.index(canonical(band)) for band in names]]
    radar = torch.tensor([band in S1 for band in names])
    raw = torch.where(radar, raw * 25 - 25, raw * 1e4)
    units = ['db' if band in S1 else 'dn' for band in names]
    for number in range(4):
        place = tuple(found['latlons'][number].tolist())
        encoder = PrestoEncoder(names, units, weights=WEIGHTS, latlon=place, ndvi=False)
        months = [days(2021, int(found['month'][number]) + 1 + step, 15) for step in range(raw.shape[1])]
        image = raw[number][None, :, :, None, None]
        (out,) = encoder(image, torch.tensor([months]), torch.ones(1, len(months), dtype=torch.bool))
        same(out[0, :, 0, 0], found['pooled'][number])


@pytest.mark.skipif(not FIXTURE.is_file(), reason='needs the published weights')
def test_published_embeddings_with_elevation():
    found = torch.load(FIXTURE, weights_only=True, map_location='cpu')['s1+s2+srtm+ndvi']
    x = found['x'].masked_fill(found['mask'].bool(), torch.nan)
    for number in range(4):
        place = tuple(found['latlons'][number].tolist())
        encoder = PrestoEncoder(S2, 'dn', weights=WEIGHTS, latlon=place)
        same(encoder.embed(x[number : number + 1], found['month'][number : number + 1])[0], found['pooled'][number])


@pytest.mark.parametrize(('bands', 'unit'), [(S2, 'dn'), (S1, 'db')])
def test_maps_equal_the_source_model(state, bands, unit):
    image, dates, valid = series(len(bands))
    if unit == 'db':
        image = image / 200 - 25
    model = presto(None, **SMALL)
    model.load_state_dict(state)
    x = torch.zeros(2 * 9, 6, 17)
    mask = torch.ones_like(x)
    pixels = image.permute(0, 3, 4, 1, 2).flatten(0, 2)
    for index, band in enumerate(bands):
        channel = CHANNELS.index(canonical(band))
        x[..., channel] = pixels[..., index] / 1e4 if unit == 'dn' else (pixels[..., index] + 25) / 25
        mask[..., channel] = 0
    if unit == 'dn':
        red, near = x[..., CHANNELS.index('B4')], x[..., CHANNELS.index('B8')]
        x[..., 16], mask[..., 16] = (near - red) / (near + red), 0
    expected = pooled(model, x, mask, 10).view(2, 3, 3, 32).permute(0, 3, 1, 2)
    for chunk in (512, 4):
        (out,) = build(state, bands, unit, chunk=chunk)(image, dates, valid)
        same(out, expected)


def test_months_without_observation_are_masked(state):
    image, dates, valid = series()
    valid[:, 2] = False
    image[:, 4, :, 0] = torch.nan
    model = presto(None, **SMALL)
    model.load_state_dict(state)
    (out,) = build(state, ndvi=False)(image, dates, valid)
    pixel = image[1, :, :, 0, 1]
    x, mask = torch.zeros(1, 6, 17), torch.ones(1, 6, 17)
    channels = [CHANNELS.index(canonical(band)) for band in S2]
    x[0, :, channels] = pixel.nan_to_num(0) / 1e4
    mask[0, :, channels] = 0
    mask[0, [2, 4]] = 1
    same(out[1, :, 0, 1], pooled(model, x, mask, 10)[0])


def test_later_months_are_left_out(state):
    image, dates, valid = series(months=8)
    valid[1, 0] = False
    (out,) = build(state, months=5)(image, dates, valid)
    first = [build(state)(*(x[i : i + 1, i : i + 5] for x in (image, dates, valid))) for i in (0, 1)]
    same(out, torch.cat([maps[0] for maps in first]))


def test_permuted_bands_give_the_same_maps(state):
    image, dates, valid = series()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    (expected,) = build(state)(image, dates, valid)
    bands = [S2[index].replace('B0', 'b') for index in order]
    (out,) = build(state, bands)(image[:, :, order], dates, valid)
    assert torch.equal(out, expected)


def test_statistics_and_units_are_undone(state):
    image, dates, valid = series()
    mean, std = torch.linspace(500, 3000, 10), torch.linspace(100, 1000, 10)
    normalised = (image - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    (expected,) = build(state)(image, dates, valid)
    (out,) = build(state, mean=mean.tolist(), std=std.tolist())(normalised, dates, valid)
    same(out, expected, 1e-4)
    (out,) = build(state, unit='reflectance')(image / 1e4, dates, valid)
    same(out, expected)
    backscatter = series(2)[0] / 200 - 25
    (expected,) = build(state, S1, 'db')(backscatter, dates, valid)
    (out,) = build(state, S1, 'power')(10 ** (backscatter / 10), dates, valid)
    same(out, expected)


def test_both_sensors_in_one_series(state):
    """Dates of one sensor have NaN in the bands of the other."""
    image, dates, valid = series(12)
    image[:, :, :2] = image[:, :, :2] / 200 - 25
    units = ['db'] * 2 + ['dn'] * 10
    encoder = build(state, S1 + S2, units)
    (expected,) = encoder(image, dates, valid)
    radar, optical = image.clone(), image.clone()
    radar[:, :, 2:], optical[:, :, :2] = torch.nan, torch.nan
    apart = torch.cat([optical, radar], 1), torch.cat([dates + 3, dates], 1), torch.cat([valid, valid], 1)
    (out,) = encoder(*apart)
    same(out, expected)
    (alone,) = build(state, S1, 'db')(image[:, :, :2], dates, valid)
    (out,) = encoder(radar, dates, valid)
    same(out, alone)


@pytest.mark.parametrize('cache_size', [0, 2**10])
def test_what_must_not_matter(state, cache_size):
    image, dates, valid = series()
    image[0, 3, :, 1, 1] = torch.nan
    encoder = build(state, cache_size=cache_size)
    (expected,) = encoder(image, dates, valid)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    (out,) = encoder(image[:, order], dates[:, order], valid)
    same(out, expected)
    early = image.clone()
    early[:, :1] = torch.nan
    same(encoder(early, dates, valid)[0], encoder(image[:, 1:], dates[:, 1:], valid[:, 1:])[0])
    for fill in (0.0, 1e5, torch.nan):  # padding
        padded = torch.cat([image, torch.full_like(image[:, :4], fill)], 1)
        longer = torch.cat([dates, torch.zeros_like(dates[:, :4])], 1), torch.cat([valid, ~valid[:, :4]], 1)
        same(encoder(padded, *longer)[0], expected)
    other = image[1:].clone().fill_(1e4)  # a neighbour with a longer series
    both = torch.cat([image[:1], other]), torch.stack([dates[0], dates[0] + 200]), valid
    same(encoder(*both)[0][0], expected[0])
    (empty,) = encoder(image, dates, torch.zeros_like(valid))
    assert not empty.any()
    nodata = image.clone()
    nodata[:, 2:4] = torch.nan
    hidden = valid.clone()
    hidden[:, 2:4] = False
    same(encoder(nodata, dates, valid)[0], encoder(image, dates, hidden)[0])
    assert not encoder(image * torch.nan, dates, valid)[0].any()


def test_dates_of_one_month_are_combined(state):
    image, dates, valid = series()
    encoder = build(state)
    (expected,) = encoder(image, dates, valid)
    clouds = image.clone().fill_(9000)
    twice = torch.cat([image, image, clouds], 1), torch.cat([dates, dates + 9, dates + 2], 1), valid.repeat(1, 3)
    assert torch.equal(encoder(*twice)[0], expected)
    backscatter = image[:, :, :2] / 200 - 25
    linear = 10 ** (backscatter / 10)
    together = torch.cat([linear, 3 * linear], 1), torch.cat([dates, dates + 9], 1), valid.repeat(1, 2)
    (out,) = build(state, S1, 'power')(*together)
    same(out, build(state, S1, 'power')(2 * linear, dates, valid)[0])


def test_median_of_odd_even_and_none():
    values = torch.tensor([[4.0, 1.0, torch.nan], [2.0, 5.0, torch.nan], [torch.nan, 3.0, torch.nan]]).unsqueeze(-1)
    assert torch.equal(median(values)[:2, 0], torch.tensor([3.0, 3.0]))
    assert median(values)[2].isnan().all()


def test_location_matters_and_is_left_out_if_unknown(state):
    image, dates, valid = series()
    known = build(state)(image, dates, valid)[0]
    far = PrestoEncoder(S2, 'dn', weights=state, latlon=(-20.0, 140.0), **SMALL)(image, dates, valid)[0]
    unknown = PrestoEncoder(S2, 'dn', weights=state, **SMALL)
    assert (known - far).abs().max() > 1e-3
    before = unknown(image, dates, valid)[0]
    with torch.no_grad():
        unknown.encoder.latlon_embed.weight.add_(1.0)
    assert torch.equal(unknown(image, dates, valid)[0], before)


def test_location_of_each_sample(state):
    image, dates, valid = series(size=3)
    places = torch.tensor([[140.0, -20.0], [torch.nan, torch.nan], [5.3, 50.9]], dtype=torch.float64)
    encoder = PrestoEncoder(S2, 'dn', weights=state, **SMALL).eval()
    (out,) = encoder(image, dates, valid, places)
    for index, place in enumerate(((-20.0, 140.0), None, (50.9, 5.3))):
        single = PrestoEncoder(S2, 'dn', weights=state, latlon=place, **SMALL).eval()
        part = image[index : index + 1], dates[index : index + 1], valid[index : index + 1]
        same(out[index], single(*part)[0][0])
        same(out[index], encoder(*part, places[index : index + 1])[0][0])  # from the cache
    hits = encoder.cache.hits
    assert hits == 27
    (moved,) = encoder(image, dates, valid, places.flip(0))
    assert (moved[0] - out[0]).abs().max() > 1e-3
    same(moved[1], out[1])
    fixed = build(state)  # latlon overrides
    same(fixed(image, dates, valid, places)[0], fixed(image, dates, valid)[0], 0)


def test_model_passes_coordinates(state):
    modality = Modality('s2', S2, 10.0, True, 'optical', 'dn')
    torch.manual_seed(0)
    spec = {'name': 'presto', 'pretrained': False} | SMALL
    model = omnisat_tiny([modality], encoders={'s2': spec}).eval()
    batch = dict(zip(modality.keys, series(side=4), strict=True))
    located = batch | {'coordinates': torch.tensor([[5.0, 50.0], [torch.nan, torch.nan]], dtype=torch.float64)}
    difference = (model(located).fused - model(batch).fused).abs().amax((1, 2))
    assert difference[0] > 1e-4
    assert difference[1] < 1e-5


def test_checkpoint_without_location_stays_without(state):
    image, dates, valid = series()
    places = torch.tensor([[5.3, 50.9]] * 2, dtype=torch.float64)
    encoder = PrestoEncoder(S2, 'dn', weights=state, **SMALL).eval()
    plain = encoder(image, dates, valid)[0]
    assert not torch.equal(encoder(image, dates, valid, places)[0], plain)
    saved = encoder.state_dict()
    encoder.load_state_dict(saved)
    assert not torch.equal(encoder(image, dates, valid, places)[0], plain)
    saved.pop('uses_coordinates')
    encoder.load_state_dict(saved)
    assert torch.equal(encoder(image, dates, valid, places)[0], plain)


def test_cache_depends_on_content_and_weights(state):
    image, dates, valid = series()
    encoder = build(state)
    first = encoder(image, dates, valid)[0]
    assert encoder.cache.hits == 0
    assert torch.equal(encoder(image.flip(-1), dates, valid)[0], first.flip(-1))
    assert encoder.cache.hits == 18
    longer = torch.cat([image, torch.full_like(image[:, :2], torch.nan)], 1)  # beside a longer series
    longer[1, -1] = image[1, 0]
    encoder(longer, torch.cat([dates, dates[:, -2:] + 62], 1), torch.cat([valid, valid[:, :2]], 1))
    assert encoder.cache.hits == 27
    (shifted,) = encoder(image, dates + 31, valid)
    assert not torch.equal(shifted, first)
    image[0, 0, 0, 0, 0] += 1
    assert not torch.equal(encoder(image, dates, valid)[0][0, :, 0, 0], first[0, :, 0, 0])
    encoder.load_state_dict({name: value * 2 for name, value in encoder.state_dict().items()})
    assert not torch.equal(encoder(image, dates, valid)[0], first)
    assert len(copy.deepcopy(encoder).cache.slots) == 0


def test_cache_is_bounded(state):
    encoder = build(state, cache_size=10)
    uncached = build(state, cache_size=0)
    for seed in range(3):
        inputs = series(seed=seed)
        same(encoder(*inputs)[0], uncached(*inputs)[0])
        assert len(encoder.cache.slots) == 10
        assert len(encoder.cache._values) == 10


def test_frozen_weights_stay_and_others_train(state):
    image, dates, valid = series()
    for frozen, name in ((True, 'freeze'), (False, 'freeze'), (False, 'frozen')):  # the last is its former name
        encoder = build(state, **{name: frozen})
        head = torch.nn.Conv2d(32, 2, 1)
        parameters = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]
        before = copy.deepcopy(encoder.state_dict())
        head(encoder(image, dates, valid)[0]).square().mean().backward()
        torch.optim.AdamW(parameters, lr=0.1).step()
        changed = [name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])]
        assert bool(changed) != frozen
        assert len(encoder.cache.slots) == (18 if frozen else 0)


def test_gradient_reaches_the_image(state):
    image, dates, valid = series()
    image.requires_grad_()
    build(state)(image, dates, valid)[0].square().sum().backward()
    assert image.grad.abs().amin((0, 2, 3, 4)).shape == (6,)
    assert image.grad.ne(0).any((0, 2, 3, 4)).all()


@pytest.mark.parametrize(
    ('bands', 'unit', 'match'),
    [
        (('R', 'G'), 'dn', "'R', 'G'"),
        (('B02', 'B03'), 'dn', 'B02'),
        (('B8', 'B08'), 'dn', 'B8'),
        (S2, 'db', "'db'"),
        (S1, 'unknown', "'unknown'"),
        (S2, ['dn'], 'dn'),
    ],
)
def test_unfit_bands_and_units(bands, unit, match):
    with pytest.raises(ValueError, match=match):
        PrestoEncoder(bands, unit, **SMALL)


def test_other_unfit_arguments(state, tmp_path):
    with pytest.warns(UserWarning, match='B09'):
        PrestoEncoder(('B09', *S2), 'dn', **SMALL)
    with pytest.raises(ValueError, match='latlon'):
        PrestoEncoder(S2, 'dn', latlon=(100.0, 5.0), **SMALL)
    with pytest.raises(ValueError, match='months is 0'):
        PrestoEncoder(S2, 'dn', months=0, **SMALL)
    with pytest.raises(ValueError, match='mean'):
        PrestoEncoder(S2, 'dn', mean=[1.0], std=[1.0] * 10, **SMALL)
    with pytest.raises(ValueError, match='nowhere'):
        PrestoEncoder(S2, 'dn', weights='nowhere', **SMALL)
    with pytest.raises(ValueError, match='fit'):
        PrestoEncoder(S2, 'dn', weights={'a': torch.zeros(1)}, **SMALL)
    image, dates, valid = series()
    dates[:, -1] += 1000
    with pytest.raises(ValueError, match='24'):
        build(state)(image, dates, valid)
    path = tmp_path / 'presto.pt'
    torch.save(state, path)
    assert torch.equal(build(path).norm.weight, build(state).norm.weight)


def test_first_batch_in_training_sets_shift_and_scale(state):
    image, dates, valid = series(size=4)
    valid[3] = False
    encoder = build(state)
    plain = build(state, standardise=False)(image, dates, valid)[0]
    same(encoder.eval()(image, dates, valid)[0], plain)
    (first,) = encoder.train()(image, dates, valid)
    same(first[:3].mean((0, 2, 3)), torch.zeros(32), 1e-4)
    same(first[:3].std((0, 2, 3)), torch.ones(32), 1e-4)
    assert not first[3].any()
    same(encoder(image[:1], dates[:1], valid[:1])[0], first[:1], 1e-3)
    reloaded = build(state)
    reloaded.load_state_dict(encoder.state_dict())
    same(reloaded.train()(image[1:], dates[1:], valid[1:])[0], first[1:])


def test_by_name(state, tmp_path):
    modality = Modality('s2', S2, 10.0, True, 'optical', 'dn')
    path = tmp_path / 'presto.pt'
    torch.save(state, path)
    for spec in ({'name': 'presto', 'weights': str(path)}, {'name': 'presto', 'pretrained': False}):
        encoder = omnisat_tiny([modality], encoders={'s2': spec | SMALL}).encoders['s2']
        assert isinstance(encoder, PrestoEncoder)
        loaded = torch.equal(encoder.encoder.channel_embed.weight, state['encoder.channel_embed.weight'])
        assert loaded == ('weights' in spec)
        assert (encoder.origin is not None) == ('weights' in spec)
    with pytest.raises(ValueError, match='PRESTO'):
        omnisat_tiny([modality], encoders={'s2': 'presto'})


def test_tasks_set_the_statistics(state):
    modality = Modality('s2', S2, 10.0, True, 'optical', 'dn')
    backbone_args = {'encoders': {'s2': {'name': 'presto', 'pretrained': False, 'latlon': [-20.0, -60.0], **SMALL}}}
    mean, std = list(range(10)), list(range(1, 11))
    task = OmniSatSegmentation(
        'omnisat_tiny',
        {'s2': modality},
        3,
        patch_size=40.0,
        label_gsd=10.0,
        mean={'s2': mean},
        std={'s2': std},
        backbone_args=backbone_args,
    )
    encoder = task.model.backbone.encoders['s2']
    assert encoder.mean.tolist() == mean
    assert encoder.latlon == (-20.0, -60.0)
    assert encoder.std.tolist() == std
    sources = {name: {'mean': {'s2': [shift] * 10}, 'std': {'s2': std}} for name, shift in (('a', 0.0), ('b', 1.0))}
    with pytest.raises(ValueError, match="'s2'"):
        OmniSatSegmentation(**task.hparams | {'sources': sources})


@pytest.fixture(scope='module')
def segmenter():
    encoders = {}
    for modality, unit, mean, std in ((SERIES, 'dn', 1500.0, 800.0), (RADAR, 'db', -14.0, 4.0)):
        bands = modality.bands
        encoders[modality.name] = PrestoEncoder(bands, unit, [mean] * len(bands), [std] * len(bands), **SMALL)
    torch.manual_seed(0)
    return OmniSatSegmenter(omnisat_tiny(MODALITIES, encoders=encoders), num_classes=5, label_gsd=10.0)


@pytest.mark.parametrize('name', INVARIANCES)
def test_invariances_of_the_model(segmenter, name):
    check(name, segmenter)
