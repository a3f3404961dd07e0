# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The command reaches its table on generated and real files of each published layout, and can be killed."""

import json
import shutil
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchgeo.datasets
import yaml

from tests.conftest import SHARED, write_pastis
from tests.datasets.test_biomassters import unpack
from tests.docs.conftest import WRITERS
from tests.landscapes.flair import FLAIRRecipe, write_flair
from tests.landscapes.flairhub import FLAIRHUBRecipe, write_flairhub
from tests.processes import run, succeed
from tests.reproduction.killing import EVERY, STEPS, reproduce
from tests.tortilla_tree import write_geobench2
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.commands import parsers
from torchgeo_omnisat.commands import reproduce as command
from torchgeo_omnisat.datasets.treesatai import LABELS
from torchgeo_omnisat.reproduction import report, runs, study
from torchgeo_omnisat.reproduction.data import PUBLIC
from torchgeo_omnisat.reproduction.rows import SIZES, make_run
from torchgeo_omnisat.reproduction.runs import Machine
from torchgeo_omnisat.reproduction.scores import SCORES, mean_iou
from torchgeo_omnisat.tasks.backbone import load_hub

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
BRIEF = ['--backbone', 'omnisat_tiny', '--batch-size', '2', '--steps', '2', '--accelerator', 'cpu']


def test_the_parser_knows_the_names() -> None:
    assert set(parsers.REPRODUCED) == set(PUBLIC)
    assert tuple(study.ROWS) == parsers.ROWS


def reproduced(name: str, root: Path, output: Path, *words: str) -> int:
    return main(['reproduce', '--data', name, '--root', str(root), '--output', str(output), *BRIEF, *words])


def check_folder(name: str, output: Path, rows: dict[str, int], printed: str) -> dict[str, Any]:
    """What is to be published: scores, a card, figures, and checkpoints that load."""
    results: dict[str, Any] = json.loads((output / 'results.json').read_text())
    assert [row['row'] for row in results['rows']] == list(rows)
    for row in results['rows']:
        assert len(row['subsets']) == 2 ** rows[row['row']] - 1
        assert row['missing_runs'] == 0
        assert row['device_hours'] > 0
        assert row['scores'].keys() == PUBLIC[name].metrics.keys()
        assert all(score['mean'] is not None for score in row['scores'].values())
        assert f'| {row["model"]} |' in printed
        if study.ROWS[row['row']] is not None:
            for folder in output.glob(f'checkpoints/{row["row"]}-split*'):
                assert load_hub(folder) is not None
                state = torch.load(folder / 'model.ckpt', weights_only=True)
                assert (state['global_step'], 'optimizer_states' in state) == (row['steps'], False)
    for score in SCORES.get(name, ()):
        assert f'| {score.model} | {score.sensors} | {score.score} |' in printed
    assert not results['comparable']
    assert ('cannot be compared' in printed) == (name in SCORES)
    card = (output / 'README.md').read_text()
    front = yaml.safe_load(card.split('---')[1])
    assert front['library_name'] == 'torchgeo_omnisat'
    assert PUBLIC[name].licence in card
    assert PUBLIC[name].protocol in card
    assert '--data ' + name in card
    for part in printed[printed.index('| model |') : printed.index('Written to')].rstrip().split('\n\n'):
        assert part in card
    for figure in ('scores', 'subsets'):
        assert (output / f'figures/{figure}.png').read_bytes().startswith(b'\x89PNG')
    return results


#: Data of each layout: writer in the tests of the site, rows with the number of modalities or, if there are more than
#: five, of sensors, of which every subset is scored, and further arguments.
LAYOUTS: dict[str, tuple[str, dict[str, int], list[str]]] = {
    'pastis': ('pastis', {'utae': 1, 'dual-stream': 3}, ['--folds', '1', '2', '--max-dates', '2']),
    'pastis-hd': ('pastis', {'omnisat': 4}, ['--folds', '5', '--seeds', '0', '1', '--max-dates', '2']),
    'flair': ('flair', {'omnisat': 2}, []),
    'flair-hub': ('flair-hub', {'omnisat': 5}, ['--folds', '3', '--max-dates', '2', '--steps', '1']),
    'flairhub-toy': ('flair-hub', {'utae': 1}, ['--max-dates', '2']),
    'treesatai': ('treesatai', {'late-fusion': 4, 'omnisat': 4}, ['--max-dates', '2', '--no-check']),
    'biomassters': ('biomassters', {'utae': 1, 'omnisat-no-dropout': 2}, []),
    'flair-1': ('flair-1', {'late-fusion': 1}, []),
    'geobench-pastis': ('geobench-pastis', {'dual-stream': 3}, ['--max-dates', '2']),
    'geobench-treesatai': ('geobench-treesatai', {'omnisat': 3}, []),
    'geobench-biomassters': ('geobench-biomassters', {'utae': 1, 'omnisat': 2}, []),
}


