# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Downloads from a server on this machine that breaks off, lists nonsense and lies."""

import hashlib
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from tests.conftest import write_pastis
from torchgeo_omnisat.datasets import PASTISMultimodal
from torchgeo_omnisat.datasets.io import download
from torchgeo_omnisat.datasets.io.download import Archive, download_files, fetch, obtain

pytestmark = pytest.mark.usefixtures('socket_enabled')

REPOSITORY = 'IGNF/PASTIS-HD'
COMMIT = 'c' * 40
BYTES = np.random.default_rng(0).bytes(200_000)


@dataclass
class Server:
    """Files of a dataset on a hub, also as plain files, and how they are served."""

    url: str = ''
    files: dict[str, bytes] = field(default_factory=dict)
    breaks: int | None = None  # bytes of a response after which the connection is closed
    status: list[int] = field(default_factory=list)  # of the next responses, instead of the file
    headers: dict[str, str | None] = field(default_factory=dict)
    listing: Callable[[], Any] | None = None  # instead of the list
    asked: list[str] = field(default_factory=list)

    def entry(self, path: str) -> dict[str, Any]:
        """A file as the hub lists it: small ones by git's name, large ones by their SHA-256."""
        body = self.files[path]
        entry: dict[str, Any] = {'rfilename': path, 'size': len(body)}
        if path.endswith('.json'):
            return entry | {'blobId': hashlib.sha1(f'blob {len(body)}\0'.encode() + body).hexdigest()}
        large = {'size': len(body), 'sha256': hashlib.sha256(body).hexdigest(), 'pointerSize': 130}
        return entry | {'blobId': '0' * 40, 'lfs': large}

    def list(self) -> Any:
        return {'id': REPOSITORY, 'sha': COMMIT, 'siblings': [self.entry(path) for path in sorted(self.files)]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(head=True)

        def do_GET(self) -> None:
            self.answer()

        def answer(self, head: bool = False) -> None:
            path = unquote(urlsplit(self.path).path)
            if not head:
                state.asked.append(path)
            if path == f'/api/datasets/{REPOSITORY}':
                self.give(json.dumps((state.listing or state.list)()).encode(), head, {})
            elif state.status and not head:
                self.send_error(state.status.pop(0))
            elif (name := path.removeprefix(f'/datasets/{REPOSITORY}/resolve/{COMMIT}').lstrip('/')) in state.files:
                self.give(state.files[name], head, state.headers)
            else:
                self.send_error(404)

        def give(self, body: bytes, head: bool, headers: dict[str, str | None]) -> None:
            start = int((self.headers['Range'] or 'bytes=0-').removeprefix('bytes=').split('-')[0])
            self.send_response(206 if start else 200)
            sent: dict[str, str | None] = {'Content-Length': str(len(body) - start)}
            sent |= {'ETag': f'"{hashlib.sha256(body).hexdigest()}"', 'X-Repo-Commit': COMMIT} | headers
            if start:
                sent['Content-Range'] = f'bytes {start}-{len(body) - 1}/{len(body)}'
            for key, value in sent.items():
                if value is not None:
                    self.send_header(key, value)
            self.end_headers()
            if not head:
                self.wfile.write(body[start:][: state.breaks])

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        state.url = f'http://127.0.0.1:{http.server_port}'
        monkeypatch.setattr(download, 'ENDPOINT', state.url)
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def published(server: Server, tmp_path: Path) -> Server:
    """Four small patches of PASTIS-HD on the hub."""
    tree = write_pastis(tmp_path / 'published', folds=(1, 2, 3, 4), size=8)
    server.files = {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob('*') if p.is_file()}
    return server


def names(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob('*') if p.is_file())


class TestFetch:
    def test_is_complete_and_verified(self, server: Server, tmp_path: Path) -> None:
        server.files['file'] = BYTES
        for digest in (None, hashlib.md5(BYTES).hexdigest(), hashlib.sha256(BYTES).hexdigest()):
            path = tmp_path / f'new {digest}' / 'file'
            fetch(f'{server.url}/file', path, digest)
            assert path.read_bytes() == BYTES
            fetch(f'{server.url}/file', path, digest, checksum=True)
            assert names(path.parent) == ['file']
        assert len(server.asked) == 3

    @pytest.mark.parametrize(
        ('fault', 'error', 'match'),
        [
            ({'breaks': 1000}, RuntimeError, 'corrupted: .*incomplete: expected 200000 bytes but got 1000'),
            ({'status': [500]}, ConnectionError, 'cannot be downloaded .*500'),
            ({'status': [404]}, ConnectionError, 'cannot be downloaded .*404'),
            ({'status': [204]}, RuntimeError, 'corrupted'),
            ({'files': {'file': BYTES[:-1]}}, RuntimeError, 'corrupted: .* expected the md5 [0-9a-f]{32}'),
            ({'headers': {'Content-Length': 'many'}}, (ConnectionError, RuntimeError), 'file'),
        ],
        ids=['breaks', 'error', 'missing', 'empty', 'short', 'length'],
    )
    def test_fault_leaves_nothing(
        self, server: Server, tmp_path: Path, fault: dict[str, Any], error: type[Exception], match: str
    ) -> None:
        server.files['file'] = BYTES
        vars(server).update(fault)
        with pytest.raises(error, match=match):
            fetch(f'{server.url}/file', tmp_path / 'root/file', hashlib.md5(BYTES).hexdigest())
        assert names(tmp_path) in ([], ['root/.download.lock'])
        assert len(server.asked) == 1

    def test_zip_without_digest_has_the_structure_of_one(self, server: Server, tmp_path: Path) -> None:
        server.files['file'] = BYTES
        with pytest.raises(RuntimeError, match='zip archive'):
            fetch(f'{server.url}/file', tmp_path / 'a.zip')
        assert not (tmp_path / 'a.zip').exists()

    def test_nobody_answers(self, tmp_path: Path) -> None:
        with pytest.raises(ConnectionError, match=r'http://127\.0\.0\.1:9/x.*downloaded.*refused'):
            fetch('http://127.0.0.1:9/x', tmp_path / 'file')

    def test_file_that_is_there_is_verified_and_kept(self, tmp_path: Path) -> None:
        path = tmp_path / 'file'
        path.write_bytes(b'mine')
        fetch('http://127.0.0.1:9/x', path, '0' * 32)
        with pytest.raises(RuntimeError, match=rf'corrupted. {path}.*md5 {"0" * 32}'):
            fetch('http://127.0.0.1:9/x', path, '0' * 32, checksum=True)
        assert path.read_bytes() == b'mine'

    def test_several_at_once_download_once(self, server: Server, tmp_path: Path) -> None:
        server.files['file'] = BYTES
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: fetch(f'{server.url}/file', tmp_path / 'file'), range(3)))
        assert (tmp_path / 'file').read_bytes() == BYTES
        assert server.asked == ['/file']


