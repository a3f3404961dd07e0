# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Hyper-parameters of checkpoints and hub folders: they import no class, read no file and fill no memory."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchgeo.main import main

import torchgeo_omnisat.plugin  # noqa: F401 (short names resolve among classes that are imported)
from tests.tasks.helpers import TOLD
from torchgeo_omnisat.tasks import OmniSatSegmentation, load_hub
from torchgeo_omnisat.tasks.backbone import export_hub
from torchgeo_omnisat.tasks.checkpoints import PREFIX, limited_size, read_hyper_parameters
from torchgeo_omnisat.validation.trial import try_training

TASK = 'torchgeo_omnisat.tasks.segmentation.OmniSatSegmentation'
PRESTO = 'torchgeo_omnisat.models.encoders.pretrained.presto.presto_encoder'  # the path of earlier checkpoints
TESSERA = 'torchgeo_omnisat.models.encoders.pretrained.series.tessera.tessera_encoder'
EVIL = {'class_path': 'evil_encoders.Encoder'}


@pytest.fixture(scope='module')
def told() -> dict[str, Any]:
    return dict(OmniSatSegmentation(**TOLD).hparams)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that runs code when it is imported, and a file that no checkpoint may read."""
    (tmp_path / 'evil_encoders.py').write_text(f'open({str(tmp_path / "CODE_RAN")!r}, "w")\nclass Encoder: ...\n')
    torch.save({'state_dict': {'x': torch.ones(2)}}, tmp_path / 'private.pt')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['torchgeo'])
    yield tmp_path
    assert 'evil_encoders' not in sys.modules
    assert not (tmp_path / 'CODE_RAN').exists()


def save(folder: Path, hparams: Any, zipped: bool = True, state: dict[str, Tensor] | None = None) -> str:
    content = {'state_dict': state or {}, 'hyper_parameters': hparams, 'pytorch-lightning_version': '2.6.0'}
    torch.save(content, folder / 'a.ckpt', _use_new_zipfile_serialization=zipped)
    return str(folder / 'a.ckpt')


@pytest.mark.parametrize(
    'change',
    [
        {'_class_path': EVIL['class_path']},
        {'_class_path': 7},
        {'backbone_args': {'encoders': {'s2': EVIL}}},
        {'backbone_args': json.dumps({'encoders': {'s2': EVIL}})},
        {'backbone_args': {'encoders': json.dumps({'s2': EVIL})}},
        {'backbone_args': {'encoders': {'s2': json.dumps(EVIL)}}},
        {'backbone_args': 'encoders:\n  s2:\n    "class\\x5fpath": evil_encoders.Encoder\n'},
        {'backbone_args': {'encoders': {json.dumps(EVIL)}}},
        {'backbone_args': [(EVIL,)]},
        {'sources': {'a': json.dumps([[EVIL]])}},
        {'modalities': [json.dumps(EVIL)]},
        {'dict_kwargs': EVIL},
    ],
    ids=str,
)
def test_classes(change: dict[str, Any], told: dict[str, Any], folder: Path) -> None:
    """A parser of the command line would import them, also those in strings."""
    for zipped in (True, False):  # the older format cannot be mapped into memory
        path = save(folder, {**told, '_class_path': TASK} | change, zipped)
        with pytest.raises(ValueError, match=r'a\.ckpt.*(evil_encoders|7)'):
            read_hyper_parameters(path)


@pytest.mark.parametrize(
    'change', [{'_class_path': EVIL['class_path']}, {'backbone_args': json.dumps({'encoders': {'s2': EVIL}})}]
)
def test_classes_on_the_command_line(change: dict[str, Any], told: dict[str, Any], folder: Path) -> None:
    path = save(folder, {**told, '_class_path': TASK} | change, zipped=False)
    with pytest.raises(ValueError, match=r'a\.ckpt.*evil_encoders\.Encoder'):
        main(['test', '--model', 'omnisat', '--ckpt_path', path])
    assert 'names the classes' in str(try_training(_Empty(), {'ckpt_path': path}, {}))


class _Empty:
    num_workers, batch_size = 0, 1


def test_classes_that_are_named(told: dict[str, Any], folder: Path) -> None:
    own = {**told, '_class_path': 'my.Task', 'weights': 'private.pt', 'backbone_args': {'encoders': {'s2': EVIL}}}
    kept = read_hyper_parameters(save(folder, own), {'my.Task', EVIL['class_path']})
    assert kept['class_path'] == 'my.Task'
    assert kept['dict_kwargs']['backbone_args'] == own['backbone_args']
    assert 'weights' not in read_hyper_parameters(save(folder, told | {'_class_path': TASK, 'weights': 'x'}))


@pytest.mark.parametrize(
    'content', [b'', b'garbage', [1], 7, {'hyper_parameters': [1]}, {'hyper_parameters': 'abc'}], ids=str
)
def test_hyper_parameters_that_are_none(content: Any, folder: Path) -> None:
    if isinstance(content, bytes):
        (folder / 'a.ckpt').write_bytes(content)
    else:
        torch.save(content, folder / 'a.ckpt')
    with pytest.raises(ValueError, match=r'a\.ckpt'):
        read_hyper_parameters(folder / 'a.ckpt')


READING = [
    {'s2': {'class_path': PRESTO, 'init_args': {'weights': 'private.pt'}}},
    {'s2': {'class_path': PRESTO, 'init_args': {'pretrained': True, 'load': True}}},
    {'s2': {'name': 'presto', 'weights': 'private.pt', 'load': True}},
    {'s1a': {'name': 'croma', 'weights': 'private.pt', 'load': 1}},
    {'s1a': {'name': 'croma', 'pretrained': True}},
    {'spot': {'name': 'resnet18', 'checkpoint_path': 'private.pt'}},
    {'s2': {'name': 'resnet18', 'checkpoint_path': 'private.pt', 'pretrained': False}},
    {'spot': {'name': 'resnet18', 'weights': 'private.pt'}},
    {'spot': {'name': 'resnet18', 'pretrained': True}},
    {'spot': 'hf-hub:timm/resnet18.a1_in1k'},
    {'spot': 'local-dir:.'},
]


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise an error if weights are read or downloaded."""

    def read(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(args)

    for name in (
        'series.weights.read_file',
        'series.weights.read_entry',
        'images.foundation.read_file',
        'images.foundation.read_entry',
        'sources.read_file',
    ):
        monkeypatch.setattr(f'torchgeo_omnisat.models.encoders.pretrained.{name}', read)
    for name in (
        'torch.hub.load_state_dict_from_url',
        'timm.models._factory.load_checkpoint',
        'timm.models._builder.load_pretrained',
    ):
        monkeypatch.setattr(name, read)


@pytest.mark.parametrize('encoders', READING, ids=str)
@pytest.mark.usefixtures('no_reading')
def test_weights_of_encoders(encoders: dict[str, Any], told: dict[str, Any], folder: Path) -> None:
    """A model is built, without the weights that its encoders name."""
    path = save(folder, told | {'backbone_args': {'encoders': encoders}})
    with pytest.raises(
        (ValueError, RuntimeError),
        match=r'in loading state_dict for Omni|timm has no backbone|describes a model of more',
    ):
        OmniSatSegmentation.load_from_checkpoint(path)


@pytest.mark.usefixtures('no_reading')
def test_weights_of_a_task(told: dict[str, Any], folder: Path) -> None:
    state = OmniSatSegmentation(**TOLD).state_dict()
    for weights in ('private.pt', 'UTAE_Weights.PASTIS_FOLD1'):
        path = save(folder, told | {'weights': weights, 'statistics': 'a'}, state=state)
        task = OmniSatSegmentation.load_from_checkpoint(path)
        assert (task.weights, task.statistics) == (None, None)


@pytest.mark.parametrize('encoders', READING[:6], ids=str)
@pytest.mark.usefixtures('no_reading')
def test_weights_of_a_hub_folder(encoders: dict[str, Any], folder: Path, hub: dict[str, Any]) -> None:
    (folder / 'config.json').write_text(json.dumps(hub['config'] | {'backbone_args': {'encoders': encoders}}))
    (folder / 'model.safetensors').write_bytes(hub['model'])
    with pytest.raises(
        ValueError, match=r'holds no backbone that config\.json describes: (Error.s. in loading|.*of more than)'
    ):
        load_hub(folder)


@pytest.fixture(scope='module')
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp('hub')
    export_hub(OmniSatSegmentation(**TOLD), folder)
    return {
        'config': json.loads((folder / 'config.json').read_text()),
        'model': (folder / 'model.safetensors').read_bytes(),
    }


@pytest.mark.parametrize(
    'arguments',
    [
        {'embed_dim': 16384, 'depth': 256},
        {'widths': [16, 2048, 4096]},
        {'encoders': {'s1a': {'name': 'tessera', 'pretrained': False, 'depth': 4096, 'hidden_dim': 16384}}},
        {'encoders': {'s1a': {'class_path': TESSERA, 'init_args': {'pretrained': False, 'depth': 10**9}}}},
        {'encoders': {'s2': {'name': 'ltae', 'num_heads': 4096, 'key_dim': 4096}}},
        {'encoders': {'s2': {'name': 'resnet18', 'dim': 4096, 'width': 4096}}},
        {'encoders': {'s1a': {'name': 'croma', 'pretrained': False, 'size': 'large'}}},
    ],
    ids=str,
)
def test_large_models(arguments: dict[str, Any], told: dict[str, Any], folder: Path, hub: dict[str, Any]) -> None:
    path = save(folder, told | {'backbone_args': arguments})
    with pytest.raises(ValueError, match=r'a\.ckpt describes a model of more than|expected a number from'):
        OmniSatSegmentation.load_from_checkpoint(path)
    (folder / 'config.json').write_text(json.dumps(hub['config'] | {'backbone_args': arguments}))
    (folder / 'model.safetensors').write_bytes(hub['model'])
    with pytest.raises(ValueError, match=rf'{re.escape(str(folder))} holds no backbone .*(more than|larger|from)'):
        load_hub(folder)


class _Sizes(TorchFunctionMode):
    """Records the sizes of new tensors that take memory."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [0]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.empty, torch.zeros, torch.randn) and str((kwargs or {}).get('device')) != 'meta':
            self.sizes.append(func(*args, **(kwargs or {}) | {'device': 'meta'}).numel())
        return func(*args, **(kwargs or {}))


def test_size_of_one_tensor_is_checked_before_it_is_allocated(told: dict[str, Any], folder: Path) -> None:
    path = save(folder, told | {'backbone_args': {'widths': [16384] * 8}})
    with _Sizes() as new, pytest.raises(ValueError, match=r'a\.ckpt describes a model of more than'):
        OmniSatSegmentation.load_from_checkpoint(path)
    assert max(new.sizes) < 2**25


def test_limit_does_not_change_random_weights(folder: Path) -> None:
    (folder / 'a.ckpt').write_bytes(b'')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = torch.randn(3), torch.rand(3), nn.Linear(2, 3).weight
        torch.manual_seed(0)
        with limited_size(folder / 'a.ckpt'):
            found = torch.randn(3), torch.rand(3), nn.Linear(2, 3).weight
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one, two)
        assert two.device.type == 'cpu'


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        ({'num_classes': 10**9, 'labels': None}, 'num_classes is 1000000000'),
        ({'num_classes': 16000, 'labels': None, 'ignore_index': None}, 'num_classes is 16000'),
        ({'num_classes': 0, 'labels': None, 'ignore_index': None}, 'num_classes is 0'),
        ({'modalities': [None]}, r'a\.ckpt does not describe a OmniSatSegmentation'),
        ({'modalities': 7}, r'a\.ckpt does not describe'),
        ({'backbone_args': [1]}, r'a\.ckpt does not describe'),
        ({'backbone_args': 'x'}, r'a\.ckpt does not describe'),
        ({'labels': 7}, r'a\.ckpt does not describe'),
        ({'std': {'s2': 'abc'}}, r'a\.ckpt does not describe'),
        ({'modality_dropout': 'x'}, r'a\.ckpt does not describe'),
        ({'unknown': 1}, r'a\.ckpt does not describe'),
    ],
    ids=str,
)
def test_other_values(change: dict[str, Any], match: str, told: dict[str, Any], folder: Path) -> None:
    with pytest.raises(ValueError, match=match):
        OmniSatSegmentation.load_from_checkpoint(save(folder, told | change))


def test_a_checkpoint_of_only_weights_in_half_precision_loads(told: dict[str, Any], folder: Path) -> None:
    state = {key: value.half() for key, value in OmniSatSegmentation(**TOLD).state_dict().items() if PREFIX in key}
    path = save(folder, told, state=state)
    assert OmniSatSegmentation.load_from_checkpoint(path, strict=False).is_configured
