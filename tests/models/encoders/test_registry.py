# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders by name, by class and by specification, in models and in checkpoints."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchgeo.models import presto

from tests.tasks.helpers import TOLD, make_batch, make_loader, make_sample, make_trainer
from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import omnisat_tiny, register_encoder
from torchgeo_omnisat.models.encoders import registry
from torchgeo_omnisat.models.encoders.pretrained.per_date import PerDate
from torchgeo_omnisat.models.encoders.series.ltae import LTAEEncoder
from torchgeo_omnisat.tasks import OmniSatSegmentation, export_hub, load_hub

S2 = Modality('s2', ('B04', 'B08'), 10.0, True)
SPOT = Modality('spot', ('R',), 2.5, False)

MODULE = """
import torch
from torch import nn

class Mean(nn.Module):
    strides = (1,)

    def __init__(self, bands, width=16):
        super().__init__()
        self.channels = (width,)
        self.conv = nn.Conv2d(bands, width, 3, padding=1)

    def forward(self, image, dates, valid):
        shown = valid[:, :, None, None, None] & image.isfinite()
        return [self.conv(image.where(shown, 0).sum(1) / shown.sum(1).clamp(min=1))]

class ByModality(Mean):
    def __init__(self, modality):
        super().__init__(len(modality.bands))
        self.gsd = modality.gsd

NUMBER = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an importable module with encoders, which is not imported yet."""
    (tmp_path / 'my_encoders.py').write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield 'my_encoders'
    sys.modules.pop('my_encoders', None)


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, 'ENCODERS', registry.ENCODERS.copy())
    monkeypatch.setattr('torchgeo_omnisat.models.encoders.build.ENCODERS', registry.ENCODERS)


def encoder(spec: Any, modality: Modality = S2) -> Any:
    return omnisat_tiny([modality], encoders={modality.name: spec}).encoders[modality.name]


def test_arguments_follow_the_name() -> None:
    ltae = encoder({'name': 'ltae', 'num_heads': 4})
    assert isinstance(ltae, LTAEEncoder)
    assert len(ltae.temporal.heads.query) == 4
    assert ltae.channels == (16, 32, 64)  # of omnisat_tiny
    assert encoder({'name': 'ltae', 'widths': [16, 16]}).channels == (16, 16)
    assert encoder({'name': 'utae'}).state_dict().keys() == encoder('utae').state_dict().keys()


def test_a_registered_class_is_built_by_name() -> None:
    @register_encoder('mean', temporal=True)
    class Mean(nn.Module):
        strides = (1,)

        def __init__(self, modality: Modality, width: int = 4) -> None:
            super().__init__()
            self.gsd, self.channels = modality.gsd, (width,)

        def forward(self, image: Tensor, dates: Tensor, valid: Tensor) -> list[Tensor]:
            return [image.new_zeros(len(image), self.channels[0], *image.shape[-2:])]

    assert encoder('mean').gsd == 10
    assert encoder({'name': 'mean', 'width': 8}).channels == (8,)
    with pytest.raises(ValueError, match=r"\['depth'\].*\['width'\]"):
        encoder({'name': 'mean', 'depth': 8})
    with pytest.raises(ValueError, match='mean'):
        encoder('mean', SPOT)


