# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Pre-trained encoders: weights, bands, units, freezing; from local files of random weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchgeo.models import (
    ResNet18_Weights,
    ResNet50_Weights,
    Swin_V2_B_Weights,
    Swin_V2_T_Weights,
    ViTSmall14_DINOv2_Weights,
    ViTSmall16_Weights,
)
from torchvision.models._api import Weights, WeightsEnum

from tests.tasks.helpers import TOLD, make_batch, make_loader, make_sample, make_trainer
from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import omnisat_tiny
from torchgeo_omnisat.models.encoders.pretrained.adapter import TCI, TCI_DN, canonical
from torchgeo_omnisat.models.encoders.pretrained.images.backbone import PretrainedEncoder, make_body
from torchgeo_omnisat.models.encoders.pretrained.per_date import PerDate
from torchgeo_omnisat.models.encoders.pretrained.sources import normalisation
from torchgeo_omnisat.tasks import OmniSatSegmentation, export_hub, load_hub

from ..invariances import check_series
from .tiny import shrink

BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
S2 = Modality('s2', BANDS, 10.0, True, 'optical', 'dn')
S1 = Modality('s1', ('VV', 'VH'), 10.0, True, 'radar', 'db')
RGB = Modality('spot', ('R', 'G', 'B'), 1.5, False, 'optical', 'dn')


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path / 'hub'))


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Mapping[str, Tensor]]:
    """Have entries of TorchGeo return random weights of their model instead of a download."""

    def replace(name: str, entry: WeightsEnum) -> nn.Module:
        torch.manual_seed(0)
        body = make_body(name, entry.meta['in_chans'], entry.meta.get('img_size'))
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        state = {key: value.clone() for key, value in body.state_dict().items()}
        monkeypatch.setattr(type(entry), 'get_state_dict', lambda *_, **__: state)
        return body.eval()

    return replace


def encoder(modality: Modality, spec: Any) -> Any:
    return omnisat_tiny([modality], encoders={modality.name: spec}).encoders[modality.name]


FAMILIES: list[tuple[str, WeightsEnum, Modality]] = [
    ('resnet18', ResNet18_Weights.SENTINEL2_ALL_MOCO, S2),
    ('resnet50', ResNet50_Weights.SENTINEL1_ALL_MOCO, S1),
    ('resnet50', ResNet50_Weights.SENTINEL2_MI_MS_SATLAS, S2),
    ('vit_small_patch16_224', ViTSmall16_Weights.SENTINEL2_ALL_DINO, S2),
    ('vit_small_patch14_dinov2', ViTSmall14_DINOv2_Weights.SENTINEL2_ALL_SOFTCON, S2),
    ('swin_v2_t', Swin_V2_T_Weights.SENTINEL2_MI_MS_SATLAS, S2),
]


@pytest.mark.parametrize(
    ('name', 'entry', 'modality'), FAMILIES, ids=lambda value: str(value) if isinstance(value, WeightsEnum) else ''
)
def test_maps_are_those_of_the_source(name: str, entry: WeightsEnum, modality: Modality, local: Any) -> None:
    """On raw images with all bands of the weights; the transforms of the entry normalise them."""
    bands, shuffled = entry.meta['bands'], sorted(entry.meta['bands'], reverse=True)
    source = local(name, entry)
    own = Modality(modality.name, tuple(shuffled), 10.0, False, modality.kind, modality.unit)
    built = encoder(own, {'name': name, 'weights': entry.name})
    assert built.origin.tensors == len(source.state_dict())
    side = 28 if 'patch14' in name else 32
    shift, scale = normalisation(entry.transforms, len(bands))
    x = torch.rand(2, len(bands), side, side)
    raw = x * torch.tensor(scale).view(-1, 1, 1) + torch.tensor(shift).view(-1, 1, 1)
    for index, band in enumerate(bands):
        if 'SATLAS' in entry.name and band in ('B04', 'B03', 'B02'):
            raw[:, index] *= TCI_DN / TCI
    expected = source.forward_intermediates(x.float(), indices=built.levels, norm=built.vit, intermediates_only=True)
    order = [bands.index(band) for band in shuffled]
    found = built(raw.float()[:, order], torch.ones(2, dtype=torch.bool))
    assert [tuple(m.shape[1:]) for m in found] == [tuple(m.shape[1:]) for m in expected]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max().clamp(min=1)))


