# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Downloads from a server on this machine that breaks off, forgets and lies."""

import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from torchgeo_omnisat.datasets import download
from torchgeo_omnisat.datasets.download import Archive, fetch, obtain

pytestmark = pytest.mark.usefixtures('socket_enabled')

BYTES = np.random.default_rng(0).bytes(500_000)


@dataclass
class Server:
    """What it has, and how it behaves."""

    url: str = ''
    body: bytes = BYTES
    tag: str = '"first"'
    breaks: int | None = None  # bytes of a response after which the connection is closed
    ranges: bool = True
    length: bool = True
    status: list[int] = field(default_factory=list)  # of the next responses, instead of the file
    asked: list[str | None] = field(default_factory=list)
    sent: int = 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers['Range']
            state.asked.append(asked)
            if state.status:
                self.send_error(state.status.pop(0))
                return
            start, total = 0, len(state.body)
            if asked and state.ranges and self.headers.get('If-Range', state.tag) == state.tag:
                start = int(asked.removeprefix('bytes=').removesuffix('-'))
            if start >= total:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header('Content-Range', f'bytes {start}-{total - 1}/{total}')
            if state.length:
                self.send_header('Content-Length', str(total - start))
            self.send_header('ETag', state.tag)
            self.end_headers()
            body = state.body[start:][: state.breaks]
            state.sent += len(body)
            self.wfile.write(body)

    monkeypatch.setattr(download, 'BACKOFF', 0.0)
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        state.url = f'http://127.0.0.1:{http.server_port}/archive.zip'
        yield state
        http.shutdown()
        thread.join()


def only(path: Path) -> bool:
    """Whether nothing else is left beside a file."""
    return [p.name for p in path.parent.iterdir()] == [path.name]


