# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Code from outside: nothing but tensors and plain types is unpickled."""

import json
import os
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torchgeo.main import main

import torchgeo_omnisat.plugin  # noqa: F401 (short names resolve among classes that are imported)
from tests.tasks.helpers import TOLD, make_loader, make_sample
from torchgeo_omnisat.datamodules import ShardedDataModule
from torchgeo_omnisat.datasets import ShardedDataset
from torchgeo_omnisat.datasets.io.files import open_array
from torchgeo_omnisat.datasets.shards import check_index, read_description
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.checkpoints import read_checkpoint


class Touch:
    """A pickle of it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'touch {self.path}',)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / 'CODE_RAN'


TASKS = [OmniSatSegmentation, OmniSatClassification, OmniSatPretraining]


@pytest.mark.parametrize('place', ['state_dict', 'hyper_parameters', 'callbacks', 'extra'])
@pytest.mark.parametrize('task', TASKS)
def test_checkpoint(task: Any, place: str, tmp_path: Path, mark: Path) -> None:
    content = {'state_dict': {}, 'hyper_parameters': {}, 'pytorch-lightning_version': '2.6.0'} | {place: Touch(mark)}
    torch.save(content, tmp_path / 'evil.ckpt')
    with pytest.raises(pickle.UnpicklingError):
        task.load_from_checkpoint(tmp_path / 'evil.ckpt')
    with pytest.raises(ValueError, match=r'evil\.ckpt'):
        read_checkpoint(tmp_path / 'evil.ckpt')
    assert not mark.exists()


@pytest.fixture
def server(tmp_path: Path, socket_enabled: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server of the files in the test's folder, and a cache of its own for what is downloaded."""
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path / 'hub'))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield f'http://127.0.0.1:{http.server_port}'
        http.shutdown()
        thread.join()


@pytest.mark.parametrize('stage', ['fit', 'validate', 'test', 'predict'])
def test_checkpoint_at_an_address(stage: str, tmp_path: Path, mark: Path, server: str) -> None:
    """Lightning would unpickle a download with any code in it."""
    torch.save({'state_dict': {}, 'extra': Touch(mark)}, tmp_path / f'{stage}.ckpt')
    task = OmniSatSegmentation(**TOLD)
    trainer = Trainer(accelerator='cpu', logger=False, default_root_dir=tmp_path, enable_checkpointing=False)
    with pytest.raises(ValueError, match=rf'{stage}\.ckpt cannot be read as a checkpoint .*tensors'):
        getattr(trainer, stage)(task, make_loader([make_sample(0)]), ckpt_path=f'{server}/{stage}.ckpt')
    assert not mark.exists()


def test_task_at_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(url: str, **how: Any) -> None:
        asked.append(how['weights_only'])
        raise ConnectionError

    monkeypatch.setattr('torch.hub.load_state_dict_from_url', download)
    with pytest.raises(ConnectionError):
        OmniSatSegmentation.load_from_checkpoint('https://127.0.0.1:9/a.ckpt')
    assert asked == [True]


