# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""PASTIS-HD, file by file, from a server on this machine that breaks off in the middle."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

from tests.conftest import write_pastis
from torchgeo_omnisat.datasets import PASTISMultimodal, download
from torchgeo_omnisat.datasets.download import Entry, list_folder, obtain_files

pytestmark = pytest.mark.usefixtures('socket_enabled')

REPOSITORY = 'IGNF/PASTIS-HD'
PAGE = 3


@dataclass
class Hub:
    """What the server has, and how it behaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    breaks: int | None = None
    lies: str | None = None  # a file whose digest is another's
    listed: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    answer: bytes | None = None  # instead of a list

    def entry(self, path: str) -> dict[str, object]:
        """A file as the hub lists it: small ones as git's, large ones with their SHA-256."""
        body = self.files[path]
        git = hashlib.sha1(f'blob {len(body)}\0'.encode() + body).hexdigest()
        entry: dict[str, object] = {'type': 'file', 'path': path, 'size': len(body), 'oid': git}
        if not path.endswith('.json'):
            digest = hashlib.sha256(body + b'!' * (path == self.lies)).hexdigest()
            entry |= {'oid': '0' * 40, 'lfs': {'oid': digest, 'size': len(body), 'pointerSize': 130}}
        return entry


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            place = urlsplit(self.path)
            prefix = f'/api/datasets/{REPOSITORY}/tree/main/'
            if place.path.startswith(prefix):
                self.list(unquote(place.path.removeprefix(prefix)), int(parse_qs(place.query).get('cursor', ['0'])[0]))
            else:
                self.give(unquote(place.path.removeprefix(f'/datasets/{REPOSITORY}/resolve/main/')))

        def list(self, folder: str, first: int) -> None:
            state.listed.append(folder)
            held = sorted(p for p in state.files if str(Path(p).parent) == (folder or '.'))
            entries = [{'type': 'directory', 'path': 'other', 'oid': '1'}, *map(state.entry, held)]
            if not held:
                self.send_error(404)
                return
            self.send_response(200)
            if first + PAGE < len(entries):
                self.send_header('Link', f'<{self.path.split("?")[0]}?cursor={first + PAGE}>; rel="next"')
            self.end_headers()
            self.wfile.write(
                json.dumps(entries[first : first + PAGE]).encode() if state.answer is None else state.answer
            )

        def give(self, path: str) -> None:
            body = state.files[path]
            start = int((self.headers['Range'] or 'bytes=0-').removeprefix('bytes=').removesuffix('-'))
            self.send_response(206 if start else 200)
            if start:
                self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
            self.send_header('Content-Length', str(len(body) - start))
            self.send_header('ETag', '"one"')
            self.end_headers()
            part = body[start:][: state.breaks]
            state.sent[path] = state.sent.get(path, 0) + len(part)
            self.wfile.write(part)

    monkeypatch.setattr(download, 'BACKOFF', 0.0)
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        monkeypatch.setattr(download, 'ENDPOINT', f'http://127.0.0.1:{http.server_port}')
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def published(server: Hub, tmp_path: Path) -> Hub:
    """Four small patches of PASTIS-HD on the hub."""
    tree = write_pastis(tmp_path / 'published', folds=(1, 2, 3, 4), size=8)
    server.files = {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob('*') if p.is_file()}
    return server


