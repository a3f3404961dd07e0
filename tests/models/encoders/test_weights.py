# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Published weights, from a server on this machine with files of the published form."""

import io
import json
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchgeo.models import get_model

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import UTAE, OmniSat, UTAE_Weights, UTAEEncoder, utae
from torchgeo_omnisat.models.encoders.published import UTAE_NAMES, renamed
from torchgeo_omnisat.models.encoders.weights import load_encoder, published_encoder, read_published
from torchgeo_omnisat.registry import register_models

from ..conftest import assert_same

BANDS = tuple(UTAE_Weights.PASTIS_FOLD1.meta['bands'])
S2 = Modality('s2', BANDS, 10.0, True)


def published_names() -> dict[str, str]:
    """Ours by theirs: what the map makes of the names that the published code gives its modules."""
    blocks = ['conv1.conv', 'conv2.conv']
    theirs = [f'in_conv.conv.conv.{i}' for i in (0, 1, 3, 4)]
    theirs += [f'down_blocks.{b}.{part}.{i}' for b in range(3) for part in ['down.conv', *blocks] for i in (0, 1)]
    theirs += [f'up_blocks.{b}.{part}.{i}' for b in range(3) for part in ['up', 'skip_conv', *blocks] for i in (0, 1)]
    theirs += [f'temporal_encoder.{part}' for part in ('in_norm', 'inconv', 'attention_heads.fc1_k', 'out_norm')]
    theirs += [f'temporal_encoder.mlp.{i}' for i in (0, 1)] + [f'out_conv.conv.conv.{i}' for i in (0, 1, 3, 4)]
    names = [f'{name}.' for name in theirs]
    return dict(zip(renamed(dict.fromkeys(names, torch.zeros(1)), UTAE_NAMES), names, strict=True))


def published_state(seed: int) -> dict[str, Tensor]:
    """A random state dict under the published names, its statistics not those of a fresh model."""
    generator = torch.Generator().manual_seed(seed)
    names = published_names()
    state = {}
    for key, value in UTAE(published=True).state_dict().items():
        prefix = next((ours for ours in names if key.startswith(ours)), None)
        theirs = names[prefix] + key.removeprefix(prefix) if prefix else key
        theirs = theirs.replace('encoder.temporal.heads.query', 'temporal_encoder.attention_heads.Q')
        if value.is_floating_point():
            value = torch.rand(value.shape, generator=generator) * 0.2 + 0.05
        state[theirs] = value.unsqueeze(-1) if theirs == 'temporal_encoder.inconv.weight' else value
    return state


FIXTURE = Path(__file__).parents[3].parent / 'shared' / 'fixtures' / 'utae.pt'


@pytest.mark.skipif(not FIXTURE.is_file(), reason='the numeric fixture is not here')
def test_names_are_the_published_ones() -> None:
    """So that what the server here has is of the published form."""
    published, made = torch.load(FIXTURE, weights_only=True)['state_dict'], published_state(0)
    assert {key: value.shape for key, value in made.items()} == {key: value.shape for key, value in published.items()}


def checkpoint(state: dict[str, Tensor]) -> bytes:
    """What the published code saves: the epoch, the parameters and the optimiser's state."""
    buffer = io.BytesIO()
    optimizer = {'state': {0: {'step': 7, 'exp_avg': torch.zeros(3)}}, 'param_groups': [{'lr': 1e-3, 'params': [0]}]}
    torch.save({'epoch': 3, 'state_dict': state, 'optimizer': optimizer}, buffer)
    return buffer.getvalue()


def as_zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def as_tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Record:
    """What the server answers, and what it was asked for."""

    url: str = ''
    files: dict[str, bytes] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)  # another MD5 than the file has
    asked: list[str] = field(default_factory=list)
    delay: float = 0.0

    def answer(self) -> bytes:
        sums = {key: self.stated.get(key, md5(content).hexdigest()) for key, content in self.files.items()}
        return json.dumps(
            {
                'files': [
                    {'key': key, 'checksum': f'md5:{sums[key]}', 'links': {'self': f'{self.url}/{key}/content'}}
                    for key in self.files
                ]
            }
        ).encode()


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, socket_enabled: None) -> Iterator[Record]:
    state = Record()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            state.asked.append(self.path)
            time.sleep(state.delay)
            path = self.path.removesuffix('/content').strip('/')
            body = state.answer() if path == 'record' else state.files[path]
            self.send_response(200)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        state.url = f'http://127.0.0.1:{http.server_port}'
        for weights in UTAE_Weights.__members__.values():
            monkeypatch.setattr(weights.value, 'url', f'{state.url}/record')
        yield state
        http.shutdown()
        thread.join()


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    dates = torch.tensor([[17_800, 17_870, 18_000]])
    return torch.randn(1, 3, 10, 16, 16, generator=generator), dates, torch.ones(1, 3, dtype=torch.bool)