def write_flair_1(root: Path) -> None:
    """FLAIR #2, whose test patches are moved to a test domain of FLAIR #1."""
    write_flair(root, FLAIRRecipe(zones=5, size=8, dates=3))
    for content in ('aerial', 'labels'):
        source, *others = (root / f'flair_2_{content}_test').iterdir()
        assert not others
        (root / f'flair_1_{content}_test').mkdir()
        shutil.move(source, root / f'flair_1_{content}_test' / 'D012_2019')


#: Smaller than those of the tests of the site.
SMALL = {
    'flair-hub': lambda root: write_flairhub(root, FLAIRHUBRecipe(areas=5, tile=256, dates=3)),
    'flair-1': write_flair_1,
    **{f'geobench-{name}': partial(write_geobench2, name=name) for name in ('pastis', 'treesatai', 'biomassters')},
}


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp('made')

    def give(name: str) -> Path:
        if not (folder / name).exists():
            (WRITERS | SMALL)[name](folder / name)
        return folder / name

    return give


@pytest.mark.slow
@pytest.mark.parametrize('name', LAYOUTS)
def test_generated_files(
    name: str,
    made: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer, rows, words = LAYOUTS[name]
    root = made(writer)
    if PUBLIC[name].folder:
        (tmp_path / PUBLIC[name].folder).symlink_to(root)
        root = tmp_path
    words = ['--rows', *rows, *words]
    if name != 'biomassters':
        monkeypatch.setattr(command, 'describe_cost', lambda study: '')
    assert reproduced(name, root, tmp_path / 'out', *words) == 0
    printed = capsys.readouterr().out
    results = check_folder(name, tmp_path / 'out', rows, printed)
    assert (tmp_path / 'out/check.json').is_file() == ('--no-check' not in words)
    if name == 'pastis':
        check_sums(tmp_path / 'out', results)
    monkeypatch.setattr(runs, 'torchgeo_command', lambda *_, **__: pytest.fail('done again'))
    assert reproduced(name, root, tmp_path / 'out', *words) == 0
    assert json.loads((tmp_path / 'out/results.json').read_text())['rows'] == results['rows']


def check_sums(output: Path, results: dict[str, Any]) -> None:
    """The score is that of the summed confusion matrices of the test folds, not the mean of their scores."""
    for row in results['rows']:
        matrices = [json.loads((output / 'runs' / key / 'confusion.json').read_text()) for key in row['runs']]
        assert len(matrices) == 2
        for subset, score in row['subsets'].items():
            total = sum(np.array(matrix[subset]) for matrix in matrices)
            assert total.sum() > max(np.sum(matrix[subset]) for matrix in matrices) > 0
            assert score['mean'] == pytest.approx(mean_iou(total))
        table = [found for found in runs.read(output / 'runs.csv').values() if found['key'] in row['runs']]
        for found, matrix in zip(table, matrices, strict=True):
            whole = mean_iou(np.array(next(iter(matrix.values()))))
            assert float(found['mean_iou']) == pytest.approx(whole, abs=1e-3)
            assert row['folds'][found['fold']] == pytest.approx(whole, abs=1e-3)


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path) -> None:
    """Killed in the pre-training and in the training, each time after a checkpoint: it equals one run."""
    root = tmp_path / 'pastis'
    write_pastis(root, size=16)
    succeed(tmp_path, reproduce, root, tmp_path / 'whole')
    killed = tmp_path / 'killed'
    assert run(tmp_path, reproduce, root, killed, 'OmniSatPretraining', EVERY) == -signal.SIGKILL
    assert run(tmp_path, reproduce, root, killed, 'OmniSatSegmentation', STEPS - 1) == -signal.SIGKILL
    assert len(list(killed.rglob('progress.ckpt'))) == 1
    assert not (killed / 'runs.csv').exists()
    succeed(tmp_path, reproduce, root, killed)
    assert not list(killed.rglob('progress.ckpt'))
    ours, theirs = (
        json.loads((folder / 'results.json').read_text())['rows'] for folder in (killed, tmp_path / 'whole')
    )
    different = ('device_hours',)
    assert [{k: v for k, v in row.items() if k not in different} for row in ours] == [
        {k: v for k, v in row.items() if k not in different} for row in theirs
    ]
    for path in (tmp_path / 'whole').rglob('*.ckpt'):
        one, other = (torch.load(p, weights_only=True) for p in (path, killed / path.relative_to(tmp_path / 'whole')))
        assert one['global_step'] == other['global_step']
        assert all(torch.equal(value, other['state_dict'][key]) for key, value in one['state_dict'].items()), path
    (attempts,) = killed.rglob('model.attempts.json')
    assert len(json.loads(attempts.read_text())) == 2


