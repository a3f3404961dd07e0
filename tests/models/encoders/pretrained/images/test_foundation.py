# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Foundation models of single images: maps, bands, units and weights, from random weights of small variants."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchgeo.models import (
    CROMA,
    CopernicusFM_Base_Weights,
    CROMABase_Weights,
    DEO_Weights,
    DOFABase16_Weights,
    DOFALarge16_Weights,
    Panopticon_Weights,
)
from torchgeo.models.copernicusfm import CopernicusFM, resize_abs_pos_embed
from torchgeo.models.croma import get_2dalibi
from torchgeo.models.dofa import DOFA

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import OmniSatSegmenter, omnisat_tiny
from torchgeo_omnisat.models.encoders.pretrained.adapter import TCI, TCI_DN
from torchgeo_omnisat.models.encoders.pretrained.images import copernicusfm, croma, dofa
from torchgeo_omnisat.models.encoders.pretrained.per_date import PerDate
from torchgeo_omnisat.models.encoders.pretrained.sources import read_file
from torchgeo_omnisat.models.encoders.registry import ENCODERS

from ....conftest import MODALITIES, S2
from ..invariances import INVARIANCES, check_images, check_series, learn
from ..invariances import check as check_model
from .tiny import DEPTH, WIDTH, shrink, small_deo, small_panopticon

#: Sentinel-2 bands with their wavelengths.
WAVES = {'B02': 492.4, 'B03': 559.8, 'B04': 664.6, 'B08': 832.8, 'B8A': 864.7, 'B11': 1613.7}
SMALL: dict[str, Any] = {'embed_dim': WIDTH, 'depth': DEPTH, 'num_heads': 4}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shrink(monkeypatch)


def optical(*bands: str, temporal: bool = False) -> Modality:
    return Modality('s2', bands, 10.0, temporal, 'optical', 'dn', tuple(WAVES[band] for band in bands))


def radar(*bands: str) -> Modality:
    return Modality('s1', bands, 10.0, False, 'radar', 'db')


def encoder(modality: Modality, spec: Any) -> Any:
    return omnisat_tiny([modality], encoders={modality.name: spec}).encoders[modality.name]


class Case(NamedTuple):
    """Source model: its weights, and its tokens after the middle and the last block."""

    entry: Any
    state: dict[str, Any]
    tokens: Callable[[Tensor], list[Tensor]]


def blocks(model: nn.Module, layers: Any, run: Callable[[Tensor], Any]) -> Callable[[Tensor], list[Tensor]]:
    """Return a function that runs a model and returns the output of its middle and last blocks."""

    def tokens(x: Tensor) -> list[Tensor]:
        kept: list[Tensor] = []
        hooks = [layers[i].register_forward_hook(lambda *args: kept.append(args[-1])) for i in (1, 3)]
        run(x)
        for hook in hooks:
            hook.remove()
        return kept

    model.eval()
    return tokens