class TestFetch:
    def test_line_that_breaks_costs_no_byte(self, server: Server, tmp_path: Path) -> None:
        server.breaks = 150_000
        path = fetch(server.url, tmp_path / 'new' / 'file', digest=md5(BYTES).hexdigest())
        assert path.read_bytes() == BYTES
        assert server.asked == [None, 'bytes=150000-', 'bytes=300000-', 'bytes=450000-']
        assert server.sent == len(BYTES)
        assert only(path)

    def test_next_call_continues(self, server: Server, tmp_path: Path) -> None:
        server.breaks, server.status = 200_000, []
        path = tmp_path / 'file'

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(download.time, 'sleep', stop)
            with pytest.raises(KeyboardInterrupt):
                fetch(server.url, path)
        assert not path.exists()
        assert (tmp_path / '.file.part').stat().st_size == 200_000
        server.breaks = None
        assert fetch(server.url, path).read_bytes() == BYTES
        assert server.asked == [None, 'bytes=200000-']
        assert only(path)

    @pytest.mark.parametrize('change', ['tag', 'size', 'url', 'notes'])
    def test_another_file_starts_over(self, server: Server, tmp_path: Path, change: str) -> None:
        path, part = tmp_path / 'file', tmp_path / '.file.part'
        part.write_bytes(b'\0' * 1000)
        notes = {'url': server.url, 'tag': '"first"', 'total': len(BYTES)}
        notes |= {'tag': {'tag': '"old"'}, 'size': {'total': 7}, 'url': {'url': 'http://other'}}.get(change, {})
        (tmp_path / '.file.part.json').write_text('damaged' if change == 'notes' else json.dumps(notes))
        assert fetch(server.url, path).read_bytes() == BYTES
        assert only(path)

    def test_complete_part_is_not_asked_for_again(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / '.file.part').write_bytes(BYTES)
        notes = {'url': server.url, 'tag': '', 'total': len(BYTES)}
        (tmp_path / '.file.part.json').write_text(json.dumps(notes))
        assert fetch(server.url, tmp_path / 'file').read_bytes() == BYTES
        assert server.asked == []

    def test_part_longer_than_the_file(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / '.file.part').write_bytes(BYTES + b'more')
        notes = {'url': server.url, 'tag': '"first"', 'total': 7}
        (tmp_path / '.file.part.json').write_text(json.dumps(notes))
        assert fetch(server.url, tmp_path / 'file').read_bytes() == BYTES

    def test_server_without_ranges_or_length(self, server: Server, tmp_path: Path) -> None:
        server.ranges = server.length = False
        (tmp_path / '.file.part').write_bytes(b'\0' * 1000)
        assert fetch(server.url, tmp_path / 'file', digest=md5(BYTES).hexdigest()).read_bytes() == BYTES

    def test_busy_server(self, server: Server, tmp_path: Path) -> None:
        server.status = [503, 429, 500]
        assert fetch(server.url, tmp_path / 'file').read_bytes() == BYTES

    def test_gives_up_and_keeps_what_came(self, server: Server, tmp_path: Path) -> None:
        server.breaks = 70_000
        server.tag = '"first"'
        path = tmp_path / 'file'
        (tmp_path / '.file.part').write_bytes(BYTES[:1000])
        notes = {'url': server.url, 'tag': '"first"', 'total': len(BYTES)}
        (tmp_path / '.file.part.json').write_text(json.dumps(notes))
        server.status = [500] * 3
        with pytest.raises(
            ConnectionError, match=r'archive\.zip cannot be downloaded \(500 .*\) after 3 attempts .* 1000 bytes are'
        ):
            fetch(server.url, path, attempts=3)
        assert (tmp_path / '.file.part').stat().st_size == 1000

    def test_refusal_is_no_reason_to_ask_again(self, server: Server, tmp_path: Path) -> None:
        server.status = [404]
        with pytest.raises(ConnectionError, match=r'archive\.zip gave 404 Not Found, expected a file'):
            fetch(server.url, tmp_path / 'file')
        assert len(server.asked) == 1

    def test_nobody_answers(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(ConnectionError, match=r'http://127\.0\.0\.1:9/x cannot be downloaded .*refused'):
            fetch('http://127.0.0.1:9/x', tmp_path / 'file', attempts=2)

    def test_wrong_checksum_keeps_nothing(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match=f'corrupted: .* gave 500000 bytes of MD5 .*, expected {"0" * 32}'):
            fetch(server.url, tmp_path / 'file', digest='0' * 32)
        assert not [p for p in tmp_path.iterdir() if p.suffix != '.lock']

    def test_file_that_is_there_is_checked_and_left_alone(self, server: Server, tmp_path: Path) -> None:
        path = tmp_path / 'file'
        path.write_bytes(b'mine')
        assert fetch(server.url, path) == path
        with pytest.raises(RuntimeError, match=f'corrupted. {path} has not the MD5 {"0" * 32} but'):
            fetch(server.url, path, digest='0' * 32)
        assert path.read_bytes() == b'mine'
        assert server.asked == []

    def test_no_room(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download.shutil, 'disk_usage', lambda _: type('Usage', (), {'free': 10}))
        with pytest.raises(OSError, match='has 10 bytes left, expected room for 500000 more'):
            fetch(server.url, tmp_path / 'file')

    def test_two_at_once_download_once(self, server: Server, tmp_path: Path) -> None:
        server.breaks = 100_000
        with ThreadPoolExecutor(3) as pool:
            paths = list(pool.map(lambda _: fetch(server.url, tmp_path / 'file'), range(3)))
        assert {p.read_bytes() == BYTES for p in paths} == {True}
        assert server.sent == len(BYTES)


class TestObtain:
    @pytest.fixture
    def archive(self, server: Server, tmp_path: Path) -> Archive:
        source = tmp_path / 'source.zip'
        with zipfile.ZipFile(source, 'w') as file:
            file.writestr('data/values', 'one')
            file.writestr('index-7.json', '{}')
        server.body = source.read_bytes()
        server.breaks = 100
        return Archive(server.url, 'archive.zip', 'data', md5(server.body).hexdigest())

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

    def test_file_of_a_pattern(self, archive: Archive, server: Server, tmp_path: Path) -> None:
        assert obtain(Archive(server.url, 'archive.zip', 'index*.json'), tmp_path / 'root', download=True)
        assert (tmp_path / 'root/index-7.json').read_text() == '{}'

    @pytest.mark.parametrize(
        ('spoil', 'match'),
        [
            (lambda path: path.write_bytes(path.read_bytes()[:-1] + b'x'), 'has not the MD5'),
            (lambda path: path.write_bytes(b''), 'has not the MD5'),
        ],
    )
    def test_damaged(self, archive: Archive, tmp_path: Path, spoil: Callable[[Path], None], match: str) -> None:
        (tmp_path / 'archive.zip').write_bytes((tmp_path / 'source.zip').read_bytes())
        spoil(tmp_path / 'archive.zip')
        with pytest.raises(RuntimeError, match=match):
            obtain(archive, tmp_path, checksum=True)
        assert not (tmp_path / 'data').exists()