def test_statistics_undo_the_normalisation(local: Any) -> None:
    local('resnet18', ResNet18_Weights.SENTINEL2_ALL_MOCO)
    own = Modality('s2', ('B08', 'B04'), 10.0, False, 'optical', 'dn')
    built = encoder(own, ResNet18_Weights.SENTINEL2_ALL_MOCO).eval()
    raw, mean, std = torch.rand(1, 2, 32, 32) * 4000, torch.tensor([2500.0, 900.0]), torch.tensor([800.0, 400.0])
    valid = torch.ones(1, dtype=torch.bool)
    expected = built(raw, valid)
    built.set_statistics(mean.tolist(), std.tolist())
    found = built((raw - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), valid)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_power_becomes_decibels(local: Any) -> None:
    local('resnet50', ResNet50_Weights.SENTINEL1_ALL_MOCO)
    spec = {'name': 'resnet50', 'weights': 'SENTINEL1_ALL_MOCO', 'levels': [0]}
    db = torch.rand(1, 2, 32, 32) * 20 - 25
    valid, image = torch.ones(1, dtype=torch.bool), {'db': db, 'power': 10 ** (db / 10)}
    maps = [
        encoder(Modality('s1', ('VH', 'VV'), 10.0, False, 'radar', unit), spec)(image[unit], valid)[0]
        for unit in ('db', 'power')
    ]
    torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-3)


def test_true_colour_saturates(local: Any) -> None:
    local('swin_v2_t', Swin_V2_T_Weights.SENTINEL2_MI_RGB_SATLAS)
    own = Modality('s2', ('B02', 'B03', 'B04'), 10.0, False, 'optical', 'reflectance')
    adapter = encoder(own, {'name': 'swin_v2_t', 'weights': 'SENTINEL2_MI_RGB_SATLAS'}).adapter
    image = torch.tensor([0.1779, 0.3558, 0.9]).view(1, 3, 1, 1)
    torch.testing.assert_close(adapter(image).flatten(), torch.tensor([0.5, 1.0, 1.0]))


@pytest.mark.parametrize(
    ('names', 'same'),
    [(('B8a', 'B8A', 'b8a'), True), (('B04', 'B4', 'SR_B4'), True), (('red', 'R'), True), (('B8', 'B8A'), False)],
)
def test_names_of_bands(names: tuple[str, ...], same: bool) -> None:
    assert (len({canonical(name) for name in names}) == 1) is same


RESNET = {'name': 'resnet18', 'weights': 'SENTINEL2_ALL_MOCO'}