def initialised(model: nn.Module) -> nn.Module:
    """Draw the parameters that are initialised to zero."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model


def of_croma(half: str, size: int) -> Case:
    model = CROMA([half], WIDTH, DEPTH, 16, 8, size).eval()
    name, argument = ('s1', 'x_sar') if half == 'sar' else ('s2', 'x_optical')
    state = {f'{name}_encoder': getattr(model, f'{name}_encoder').state_dict()}
    state['s1_encoder' if half == 'optical' else 's2_encoder'] = {'other': torch.zeros(1)}

    def tokens(z: Tensor) -> list[Tensor]:
        return [model(**{argument: ((z + 2) / 4).clamp(0, 1)})[f'{half}_encodings']]

    return Case(CROMABase_Weights.CROMA_VIT, state, tokens)


def of_dofa(wavelengths: list[float], size: int) -> Case:
    model: Any = initialised(DOFA(**SMALL))
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(('fc_norm', 'head'))}
    model.pos_embed.data = resize_abs_pos_embed(model.pos_embed.data, size // 16, 14)
    return Case(DOFABase16_Weights.DOFA_MAE, state, blocks(model, model.blocks, lambda x: model(x, wavelengths)))


def of_copernicusfm(wavelengths: list[float], bandwidths: list[float], area: float) -> Case:
    model: Any = initialised(CopernicusFM(**SMALL))
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(('fc_norm', 'head'))}
    meta = torch.tensor([[math.nan, math.nan, math.nan, area]]).expand(2, -1)
    run = lambda x: model(x, meta, wavelengths, bandwidths, kernel_size=16)  # noqa: E731
    return Case(CopernicusFM_Base_Weights.CopernicusFM_ViT, state, blocks(model, model.blocks, run))


def of_panopticon(channels: list[float], size: int, monkeypatch: pytest.MonkeyPatch) -> Case:
    model: Any = initialised(small_panopticon(monkeypatch)).eval()
    state = {**{k: v.clone() for k, v in model.model.state_dict().items()}, 'mask_token': torch.zeros(1, WIDTH)}
    model.model.pos_embed.data = resize_abs_pos_embed(model.model.pos_embed.data, size // 14, 37)

    def tokens(x: Tensor) -> list[Tensor]:
        out = model.model.forward_features({'imgs': x, 'chn_ids': torch.tensor([channels]).repeat(len(x), 1)})
        return [out[:, 1:]]

    return Case(Panopticon_Weights.VIT_BASE14, state, tokens)


def check(case: Case, modality: Modality, spec: dict[str, Any], raw: Tensor, own: Tensor, monkeypatch: Any) -> Any:
    """Compare the maps of an encoder on raw images with the tokens of the source on its input."""
    monkeypatch.setattr(type(case.entry), 'get_state_dict', lambda *_, **__: case.state)
    built = encoder(modality, {'weights': str(case.entry), **spec})
    maps = built(raw, torch.ones(len(raw), dtype=torch.bool))
    expected = case.tokens(own)
    for ours, theirs in zip(maps[-len(expected) :], expected, strict=True):
        patches = theirs[:, theirs.shape[1] - ours.shape[-2] * ours.shape[-1] :]
        wanted = patches.transpose(1, 2).reshape(ours.shape)
        assert wanted.std() > 1e-3
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max().clamp(min=1)))
    assert built.origin.licence
    assert built.origin.tensors > 20
    reordered = modality.select(modality.bands[::-1])
    permuted = encoder(reordered, {'weights': str(case.entry), **spec})(
        raw.flip(1), torch.ones(len(raw), dtype=torch.bool)
    )
    for a, b in zip(permuted, maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    return built


def test_croma_of_sentinel_2(monkeypatch: pytest.MonkeyPatch) -> None:
    bands = ('B01', *(f'B0{i}' for i in range(2, 9)), 'B8A', 'B09', 'B11', 'B12')
    own, z = Modality('s2', bands, 10.0, False, 'optical', 'dn'), 2 * torch.randn(2, 12, 48, 48)
    built = check(of_croma('optical', 48), own, {}, z, z, monkeypatch)
    assert (built.strides, len(built.body.blocks)) == ((8, 8), DEPTH)


def test_croma_of_sentinel_1(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(2, 2, 40, 40)
    check(of_croma('sar', 40), radar('VV', 'VH'), {'name': 'croma'}, z, z, monkeypatch)


def test_croma_of_any_size() -> None:
    built = encoder(radar('VV', 'VH'), {'name': 'croma', 'pretrained': False})
    tokens = torch.zeros(1)
    torch.testing.assert_close(built.body._bias((6, 6), tokens), get_2dalibi(16, 36))
    wide = get_2dalibi(16, 36).unflatten(-1, (6, 6)).unflatten(-3, (6, 6))[:, :, :2, :, :2].flatten(2, 3).flatten(3)
    torch.testing.assert_close(built.body._bias((2, 6), tokens), wide)
    assert built(torch.randn(1, 2, 13, 45), torch.ones(1, dtype=torch.bool))[-1].shape[-2:] == (2, 6)


def test_croma_lacks_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns of the patch embedding of other bands are removed, so they have no values at all."""
    case = of_croma('optical', 16)
    monkeypatch.setattr(type(case.entry), 'get_state_dict', lambda *_, **__: case.state)
    built = encoder(optical('B08', 'B02'), {'name': 'croma', 'weights': 'CROMA_VIT'})
    weight = case.state['s2_encoder']['linear_input.weight'].view(WIDTH, 12, 8, 8)
    assert torch.equal(built.body.patch_embed.weight, weight[:, [7, 1]])