def test_an_encoder_of_images_runs_on_each_date() -> None:
    @register_encoder('blur', temporal=False, per_date=True)
    class Blur(nn.Module):
        channels, strides = (16,), (4,)

        def __init__(self, bands: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(bands, 16, 4, 4)

        def encode(self, image: Tensor) -> list[Tensor]:
            return [self.conv(image)]

        def forward(self, image: Tensor, valid: Tensor) -> list[Tensor]:
            return self.encode(image)

    built = encoder({'name': 'blur', 'width': 32})
    assert isinstance(built, PerDate)
    assert (built.channels, built.strides) == ((32, 16), (1, 4))
    single = Modality('spot', ('R', 'G', 'B'), 1.5, False)
    assert isinstance(encoder('blur', single), Blur)
    with pytest.raises(ValueError, match=r"'spot'.*'width'"):
        encoder({'name': 'blur', 'width': 32}, single)


def test_a_class_is_built_by_its_path(module: str) -> None:
    built = encoder({'class_path': f'{module}.Mean', 'init_args': {'width': 8, 'bands': None}})
    assert built.channels == (8,)
    assert encoder({'class_path': f'{module}.ByModality'}).gsd == 10


@pytest.mark.parametrize(
    'spec',
    [
        {'class_path': 'no_such_module.Encoder'},
        {'class_path': 'my_encoders.Nothing'},
        {'class_path': 'my_encoders.NUMBER'},
        {'class_path': 'Encoder'},
        {'class_path': 'my_encoders.Mean', 'width': 8},
        {'class_path': 'my_encoders.Mean', 'init_args': {'depth': 8}},
        {'class_path': 'my_encoders.Mean', 'init_args': 7},
        {'class_path': 'torch.nn.Identity'},
        {'class_path': 7},
        {'width': 8},
        {},
        nn.Identity(),
        lambda bands: nn.Identity(),
        'no_such_name',
    ],
)
def test_an_encoder_that_is_none_is_refused(spec: Any, module: str) -> None:
    with pytest.raises(ValueError, match="'s2'"):
        encoder(spec)


def task(spec: Any) -> OmniSatSegmentation:
    return OmniSatSegmentation(**{**TOLD, 'backbone_args': {'encoders': {'s2': spec}}})


def fitted(spec: Any, folder: Path) -> tuple[Path, Tensor]:
    """Return a checkpoint of one step, and what its model says of a batch."""
    trained = task(spec)
    trainer = make_trainer(folder, max_steps=1)
    trainer.fit(trained, make_loader([make_sample(0), make_sample(1)]))
    trainer.save_checkpoint(folder / 'a.ckpt')
    return folder / 'a.ckpt', trained.eval().model(make_batch()).detach()


def test_a_checkpoint_imports_only_what_the_caller_names(module: str, tmp_path: Path) -> None:
    spec = {'class_path': f'{module}.Mean', 'init_args': {'width': 8}}
    path, expected = fitted(spec, tmp_path)
    del sys.modules[module]
    with pytest.raises(ValueError, match=rf'a\.ckpt.*{module}\.Mean'):
        OmniSatSegmentation.load_from_checkpoint(path)
    assert module not in sys.modules
    export_hub(task(spec), tmp_path / 'hub')
    del sys.modules[module]
    with pytest.raises(ValueError, match=rf'hub.*{module}\.Mean'):
        load_hub(tmp_path / 'hub')
    assert module not in sys.modules
    named = OmniSatSegmentation.load_from_checkpoint(path, backbone_args={'encoders': {'s2': spec}})
    assert torch.equal(named.eval().model(make_batch()), expected)
    register_encoder('mean')(sys.modules[module].Mean)
    registered = OmniSatSegmentation.load_from_checkpoint(path)
    assert torch.equal(registered.eval().model(make_batch()), expected)
    assert load_hub(tmp_path / 'hub').encoders['s2'].channels == (8,)


def test_classes_are_saved_as_plain_types(module: str, tmp_path: Path) -> None:
    built = task(LTAEEncoder)
    assert built.hparams['backbone_args'] == {'encoders': {'s2': 'ltae'}}
    own = registry.import_class('s2', f'{module}.Mean')
    assert task(own).hparams['backbone_args'] == {'encoders': {'s2': {'class_path': f'{module}.Mean'}}}


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('pretrained.presto.presto_encoder', 'pretrained.series.presto.presto_encoder'),
        ('pretrained.croma.CROMAEncoder', 'pretrained.images.croma.CROMAEncoder'),
        ('pretrained.dictionary.dictionary_encoder', 'pretrained.dictionary.dictionary_encoder'),
        ('utae.UTAEEncoder', 'series.utae.UTAEEncoder'),
    ],
)
def test_old_class_paths_are_registered(old: str, new: str, recwarn: pytest.WarningsRecorder) -> None:
    package = 'torchgeo_omnisat.models.encoders'
    built = [registry.import_class('s2', f'{package}.{path}') for path in (old, new)]
    assert built[0] is built[1]
    assert {f'{package}.{old}', f'{package}.{new}'} <= registry.registered_paths()
    assert registry.import_path(built[0]) == f'{package}.{new}'
    assert not recwarn.list


PRESTO = 'torchgeo_omnisat.models.encoders.pretrained.series.presto.presto_encoder'
SIZES: dict[str, Any] = {'encoder_embedding_size': 32, 'encoder_depth': 1, 'decoder_depth': 1}
RANDOM = {'pretrained': False, **SIZES}
NIR = Modality('nir', ('B08',), 10.0, True, 'optical', 'dn')


@pytest.mark.parametrize('spec', [{'name': 'presto', **RANDOM}, {'class_path': PRESTO, 'init_args': RANDOM}], ids=str)
def test_frozen_random_weights_are_warned_about(spec: Any) -> None:
    with pytest.warns(UserWarning, match="'nir' is frozen"):
        omnisat_tiny([NIR], encoders={'nir': spec})
    with registry.checkpoint_encoders('a.ckpt'), warnings.catch_warnings():
        warnings.simplefilter('error')
        omnisat_tiny([NIR], encoders={'nir': spec})


@pytest.mark.parametrize('changed', [{'freeze': False}, {'load': False}, {'pretrained': None, 'weights': 'presto.pt'}])
def test_other_weights_are_not_warned_about(
    changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(presto(None, **SIZES).state_dict(), 'presto.pt')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        omnisat_tiny([NIR], encoders={'nir': {'name': 'presto', **RANDOM, **changed}})


def test_random_weights_of_a_backbone_cannot_be_frozen() -> None:
    with pytest.raises(ValueError, match="'spot' has freeze"):
        omnisat_tiny([SPOT], encoders={'spot': {'name': 'resnet18', 'pretrained': False, 'freeze': True}})