def test_bands_that_the_weights_lack_change_nothing_at_first(local: Any) -> None:
    local('resnet18', ResNet18_Weights.SENTINEL2_ALL_MOCO)
    few = Modality('s2', ('B04', 'B08'), 10.0, False, 'optical', 'dn')
    more = Modality('s2', ('NDVI', 'B08', 'B04'), 10.0, False, 'optical', 'dn')
    image, valid = torch.rand(1, 3, 32, 32) * 3000, torch.ones(1, dtype=torch.bool)
    maps = encoder(more, RESNET)(image, valid)
    for a, b in zip(maps, encoder(few, RESNET)(image[:, [2, 1]], valid), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    built = encoder(more, {**RESNET, 'freeze': True})
    built(image, valid)[-1].square().mean().backward()
    assert [name for name, p in built.named_parameters() if p.grad is not None] == ['body.conv1.extra']


def test_missing_bands_have_a_learned_term(local: Any) -> None:
    local('resnet18', ResNet18_Weights.SENTINEL2_ALL_MOCO)
    own = Modality('s2', ('B04', 'B08'), 10.0, False, 'optical', 'dn')
    built = encoder(own, RESNET)
    image, valid = torch.rand(1, 2, 32, 32) * 3000, torch.ones(1, dtype=torch.bool)
    image[:, 0, :4] = torch.nan
    before = built(image, valid)[-1]
    assert before.isfinite().all()
    nn.init.normal_(built.body.conv1.missing)
    assert (built(image, valid)[-1] - before).abs().amax() > 1e-3
    image[:, :, :4] = torch.nan
    after = built(image, valid)[-1]
    nn.init.zeros_(built.body.conv1.missing)
    assert torch.equal(built(image, valid)[-1], after)


@pytest.mark.parametrize(
    ('modality', 'spec', 'named'),
    [
        (Modality('x', ('A', 'C'), 10.0, True, None, 'dn'), RESNET, ["'A'", "'B12'"]),
        (Modality('x', ('B04',), 10.0, True), RESNET, ["'unknown'", "'dn'"]),
        (Modality('x', ('B04', 'B4'), 10.0, True, None, 'dn'), RESNET, ["'B04'", "'B4'"]),
        (S1, {'name': 'swin_v2_b', 'weights': 'SENTINEL1_MI_SATLAS'}, ["'db'", 'None']),
        (S2, {'name': 'resnet18', 'weights': 'SENTINEL2_ALL_MOCCA'}, ['SENTINEL2_ALL_MOCCA', 'SENTINEL2_ALL_MOCO']),
        (S2, {**RESNET, 'freeze': 'all'}, ["'all'", "'but_last'"]),
        (S2, {**RESNET, 'units': 'raw'}, ["'raw'", "'standardised'"]),
        (S2, {**RESNET, 'layer_decay': 0}, ['0']),
        (S2, {**RESNET, 'depth': 7}, ['depth']),
        (RGB, {**RESNET, 'key_dim': 7}, ['key_dim']),
        (RGB, 'convnext_tiny.dinov3_lvd1689m', ['pretrained: true', 'pretrained: false']),
        (S2, {'name': 'convnext_tiny.dinov3_lvd1689m'}, ['pretrained: true', 'pretrained: false']),
        (RGB, {'name': 'convnext_tiny.no_such_tag', 'pretrained': True}, ['no_such_tag', 'convnext_tiny.']),
        (RGB, {'name': 'resnet18', 'pretrained': 'yes'}, ["'yes'"]),
        (RGB, {'weights': 'NO_SUCH'}, ['NO_SUCH']),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(modality: Modality, spec: Any, named: list[str]) -> None:
    with pytest.raises(ValueError, match=f"'{modality.name}'|{named[0]}") as caught:
        encoder(modality, spec)
    assert all(name in str(caught.value) for name in named)


def test_weights_of_a_file(tmp_path: Path) -> None:
    own = Modality('s2', ('B04', 'B08'), 10.0, False, 'optical', 'dn')
    source = make_body('resnet18', 2)
    torch.save({'state_dict': {f'module.{k}': v for k, v in source.state_dict().items()}}, tmp_path / 'a.pth')
    spec = {'name': 'resnet18', 'weights': str(tmp_path / 'a.pth'), 'bands': ['B8', 'B4']}
    built = encoder(own, spec).eval()
    image = torch.randn(1, 2, 32, 32)
    expected = source.eval().forward_intermediates(image.flip(1), indices=[4], intermediates_only=True)
    torch.testing.assert_close(built(image, torch.ones(1, dtype=torch.bool))[-1], expected[0], rtol=1e-4, atol=1e-4)
    assert built.origin.tensors == len(source.state_dict())
    assert str(tmp_path / 'a.pth') in str(built.origin)
    with pytest.raises(ValueError, match=r'a\.pth.*ResNet.*layer1\.2'):
        encoder(own, {**spec, 'name': 'resnet34'})
    with pytest.raises(ValueError, match=r'a\.pth.*conv1'):
        encoder(own, {**spec, 'bands': ['B8', 'B4', 'B3']})
    with pytest.raises(FileNotFoundError, match=r'b\.pth'):
        encoder(own, {**spec, 'weights': str(tmp_path / 'b.pth')})
    (tmp_path / 'b.pth').write_bytes(b'no weights')
    with pytest.raises(ValueError, match=r'b\.pth'):
        encoder(own, {**spec, 'weights': str(tmp_path / 'b.pth')})


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
def test_weights_of_a_hub_folder(file: str, tmp_path: Path) -> None:
    """A checkpoint loads after the folder was removed."""
    state = make_body('test_resnet', 2).state_dict()
    folder = tmp_path / 'hub' / 'somebody'
    folder.mkdir(parents=True)
    (save_file if file.endswith('safetensors') else torch.save)(state, folder / file)
    spec = {'name': 'test_resnet', 'weights': str(folder), 'bands': ['B8', 'B4'], 'width': 16}
    task = OmniSatSegmentation(**TASK, backbone_args={'encoders': {'s2': spec}})
    built: Any = task.model.backbone.encoders['s2'].encoder
    assert built.origin.tensors == len(state)
    assert str(folder) in str(built.origin)
    assert torch.equal(built.body.layer1[0].conv1.weight, state['layer1.0.conv1.weight'])
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(task, make_loader([make_sample(0), make_sample(1)]))
    trainer.save_checkpoint(tmp_path / 'a.ckpt')
    (folder / file).unlink()
    folder.rmdir()
    loaded: Any = OmniSatSegmentation.load_from_checkpoint(tmp_path / 'a.ckpt')
    assert torch.equal(loaded.eval().model(make_batch()), task.eval().model(make_batch()))
    with pytest.raises(ValueError, match='somebody'):
        encoder(S2, spec)
    with pytest.raises(ValueError, match='SENTINEL2_UNKNOWN'):  # its bands and units are not known
        encoder(S2, {**spec, 'weights': 'SENTINEL2_UNKNOWN', 'load': False})


def test_a_failed_download_names_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **kwargs: Any) -> Any:
        if kwargs.get('pretrained', True):
            raise URLError('no network')
        return create(*_, **kwargs)

    entry, create = ResNet18_Weights.SENTINEL2_ALL_MOCO, timm.create_model
    monkeypatch.setattr(ResNet18_Weights, 'get_state_dict', fail)
    with pytest.raises(OSError, match=rf'{entry}.*{entry.url}.*no network'):
        encoder(S2, {'name': 'resnet18', 'weights': entry})
    monkeypatch.setattr(timm, 'create_model', fail)
    with pytest.raises(OSError, match=r'convnext_atto\.d2_in1k.*https://.*no network'):
        encoder(RGB, {'name': 'convnext_atto.d2_in1k', 'pretrained': True})


def test_weights_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its download is replaced, so that nothing is fetched."""
    create, made = timm.create_model, []

    def local(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        made.append(create(name, pretrained=False, **kwargs))
        return made[-1]

    monkeypatch.setattr(timm, 'create_model', local)
    bgr = Modality('spot', ('B', 'G', 'R', 'NIR'), 1.5, False)
    built = encoder(bgr, {'name': 'convnext_atto.d2_in1k', 'pretrained': True}).eval()
    assert 'd2_in1k' in str(built.origin)
    assert 'apache-2.0' in str(built.origin)
    x = torch.randn(1, 4, 40, 33)
    maps = built(x, torch.ones(1, dtype=torch.bool))
    assert [tuple(m.shape[-2:]) for m in maps] == [(10, 9), (5, 5), (3, 3), (2, 2)]
    x = torch.randn(1, 4, 32, 32)
    source = next(m for m in made if hasattr(m, 'head') and m.num_classes)
    expected = source.eval().forward_intermediates(x[:, [2, 1, 0]], intermediates_only=True)
    found = built(x, torch.ones(1, dtype=torch.bool))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['vit_small_patch14_dinov2.lvd142m', 'vit_small_patch16_dinov3.lvd1689m'])
def test_dino_of_timm_on_8_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two blocks, and an image that has to be padded."""
    create, made = timm.create_model, []

    def local(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        made.append(create(name, pretrained=False, depth=2, **kwargs))
        return made[-1]

    monkeypatch.setattr(timm, 'create_model', local)
    bgrn = Modality('spot', ('B', 'G', 'R', 'N'), 1.5, False, 'optical', 'dn')
    built = encoder(bgrn, {'name': name, 'pretrained': True, 'units': 'native'}).eval()
    source: Any = made[-1].eval()  # the second is that of the weights
    eight, side = torch.rand(1, 4, 40, 47) * 255, 42 if 'patch14' in name else 48
    config = source.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ('mean', 'std'))
    x = (eight[:, [2, 1, 0]] / 255 - mean) / std
    x = nn.functional.pad(x, (0, -47 % built.strides[0], 0, side - 40), mode='replicate')
    source.set_input_size(x.shape[-2:])
    expected = source.forward_intermediates(x, indices=[0, 1], norm=True, intermediates_only=True)
    for ours, theirs in zip(built(eight, torch.ones(1, dtype=torch.bool)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_naip_in_8_bits(local: Any) -> None:
    source: Any = local('swin_v2_b', Swin_V2_B_Weights.NAIP_RGB_MI_SATLAS)
    own = Modality('aerial', ('N', 'B', 'G', 'R'), 1.0, False, 'optical', 'dn')
    built = encoder(own, {'name': 'swin_v2_b', 'weights': 'NAIP_RGB_MI_SATLAS'})
    eight = torch.rand(1, 4, 64, 64) * 255
    expected = source.forward_intermediates(eight[:, [3, 2, 1]] / 255, indices=[0, 1, 2, 3])
    for ours, theirs in zip(built(eight, torch.ones(1, dtype=torch.bool)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    numbered = Modality('s2', ('B04', 'B03', 'B02'), 10.0, False, 'optical', 'dn')
    with pytest.raises(ValueError, match=r"'dn'.*8 bit"):  # digital numbers of Sentinel-2 have 16 bits
        encoder(numbered, {'name': 'swin_v2_b', 'weights': 'NAIP_RGB_MI_SATLAS'})


def test_download_of_a_local_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry's own way of downloading, from a ``file:`` URL."""
    torch.save(make_body('resnet18', 2).state_dict(), tmp_path / 'weights.pth')
    entry = Weights((tmp_path / 'weights.pth').as_uri(), nn.Identity, dict(ResNet50_Weights.SENTINEL1_ALL_MOCO.meta))
    monkeypatch.setattr(
        'torchvision.models._api.load_state_dict_from_url',
        lambda url, **kwargs: torch.hub.load_state_dict_from_url(
            url, str(tmp_path / 'hub'), **{**kwargs, 'check_hash': False}
        ),
    )
    entries = WeightsEnum('ResNet18_Weights', {'LOCAL_S1': entry})
    built = encoder(S1, {'name': 'resnet18', 'weights': entries.LOCAL_S1, 'units': 'standardised'})
    assert isinstance(built, PerDate)
    assert built.encoder.origin.source.startswith('file:')
    assert (tmp_path / 'hub' / 'weights.pth').exists()


@pytest.mark.parametrize('freeze', [True, 'but_last'])
@pytest.mark.parametrize('name', ['resnet18', 'convnext_atto', 'vit_tiny_patch16_224', 'swin_v2_t'])
def test_frozen_weights_are_bit_equal_after_a_step(name: str, freeze: Any) -> None:
    own = Modality('s2', ('B04', 'B08'), 10.0, False, 'optical', 'dn')
    spec = {'name': name, 'weights': 'a.pth', 'bands': ['B8', 'B4', 'B3'], 'load': False, 'freeze': freeze}
    built = encoder(own, spec).train()
    before = {key: value.clone() for key, value in built.body.state_dict().items()}
    head = nn.Conv2d(built.channels[-1], 1, 1)
    parameters = [p for p in [*built.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    head(built(torch.rand(1, 2, 32, 32) * 3000, torch.ones(1, dtype=torch.bool))[-1]).sum().backward()
    optimizer.step()
    changed = {key for key, value in built.body.state_dict().items() if not torch.equal(value, before[key])}
    assert all(key.startswith(built.last) for key in changed)
    assert bool(changed) is (freeze == 'but_last')


@pytest.mark.parametrize(
    ('name', 'entry'),
    [('resnet18', ResNet18_Weights.SENTINEL2_ALL_MOCO), ('swin_v2_t', Swin_V2_T_Weights.SENTINEL2_MI_MS_SATLAS)],
)
def test_early_layers_learn_slower(name: str, entry: Any, local: Any) -> None:
    local(name, entry)
    own = Modality('s2', ('B04', 'B08', 'NDVI'), 10.0, False, 'optical', 'dn')
    built = encoder(own, {'name': name, 'weights': entry.name, 'layer_decay': 0.5})
    rates = built.learning_rates()
    stem = next(m for m in built.modules() if hasattr(m, 'extra'))
    last = next(built.body.get_submodule(built.last).parameters())
    assert rates[stem.weight] < rates[last] <= 1
    assert stem.extra not in rates
    assert encoder(own, {'name': name, 'weights': entry.name}).learning_rates() == {}


def test_chunks_change_nothing(local: Any) -> None:
    local('resnet18', ResNet18_Weights.SENTINEL2_ALL_MOCO)
    image, valid = torch.randn(2, 3, 10, 32, 32), torch.tensor([[True, True, False], [True, False, True]])
    dates = torch.tensor([[18000, 18010, 0], [18000, 0, 18020]])
    built = [encoder(S2, {**RESNET, 'freeze': True, 'chunk': chunk}) for chunk in (1, 64)]
    built[1].load_state_dict(built[0].state_dict())
    for a, b in zip(built[0](image, dates, valid), built[1](image, dates, valid), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert built[0].strides == (1, 4, 8, 16, 32)


def test_a_specification_without_loading_has_the_same_structure(local: Any) -> None:
    local('resnet18', ResNet18_Weights.SENTINEL2_ALL_MOCO)
    loaded, empty = encoder(S2, RESNET), encoder(S2, {**RESNET, 'load': False})
    assert isinstance(empty.encoder, PretrainedEncoder)
    assert loaded.state_dict().keys() == empty.state_dict().keys()
    assert empty.encoder.origin.tensors == 0
    assert 'checkpoint' in str(empty.encoder.origin)


def test_a_checkpoint_of_weights_without_the_last_norm(tmp_path: Path) -> None:
    own = Modality('s2', ('B04', 'B08'), 10.0, False, 'optical', 'dn')
    state = make_body('vit_tiny_patch16_224', 2).state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith('norm.')}, tmp_path / 'a.pth')
    spec = {'name': 'vit_tiny_patch16_224', 'weights': str(tmp_path / 'a.pth')}
    loaded, empty = encoder(own, spec), encoder(own, {**spec, 'load': False})
    empty.load_state_dict(loaded.state_dict())
    image, valid = torch.randn(1, 2, 32, 32), torch.ones(1, dtype=torch.bool)
    assert all(torch.equal(a, b) for a, b in zip(loaded(image, valid), empty(image, valid), strict=True))


TASK: dict[str, Any] = {
    **TOLD,
    'mean': {'s2': [1000.0, 1100.0, 1200.0], 's1a': [-12.0, -18.0], 'spot': [90.0]},
    'std': {'s2': [400.0, 500.0, 600.0], 's1a': [3.0, 3.0], 'spot': [30.0]},
}


@pytest.fixture
def task(local: Any) -> OmniSatSegmentation:
    local('resnet18', ResNet18_Weights.SENTINEL2_ALL_MOCO)
    spec = {**RESNET, 'freeze': True}
    return OmniSatSegmentation(**TASK, backbone_args={'encoders': {'s2': spec}})


def test_fit_says_what_was_loaded_and_a_checkpoint_loads_offline(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise AssertionError('nothing is downloaded for a checkpoint')

    trainer = make_trainer(tmp_path, max_steps=1)
    with caplog.at_level('INFO'):
        trainer.fit(task, make_loader([make_sample(0), make_sample(1)]))
    (line,) = [record.message for record in caplog.records if record.message.startswith('Encoders: ')]
    tensors = len(make_body('resnet18', 13).state_dict())
    assert f's2: {tensors} tensors of resnet18: ResNet18_Weights.SENTINEL2_ALL_MOCO from https://hf.co/' in line
    assert 'licence: cc-by-4.0' in line
    assert 'spot: random weights' in line
    trainer.save_checkpoint(tmp_path / 'a.ckpt')
    monkeypatch.setattr(ResNet18_Weights, 'get_state_dict', download)
    loaded = OmniSatSegmentation.load_from_checkpoint(tmp_path / 'a.ckpt')
    content = torch.load(tmp_path / 'a.ckpt', weights_only=True)
    del content['hyper_parameters']['backbone_args']['encoders']['s2']['load']
    torch.save(content, tmp_path / 'b.ckpt')
    OmniSatSegmentation.load_from_checkpoint(tmp_path / 'b.ckpt')  # of somebody else
    batch = make_batch()
    assert torch.equal(loaded.eval().model(batch), task.eval().model(batch))
    export_hub(loaded, tmp_path / 'hub')
    assert torch.equal(load_hub(tmp_path / 'hub')(batch).fused, task.model.backbone(batch).fused)


def test_a_task_trains_early_layers_slower(local: Any) -> None:
    local('resnet18', ResNet18_Weights.SENTINEL2_ALL_MOCO)
    encoders = {'encoders': {'s2': {**RESNET, 'layer_decay': 0.5}}}
    task = OmniSatSegmentation(**TASK, backbone_args=encoders, scheduler='plateau', lr=0.1)
    configured: Any = task.configure_optimizers()
    rates = {p: group['lr'] for group in configured['optimizer'].param_groups for p in group['params']}
    built: Any = task.model.backbone.encoders['s2']
    assert rates.keys() == set(task.parameters())
    assert rates[built.encoder.body.conv1.weight] < rates[built.encoder.body.layer4[0].conv1.weight]
    assert rates[built.fine.pixel[2].weight] == 0.1


def test_a_task_tells_encoders_the_statistics(task: Any) -> None:
    adapter = task.model.backbone.encoders['s2'].encoder.adapter
    image = torch.zeros(1, 3, 1, 1)  # the mean of every band
    torch.testing.assert_close(adapter(image).flatten(), torch.tensor([0.1, 0.11, 0.12]))
    image[:, 0] = torch.nan
    torch.testing.assert_close(adapter(image)[:, :3].flatten(), torch.tensor([0.1, 0.11, 0.12]))


BACKBONES = ['resnet18', 'convnext_atto', 'vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224']


@pytest.mark.parametrize('name', BACKBONES)
def test_what_must_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding, the order of dates, the other samples, and what an invalid date contains."""
    torch.manual_seed(0)
    create = timm.create_model
    small = {'embed_dim': 16, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)} if 'swin' in name else {}
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: create(*args, **kwargs, **small))
    own = Modality('s2', ('B04', 'B08', 'B11'), 10.0, True)
    spec = {'name': name, 'weights': 'a.pth', 'bands': ['B8', 'B4', 'B3', 'B2'], 'load': False, 'width': 16}
    check_series(encoder(own, spec), 3)