def test_dofa_of_sentinel_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """On digital numbers: true colour for R, G and B, and clipped 8 bits otherwise."""
    own = optical('B04', 'B08', 'B11')
    dn = torch.rand(2, 3, 64, 64) * 9000
    eight = torch.stack([dn[:, 0] * TCI / TCI_DN, dn[:, 1] / 32, dn[:, 2] / 32], 1).clamp(max=255)
    mean = torch.tensor([114.1099739, 101.435633, 72.32804172]).view(-1, 1, 1)
    std = torch.tensor([77.84352553, 60.29744676, 47.88519516]).view(-1, 1, 1)
    case = of_dofa([0.6646, 0.8328, 1.6137], 64)
    built = check(case, own, {'name': 'dofa'}, dn, (eight - mean) / std, monkeypatch)
    assert built.converts_units


def test_dofa_of_sentinel_1(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(2, 2, 32, 32)
    check(of_dofa([3.75, 3.75], 32), radar('VV', 'VH'), {'units': 'standardised'}, z, z, monkeypatch)


def test_copernicusfm_of_sentinel_2(monkeypatch: pytest.MonkeyPatch) -> None:
    own, dn = optical('B8A', 'B03'), torch.rand(2, 2, 64, 64) * 5000
    z = (dn - torch.tensor([2581.0, 1322.3]).view(-1, 1, 1)) / torch.tensor([1345.9, 878.7]).view(-1, 1, 1)
    case = of_copernicusfm([864.7, 559.8], [20, 35], 0.0256)
    check(case, own, {'name': 'copernicusfm'}, dn, z, monkeypatch)


def test_copernicusfm_of_sentinel_1(monkeypatch: pytest.MonkeyPatch) -> None:
    db = torch.rand(2, 2, 32, 32) * 20 - 25
    z = (db - torch.tensor([-20.26, -12.59]).view(-1, 1, 1)) / torch.tensor([5.91, 5.26]).view(-1, 1, 1)
    check(of_copernicusfm([5e7, 5e7], [1e9, 1e9], 0.0256), radar('VH', 'VV'), {}, db, z, monkeypatch)


def test_copernicusfm_of_other_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the area of a patch, since it is below the range of the model."""
    own = Modality('aerial', ('R', 'N'), 0.2, False, 'optical', 'dn', (650.0, 840.0))
    z = torch.randn(2, 2, 32, 32)
    spec = {'units': 'standardised', 'bandwidths': {'R': 60, 'N': 100}}
    check(of_copernicusfm([650, 840], [60, 100], math.nan), own, spec, z, z, monkeypatch)


@pytest.mark.parametrize(('orbit', 'first'), [(None, -1), ('ascending', -5), ('descending', -9)])
def test_panopticon_of_sentinel_1(orbit: str | None, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(2, 2, 42, 42)
    case = of_panopticon([float(first), float(first - 1)], 42, monkeypatch)
    check(case, radar('VV', 'VH'), {'orbit': orbit}, z, z, monkeypatch)


def test_panopticon_of_sentinel_2(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(2, 3, 28, 28)
    case = of_panopticon([664.0, 832.0, 1613.0], 28, monkeypatch)
    built = check(case, optical('B04', 'B08', 'B11'), {'name': 'panopticon'}, z, z, monkeypatch)
    assert not built.converts_units


@pytest.mark.parametrize('bands', [tuple(DEO_Weights.DEO_SWIN.meta['bands']), ('R', 'G', 'B')])
def test_deo(bands: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = small_deo().eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    monkeypatch.setattr(DEO_Weights, 'get_state_dict', lambda *_, **__: state)
    own = Modality('s2', bands[::-1], 10.0, False, 'optical', 'dn')
    built = encoder(own, DEO_Weights.DEO_SWIN)
    assert built.strides == (4, 8, 16, 32)
    z = torch.randn(2, len(bands), 64, 96)
    for ours, theirs in zip(built(z.flip(1), torch.ones(2, dtype=torch.bool)), model.forward_features(z), strict=True):
        torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


def test_panopticon_masks_missing_bands() -> None:
    """A patch without a band has the token of an image without it."""
    spec = {'name': 'panopticon', 'pretrained': False, 'levels': [0]}
    both, one = encoder(optical('B04', 'B08'), spec), encoder(optical('B08'), spec)
    one.body.load_state_dict({k: v for k, v in both.body.state_dict().items() if k != 'terms.missing'}, strict=False)
    image, valid = torch.randn(1, 2, 28, 28), torch.ones(1, dtype=torch.bool)
    image[:, 0] = math.nan
    torch.testing.assert_close(both(image, valid)[0], one(image[:, 1:], valid)[0], rtol=1e-5, atol=1e-5)


SPECS: dict[str, dict[str, Any]] = {
    'croma': {},
    'dofa': {'units': 'standardised'},
    'panopticon': {},
    'copernicusfm': {'units': 'standardised'},
    'deo': {},
}


@pytest.mark.parametrize('name', SPECS)
def test_invariance(name: str) -> None:
    spec = {'name': name, 'pretrained': False, **SPECS[name]}
    series = encoder(optical('B04', 'B08', 'B11', temporal=True), {**spec, 'width': 16})
    assert isinstance(series, PerDate)
    check_series(series, 3)
    check_images(encoder(optical('B04', 'B08', 'B11'), spec), 3)


@pytest.fixture(
    scope='module', params=[('dofa', 'croma'), ('copernicusfm', 'panopticon'), ('deo', 'croma')], ids='+'.join
)
def segmenter(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    s2, s1 = request.param
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        torch.manual_seed(0)
        waves = tuple(WAVES[band] for band in S2.bands)
        modalities = {**MODALITIES, 's2': replace(S2, wavelengths=waves)}
        specs = {name: {'name': own, 'pretrained': False, **SPECS[own]} for name, own in (('s2', s2), ('s1a', s1))}
        yield OmniSatSegmenter(omnisat_tiny(modalities, encoders=specs), num_classes=5, label_gsd=10.0)


@pytest.mark.parametrize('name', INVARIANCES)
def test_models_with_two_of_them(name: str, segmenter: nn.Module) -> None:
    check_model(name, segmenter)


@pytest.mark.parametrize('freeze', [True, 'but_last'])
@pytest.mark.parametrize('name', SPECS)
def test_frozen_weights_are_bit_equal_after_a_step(name: str, freeze: Any) -> None:
    spec = {'name': name, 'pretrained': False, 'freeze': freeze, **SPECS[name]}
    bands = ('B04', 'B08') if name in ('croma', 'deo') else ('VV', 'VH')
    rest = ('NDVI',) if name in ('croma', 'deo') else ('RATIO',)
    own = Modality('s', (*bands, *rest), 10.0, False)
    built = encoder(own, spec).train()
    before = {key: value.clone() for key, value in built.body.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in built.parameters() if p.requires_grad], lr=0.1)
    image = torch.randn(1, 3, 40, 40)
    image[:, 0, :20] = math.nan
    sum(m.square().sum() for m in built(image, torch.ones(1, dtype=torch.bool))).backward()
    optimizer.step()
    changed = {key for key, value in built.body.state_dict().items() if not torch.equal(value, before[key])}
    new = {key for key in changed if key.endswith(('extra', 'missing'))}
    assert {key.rpartition('.')[2] for key in new} == {'extra', 'missing'}
    assert all(key.startswith(built.last) for key in changed - new)
    assert bool(changed - new) is (freeze == 'but_last')


@pytest.mark.parametrize('name', SPECS)
def test_maps_of_a_compiled_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes the terms of missing bands always, and cannot branch on values."""
    built = encoder(optical('B04', 'B08'), {'name': name, 'pretrained': False, **SPECS[name]})
    image, valid = torch.randn(1, 2, 32, 32), torch.ones(1, dtype=torch.bool)
    expected = built(image, valid)
    learn(built)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    for a, b in zip(built(image, valid), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not any(getattr(module, 'assert_range', False) for module in built.modules())


@pytest.mark.parametrize('name', SPECS)
def test_early_layers_learn_slower(name: str) -> None:
    spec = {'name': name, 'pretrained': False, 'layer_decay': 0.5, **SPECS[name]}
    built = encoder(optical('B04', 'B08'), spec)
    rates = built.learning_rates()
    layers = built.body.features if name == 'deo' else built.body.blocks
    first, last = (next(layers[i].parameters()) for i in (0, -1))
    assert rates[first] < rates[last] <= 1
    trained = {n for n, p in built.body.named_parameters() if p.requires_grad}
    assert len(rates) == sum(not name.endswith(('extra', 'missing')) for name in trained)


@pytest.mark.parametrize('name', SPECS)
def test_a_specification_without_loading_has_the_same_structure(name: str, tmp_path: Path) -> None:
    spec = {'name': name, **SPECS[name]}
    random = encoder(optical('B04', 'B08'), {**spec, 'pretrained': False})
    assert random.origin is None
    empty = encoder(optical('B04', 'B08'), {**spec, 'pretrained': True, 'load': False})
    assert empty.origin.tensors == 0
    assert random.state_dict().keys() == empty.state_dict().keys()
    with pytest.raises(FileNotFoundError, match=r'a\.pth'):
        encoder(optical('B04', 'B08'), {**spec, 'weights': str(tmp_path / 'a.pth')})


def test_weights_of_a_file(tmp_path: Path) -> None:
    case = of_croma('sar', 16)
    torch.save(case.state, tmp_path / 'croma.pt')
    assert 's1_encoder.linear_input.weight' in read_file(tmp_path / 'croma.pt')
    z = torch.randn(1, 2, 16, 16)
    built = encoder(radar('VV', 'VH'), {'name': 'croma', 'weights': str(tmp_path / 'croma.pt')})
    found = built(z, torch.ones(1, dtype=torch.bool))[-1]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), case.tokens(z)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r'croma\.pt.*to_qkv'):
        encoder(optical('B04', 'B08'), {'name': 'croma', 'weights': str(tmp_path / 'croma.pt')})
    gone = {'name': 'croma', 'weights': str(tmp_path / 'folder')}
    encoder(radar('VV', 'VH'), {**gone, 'load': False})  # as for a checkpoint
    with pytest.raises(ValueError, match='folder'):
        encoder(radar('VV', 'VH'), gone)


