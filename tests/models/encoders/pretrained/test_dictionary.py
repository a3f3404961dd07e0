"""Models that take a dictionary of modalities, with a stub of the signature of AnySat and UniverSat."""

import copy

import pytest
import torch
from einops import rearrange
from torch import nn

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import OmniSatSegmenter, omnisat_tiny
from torchgeo_omnisat.models.encoders.pretrained.dictionary import DictionaryEncoder
from torchgeo_omnisat.models.encoders.pretrained.series.tessera import day_of_year
from torchgeo_omnisat.models.encoders.registry import checkpoint_encoders

from ...conftest import MODALITIES, S1A, S2, SPOT
from .invariances import INVARIANCES, check

STUB = f'{__name__}.Stub'


class Stub(nn.Module):
    """Patches of an image or a series, with the mean over the dates weighted by the date."""

    def __init__(self, bands=4, dim=8, key='s2', wrapped=False):
        super().__init__()
        self.key, self.wrapped = key, wrapped
        self.embed, self.norm = nn.Linear(bands * 16, dim), nn.LayerNorm(dim)
        self.date, self.mix = nn.Embedding(400, dim), nn.Linear(dim, dim)

    def forward(self, data, patch_size, output):
        image = data[self.key]
        assert (patch_size, output) == (4, 'dense')
        assert image.isfinite().all()
        if image.ndim == 4:
            image, dates = image[:, None], torch.zeros(len(image), 1)
        else:
            dates = data[f'{self.key}_dates']
            assert set(data) == {self.key, f'{self.key}_dates'}
        x = self.embed(rearrange(image, 'b t c (i p) (j q) -> b t i j (c p q)', p=4, q=4))
        x = self.norm(self.mix((x + self.date(dates.long())[:, :, None, None]).tanh()).mean(1))
        return {'features': x, 'other': x[:, 0]} if self.wrapped else x


def build(modality=S2, **kwargs):
    torch.manual_seed(0)
    arguments = {'model': Stub(len(modality.bands), key=modality.name), 'channels': 8, 'stride': 4}
    return DictionaryEncoder(modality, **arguments | {'call': {'patch_size': 4, 'output': 'dense'}} | kwargs).eval()


def series(dates=5, side=8, size=3):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(size, dates, 4, side, side, generator=generator)
    days = 18_000 + torch.randperm(300, generator=generator)[: size * dates].view(size, dates).sort(1).values
    return image, days, torch.ones(size, dates, dtype=torch.bool)


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_maps_equal_the_source_model():
    image, days, valid = series()
    valid[1, 2:4] = False
    encoder = build()
    (out,) = encoder(image, days, valid)
    for index, kept in enumerate(([0, 1, 2, 3, 4], [0, 1, 4], [0, 1, 2, 3, 4])):
        data = {'s2': image[index : index + 1, kept], 's2_dates': day_of_year(days[index : index + 1, kept])}
        expected = encoder.model(data, patch_size=4, output='dense')
        same(out[index], expected[0].permute(2, 0, 1))
    (out,) = build(chunk=1)(image, days, valid)
    same(out, encoder(image, days, valid)[0])


def test_single_images_and_outputs():
    image, days, valid = series()
    modality = Modality('spot', S2.bands, 2.5, False)
    (out,) = build(modality)(image[:, 0], torch.tensor([True, False, True]))
    assert out.shape == (3, 8, 2, 2)
    assert not out[1].any()
    (expected,) = build()(image, days, valid)
    wrapped = Stub(4, wrapped=True)
    wrapped.load_state_dict(build().model.state_dict())
    same(build(model=wrapped, output='features')(image, days, valid)[0], expected)
    with pytest.raises(ValueError, match="'features'"):
        build(model=wrapped)(image, days, valid)
    for fault in ({'channels': 9}, {'stride': 2}, {'channels_last': False}):
        with pytest.raises(ValueError, match='expected'):
            build(**fault)(image, days, valid)
    assert build()(image[..., :6, :7], days, valid)[0].shape == (3, 8, 2, 2)


def test_permuted_bands_and_raw_units():
    image, days, valid = series()
    order = [2, 0, 3, 1]
    modality = Modality('s2', tuple(S2.bands[i].replace('B0', 'b') for i in order), 10.0, True)
    (expected,) = build()(image, days, valid)
    same(build(modality, bands=S2.bands)(image[:, :, order], days, valid)[0], expected)
    native = build(shift=[1000.0] * 4, scale=[500.0] * 4)
    assert native.converts_units
    assert not build().converts_units
    native.set_statistics([100.0] * 4, [50.0] * 4)
    raw = image * 500 + 1000
    same(native((raw - 100) / 50, days, valid)[0], expected, 1e-4)


def test_frozen_weights_stay_and_others_train():
    image, days, valid = series()
    for freeze in (True, False):
        encoder = build(freeze=freeze).train()
        head = nn.Conv2d(8, 2, 1)
        before = copy.deepcopy(encoder.state_dict())
        (out,) = encoder(image, days, valid)
        assert out.requires_grad != freeze
        head(out).square().mean().backward()
        parameters = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]
        torch.optim.AdamW(parameters, lr=0.1).step()
        assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items()) == freeze


def test_by_name_weights_and_checkpoint(tmp_path):
    path = tmp_path / 'stub.pt'
    torch.save(build().model.state_dict(), path)
    spec = {'name': 'dictionary', 'model': {'class_path': STUB}, 'channels': 8, 'stride': 4, 'weights': str(path)}
    encoder = omnisat_tiny([S2], encoders={'s2': spec}).encoders['s2']
    assert encoder.origin.source == str(path)
    assert torch.equal(encoder.model.embed.weight, build().model.embed.weight)
    with checkpoint_encoders('last.ckpt'), pytest.raises(ValueError, match=r'last\.ckpt'):
        omnisat_tiny([S2], encoders={'s2': spec})


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'dates': 'weeks'}, 'weeks'),
        ({'stride': 0}, '0'),
        ({'bands': ('B02', 'B12')}, 'B12'),
        ({'shift': [1.0]}, 'shift'),
        ({'scale': [0.0] * 4}, 'scale'),
        ({'model': {'class_path': 'nowhere.Model'}}, 'nowhere'),
        ({'model': {'class': 'Model'}}, 'class_path'),
        ({'model': dict}, 'dict'),
    ],
)
def test_unfit_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        build(**kwargs)


@pytest.fixture(scope='module')
def segmenter():
    encoders = {m.name: build(m) for m in (S2, S1A, SPOT)}
    return OmniSatSegmenter(omnisat_tiny(MODALITIES, encoders=encoders), num_classes=5, label_gsd=10.0)


@pytest.mark.parametrize('name', INVARIANCES)
def test_invariances_of_the_model(segmenter, name):
    check(name, segmenter)
