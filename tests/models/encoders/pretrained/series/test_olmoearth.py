"""OlmoEarth against its own package, or a stub of its signature where it is not installed."""

import copy
import importlib.util
import sys
from datetime import date

import pytest
import torch
from torchgeo.models import olmoearth_v1

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import OlmoEarthEncoder, OmniSatSegmenter, omnisat_tiny

from ....conftest import SPOT
from ..invariances import INVARIANCES, check
from . import olmoearth_stub

#: Order of the channels of the source model.
S2 = ('B02', 'B03', 'B04', 'B08', 'B05', 'B06', 'B07', 'B8A', 'B11', 'B12', 'B01', 'B09')
S1 = ('VV', 'VH')
INSTALLED = importlib.util.find_spec('olmoearth_pretrain_minimal') is not None


@pytest.fixture(autouse=True)
def _package(monkeypatch):
    if not INSTALLED:
        olmoearth_stub.install(monkeypatch)


def source():
    torch.manual_seed(0)
    return olmoearth_v1(None, model_size='nano', drop_path=0.0).eval()


def build(bands=S2, unit='dn', **kwargs):
    arguments = {'weights': source().state_dict()} | kwargs
    return OlmoEarthEncoder(bands, unit, **arguments).eval()


def day(year, month, number=5):
    return (date(year, month, number) - date(1970, 1, 1)).days


def series(bands=S2, months=3, size=2, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(size, months, len(bands), side, side, generator=generator)
    image = image * 4000 + 100 if len(bands) > 2 else image * 20 - 24
    dates = torch.tensor([[day(2020, 11 + i) if i < 2 else day(2021, i - 1) for i in range(months)]] * size)
    return image, dates, torch.ones(size, months, dtype=torch.bool)


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def reference(image, sensor, names, mask, months):
    """Mean of the visible tokens of each patch of one sample ``(T, C, H, W)``, by the source model."""
    package = sys.modules['olmoearth_pretrain_minimal']
    numbers = package.Normalizer().norm_config[sensor]
    data = image.permute(2, 3, 0, 1).clone()
    for index, name in enumerate(names):
        low, high = (numbers[name]['mean'] + sign * 2 * numbers[name]['std'] for sign in (-1, 1))
        data[..., index] = (data[..., index] - low) / (high - low)
    sample = sys.modules['olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes'].MaskedOlmoEarthSample(
        timestamps=torch.tensor([[[15, month, 2020] for month in months]]),
        **{sensor: data.nan_to_num(0)[None], f'{sensor}_mask': mask[None]},
    )
    with torch.no_grad():
        out = source().encoder(sample, patch_size=4, input_res=10)['tokens_and_masks']
    visible = (getattr(out, f'{sensor}_mask') == 0).float().unsqueeze(-1)
    pooled = (getattr(out, sensor) * visible).sum((3, 4)) / visible.sum((3, 4)).clamp(min=1)
    return pooled[0].permute(2, 0, 1)


@pytest.mark.parametrize(('bands', 'unit'), [(S2, 'dn'), (S1, 'db')])
def test_maps_equal_the_source_model(bands, unit):
    image, dates, valid = series(bands)
    (out,) = build(bands, unit, window=8)(image, dates, valid)
    sensor, names, sets = ('sentinel2_l2a', S2, 3) if unit == 'dn' else ('sentinel1', ('vv', 'vh'), 1)
    mask = torch.zeros(8, 8, 3, sets, dtype=torch.int64)
    for index in range(2):
        same(out[index], reference(image[index], sensor, names, mask, (10, 11, 0)), 2e-5)


def test_masks_of_each_sample():
    """Samples with other missing band sets, months and patches are computed in one batch."""
    image, dates, valid = series(size=3)
    image[0, 1, [4, 9]] = torch.nan  # band set of 20 m in one month
    image[0, :, :, :4, 4:] = torch.nan  # a patch
    image[2, 0] = torch.nan
    image[2, 0, :, 0, 0] = 500.0  # a pixel of the patch was observed
    valid[1, 1] = False
    (out,) = build(window=8)(image, dates, valid)
    masks = torch.zeros(3, 8, 8, 3, 3, dtype=torch.int64)
    masks[0, :, :, 1, 1] = 3
    masks[0, :4, 4:] = 3
    masks[1, :, :, 1] = 3
    masks[2, :, :, 0] = 3
    masks[2, :4, :4, 0] = 0
    filled = image.clone()
    filled[2, 0, :, :4, :4] = 500.0
    for index in range(3):
        expected = reference(filled[index], 'sentinel2_l2a', S2, masks[index], (10, 11, 0))
        same(out[index], expected, 2e-5)
    assert not out[0, :, 0, 1].any()


def test_band_set_that_the_data_lack():
    image, dates, valid = series()
    with pytest.warns(UserWarning, match='B01'):
        encoder = build(S2[:11], window=8)
    (out,) = encoder(image[:, :, :11], dates, valid)
    mask = torch.zeros(8, 8, 3, 3, dtype=torch.int64)
    mask[..., 2] = 3
    same(out[0], reference(image[0], 'sentinel2_l2a', S2, mask, (10, 11, 0)), 2e-5)


def test_permuted_bands_units_and_statistics():
    image, dates, valid = series()
    (expected,) = build()(image, dates, valid)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).tolist()
    bands = [S2[index].replace('B0', 'b') for index in order]
    assert torch.equal(build(bands)(image[:, :, order], dates, valid)[0], expected)
    same(build(unit='reflectance')(image / 1e4, dates, valid)[0], expected, 1e-4)
    normalised = (image - 1500) / 800
    same(build(mean=[1500.0] * 12, std=[800.0] * 12)(normalised, dates, valid)[0], expected, 1e-4)