class TestObtain:
    @pytest.fixture(params=['url', 'hub'])
    def archive(self, request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Archive:
        source = tmp_path / 'source.zip'
        with zipfile.ZipFile(source, 'w') as file:
            file.writestr('data/values', 'one')
            file.writestr('index-7.json', '{}')
        server.files['archive.zip'] = source.read_bytes()
        place = REPOSITORY if request.param == 'hub' else f'{server.url}/archive.zip'
        return Archive(place, 'archive.zip', 'data', hashlib.sha256(source.read_bytes()).hexdigest())

    @pytest.mark.parametrize('checksum', [False, True])
    def test_from_the_server_to_the_files(
        self, archive: Archive, server: Server, tmp_path: Path, checksum: bool
    ) -> None:
        root = tmp_path / 'root'
        assert not obtain(archive, root)
        assert obtain(archive, root, download=True, checksum=checksum)
        assert (root / 'data/values').read_text() == 'one'
        asked = len(server.asked)
        assert obtain(archive, root, download=True)
        (root / 'data/values').unlink()
        (root / 'data').rmdir()
        assert obtain(archive, root)
        assert len(server.asked) == asked
        assert sorted(p.name for p in root.iterdir()) == ['archive.zip', 'data']

    def test_damaged(self, archive: Archive, server: Server, tmp_path: Path) -> None:
        (tmp_path / 'archive.zip').write_bytes(server.files['archive.zip'][:-1] + b'x')
        with pytest.raises(RuntimeError, match='has not the'):
            obtain(archive, tmp_path, checksum=True)
        assert not (tmp_path / 'data').exists()

    def test_another_file_than_the_published_one(self, archive: Archive, server: Server, tmp_path: Path) -> None:
        server.files['archive.zip'] += b'x'
        with pytest.raises(RuntimeError, match=rf'Download corrupted.*{archive.digest}'):
            obtain(archive, tmp_path / 'root', download=True)
        assert not (tmp_path / 'root/archive.zip').exists()

    def test_file_of_a_pattern(self, archive: Archive, tmp_path: Path) -> None:
        assert obtain(Archive(archive.source, 'archive.zip', 'index*.json'), tmp_path / 'root', download=True)
        assert (tmp_path / 'root/index-7.json').read_text() == '{}'


class TestHub:
    def test_downloads_what_is_missing(self, published: Server, tmp_path: Path) -> None:
        root = tmp_path / 'root'
        for checksum in (False, True):
            download_files(REPOSITORY, ['NORM_*.json', 'DATA_S2/*.npy'], root, checksum)
        assert names(root) == sorted(p for p in published.files if p.startswith(('NORM_', 'DATA_S2/')))
        assert all((root / name).read_bytes() == published.files[name] for name in names(root))
        assert len([p for p in published.asked if 'resolve' in p]) == len(names(root))

    def test_interrupted_download_is_continued(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr('huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE', 10_000)
        server.files['a.npy'], server.breaks = BYTES, 150_000
        download_files(REPOSITORY, ['*.npy'], tmp_path)
        assert (tmp_path / 'a.npy').read_bytes() == BYTES
        assert len([p for p in server.asked if 'resolve' in p]) == 2

    @pytest.mark.parametrize('path', ['DATA_S2/S2_10002.npy', 'NORM_S2_patch.json'])
    def test_damaged(self, published: Server, tmp_path: Path, path: str) -> None:
        listed = published.list()
        published.listing = lambda: listed
        published.files[path] = b'x' + published.files[path][1:]
        with pytest.raises(RuntimeError, match=rf'Download corrupted: {path}.*IGNF/PASTIS-HD'):
            download_files(REPOSITORY, ['NORM_*.json', 'DATA_S2/*.npy'], tmp_path / 'root')
        assert not (tmp_path / 'root' / path).exists()

    def test_damaged_before(self, published: Server, tmp_path: Path) -> None:
        download_files(REPOSITORY, ['DATA_S2/*.npy'], tmp_path)
        (tmp_path / 'DATA_S2/S2_10003.npy').write_bytes(b'x')
        download_files(REPOSITORY, ['DATA_S2/*.npy'], tmp_path)
        with pytest.raises(RuntimeError, match=r'S2_10003\.npy.*digest [0-9a-f]{64}'):
            download_files(REPOSITORY, ['DATA_S2/*.npy'], tmp_path, checksum=True)

    @pytest.mark.parametrize(
        'sibling',
        [
            {'rfilename': '../../out.npy'},
            {'rfilename': 'a/../../out.npy'},
            {'rfilename': '/tmp/out.npy'},
            {'rfilename': ''},
            {'rfilename': 9},
            {'rfilename': None},
            {},
            {'blobId': None},
            {'blobId': 3},
            {'blobId': '../0'},
            {'lfs': {'size': 1}},
            {'lfs': {'size': 1, 'sha256': None, 'pointerSize': 1}},
            {'lfs': 'x'},
            7,
        ],
        ids=str,
    )
    def test_list_of_a_host_that_lies(self, server: Server, tmp_path: Path, sibling: Any) -> None:
        good = {'rfilename': 'a.npy', 'size': 1, 'blobId': '0' * 40}
        entry = (good | sibling if sibling else {}) if isinstance(sibling, dict) else sibling
        server.listing = lambda: {'id': REPOSITORY, 'sha': COMMIT, 'siblings': [entry]}
        with pytest.raises(ConnectionError, match=r'IGNF/PASTIS-HD.*Hugging Face.*listed'):
            download_files(REPOSITORY, ['*'], tmp_path / 'root')
        assert names(tmp_path) == []

    @pytest.mark.parametrize('answer', [{'error': 'gone'}, [], 'no list', {'id': REPOSITORY, 'siblings': 3}], ids=str)
    def test_other_answers(self, server: Server, tmp_path: Path, answer: Any) -> None:
        server.listing = lambda: answer
        with pytest.raises(ConnectionError, match=r'listed|has.*file'):
            download_files(REPOSITORY, ['*.npy'], tmp_path / 'root')

    def test_file_that_the_hub_lacks(self, published: Server, tmp_path: Path) -> None:
        with pytest.raises(ConnectionError, match=r'file DATA_S9/\*\.npy'):
            download_files(REPOSITORY, ['DATA_S9/*.npy'], tmp_path)
        with pytest.raises(ConnectionError, match=r'listed.*404'):
            download_files('IGNF/NOTHING', ['*'], tmp_path)


class TestPASTISHD:
    def test_downloads_what_is_asked_for(self, published: Server, tmp_path: Path) -> None:
        root = tmp_path / 'root'
        dataset = PASTISMultimodal(root, modalities=('s2', 'spot'), download=True)
        assert (len(dataset), dataset.path) == (4, root / 'PASTIS-HD')
        stored = np.load(tmp_path / 'published/DATA_S2/S2_10001.npy')
        assert np.array_equal(np.load(root / 'PASTIS-HD/DATA_S2/S2_10001.npy'), stored)
        assert {'image_s2', 'image_spot'} <= set(dataset[1])
        assert not (root / 'PASTIS-HD/DATA_S1A').exists()
        asked = len(published.asked)
        PASTISMultimodal(root, modalities=('spot',), download=True)
        assert len(published.asked) == asked
        assert 'image_s1d' in PASTISMultimodal(root, modalities=('s1d', 'spot'), download=True)[0]

    def test_index_comes_last(self, published: Server, tmp_path: Path) -> None:
        name = 'DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_10002.tif'
        listed = published.list()
        published.listing, good = lambda: listed, published.files[name]
        published.files[name] = good[:-1] + b'!'
        with pytest.raises(RuntimeError, match='Download corrupted'):
            PASTISMultimodal(tmp_path / 'root', modalities=('spot',), download=True)
        assert not (tmp_path / 'root/PASTIS-HD/metadata.geojson').exists()
        published.files[name] = good
        assert len(PASTISMultimodal(tmp_path / 'root', modalities=('spot',), download=True)) == 4
