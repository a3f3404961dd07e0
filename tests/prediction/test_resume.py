# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Killed at any moment, continued or shared: the map is absent or the same."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
import torch
from pyproj import CRS
from rasterio import Affine
from torch import Tensor

from torchgeo_omnisat.prediction import GeoTIFFWriter, writer
from torchgeo_omnisat.prediction.tiling import Strip
from torchgeo_omnisat.prediction.writer import WorkFolder

from .areas import PlaneDataModule
from .test_writer import make_task, make_trainer, predict, read

pytestmark = pytest.mark.filterwarnings('ignore:.*does not have many workers', 'ignore:.*fork')
AREA: dict[str, Any] = {'height': 100, 'width': 90, 'modalities': ('s2', 's1a'), 'covers': {'s1a': (0, 40)}}


def count_tiles(datamodule: PlaneDataModule, fatal: int | None = None) -> list[int]:
    """Count the tiles that are read; the process dies at number *fatal*."""
    counter, tiles = [0], datamodule.predict_dataset

    class Counting:
        def __getitem__(self, window: Any) -> dict[str, Tensor]:
            counter[0] += 1
            if counter[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return tiles[window]

    datamodule.predict_dataset = Counting()  # type: ignore[assignment]
    return counter


def killed(target: Callable[[], object]) -> None:
    """Run something in a process that dies of it."""
    process = multiprocessing.get_context('fork').Process(target=target)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The map of a run that nothing disturbs."""
    return read(predict(tmp_path_factory.mktemp('whole'), PlaneDataModule(**AREA)))


@pytest.mark.parametrize('fatal', [2, 9, 16])
def test_a_run_goes_on_after_it_was_killed(tmp_path: Path, whole: Any, fatal: int) -> None:
    datamodule = PlaneDataModule(**AREA)
    count_tiles(datamodule, fatal)
    killed(lambda: predict(tmp_path, datamodule))
    assert not (tmp_path / 'map.tif').exists()
    datamodule = PlaneDataModule(**AREA)
    counter, every = count_tiles(datamodule), sum(len(datamodule.tiling.tiles(s)) for s in datamodule.tiling.strips())
    assert np.array_equal(read(predict(tmp_path, datamodule)), whole)
    assert every - fatal <= counter[0] <= every
    assert (counter[0] < every) == (fatal > 8)  # one row of tiles, of four, is read again
    assert [path.name for path in tmp_path.iterdir()] == ['map.tif']


def test_killed_in_the_middle_of_a_strip(tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, bands: Any) -> None:
        path.write_bytes(b'PK')
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr('torchgeo_omnisat.prediction.writer._compress', half)
        killed(lambda: predict(tmp_path, PlaneDataModule(**AREA)))
    assert np.array_equal(read(predict(tmp_path, PlaneDataModule(**AREA))), whole)


@pytest.mark.parametrize('moment', ['write_map', 'set_colors', 'draw_overview'])
def test_killed_while_the_map_is_put_together(
    tmp_path: Path, whole: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = 'raster' if moment == 'set_colors' else 'writer'
    with monkeypatch.context() as patch:
        patch.setattr(
            f'torchgeo_omnisat.prediction.{module}.{moment}', lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        )
        killed(lambda: predict(tmp_path, PlaneDataModule(**AREA), overview=True))
    assert not list(tmp_path.glob('map*'))
    datamodule = PlaneDataModule(**AREA)
    counter = count_tiles(datamodule)
    assert np.array_equal(read(predict(tmp_path, datamodule, overview=True)), whole)
    assert counter[0] <= 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map.png', 'map.tif']


def test_an_error_leaves_what_is_finished(tmp_path: Path, whole: Any) -> None:
    datamodule = PlaneDataModule(**AREA)
    tiles = datamodule.predict_dataset
    limit = iter(range(10))

    class Broken:
        def __getitem__(self, window: Any) -> dict[str, Tensor]:
            if next(limit, None) is None:
                raise OSError('the disk is gone')
            return tiles[window]

    datamodule.predict_dataset = Broken()  # type: ignore[assignment]
    with pytest.raises(OSError, match='the disk is gone'):
        predict(tmp_path, datamodule)
    datamodule = PlaneDataModule(**AREA)
    counter = count_tiles(datamodule)
    assert np.array_equal(read(predict(tmp_path, datamodule)), whole)
    assert counter[0] < 16


@pytest.mark.parametrize('change', ['weights', 'area', 'tiles', 'bands'])
def test_other_arguments_never_mix(tmp_path: Path, change: str) -> None:
    datamodule = PlaneDataModule(**AREA)
    count_tiles(datamodule, 12)
    killed(lambda: predict(tmp_path, datamodule))
    task = make_task()
    if change == 'weights':
        task.model.decoder.head.bias.data[0] += 1
    area = AREA | {'area': {'width': 88}, 'tiles': {'overlap': 0.5}}.get(change, {})
    options = {'probabilities': 'uint16'} if change == 'bands' else {}
    with pytest.warns(UserWarning, match='with other arguments'):
        mixed = predict(tmp_path, PlaneDataModule(**area), task, **options)
    alone = predict(tmp_path / 'alone', PlaneDataModule(**area), task, **options)
    assert np.array_equal(read(mixed), read(alone))


@pytest.mark.parametrize('change', ['shift', 'crs', 'step'])
def test_another_grid_never_mixes(tmp_path: Path, change: str) -> None:
    """As many rows and columns as before, elsewhere: not one strip of the map that was cut off is taken."""
    datamodule = PlaneDataModule(**AREA)
    count_tiles(datamodule, 12)
    killed(lambda: predict(tmp_path, datamodule))
    (left,) = tmp_path.glob('.map.tif.*')
    before = {path.name: path.read_bytes() for path in left.glob('*.npz')}
    assert before
    other = PlaneDataModule(**AREA)
    grid = other.grid
    other.grid = {
        'shift': replace(grid, transform=grid.transform @ Affine.translation(0.3, 0)),
        'crs': replace(grid, crs=CRS.from_epsg(32632)),
        'step': replace(grid, transform=Affine(10.001, 0, 600000, 0, -10.001, 5600000)),
    }[change]
    counter, every = count_tiles(other), sum(len(other.tiling.tiles(strip)) for strip in other.tiling.strips())
    with pytest.warns(UserWarning, match='with other arguments'):
        path = predict(tmp_path, other)
    assert counter[0] == every
    assert {path.name: path.read_bytes() for path in left.glob('*.npz')} == before
    with rasterio.open(path) as file:
        assert file.transform.almost_equals(other.grid.transform)
        assert file.crs == other.grid.crs


@pytest.mark.parametrize('change', ['area', 'batch_size', 'precision'])
def test_whatever_strips_depend_on_is_in_their_name(tmp_path: Path, change: str) -> None:
    def key(facts: dict[str, Any] | None = None, **changes: Any) -> Any:
        task, writer = make_task(), GeoTIFFWriter(str(tmp_path / 'map.tif'))
        task.hparams['modalities'] = [modality | (facts or {}) for modality in task.hparams['modalities']]
        trainer = make_trainer(tmp_path, writer, precision=changes.pop('precision', '32-true'))
        writer._trainer, writer._module, writer._datamodule = trainer, task, PlaneDataModule(**AREA)
        vars(writer._datamodule).update(changes)
        writer._tiling, writer._grid, _ = writer._datamodule.tiling, writer._datamodule.grid, writer._legend()
        return writer._key()

    told = {'area': shapely.box(0, 0, 9, 9), 'batch_size': 77, 'precision': 'bf16-true'}
    assert key() == key() != key(**{change: told[change]})
    assert key() == key({'kind': 'other', 'unit': 'dn'})  # what a checkpoint learns on the way changes no pixel


@pytest.mark.parametrize('name', ['map.tif', 'map [v1].tif'])
def test_unfinished_runs_of_an_output_are_found(tmp_path: Path, name: str) -> None:
    folder, other = WorkFolder(tmp_path / name, {'a': 1}), WorkFolder(tmp_path / name, {'a': 2})
    other.open(claim=True)
    assert folder.others() == [other.path]


def test_only_one_run_at_a_time(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / 'map.tif', {'a': 1})
    folder.open(claim=True)
    with pytest.raises(RuntimeError, match='is being predicted'):
        WorkFolder(tmp_path / 'map.tif', {'a': 1}).open(claim=True)
    assert folder.others() == []
    other = WorkFolder(tmp_path / 'map.tif', {'a': 2})
    other.open(claim=True)
    assert folder.others() == [other.path]
    folder.close()
    WorkFolder(tmp_path / 'map.tif', {'a': 1}).open(claim=True)


def test_strip_that_comes_when_the_map_is_finished_is_not_needed(tmp_path: Path) -> None:
    first, second = (WorkFolder(tmp_path / 'map.tif', {}) for _ in range(2))
    first.open(claim=True)
    second.open(claim=False)
    first.close(finished=True)
    second.save(Strip(0, 0), np.zeros((1, 2, 2), np.uint8))
    assert not list(tmp_path.iterdir())


def test_strip_that_comes_while_the_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (WorkFolder(tmp_path / 'map.tif', {}) for _ in range(2))
    first.open(claim=True)
    second.open(claim=False)

    def remove(path: Path, ignore_errors: bool) -> None:
        if path.exists():
            for file in path.iterdir():
                file.unlink()
            second.save(Strip(0, 0), np.zeros((1, 2, 2), np.uint8))
            with suppress(OSError):
                path.rmdir()

    monkeypatch.setattr(writer, 'shutil', SimpleNamespace(rmtree=remove))
    first.close(finished=True)
    assert not list(tmp_path.iterdir())


def test_a_broken_strip_is_named(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / 'map.tif', {})
    folder.open(claim=True)
    (folder.path / '0000-000001.npz').write_bytes(b'half')
    (strip,) = folder.done()
    with pytest.raises(ValueError, match=r'0000-000001\.npz'):
        folder.load(strip)


@pytest.mark.enable_socket
@pytest.mark.parametrize('rows', [100, 20])
def test_two_processes_make_the_same_map(tmp_path: Path, rows: int) -> None:
    """Of 20 rows there is one strip, so that the second process has nothing to do."""
    area = AREA | {'height': rows}
    one = predict(tmp_path / 'one', PlaneDataModule(**area))
    writer = GeoTIFFWriter(str(tmp_path / 'map.tif'), overview=False, styles=False)
    trainer = make_trainer(tmp_path, writer, devices=2, strategy='ddp_fork')
    torch.set_num_threads(1)
    trainer.predict(make_task(), datamodule=PlaneDataModule(**area), return_predictions=False)
    assert np.array_equal(read(tmp_path / 'map.tif'), read(one))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map.tif', 'one']