TILES = {'train': (10000, 10004, 10007), 'val': (10001,), 'test': (10002, 10003)}


def write_splits(path: Path, **changed: tuple[int, ...]) -> Path:
    """A file with the split of some tiles of the generated PASTIS."""
    rows = [(tile, split) for split, tiles in (TILES | changed).items() for tile in tiles]
    path.write_text('id,split\n' + ''.join(f'{tile},{split}\n' for tile, split in rows))
    return path


class TestListsOfTiles:
    @pytest.mark.slow
    def test_card_and_runs_name_the_file_and_its_hash(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(command, 'describe_cost', lambda study: '')
        path = write_splits(tmp_path / 'lists.csv')
        words = ['--rows', 'utae', '--splits', str(path), '--max-dates', '2']
        assert reproduced('pastis-hd', root, tmp_path / 'out', *words) == 0
        printed, digest = capsys.readouterr().out, sha256(path.read_bytes()).hexdigest()
        assert 'Tiles of lists.csv: 3 train, 1 val, 2 test' in printed
        (row,) = runs.read(tmp_path / 'out/runs.csv').values()
        assert (row['test_tiles'], json.loads(row['splits'])) == ('2', {'lists.csv': digest})
        card = (tmp_path / 'out/README.md').read_text()
        assert f'lists.csv (SHA-256 {digest})' in card
        assert 'only be compared with those of the same lists of tiles (lists.csv)' in card
        assert '| tiles of lists.csv | this run |' in card
        assert 'five' not in card.partition('## Protocol')[2].partition('## ')[0]
        results = json.loads((tmp_path / 'out/results.json').read_text())
        assert (results['splits'], results['folds'], results['comparable']) == ({'lists.csv': digest}, [], False)
        assert [folder.name for folder in (tmp_path / 'out/checkpoints').iterdir()] == ['utae-splits-seed0']
        counts = json.loads((tmp_path / 'out/runs' / row['key'] / 'confusion.json').read_text())
        labelled = [np.load(root / f'ANNOTATIONS/TARGET_{tile}.npy')[0] != 19 for tile in TILES['test']]
        assert np.sum(counts['s2']) == np.sum(labelled)

    def test_key_depends_on_the_content(self, root: Path, tmp_path: Path) -> None:
        keys = set()
        for number, changed in enumerate([{}, {}, {'test': (10002,)}, {'train': (10000, 10004)}]):
            (tmp_path / f'{number}').mkdir()
            path = write_splits(tmp_path / f'{number}/lists.csv', **changed)
            made = study.make_study('pastis-hd', str(root), ['utae'], None, [0], Machine(splits=str(path)), tmp_path)
            (run,) = made.runs('utae')
            keys.add(run.key)
            words = runs.commands(run, tmp_path, str(root), made.machine)
            assert all(str(path) in words[step] for step in ('fit', 'test'))
        assert len(keys) == 3
        official = study.make_study('pastis-hd', str(root), ['utae'], [1], [0], Machine(), tmp_path)
        assert official.runs('utae')[0].key not in keys

    @pytest.mark.parametrize(
        ('name', 'words', 'said'),
        [
            ('synthetic', [], 'expected --data of'),
            ('pastis', ['--folds', '1'], '--folds'),
            ('pastis', ['--rows', 'published'], '--rows published'),
        ],
    )
    def test_arguments_that_do_not_fit(
        self, name: str, words: list[str], said: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_splits(tmp_path / 'lists.csv')
        with pytest.raises(SystemExit, match='1'):
            reproduced(name, root, tmp_path / 'out', '--splits', str(path), *words)
        assert said in capsys.readouterr().err

    def test_folder_with_results_of_another_file(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(command, 'describe_cost', lambda study: '')
        monkeypatch.setattr(study.Study, 'do', lambda self, row: None)
        path = write_splits(tmp_path / 'lists.csv')
        words = ['--rows', 'utae', '--no-check', '--splits', str(path)]
        assert reproduced('pastis-hd', root, tmp_path / 'out', *words) == 0
        write_splits(path, test=(10002,))
        with pytest.raises(SystemExit, match='1'):
            reproduced('pastis-hd', root, tmp_path / 'out', *words)
        assert sha256(path.read_bytes()).hexdigest() in capsys.readouterr().err


def test_rows_of_time_series_need_them(
    made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match='1'):
        reproduced('geobench-treesatai', made('geobench-treesatai'), tmp_path / 'out', '--rows', 'utae')
    assert "--rows utae requires time series, but ['s2']" in capsys.readouterr().err


def test_test_domains_of_both_releases(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Aerial images alone, and the number of patches of the release."""
    first = study.make_study('flair-1', str(made('flair-1')), ['omnisat'], None, [0], Machine(), tmp_path)
    second = study.make_study('flair', str(made('flair')), ['omnisat'], None, [0], Machine(), tmp_path)
    assert [list(found.sensors) for found in (first, second)] == [['aerial'], ['aerial', 'S2']]
    domains = [{name[:4] for name in found.datamodule().make_dataset('test').ids} for found in (first, second)]
    assert domains == [{'D012'}, {'D015'}]
    assert (first.data.tiles, second.data.tiles) == (77412, 77762)


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pastis(tmp_path_factory.mktemp('pastis') / 'PASTIS-R', size=16)


class TestPlan:
    @pytest.mark.slow
    def test_dry_run(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ['--rows', 'utae', 'omnisat-pretrained', '--steps', '3600', '--dry-run']
        assert reproduced('pastis', root, tmp_path / 'out', *words) == 0
        printed, said = capsys.readouterr()
        assert 'Output:' not in said
        assert not (tmp_path / 'out').exists()
        assert 'Tiles of split 1: 6 train, 2 val, 2 test; not the whole dataset of 2433 tiles' in printed
        assert f'{sum(path.is_file() for path in root.rglob("*"))} files' in printed
        (utae,) = [line.split() for line in printed.splitlines() if line.startswith('utae ')]
        assert utae[1:5] == ['S2', '5', '0', '3600']
        step, _, hours = (float(number) for number in utae[5:])
        assert hours == pytest.approx(5 * step, rel=0.1)  # 3600 steps of 5 folds; the test is short
        (ours,) = [line for line in printed.splitlines() if line.startswith('omnisat-pretrained ')]
        assert '3600 + 1800' in ours
        assert float(ours.split()[-1]) > hours

    def test_problem_of_a_file(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        broken = shutil.copytree(root, tmp_path / 'broken')
        path = next((broken / 'DATA_S2').iterdir())
        path.write_bytes(path.read_bytes()[:-9])
        assert reproduced('pastis', broken, tmp_path / 'out') == 1
        printed = capsys.readouterr().out
        assert path.name in printed
        assert '--no-check' in printed
        assert not (tmp_path / 'out/runs').exists()

    @pytest.mark.parametrize(
        ('words', 'said'),
        [
            (['--folds', '6'], '6'),
            (['--rows', 'late-fusion', 'published', '--weights', 'nowhere'], 'nowhere'),
            (['--batch-size', '3', '--devices', '2'], '3'),
            (['--tiles', '17'], '17'),
        ],
    )
    def test_invalid_arguments(
        self, words: list[str], said: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match='1'):
            reproduced('pastis', root, tmp_path / 'out', *words)
        assert said in capsys.readouterr().err
        assert not (tmp_path / 'out').exists()

    def test_a_sensor_that_is_missing(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        part = shutil.copytree(root, tmp_path / 'part')
        shutil.rmtree(part / 'DATA_S1A')
        shutil.rmtree(part / 'DATA_S1D')
        with pytest.raises(SystemExit, match='1'):
            reproduced('pastis', part, tmp_path / 'out', '--rows', 'dual-stream')
        assert "requires ['S1']" in capsys.readouterr().err

    def test_results_of_other_data(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(command, 'describe_cost', lambda study: '')
        monkeypatch.setattr(study.Study, 'do', lambda self, row: None)
        assert reproduced('pastis', root, tmp_path / 'out', '--no-check') == 0
        with pytest.raises(SystemExit, match='1'):
            reproduced('pastis-hd', root, tmp_path / 'out', '--no-check')
        assert "'data': 'pastis'" in capsys.readouterr().err

    def test_results_of_a_part_of_the_data(self, root: Path, tmp_path: Path) -> None:
        """Runs that are done with a part of a download must not count for the whole of it."""
        made = study.make_study('pastis', str(root), ['utae'], None, [0], Machine(), tmp_path / 'out')
        made.claim()
        made.claim()
        whole = replace(made, tiles={'train': 1 + sum(made.tiles.values())})
        with pytest.raises(ValueError, match="'tiles'"):
            whole.claim()

    def test_missing_runs_are_not_comparable(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(study.Study, 'synthetic', False)
        made = study.make_study('pastis', str(root), ['utae'], None, [0], Machine(), tmp_path / 'out')
        whole = replace(made, tiles={'train': made.data.tiles or 0})
        assert report.comparable(whole) == '5 of the runs are missing'

    def test_rows_of_earlier_calls(self, root: Path, tmp_path: Path) -> None:
        earlier, later = (
            study.make_study('pastis', str(root), [row], [1, 2], [0], Machine(), tmp_path)
            for row in ('utae', 'omnisat')
        )
        first, _ = earlier.runs('utae')
        runs.keep(tmp_path / study.TABLE, {'key': first.key})
        assert later.done() == {'utae': [{'key': first.key}], 'omnisat': []}
        assert replace(later, seeds=(1,)).done() == {'omnisat': []}

    def test_dates_that_cannot_be_limited(
        self, made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match='1'):
            reproduced('biomassters', made('biomassters'), tmp_path / 'out', '--max-dates', '2')
        assert '--max-dates' in capsys.readouterr().err


def test_notes_fit_the_figure(root: Path, tmp_path: Path) -> None:
    made = study.make_study('pastis-hd', str(root), ['omnisat'], None, [0], Machine(), tmp_path)
    found = {'model': 'OmniSat', 'sensors': 'S2', 'scores': {'mean_iou': {'mean': 9.0}}, 'folds': {1: 9.0}}
    figure = report.draw_scores(made, [found], made.data.title)
    figure.canvas.draw()
    (note,) = [text for text in figure.texts if 'These scores cannot' in text.get_text()]
    box = note.get_window_extent()
    assert (box.x0 >= 0, box.x1 <= figure.bbox.x1, box.y0 >= 0) == (True, True, True)


def test_several_devices_share_a_batch(tmp_path: Path) -> None:
    run = replace(make_run(study.ROWS['utae'], SIZES['smoke'], 'pastis', 1, 0), batch_size=8)
    words = runs.commands(run, tmp_path, 'DIR', Machine(devices=4, accelerator='gpu'))

    def of(step: str, name: str) -> str:
        return words[step][words[step].index(name) + 1]

    assert [of(step, '--data.batch_size') for step in ('fit', 'test')] == ['2', '8']
    assert [of(step, '--trainer.devices') for step in ('fit', 'test')] == ['4', '1']
    assert of('fit', '--trainer.accelerator') == 'gpu'


@pytest.mark.slow
def test_two_processes_train(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ['--rows', 'omnisat', '--devices', '2', '--seeds', '0', '--folds', '1', '--tiles', '20', '--workers', '0']
    assert reproduced('synthetic', tmp_path / 'data', tmp_path / 'out', *words) == 0
    printed = ''.join(capfd.readouterr())
    assert 'MEMBER: 2/2' in printed
    assert 'sync_dist' not in printed
    (row,) = json.loads((tmp_path / 'out/results.json').read_text())['rows']
    assert row['steps'] == 2


def test_download_is_announced_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TorchGeo's class downloads an archive of this name, from a file here."""
    write_pastis(tmp_path / 'made/PASTIS-R', size=16)
    archive = tmp_path / 'published/PASTIS-R.zip'
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, 'w') as file:
        for path in sorted((tmp_path / 'made').rglob('*')):
            file.write(path, path.relative_to(tmp_path / 'made'))
    monkeypatch.setattr(torchgeo.datasets.PASTIS100, 'url', archive.as_uri())
    monkeypatch.setattr(torchgeo.datasets.PASTIS100, 'md5', md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(command, 'describe_cost', lambda study: '')
    monkeypatch.setattr(study.Study, 'do', lambda self, row: None)
    root = tmp_path / 'root'
    assert reproduced('pastis100', root, tmp_path / 'out', '--dry-run') == 0
    printed = capsys.readouterr().out
    assert f'{archive.stat().st_size / 1e9:.2f} GB, about 0 minutes' in printed
    assert not root.exists()
    assert reproduced('pastis100', root, tmp_path / 'out', '--no-check') == 0
    assert (root / 'PASTIS-R/metadata.geojson').is_file()
    assert 'PASTIS-R-100 in ' + str(root / 'PASTIS-R') in capsys.readouterr().out
    shutil.rmtree(root)
    monkeypatch.setattr(torchgeo.datasets.PASTIS100, 'md5', '0' * 32)
    with pytest.raises(SystemExit, match='1'):
        reproduced('pastis100', root, tmp_path / 'out', '--no-check')


@pytest.mark.skipif(not SHARED.is_dir(), reason='needs real data')
@pytest.mark.slow
class TestRealFiles:
    @pytest.fixture(autouse=True)
    def without_estimate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(command, 'describe_cost', lambda study: '')

    def test_pastis(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ['--folds', '2', '--rows', 'utae', 'omnisat']
        assert reproduced('pastis', SHARED / 'pastis-r-mini', tmp_path / 'out', *words) == 0
        check_folder('pastis', tmp_path / 'out', {'utae': 1, 'omnisat': 3}, capsys.readouterr().out)

    def test_flair(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A training patch is moved to a domain of the test, because there is none."""
        root = shutil.copytree(SHARED / 'flair-mini', tmp_path / 'flair')
        for what in ('aerial', 'labels'):
            (root / f'flair_2_{what}_test').mkdir()
            shutil.move(root / f'flair_{what}_train/D074_2020', root / f'flair_2_{what}_test/D015_2020')
        words = ['--rows', 'omnisat', '--batch-size', '1', '--steps', '1']
        assert reproduced('flair', root, tmp_path / 'out', *words) == 0
        check_folder('flair', tmp_path / 'out', {'omnisat': 1}, capsys.readouterr().out)

    def test_treesatai(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The plots of both folders, two to train and one for each other split."""
        root, labels = tmp_path / 'treesatai', {}
        for name in ('treesatai-ts', 'treesatai-ts-more'):
            shutil.copytree(SHARED / name, root, dirs_exist_ok=True)
            labels |= json.loads((SHARED / name / LABELS).read_text())
        (root / LABELS).write_text(json.dumps(labels))
        plots = sorted(path.name for path in (root / 'aerial').iterdir())
        for split, names in {'train': plots[:2], 'val': plots[2:3], 'test': plots[3:]}.items():
            (root / f'{split}_filenames.lst').write_text('\n'.join(names) + '\n')
        words = ['--rows', 'omnisat', '--max-dates', '3', '--no-check']
        assert reproduced('treesatai', root, tmp_path / 'out', *words) == 0
        check_folder('treesatai', tmp_path / 'out', {'omnisat': 4}, capsys.readouterr().out)

    def test_biomassters(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip('pyarrow')
        root = unpack(SHARED / 'biomassters-mini/biomassters.tortilla', tmp_path / 'biomassters')
        assert reproduced('biomassters', root, tmp_path / 'out', '--rows', 'omnisat') == 0
        check_folder('biomassters', tmp_path / 'out', {'omnisat': 2}, capsys.readouterr().out)

    def test_geobench_biomassters(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip('pyarrow')
        root = shutil.copytree(SHARED / 'biomassters-mini', tmp_path / 'biomassters')
        words = ['--rows', 'omnisat', '--max-dates', '3']
        assert reproduced('geobench-biomassters', root, tmp_path / 'out', *words) == 0
        printed = capsys.readouterr().out
        assert 'Tiles of split 1: 5 train, 2 val, 2 test\n' in printed
        check_folder('geobench-biomassters', tmp_path / 'out', {'omnisat': 2}, printed)