def test_both_sensors_in_one_series():
    image, dates, valid = series((*S2, *S1))
    image[:, :, 12:] = image[:, :, 12:] / 200 - 25
    encoder = build((*S2, *S1), ['dn'] * 12 + ['db'] * 2)
    (both,) = encoder(image, dates, valid)
    radar = image.clone()
    radar[:, :, :12] = torch.nan
    (alone,) = build(S1, 'db')(image[:, :, 12:], dates, valid)
    same(encoder(radar, dates, valid)[0], alone)
    assert (both - alone).abs().max() > 1e-3


@pytest.mark.parametrize('side', [(6, 9), (16, 16), (10, 20)])
def test_sizes_and_windows(side):
    image, dates, valid = series(side=24)
    image = image[..., : side[0], : side[1]]
    (out,) = build(window=8)(image, dates, valid)
    assert out.shape[-2:] == (-(-side[0] // 4), -(-side[1] // 4))
    assert out.abs().amin((0, 1)).ne(0).any()
    (first,) = build(window=8)(image[..., :8, :8], dates, valid)
    same(out[..., : first.shape[-2], : first.shape[-1]], first)
    same(build(window=8, chunk=1)(image, dates, valid)[0], out)


def test_frozen_weights_stay_and_others_train():
    image, dates, valid = series(months=2)
    for freeze in (True, False):
        encoder = build(freeze=freeze).train()
        head = torch.nn.Conv2d(encoder.channels[0], 2, 1)
        parameters = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]
        before = copy.deepcopy(encoder.state_dict())
        (out,) = encoder(image, dates, valid)
        assert out.requires_grad != freeze
        head(out).square().mean().backward()
        torch.optim.AdamW(parameters, lr=0.1).step()
        changed = [name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])]
        assert bool(changed) != freeze


def test_by_name_and_checkpoint(tmp_path):
    path = tmp_path / 'weights.pth'
    state = {key.removeprefix('model.'): value for key, value in source().state_dict().items()}
    torch.save(state, path)
    modality = Modality('s2', S2, 10.0, True, 'optical', 'dn')
    spec = {'name': 'olmoearth', 'weights': str(path), 'size': 'nano', 'window': 8}
    encoder = omnisat_tiny([modality], encoders={'s2': spec}).encoders['s2']
    assert encoder.origin.tensors == len(encoder.encoder.state_dict())
    again = omnisat_tiny([modality], encoders={'s2': spec | {'load': False}}).encoders['s2']
    again.load_state_dict(encoder.state_dict())
    with pytest.raises(ValueError, match='NANO'):
        omnisat_tiny([modality], encoders={'s2': 'olmoearth'})


@pytest.mark.parametrize(
    ('bands', 'unit', 'kwargs', 'match'),
    [
        (('R', 'G'), 'dn', {}, "'R', 'G'"),
        (('B8', *S2), 'dn', {}, 'B8'),
        (S2, 'db', {}, "'db'"),
        (S2, ['dn'], {}, 'dn'),
        (S2, 'dn', {'patch': 9}, '9'),
        (S2, 'dn', {'window': 6}, '6'),
        (S2, 'dn', {'weights': 'nowhere'}, 'nowhere'),
        (S2, 'dn', {'weights': {'a': torch.zeros(1)}}, 'fit'),
    ],
)
def test_unfit_arguments(bands, unit, kwargs, match):
    with pytest.raises(ValueError, match=match):
        OlmoEarthEncoder(bands, unit, **kwargs)


def test_too_long_a_series():
    image, dates, valid = series()
    dates[0, -1] += 365
    with pytest.raises(ValueError, match='15 months'):
        build()(image, dates, valid)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'olmoearth_pretrain_minimal', None)
    with pytest.raises(ImportError, match=r'torchgeo_omnisat\[olmoearth\]'):
        OlmoEarthEncoder(S2, 'dn')


@pytest.fixture(scope='module')
def segmenter():
    s2, s1 = Modality('s2', S2, 10.0, True), Modality('s1a', S1, 10.0, True)
    with pytest.MonkeyPatch.context() as patch:
        if not INSTALLED:
            olmoearth_stub.install(patch)
        torch.manual_seed(0)
        encoders = {
            's2': OlmoEarthEncoder(S2, 'dn', mean=[1500.0] * 12, std=[800.0] * 12, window=8),
            's1a': OlmoEarthEncoder(S1, 'db', mean=[-14.0] * 2, std=[4.0] * 2, window=8),
        }
        return OmniSatSegmenter(omnisat_tiny([s2, s1, SPOT], encoders=encoders), num_classes=5, label_gsd=10.0)


@pytest.mark.parametrize('name', INVARIANCES)
def test_invariances_of_the_model(segmenter, name):
    check(name, segmenter)