class TestHub:
    def test_lists_every_page(self, published: Hub) -> None:
        found = list(list_folder(REPOSITORY, 'DATA_S2'))
        assert [entry.path for entry in found] == [f'DATA_S2/S2_{number}.npy' for number in range(10000, 10004)]
        body = published.files['DATA_S2/S2_10001.npy']
        assert found[1] == Entry('DATA_S2/S2_10001.npy', hashlib.sha256(body).hexdigest())
        assert published.listed == ['DATA_S2'] * 2
        small = next(entry for entry in list_folder(REPOSITORY, '.') if entry.path == 'NORM_S2_patch.json')
        assert len(small.digest) == 40

    def test_line_that_breaks_costs_no_byte(self, published: Hub, tmp_path: Path) -> None:
        published.breaks = 1000
        root = tmp_path / 'root'
        obtain_files(REPOSITORY, ['NORM_*.json', 'DATA_S2/*.npy'], root)
        for path, count in published.sent.items():
            assert (root / path).read_bytes() == published.files[path]
            assert count == len(published.files[path])
        assert len(published.sent) == 7
        obtain_files(REPOSITORY, ['NORM_*.json', 'DATA_S2/*.npy'], root, checksum=True)
        assert sum(published.sent.values()) == sum(len(published.files[path]) for path in published.sent)

    @pytest.mark.parametrize('path', ['DATA_S2/S2_10002.npy', 'NORM_S2_patch.json'])
    def test_damaged(self, published: Hub, tmp_path: Path, path: str) -> None:
        entry = published.entry(path)
        published.entry = lambda p, kept=published.entry: entry if p == path else kept(p)  # type: ignore[method-assign]
        published.files[path] = b'x' + published.files[path][1:]
        with pytest.raises(RuntimeError, match=f'Download corrupted: .*{path}.* expected'):
            obtain_files(REPOSITORY, ['NORM_*.json', 'DATA_S2/*.npy'], tmp_path)
        assert not (tmp_path / path).exists()

    def test_damaged_before(self, published: Hub, tmp_path: Path) -> None:
        obtain_files(REPOSITORY, ['DATA_S2/*.npy'], tmp_path)
        (tmp_path / 'DATA_S2/S2_10003.npy').write_bytes(b'x')
        obtain_files(REPOSITORY, ['DATA_S2/*.npy'], tmp_path)
        with pytest.raises(RuntimeError, match=r'S2_10003\.npy has not the SHA-256'):
            obtain_files(REPOSITORY, ['DATA_S2/*.npy'], tmp_path, checksum=True)

    def test_other_answers(self, published: Hub, tmp_path: Path) -> None:
        with pytest.raises(ConnectionError, match=r'tree/main/DATA_S9 cannot be read .*404'):
            obtain_files(REPOSITORY, ['DATA_S9/*.npy'], tmp_path)
        with pytest.raises(ConnectionError, match=r'has no file DATA_S2/\*\.tif'):
            obtain_files(REPOSITORY, ['DATA_S2/*.tif'], tmp_path)
        for answer in (b'{"error": "gone"}', b'no JSON', b'[{"path": "x"}]'):
            published.answer = answer
            with pytest.raises(ConnectionError, match='expected a list of files with their digests'):
                list(list_folder(REPOSITORY, 'DATA_S2'))


class TestPASTISHD:
    def test_downloads_what_is_asked_for(self, published: Hub, tmp_path: Path) -> None:
        published.breaks = 5000
        root = tmp_path / 'root'
        dataset = PASTISMultimodal(root, modalities=('s2', 'spot'), download=True)
        assert (len(dataset), dataset.path) == (4, root / 'PASTIS-HD')
        stored = np.load(tmp_path / 'published/DATA_S2/S2_10001.npy')
        assert np.array_equal(np.load(root / 'PASTIS-HD/DATA_S2/S2_10001.npy'), stored)
        assert {'image_s2', 'image_spot'} <= set(dataset[1])
        assert not (root / 'PASTIS-HD/DATA_S1A').exists()
        asked = len(published.listed)
        PASTISMultimodal(root, modalities=('spot',), download=True)
        assert len(published.listed) == asked
        assert 'image_s1d' in PASTISMultimodal(root, modalities=('s1d', 'spot'), download=True)[0]

    def test_index_comes_last(self, published: Hub, tmp_path: Path) -> None:
        published.lies = 'DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_10002.tif'
        with pytest.raises(RuntimeError, match='Download corrupted'):
            PASTISMultimodal(tmp_path / 'root', modalities=('spot',), download=True)
        assert not (tmp_path / 'root/PASTIS-HD/metadata.geojson').exists()
        published.lies = None
        assert len(PASTISMultimodal(tmp_path / 'root', modalities=('spot',), download=True)) == 4