BAND = optical('B04', 'B08')


@pytest.mark.parametrize(
    ('modality', 'spec', 'named'),
    [
        (BAND, {'name': 'croma'}, ['pretrained: true', 'pretrained: false', 'CROMABase_Weights.CROMA_VIT']),
        (BAND, {'name': 'dofa', 'weights': 'DOFA'}, ["'DOFA'", 'DOFALarge16_Weights.DOFA_MAE']),
        (BAND, {'name': 'dofa', 'size': 'tiny', 'pretrained': True}, ["'tiny'", "'large'"]),
        (BAND, {'name': 'dofa', 'size': 'huge', 'pretrained': True}, ["'huge'", "'large'"]),
        (BAND, {'name': 'dofa', 'size': 'base', 'weights': DOFALarge16_Weights.DOFA_MAE}, ["'base'", 'DOFALarge16']),
        (BAND, {'name': 'croma', 'weights': DOFALarge16_Weights.DOFA_MAE}, ['DOFALarge16', 'CROMABase_Weights']),
        (BAND, {'name': 'croma', 'pretrained': False, 'units': 'native'}, ["'dn'", 'standardised']),
        (BAND, {'name': 'croma', 'pretrained': False, 'depth': 3}, ['depth', 'size']),
        (BAND, {'name': 'panopticon', 'pretrained': False, 'orbit': 'polar'}, ["'polar'", "'ascending'"]),
        (BAND, {'name': 'panopticon', 'pretrained': False, 'width': 3}, ['width', 'time series']),
        (optical('B8A'), {'name': 'dofa', 'pretrained': False}, ["'B8A': None", 'units: standardised']),
        (radar('VV'), {'name': 'dofa', 'pretrained': False}, ["'VV': None", 'units: standardised']),
        (radar('VV', 'B04'), {'name': 'croma', 'pretrained': False, 'units': 'native'}, ["'VV': None"]),
        (Modality('x', ('X',), 10.0, False), {'name': 'croma', 'pretrained': False}, ["'X'", "'B8A'"]),
        (Modality('x', ('X',), 10.0, False), {'name': 'dofa', 'pretrained': False}, ["'X'", 'wavelengths', "'VV'"]),
        (
            Modality('x', ('X',), 10.0, False, None, 'dn', (700.0,)),
            {'name': 'copernicusfm', 'pretrained': False},
            ["'X'", "'B8A'", 'bandwidths'],
        ),
        (
            Modality('x', ('X',), 10.0, False, None, 'dn', (0.7,)),  # micrometres
            {'name': 'copernicusfm', 'pretrained': False, 'bandwidths': {'X': 20}},
            ['[0.7]', '100', 'nanometres'],
        ),
        (
            Modality('x', ('B05',), 30.0, False, 'optical', 'dn', (865.0,)),  # of Landsat, not of Sentinel-2
            {'name': 'dofa', 'pretrained': False},
            ["'B05': None", 'units: standardised'],
        ),
    ],
    ids=str,
)
def test_errors_name_the_value_and_what_was_expected(modality: Modality, spec: Any, named: list[str]) -> None:
    with pytest.raises(ValueError, match=f"'{modality.name}'|{named[0]}") as caught:
        encoder(modality, spec)
    assert all(name in str(caught.value) for name in named), caught.value


def test_statistics_have_the_bands_of_their_tables() -> None:
    assert set(dofa.STATISTICS) >= {'R', 'G', 'B', 'B4', 'B12'}
    assert len(copernicusfm.SENTINEL2) == 13
    assert {len(bands) for bands in croma.BANDS.values()} == {2, 12}


@pytest.mark.parametrize('name', ['croma', 'deo', 'dofa', 'panopticon', 'copernicusfm'])
def test_signatures_and_docstrings_have_all_arguments(name: str) -> None:
    build: Any = ENCODERS[name].build
    shared = {'weights', 'pretrained', 'size', 'units', 'freeze', 'layer_decay', 'levels', 'chunk', 'load'}
    arguments = signature(build).parameters
    assert shared < set(arguments)
    assert not any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    assert all(f'    {argument}: ' in build.__init__.__doc__ for argument in arguments)
    assert ('orbit' in arguments) == (name == 'panopticon')
    assert ('bandwidths' in arguments) == (name == 'copernicusfm')
    assert arguments['chunk'].default == (8 if name == 'panopticon' else 16)
