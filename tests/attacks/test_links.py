# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Symbolic links that lead out of the folder of a dataset."""

import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely

from torchgeo_omnisat.datamodules import PASTISMultimodalDataModule
from torchgeo_omnisat.datasets import RasterTimeSeries, Sentinel2TimeSeries, SyntheticLandscapes
from torchgeo_omnisat.datasets.geo.config import image_dataset
from torchgeo_omnisat.datasets.geo.polygons import Polygons
from torchgeo_omnisat.datasets.io.links import refuse_outside
from torchgeo_omnisat.datasets.pastis import PASTISMultimodal


def move(path: Path, target: Path) -> None:
    """Replace a file or folder by a link to it elsewhere."""
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    path.symlink_to(target)


def write_raster(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {'crs': 'EPSG:32631', 'transform': rasterio.Affine(10, 0, 6e5, 0, -10, 57e5)}
    with rasterio.open(path, 'w', 'GTiff', 4, 4, 1, dtype='uint8', **place) as file:
        file.write(np.ones((1, 4, 4), np.uint8))


def write_polygon(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    gpd.GeoDataFrame({'c': ['a']}, geometry=[shapely.box(5, 50, 6, 51)], crs='EPSG:4326').to_file(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ('a.tif', 'sub/b.tif'):
        path = tmp_path / 'root' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('')
    return tmp_path / 'root'


@pytest.mark.parametrize('name', ['a.tif', 'sub', 'sub/b.tif'])
def test_link_out_of_the_folder(root: Path, tmp_path: Path, name: str) -> None:
    refuse_outside(root)
    move(root / name, tmp_path / 'disk' / 'x')
    with pytest.raises(ValueError, match=rf'root/{name} is a link to {tmp_path}/disk/x, .*allow_outside: true'):
        refuse_outside(root)
    refuse_outside(root, allow_outside=True)
    refuse_outside(root, within=[tmp_path / 'disk'])
    refuse_outside(root, names=['other'])


@pytest.mark.parametrize('target', ['/etc/passwd', '..', '../root2/a.tif', 'sub/../../x', '/proc/self/fd/0'])
def test_targets_outside(root: Path, target: str) -> None:
    (root / 'sub/link').symlink_to(target if target.startswith('/') else root / target)
    with pytest.raises(ValueError, match='sub/link'):
        refuse_outside(root)


def test_chain_of_links(root: Path, tmp_path: Path) -> None:
    (root / 'one').symlink_to('two')
    (root / 'two').symlink_to(tmp_path / 'secret')
    with pytest.raises(ValueError, match='secret'):
        refuse_outside(root)


def test_links_inside(root: Path, tmp_path: Path) -> None:
    """The root may be a link, and links may lead to places in it, to nothing, or in circles."""
    (root / 'absolute').symlink_to(root / 'sub')
    (root / 'relative').symlink_to('sub/b.tif')
    (root / 'nothing').symlink_to('sub/c.tif')
    (root / 'circle').symlink_to('circle')
    (root / 'sub/up').symlink_to('..')
    (root / '.hidden').symlink_to('/etc/passwd')
    (tmp_path / 'link').symlink_to(root)
    refuse_outside(root)
    refuse_outside(tmp_path / 'link')


@pytest.mark.parametrize('name', ['a.tfw', 'sub/METADATA.DIM'])
def test_pipe_beside_files(root: Path, name: str) -> None:
    """GDAL reads text files beside a raster, and would wait for a pipe."""
    os.mkfifo(root / name)
    with pytest.raises(ValueError, match=rf'root/{name} cannot be read \(it is not a regular file\)'):
        refuse_outside(root)


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_dataset(tmp_path: Path, kind: str) -> None:
    SyntheticLandscapes(tmp_path / 'data', num_tiles=5)
    path = next((tmp_path / 'data').rglob('S2_*.npy'))
    move(path if kind == 'file' else path.parent, tmp_path / 'disk' / 'x')
    with pytest.raises(ValueError, match='/disk/x'):
        PASTISMultimodal(tmp_path / 'data', missing='allow')
    assert len(PASTISMultimodal(tmp_path / 'data', missing='allow', allow_outside=True)) == 5
    datamodule = PASTISMultimodalDataModule(str(tmp_path / 'data'), missing='allow')
    with pytest.raises(ValueError, match='/disk/x'):
        datamodule.setup('fit')
    datamodule = PASTISMultimodalDataModule(str(tmp_path / 'data'), missing='allow', allow_outside=True)
    datamodule.setup('fit')


def test_folder_of_rasters(tmp_path: Path) -> None:
    path = tmp_path / 'root/s2/a_20210601.tif'
    write_raster(path)
    move(path, tmp_path / 'root/raw/x.tif')
    image_dataset('s2', {'path': 's2'}, tmp_path / 'root')
    path.unlink()
    move(tmp_path / 'root/raw/x.tif', tmp_path / 'disk/x.tif')
    path.symlink_to(tmp_path / 'disk/x.tif')
    with pytest.raises(ValueError, match=r's2/a_20210601\.tif.*/disk/x\.tif.*allow_outside'):
        image_dataset('s2', {'path': 's2'}, tmp_path / 'root')
    assert len(image_dataset('s2', {'path': 's2', 'allow_outside': True}, tmp_path / 'root')) == 1
    with pytest.raises(ValueError, match='allow_outside'):
        image_dataset('s2', {'path': 's2', 'allow_outside': 'yes'}, tmp_path / 'root')


READERS = {
    'raster': ('a_20210601.tif', RasterTimeSeries, {'temporal': False}),
    'sentinel2': ('T31UFS_20210601T103021_B02_10m.tif', Sentinel2TimeSeries, {'bands': ('B02',)}),
    'polygons': ('a.gpkg', Polygons, {'column': 'c', 'labels': ['a']}),
}


@pytest.mark.parametrize('kind', READERS)
@pytest.mark.parametrize('linked', ['file', 'folder'])
def test_datasets_without_settings(tmp_path: Path, kind: str, linked: str) -> None:
    """Links in a folder are checked, those that the user names are not."""
    name, reader, arguments = READERS[kind]
    path, other = tmp_path / 'root/sub' / name, tmp_path / 'other' / name
    for one in (path, other, tmp_path / 'root' / name):
        (write_polygon if kind == 'polygons' else write_raster)(one)
    reader(str(path.parents[1]), **arguments)
    moved = path if linked == 'file' else path.parent
    move(moved, tmp_path / 'disk' / moved.name)
    for paths in (tmp_path / 'root', [str(other), str(tmp_path / 'root')]):
        with pytest.raises(
            ValueError, match=rf'root/sub\S* is a link to {tmp_path}/disk/{moved.name}, .*allow_outside=True'
        ):
            reader(paths, **arguments)
        reader(paths, allow_outside=True, **arguments)
    reader([str(path)], **arguments)
    reader(path, **arguments)
    reader([tmp_path / 'root', tmp_path / 'disk', other], **arguments)
    (tmp_path / 'link').symlink_to(other.parent)
    reader(tmp_path / 'link', **arguments)


def test_hidden_folder_of_labels(tmp_path: Path) -> None:
    write_polygon(tmp_path / 'root/a.gpkg')
    write_polygon(tmp_path / 'disk/b.gpkg')
    (tmp_path / 'root/.hidden').mkdir()
    (tmp_path / 'root/.hidden/b.gpkg').symlink_to(tmp_path / 'disk/b.gpkg')
    assert Polygons(tmp_path / 'root', column='c', labels=['a']).files == [str(tmp_path / 'root/a.gpkg')]