class TestDownload:
    def test_one_of_two_downloads(self, record: Record) -> None:
        record.files['weights.zip'] = as_zip({'UTAE/Fold_1/model.pth.tar': checkpoint(published_state(1))})
        record.delay = 0.2
        with ThreadPoolExecutor(2) as both:
            states = list(both.map(lambda _: UTAE_Weights.PASTIS_FOLD1.get_state_dict(progress=False), range(2)))
        assert_same(*states)
        assert record.asked == ['/record', '/weights.zip/content']

    @pytest.mark.parametrize('pack', [as_zip, as_tar])
    def test_each_fold_is_found_checked_and_converted(self, record: Record, pack: Any, tmp_path: Path) -> None:
        states = {fold: published_state(fold) for fold in (1, 2)}
        members = {f'UTAE/Fold_{fold}/model.pth.tar': checkpoint(state) for fold, state in states.items()}
        name = 'weights.zip' if pack is as_zip else 'weights.tar.gz'
        record.files = {'conf.json': b'{}', name: pack({'UTAE/conf.json': b'{}', **members})}
        inodes = set()
        for fold, weights in ((1, UTAE_Weights.PASTIS_FOLD1), (2, UTAE_Weights.PASTIS_FOLD2)):
            expected = UTAE.from_published(states[fold])
            assert_same(utae(weights=weights)(*example()), expected(*example()), 0)
            (kept,) = tmp_path.rglob('record.json')
            inodes.add(kept.stat().st_ino)
        assert len(inodes) == 1  # what is there is read, and may be where nothing can be written
        assert record.asked == ['/record', f'/{name}/content']
        assert sorted(p.name for p in (tmp_path / 'hub').rglob('*') if p.is_file()) == [
            '.download.lock',
            'record.json',
            name,
        ]

    @pytest.mark.parametrize(
        'weights', [UTAE_Weights.PASTIS_FOLD3, 'UTAE_Weights.PASTIS_FOLD3', 'PASTIS_FOLD3'], ids=str
    )
    def test_from_torchgeo_by_enum_or_string(self, record: Record, weights: Any) -> None:
        record.files = {'a.zip': as_zip({'Fold_3/model.pth.tar': checkpoint(published_state(3))})}
        register_models()
        model = get_model('utae', weights=weights)
        assert_same(model(*example()), UTAE.from_published(published_state(3))(*example()), 0)
        assert not model.training

    def test_damaged_file_is_deleted(self, record: Record, tmp_path: Path) -> None:
        record.files = {'a.zip': as_zip({'Fold_1/model.pth.tar': checkpoint(published_state(1))})}
        record.stated = {'a.zip': '0' * 32}
        with pytest.raises(RuntimeError, match=r'MD5.*0{32}'):
            utae(weights='PASTIS_FOLD1')
        assert not list(tmp_path.rglob('a.zip'))

    def test_pinned_file(self, record: Record) -> None:
        """A record that vouches for another file does not help."""
        first = as_zip({'Fold_1/model.pth.tar': checkpoint(published_state(1))})
        record.files = {'a.zip': first}
        assert UTAE_Weights.PASTIS_FOLD1.get_state_dict(md5=md5(first).hexdigest()).keys() == published_state(1).keys()
        with pytest.raises(RuntimeError, match=r'expected f{32}'):
            UTAE_Weights.PASTIS_FOLD1.get_state_dict(md5='f' * 32)

    def test_code_in_a_pickle_is_not_run(self, record: Record, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / 'ran',)

        buffer = io.BytesIO()
        torch.save({'state_dict': Evil()}, buffer)
        record.files = {'a.zip': as_zip({'Fold_1/model.pth.tar': buffer.getvalue()})}
        with pytest.raises(ValueError, match=r'torch.load\(weights_only=True\)'):
            utae(weights='PASTIS_FOLD1')
        with pytest.raises(ValueError, match=r'weights_only.*False.*True'):
            UTAE_Weights.PASTIS_FOLD1.get_state_dict(weights_only=False)
        assert not (tmp_path / 'ran').exists()

    def test_nothing_is_written_outside(self, record: Record, tmp_path: Path) -> None:
        members = {'../../escaped': b'x', '../Fold_1/model.pth.tar': checkpoint(published_state(1))}
        record.files = {'a.zip': as_zip(members)}
        utae(weights='PASTIS_FOLD1')
        assert {p.name for p in tmp_path.rglob('*') if p.is_file()} == {'.download.lock', 'record.json', 'a.zip'}
        record.files = {'../b.zip': b''}
        (tmp_path / 'hub/checkpoints/utae_pastis/record.json').unlink()
        with pytest.raises(ValueError, match='record'):
            utae(weights='PASTIS_FOLD1')

    @pytest.mark.parametrize('files', [{}, {'a.zip': as_zip({'Fold_2/model.pth.tar': b''})}, {'b.zip': b'not one'}])
    def test_record_without_the_fold(self, record: Record, files: dict[str, bytes]) -> None:
        record.files = files
        with pytest.raises(ValueError, match=r'Fold_1/model.pth.tar.*zip.*tar'):
            utae(weights='PASTIS_FOLD1')