def test_array_of_objects(tmp_path: Path, mark: Path) -> None:
    np.save(tmp_path / 'a.npy', np.array([Touch(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r'a\.npy'):
        open_array(tmp_path / 'a.npy', 'an array')
    (tmp_path / 'b.npy').write_bytes(pickle.dumps(Touch(mark)))
    with pytest.raises(ValueError, match=r'b\.npy'):
        open_array(tmp_path / 'b.npy', 'an array')
    assert not mark.exists()


LEAF = {'type': None, 'context': None, 'children_spec': []}
GOOD = {
    'data_format': ['bytes'],
    'data_spec': json.dumps([1, LEAF]),
    'item_loader': 'PyTreeLoader',
    'encryption': None,
    'compression': None,
    'chunk_bytes': 200,
    'chunk_size': None,
    'types': 'bytes',
}
DEFAULT_DICT = {
    'type': 'collections.defaultdict',
    'context': json.dumps({'default_factory_module': 'os', 'default_factory_name': 'getcwd', 'dict_context': ['a']}),
    'children_spec': [LEAF],
}


@pytest.mark.parametrize(
    'change',
    [
        {'config': GOOD | {'data_format': ['pickle']}},
        {'config': GOOD | {'data_format': ['bytes', 'pickle']}},
        {'config': GOOD | {'data_format': 'bytes'}},
        {'config': GOOD | {'data_format': []}},
        {'config': GOOD | {'item_loader': 'ParquetLoader'}},
        {'config': GOOD | {'encryption': {'algorithm': 'x'}}},
        {'config': GOOD | {'compression': 'zstd'}},
        {'config': GOOD | {'data_spec': json.dumps([1, DEFAULT_DICT])}},
        {'config': GOOD | {'data_spec': json.dumps([1, LEAF | {'type': 'evil.Class'}])}},
        {'config': GOOD | {'data_spec': json.dumps([2, LEAF])}},
        {'config': GOOD | {'data_spec': json.dumps([1, LEAF | {'context': '1'}])}},
        {'config': GOOD | {'data_spec': json.dumps([1, LEAF | {'children_spec': [LEAF]}])}},
        {'config': GOOD | {'data_spec': '[' * 100_000}},
        {'config': GOOD | {'data_spec': None}},
        {'config': GOOD | {'data_spec': [1, LEAF]}},
        {'config': {key: value for key, value in GOOD.items() if key != 'data_spec'}},
        {'config': GOOD | {'ipc_compression': 'zstd'}},
        {'config': GOOD | {'types': ['pickle']}},
        {'config': GOOD | {'chunk_bytes': '200'}},
        {'config': GOOD | {'new': 1}},
        {'config': {}},
        {'config': None},
        {'chunks': [{'filename': '../../file.bin'}]},
        {'chunks': [{'filename': '/etc/passwd'}]},
        {'chunks': [{'filename': 'a/b.bin'}]},
        {'chunks': [{'filename': '..'}]},
        {'chunks': [{'filename': 'x.bin\n'}]},
        {'chunks': [{'filename': 3}]},
        {'chunks': [{}]},
        {'chunks': 7},
        {'chunks': None},
    ],
    ids=lambda change: str(change)[:200],
)
def test_index_of_shards(change: dict[str, Any], tmp_path: Path) -> None:
    good = {'chunks': [{'filename': 'chunk-0-0.bin', 'chunk_size': 2}], 'config': GOOD}
    (tmp_path / 'index.json').write_text(json.dumps(good))
    check_index(str(tmp_path), [2])
    with pytest.raises(ValueError, match=r'index\.json.*\[2\].*\[3\]'):
        check_index(str(tmp_path), [3])
    (tmp_path / 'index.json').write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=r'index\.json'):
        check_index(str(tmp_path))


@pytest.mark.parametrize('text', ['', '[]', '{}', '[' * 100_000, '\0', '{"chunks": NaN}'], ids=lambda text: text[:9])
def test_index_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / 'index.json').write_text(text)
    with pytest.raises(ValueError, match=r'index\.json'):
        check_index(str(tmp_path))


@pytest.mark.parametrize(
    'change',
    [
        {'shards': [2]},
        {'shards': {'train': 2}},
        {'shards': {'train': [0]}},
        {'shards': {'train': [1e999]}},
        {'shards': {'train': ['2']}},
        {'modalities': None},
        {'modalities': [{'name': 'a'}]},
        {'modalities': []},
        {'labels': 7},
    ],
    ids=str,
)
def test_description_of_shards(change: dict[str, Any], tmp_path: Path) -> None:
    modality = {'name': 's', 'bands': ['a'], 'gsd': 1.0, 'temporal': False}
    good = {'shards': {'train': [2]}, 'modalities': [modality], 'labels': ['a']}
    (tmp_path / 'shards.json').write_text(json.dumps(good))
    read_description(str(tmp_path))
    for text in (json.dumps(good | change), json.dumps({key: good[key] for key in {*good} - {*change}}), '[]'):
        (tmp_path / 'shards.json').write_text(text)
        with pytest.raises(ValueError, match=r'shards\.json'):
            read_description(str(tmp_path))


@pytest.fixture
def evil(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that names a class of a module which runs code when it is imported."""
    (tmp_path / 'evil_encoders.py').write_text(f'open({str(mark)!r}, "w")\nclass Encoder: ...\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    encoders = {'encoders': {'s2': {'class_path': 'evil_encoders.Encoder', 'init_args': {}}}}
    told = OmniSatSegmentation(**TOLD).hparams | {'backbone_args': encoders}
    content = {'state_dict': {}, 'hyper_parameters': dict(told), 'pytorch-lightning_version': '2.6.0'}
    torch.save(content, tmp_path / 'evil.ckpt')
    return tmp_path / 'evil.ckpt'


def test_class_of_an_encoder(evil: Path, mark: Path) -> None:
    with pytest.raises(ValueError, match=r'evil\.ckpt.*evil_encoders\.Encoder'):
        OmniSatSegmentation.load_from_checkpoint(evil)
    assert not mark.exists()


def test_class_of_an_encoder_on_the_command_line(evil: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """jsonargparse would import it while it parses the hyper-parameters of the checkpoint."""
    monkeypatch.setattr('sys.argv', ['torchgeo'])
    monkeypatch.chdir(evil.parent)
    with pytest.raises(ValueError, match=r'evil\.ckpt.*evil_encoders\.Encoder'):
        main(['test', '--model', 'omnisat', '--ckpt_path', str(evil)])
    assert not mark.exists()


DESCRIPTION: dict[str, Any] = {
    'shards': {'train': [2]},
    'modalities': [{'name': 's', 'bands': ['a'], 'gsd': 1.0, 'temporal': False}],
    'labels': ['a', 'b'],
    'num_classes': 2,
    'label_names': None,
    'ignore_index': 255,
    'patch_size': 40.0,
    'label_gsd': 10.0,
    'synthetic': False,
    'made_from': 'x',
    'mean': {'s': [0.0]},
    'std': {'s': [1.0]},
}


@pytest.mark.parametrize(
    'change',
    [
        {'num_classes': 1e9},
        {'num_classes': 0},
        {'num_classes': 'two'},
        {'ignore_index': [255]},
        {'patch_size': 0},
        {'patch_size': float('nan')},
        {'label_gsd': float('inf')},
        {'mean': {'s': [float('nan')]}},
        {'mean': {'s': [0.0, 0.0]}},
        {'mean': {'other': [0.0]}},
        {'mean': None},
        {'std': {'s': [-1.0]}},
        {'std': {'s': 'x'}},
    ],
    ids=str,
)
def test_attributes_of_shards(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / 'shards.json').write_text(json.dumps(DESCRIPTION))
    ShardedDataModule(str(tmp_path))
    (tmp_path / 'shards.json').write_text(json.dumps(DESCRIPTION | change))
    with pytest.raises(ValueError, match=rf'{next(iter(change))} in {tmp_path}'):
        ShardedDataModule(str(tmp_path))


def test_shards_that_are_links(tmp_path: Path) -> None:
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/shards.json').write_text(json.dumps(DESCRIPTION))
    (tmp_path / 'in/train').symlink_to(tmp_path)
    with pytest.raises(ValueError, match='in/train'):
        ShardedDataset(str(tmp_path / 'in'))
    assert len(ShardedDataset(str(tmp_path / 'in'), allow_outside=True)) == 2