class TestErrors:
    def test_unknown_weights(self) -> None:
        with pytest.raises(ValueError, match=r"weights.*'PASTIS'.*file.*\['UTAE_W"):
            utae(weights='PASTIS')

    def test_published_weights_are_of_one_model(self) -> None:
        with pytest.raises(ValueError, match=r"\['num_classes'\]"):
            utae(weights='PASTIS_FOLD1', num_classes=7)

    def test_file_of_something_else(self, tmp_path: Path) -> None:
        torch.save({'state_dict': {'weight': torch.zeros(1)}}, tmp_path / 'other.pt')
        with pytest.raises(ValueError, match=r'state_dict.*U-TAE'):
            read_published(tmp_path / 'other.pt', 'other.pt')


def test_file_on_disk(tmp_path: Path) -> None:
    path = tmp_path / 'model.pth.tar'
    path.write_bytes(checkpoint(published_state(1)))
    assert_same(utae(weights=str(path))(*example()), UTAE.from_published(published_state(1))(*example()), 0)


class TestEncoder:
    def test_published_encoder_takes_everything(self) -> None:
        """Its maps are the published model's, in training too, whatever the batch."""
        state = published_state(1)
        encoder = published_encoder()
        report = load_encoder(encoder, state)
        assert not report['new']
        assert {key.split('.')[0] for key in report['ignored']} == {'up_blocks', 'out_conv'}
        image, dates, valid = example()
        expected = UTAE.from_published(state).encoder(image, dates, valid)
        torch.manual_seed(0)
        more = [torch.cat([image, torch.randn_like(image)]), dates.repeat(2, 1), valid.repeat(2, 1)]
        for ours, theirs in zip(encoder.train()(*more), expected, strict=True):
            assert_same(ours[:1], theirs, 1e-4)

    def test_default_encoder_keeps_its_dates_and_norm(self) -> None:
        encoder = UTAEEncoder(10, dim=256)
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        report = load_encoder(encoder, published_state(1))
        assert set(report['new']) == {
            f'temporal.{name}.{kind}' for name in ('dates.proj', 'mlp.0.1') for kind in ('weight', 'bias')
        }
        after = encoder.state_dict()
        changed = {key for key in after if not torch.equal(after[key], before[key])}
        assert changed == set(report['loaded']) - {'in_conv.0.0.missing'}  # zeros, as before
        assert set(report['loaded']) == set(after) - set(report['new'])

    def test_inside_an_omnisat(self) -> None:
        model = OmniSat([S2], encoders={'s2': 'utae_published'}, embed_dim=64, depth=1, num_heads=4)
        report = load_encoder(model.encoders['s2'], published_state(1))
        assert not report['new']
        image, dates, valid = example()
        maps = model({'image_s2': image, 'dates_s2': dates, 'valid_s2': valid}).maps['s2'].maps
        assert_same(maps[-1], UTAE.from_published(published_state(1)).encoder(image, dates, valid)[-1], 1e-4)

    def test_other_widths_or_bands_are_refused(self) -> None:
        for encoder in (UTAEEncoder(10, (16, 32, 64, 128)), UTAEEncoder(4, dim=256)):
            with pytest.raises(ValueError, match=r'published: 10 bands.*widths \(64, 64, 64, 128\)'):
                load_encoder(encoder, published_state(1))
        with pytest.raises(ValueError, match='U-TAE encoder'):
            load_encoder(torch.nn.Linear(1, 1), published_state(1))
