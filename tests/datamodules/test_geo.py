# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""MultimodalGeoDataModule: splits that share nothing, tiles of the same ground, a map over all of it."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from rasterio.features import geometry_mask
from torchgeo.main import main

from tests.geo_tree import UTM, X, Y, ramp, write
from torchgeo_omnisat.batch import check
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.prediction import GeoTIFFWriter
from torchgeo_omnisat.tasks import OmniSatSegmentation

CONFIG = Path(__file__).parents[2] / 'docs/configs/belgium-crops.yaml'
RASTERS: dict[str, Any] = {
    's2': {'path': 's2', 'gsd': 10},
    's1': {'path': 's1', 'gsd': 20, 'decibels': True},
    'aerial': {'path': 'aerial', 'gsd': 2, 'temporal': False},
}


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 x 32 px of 10 m over two years, labels on the western 48, radar on the western half, a small aerial image."""
    root = tmp_path_factory.mktemp('region')
    for number, stamp in enumerate(('20200901', '20210301', '20220831')):
        write(root / f's2/a_{stamp}.tif', ramp(32, 64, 2) + number, bands=('B04', 'B08'))
    write(root / 's1/a_20210301.tif', -ramp(16, 16) / 100, step=20, bands=('VV',))
    write(
        root / 'aerial/ortho.tif', np.full((3, 20, 20), 9, np.uint8) + np.eye(20, dtype=np.uint8), (X + 40, Y - 40), 2
    )
    write(root / 'labels/crops.tif', (np.arange(32 * 48).reshape(32, 48) % 3).astype(np.uint8))
    return root


def make(root: Path, **changes: Any) -> MultimodalGeoDataModule:
    args = {'mask': {'path': 'labels'}, 'labels': ['a', 'b', 'c'], 'tile_size': 80, 'batch_size': 2, **changes}
    return MultimodalGeoDataModule(str(root), **{'rasters': RASTERS, **args})


def test_speckle_is_in_the_unit_of_the_raster(root: Path) -> None:
    for decibels in (True, False):
        datamodule = make(root, rasters={'s1': {**RASTERS['s1'], 'decibels': decibels}}, temporal_dropout=0, jitter=0)
        datamodule.dihedral = False
        datamodule.setup('fit')
        batch = {'image_s1': torch.full((2, 1, 1, 64, 64), 0.02), 'valid_s1': torch.ones(2, 1, dtype=torch.bool)}
        speckled = datamodule.train_aug(batch)['image_s1'] * datamodule.std['s1'] + datamodule.mean['s1']
        if decibels:
            assert speckled.std().item() > 1
        else:
            assert speckled.min() > 0
            assert (speckled / 0.02).mean().item() == pytest.approx(1, abs=0.02)
            assert (speckled / 0.02).var().item() == pytest.approx(0.1, rel=0.15)


def test_splits_share_no_label(root: Path) -> None:
    datamodule = make(root, split={'axis': 'x', 'fractions': (0.5, 0.2, 0.3)}, length=40)
    datamodule.prepare_data()
    datamodule.setup('fit')
    datamodule.setup('test')
    seen: dict[str, set[int]] = {}
    for split in 'train', 'val', 'test':
        columns = set()
        tiles = getattr(datamodule, f'{split}_dataset')
        for index in range(len(tiles)):
            sample = tiles[index]
            left = round((sample['bounds'][0].item() - X) / 10)
            columns |= {left + j for j in (sample['mask'] != 255).any(0).nonzero()[:, 0].tolist()}
        seen[split] = columns
    assert seen['val'] | seen['test'] == set(range(24, 48))
    assert seen['train'] <= set(range(24))
    assert not seen['val'] & seen['test']
    assert min(seen['val']) == 24
    assert min(seen['test']) % 2 == 0  # where pixels of 20 m meet


def test_settings_of_labels_are_passed_on(root: Path) -> None:
    period = ('2020-01-01', '2022-12-31')
    joined = make(root, mask={'path': 'labels', 'date_range': period}, ignore_index=7).labelled
    assert (joined.date_ranges, joined.ignore_index) == ({'mask': period}, 7)


def test_a_fraction_of_nothing_is_no_ground(root: Path) -> None:
    datamodule = make(root, split={'axis': 'x', 'fractions': (0.5, 0.0, 0.5)})
    datamodule.setup('fit')
    assert datamodule.grounds['val'].is_empty
    assert datamodule.val_dataloader() == []


def test_a_fraction_that_meets_no_ground_is_a_warning(root: Path) -> None:
    datamodule = make(root, split={'axis': 'x', 'fractions': (0.5, 0.25, 0.25)})
    datamodule.grounds = datamodule.grounds | {'val': shapely.Polygon()}  # as between labels that are far apart
    with pytest.warns(UserWarning, match="'val'"):
        datamodule.setup('fit')
    assert datamodule.lost_splits() == ['val']
    assert make(root, split={'axis': 'x', 'fractions': (0.5, 0.0, 0.5)}).lost_splits() == []


def test_test_tiles_count_every_pixel_once(root: Path) -> None:
    datamodule = make(root, split={'test': [X + 200, Y - 320, X + 480, Y]} | {'train': [X, Y - 320, X + 200, Y]})
    datamodule.setup('test')
    tiles = datamodule.test_dataset
    assert sum(int((tiles[index]['mask'] != 255).sum()) for index in range(len(tiles))) == 28 * 32
    assert datamodule.val_dataloader() == []


def test_training_tiles_are_drawn_anew_and_lie_within(root: Path) -> None:
    datamodule = make(root, length=30)
    datamodule.setup('fit')
    first, second = ([datamodule.train_dataset[i]['bounds'][[0, 4]].tolist() for i in range(30)] for _ in range(2))
    assert first != second
    assert len({tuple(corner) for corner in first}) > 15
    ground = datamodule.grounds['train']
    assert len(make(root).make_dataset('train')) == round(ground.area / 80**2)
    assert all(ground.contains(shapely.box(x, y - 80, x + 80, y)) for x, y in first)
    torch.manual_seed(0)
    one = datamodule.train_dataset[0]['bounds']
    torch.manual_seed(0)
    assert torch.equal(one, datamodule.train_dataset[5]['bounds'])


def test_training_draws_the_border_of_its_ground_too(root: Path) -> None:
    datamodule = make(root)
    datamodule.setup('fit')
    tiles, rng = datamodule.train_dataset, np.random.default_rng(0)
    drawn = np.zeros((tiles.grid.height, tiles.grid.width), np.int64)
    for _ in range(4000):
        row, column = tiles._draw(rng)
        drawn[row : row + tiles.across, column : column + tiles.across] += 1
    middle = drawn[drawn.shape[0] // 2, drawn.shape[1] // 2]
    assert drawn[0].mean() > 0.3 * middle, 'otherwise one tile in 25 would show its first row'
    assert drawn[:, 0].mean() > 0.3 * middle


def test_batches_are_normalised_and_hold_the_contract(root: Path) -> None:
    datamodule = make(root)
    datamodule.setup('fit')
    for batch in datamodule.train_dataloader():
        check(batch, datamodule.modalities)
        assert batch['image_s2'].shape[-2:] == batch['mask'].shape[-2:] == (8, 8)
        done = datamodule.train_aug(batch)
        assert done['image_s2'][done['valid_s2']].abs().max() < 10
    assert datamodule.label_gsd == 10
    assert (datamodule.num_classes, datamodule.labels, datamodule.ignore_index) == (3, ['a', 'b', 'c'], 255)
    image = ramp(32, 64, 2)[:, :, :28]  # what 60 % of 48 columns are, on pixels of 20 m
    np.testing.assert_allclose(datamodule.mean['s2'], image.mean((1, 2)) + 1, rtol=0.05)
    assert isinstance(datamodule.plot({key: value[0] for key, value in batch.items()}), Figure)


def test_statistics_are_kept_and_told_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rasters = {'s2': RASTERS['s2']}
    make(root, rasters=rasters).prepare_data()
    other = make(root, rasters=rasters, split={'axis': 'y', 'fractions': (0.5, 0.25, 0.25)})
    other.setup('fit')
    again = make(root, rasters=rasters)
    monkeypatch.setattr('torchgeo_omnisat.datamodules.base.measure', None)
    again.setup('fit')
    assert not torch.allclose(again.mean['s2'], other.mean['s2'])


@pytest.mark.parametrize('area', [None, (X + 100.0, Y - 250.0, X + 500.0, Y - 30.0)])
def test_a_map_lies_on_the_labels(root: Path, area: Any) -> None:
    datamodule = make(root, predict_area=area and list(area))
    datamodule.setup('predict')
    bounds = (X + 100, Y - 260, X + 500, Y - 20) if area else (X, Y - 320, X + 640, Y)  # where pixels of radar begin
    assert datamodule.grid.bounds == bounds
    assert datamodule.grid.crs == UTM
    batches = list(datamodule.predict_dataloader())
    windows = torch.cat([batch['window'] for batch in batches])
    covered = torch.zeros(datamodule.grid.height + 8, datamodule.grid.width + 8, dtype=torch.int)
    for row, column, height, width in windows.tolist():
        covered[row : row + height, column : column + width] += 1
    assert (covered[: datamodule.grid.height, : datamodule.grid.width] > 0).all()
    batch = batches[0]
    row, column = windows[0, :2].tolist()
    top, left = round((Y - bounds[3]) / 10) + row, round((bounds[0] - X) / 10) + column
    if area is None:
        assert batch['image_s2'][0, 0, 0, 0, 0] == 1 + 100 * top + left
    assert 'mask' not in batch
    assert datamodule.fingerprint() == make(root, predict_area=area and list(area)).fingerprint()


def test_a_map_of_polygons_in_another_crs(root: Path, tmp_path: Path) -> None:
    """A field and a far corner of another, neither of which begins where pixels of the radar do."""
    told: dict[str, Any] = {'modalities': ('s2', 's1'), 'label_gsd': 10, 'split': {'train': [X, Y - 320, X + 480, Y]}}
    fields = [shapely.Polygon([(X + 31, Y - 87), (X + 214, Y - 33), (X + 150, Y - 251)])]
    fields.append(shapely.box(X + 507, Y - 400, X + 591, Y - 207))
    gpd.GeoDataFrame(geometry=fields, crs=UTM).to_crs(4326).to_file(tmp_path / 'fields.geojson')
    corners = gpd.GeoSeries([fields[1]], crs=UTM).to_crs(4326).total_bounds.tolist()
    areas = {'all': None, 'fields': str(tmp_path / 'fields.geojson'), 'box': {'bounds': corners, 'crs': 'EPSG:4326'}}
    maps = {}
    for name, area in areas.items():
        datamodule = make(root, **told, predict_area=area, batch_size=16)
        datamodule.prepare_data()
        torch.manual_seed(0)
        trainer = Trainer(
            accelerator='cpu',
            logger=False,
            enable_progress_bar=False,
            callbacks=[GeoTIFFWriter(str(tmp_path / f'{name}.tif'), overview=False)],
        )
        trainer.predict(OmniSatSegmentation(backbone='omnisat_tiny'), datamodule=datamodule)
        with rasterio.open(tmp_path / f'{name}.tif') as file:
            assert file.crs.to_epsg() == 32631
            maps[name] = file.read([1, 2]), file.transform
    whole = maps['all'][0][1]
    for name, shapes in ('fields', fields), ('box', fields[1:]):
        (_, seen), transform = maps[name]
        row, column = round((Y - transform.f) / 10), round((transform.c - X) / 10)
        height, width = min(seen.shape[0], 32 - row), seen.shape[1]
        smaller, larger = ([shape.buffer(metres) for shape in shapes] for metres in (-3, 3))
        inside = geometry_mask(smaller, seen.shape, transform, invert=True)[:height]
        assert (seen[:height][inside] == whole[row : row + height, column : column + width][inside]).all()
        assert (seen[geometry_mask(larger, seen.shape, transform)] == 255).all()
        assert inside.sum() > 70
    assert set(np.unique(maps['fields'][0][1])) == {1, 3, 255}


def test_splits_from_boxes_and_files(root: Path, tmp_path: Path) -> None:
    west, east = (X, Y - 320, X + 240, Y), (X + 240, Y - 320, X + 480, Y)
    shapes = gpd.GeoDataFrame(
        {'split': ['train', 'test'], 'geometry': [shapely.box(*west), shapely.box(*east)]}, crs=UTM
    )
    shapes.to_crs(4326).to_file(tmp_path / 'regions.geojson')
    for split in {'train': list(west), 'test': [list(east)]}, {'file': str(tmp_path / 'regions.geojson')}:
        grounds = make(root, split=split).grounds
        assert grounds['train'].area == pytest.approx(240 * 320, rel=1e-4)
        assert grounds['val'].is_empty
        assert grounds['test'].bounds == pytest.approx(east, abs=1)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'rasters': {}}, r'rasters is empty'),
        (
            {'modalities': ('spot',)},
            r"modalities is \('spot',\), expected some of the rasters",
        ),
        ({'required': 's2'}, r"required is 's2', expected some of the rasters"),
        ({'labels': ['a']}, r"num_classes is 1 in labels \['a'\], expected at least 2"),
        ({'labels': None}, r'labels is None, and so is num_classes; expected the names of at least 2 classes'),
        ({'num_classes': 4}, r'labels are \[.*\], expected one for each of 4 classes'),
        ({'split': {'axis': 'z', 'fractions': (1, 0, 0)}}, r"split has axis 'z'"),
        ({'split': {'fractions': (0.5, 0.4, 0.4)}}, r'fractions \(0.5, 0.4, 0.4\), expected .* three that sum to 1'),
        ({'split': {'fractions': (0.6, 0.2, 0.2), 'along': 'x'}}, r"'along': 'x'}, expected {'axis': 'x', 'fractions'"),
        ({'split': {'file': 'regions.gpkg', 'name': 'part'}}, r"'name': 'part'}, expected {'axis': 'x', 'fractions'"),
        ({'split': {'west': [0, 0, 1, 1]}}, r'boxes for .*, or {.file.: a vector file with polygons}'),
        ({'split': {'train': [0, 0, 1]}}, r"split has \[0, 0, 1\] for 'train', expected xmin"),
        (
            {'split': {'test': [X, Y - 100, X + 100, Y]}},
            r"leaves no labelled ground for 'train', expected some of \(600000, 5699680,",
        ),
        (
            {'split': {'train': [X, Y - 100, X + 100, Y], 'test': [X + 50, Y - 100, X + 200, Y]}},
            r"'train' and 'test' share 5000 m2, expected splits that do not overlap",
        ),
        ({'split': {'file': 'nowhere.gpkg'}}, r'nowhere.gpkg cannot be read .* expected a vector file'),
        ({'tile_size': 90}, r'tile_size is 90 m, expected a multiple of 40 m'),
        ({'train_tile_size': 10}, r'train_tile_size is 10 m, expected a multiple of 40 m'),
        ({'tile_size': 400}, r"the area of 'train', .* is smaller than a tile of 400 m"),
        (
            {'rasters': {'s2': {'paht': 's2'}}},
            r"settings of 's2' have no path \(did you mean 'path'\?\), expected path and some of",
        ),
        (
            {'rasters': {'s2': {'path': 's2', 'bnads': []}}},
            r"settings of 's2' have \['bnads'\] \(did you mean 'bands'\?\), expected path",
        ),
        ({'rasters': {'s2': {'path': 's2', 'kind': 'sentinel9'}}}, r"kind of 's2' is 'sentinel9', expected one of"),
        ({'rasters': {'s2': {'class_path': 'torchgeo.datasets.EuroSAT'}}}, r"EuroSAT', expected a GeoDataset"),
        ({'rasters': {'s2': {'class_path': 'nowhere.X'}}}, r"class_path of 's2' is 'nowhere.X'"),
    ],
)
def test_arguments(root: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(root, **changes).setup('fit')


def test_a_modality_that_training_never_sees(root: Path) -> None:
    with pytest.raises(ValueError, match=r"'aerial'.*modalities"):
        make(root, split={'axis': 'y', 'fractions': (0.5, 0.25, 0.25)}).setup('fit')


def test_an_area_outside(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'predict_area.*\[0, 0, 1, 1\].*\(600000,'):
        make(root, predict_area=[0, 0, 1, 1]).setup('predict')
    for area in [0, 0, 1], [1, 0, 0, 1], {'bounds': [0, 0, 1, 1]}, {'bounds': None, 'crs': 'EPSG:4326'}:
        with pytest.raises(ValueError, match=r'predict_area.*xmin, ymin, xmax, ymax'):
            make(root, predict_area=area).setup('predict')
    gpd.GeoDataFrame(geometry=[shapely.Point(X, Y)], crs=UTM).to_file(tmp_path / 'points.gpkg')
    with pytest.raises(ValueError, match=r'points\.gpkg'):
        make(root, predict_area=str(tmp_path / 'points.gpkg')).setup('predict')


def test_tiles_have_the_polygons_as_instances(root: Path, tmp_path: Path) -> None:
    """Two touching fields of one crop; the ground around them is the background."""
    shapes = [shapely.box(X + left, Y - 320, X + right, Y) for left, right in ((0, 163), (163, 320))]
    gpd.GeoDataFrame({'crop': ['b', 'b']}, geometry=shapes, crs=UTM).to_file(tmp_path / 'fields.gpkg')
    settings: dict[str, Any] = {'column': 'crop', 'outside': 'a', 'path': str(tmp_path / 'fields.gpkg')}
    split = {name: [X + 80, Y - 160, X + 240, Y] for name in ('train',)}
    data = make(root, rasters={'s2': RASTERS['s2']}, mask=settings, labels=['a', 'b'], tile_size=160, split=split)
    assert data.background == 0
    assert 'instances' not in data.make_dataset('train', every=True)[0]
    data = make(
        root,
        rasters={'s2': RASTERS['s2']},
        mask={name: value for name, value in settings.items() if name != 'outside'},
        labels=['a', 'b'],
        tile_size=160,
        split=split,
        instances=True,
    )
    assert data.background is None
    tile = data.make_dataset('train', every=True)[0]
    assert tile['instances'].shape == tile['mask'].shape == (16, 16)
    assert tile['mask'].unique().tolist() == [1]
    left, right = tile['instances'][:, :8].unique(), tile['instances'][:, 8:].unique()
    assert (len(left), len(right)) == (1, 1)
    assert left > 0
    assert right > 0
    assert left != right
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(field_gsd=2.5))  # type: ignore[assignment]
    assert data.make_dataset('train', every=True)[0]['instances'].shape == (64, 64)
    dataset = data.labelled
    dataset.instances, dataset.instance_gsd = True, 2.5
    sample = dataset[X + 80 : X + 240, Y - 160 : Y]
    fine = sample['instances']
    assert fine.shape == (64, 64)
    assert (fine[0] == fine).all()
    assert sample['bounds'][0] == X + 80
    assert (fine[0] == fine[0, 0]).sum() * 2.5 == 82.5  # the border is at 83 m
    dataset.instance_gsd = 4
    with pytest.raises(ValueError, match='instance_gsd is 4 m'):
        dataset[X + 96 : X + 226, Y - 160 : Y]
    with pytest.raises(ValueError, match=r'mask is a .*expected a vector file'):
        make(root, instances=True).make_dataset('train', every=True)[0]


def test_other_datasets_and_polygons_by_their_settings(root: Path, tmp_path: Path) -> None:
    fields = gpd.GeoDataFrame({'crop': [1, 2]}, geometry=[shapely.box(X, Y - 320, X + 320, Y)] * 2, crs=UTM)
    fields.to_file(tmp_path / 'fields.gpkg')
    rasters = {'s2': {'class_path': 'torchgeo.datasets.RasterDataset', 'init_args': {'paths': 's2'}, 'gsd': 10}}
    datamodule = make(
        root, rasters=rasters, mask={'path': str(tmp_path / 'fields.gpkg'), 'column': 'crop'}, label_gsd=10
    )
    datamodule.setup('fit')
    sample = datamodule.train_dataset[0]
    assert sample['image_s2'].shape == (2, 8, 8)
    assert set(sample['mask'].unique().tolist()) == {2}


def test_names_of_classes_in_a_column(root: Path, tmp_path: Path) -> None:
    shapes = [shapely.box(X, Y - 320, X + 160, Y), shapely.box(X + 200, Y - 320, X + 320, Y)]
    gpd.GeoDataFrame({'crop': ['c', 'b']}, geometry=shapes, crs=UTM).to_file(tmp_path / 'fields.gpkg')
    mask = {'path': str(tmp_path / 'fields.gpkg'), 'column': 'crop', 'outside': 'a'}
    datamodule = make(root, mask=mask, label_gsd=10, split={'train': [X, Y - 320, X + 320, Y]})
    datamodule.setup('fit')
    mask_of_train = datamodule.labelled[slice(X, X + 320), slice(Y - 320, Y)]['mask']
    assert mask_of_train[:, :16].unique().tolist() == [2]
    assert mask_of_train[:, 16:20].unique().tolist() == [0]
    assert mask_of_train[:, 20:].unique().tolist() == [1]


@pytest.mark.slow
def test_real_fields_train_and_are_mapped(belgium: Path, tmp_path: Path) -> None:
    root = tmp_path / 'belgium'  # statistics are kept there, not beside the originals
    root.mkdir()
    for folder in belgium.iterdir():
        (root / folder.name).symlink_to(folder)
    args = [f'--config={CONFIG}', f'--data.root={root}', f'--trainer.default_root_dir={tmp_path}']
    quick = ['--trainer.max_epochs=1', '--trainer.accelerator=cpu', '--trainer.logger=false']
    quick += ['--data.length=16', '--data.batch_size=8']
    main(['fit', *args, *quick])
    (checkpoint,) = tmp_path.rglob('*.ckpt')
    state = torch.load(checkpoint, weights_only=True, map_location='cpu')
    assert state['global_step'] == 2
    assert [m['name'] for m in state['hyper_parameters']['modalities']] == ['s2', 's1']
    main(['test', *args, *quick, f'--ckpt_path={checkpoint}'])
    table = next(tmp_path.rglob('subsets.csv')).read_text()
    assert re.search(r's1\+s2', table)


def test_a_file_of_splits_needs_their_names(root: Path, tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame({'part': ['train']}, geometry=[shapely.box(X, Y - 320, X + 240, Y)], crs=UTM)
    frame.to_file(tmp_path / 'regions.gpkg')
    with pytest.raises(ValueError, match=r"regions\.gpkg.*\['part', 'geometry'\].*'split'"):
        _ = make(root, split={'file': str(tmp_path / 'regions.gpkg')}).grounds


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear power and elevation without names of bands."""
    root = tmp_path_factory.mktemp('scenes')
    rng = np.random.default_rng(0)
    for folder, low, high in (('s1', 0.02, 0.12), ('dem', 100, 200)):
        image = rng.uniform(low, high, (2, 32, 32)).astype(np.float32)
        for stamp in ('20210101', '20210201'):
            write(root / folder / f'a_{stamp}.tif', image)
    return root


class TestFacts:
    """Radar, its unit and optical images are what settings state; unnamed bands state nothing."""

    def augmented(self, root: Path, **settings: Any) -> tuple[Any, Any]:
        """Radar before and after augmentation, in raw units."""
        rasters = {'s1': {'path': 's1', **settings}, 'dem': {'path': 'dem'}}
        datamodule = MultimodalGeoDataModule(str(root), rasters, tile_size=160, temporal_dropout=0, jitter=0)
        datamodule.dihedral = False
        datamodule.setup('fit')
        batch = next(iter(datamodule.train_dataloader()))
        after = datamodule.train_aug(batch)
        assert torch.allclose(after['image_dem'], datamodule.aug(batch)['image_dem'])
        mean, std = (numbers['s1'][:, None, None] for numbers in (datamodule.mean, datamodule.std))
        return batch['image_s1'], after['image_s1'] * std + mean

    @pytest.mark.parametrize(
        'settings', [{}, {'all_bands': ['VV', 'VH']}, {'kind': 'radar', 'all_bands': ['VV', 'VH']}]
    )
    def test_nothing_is_simulated_where_nothing_is_stated(
        self, scenes: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
    ) -> None:
        with caplog.at_level('INFO'):
            before, after = self.augmented(scenes, **settings)
        assert torch.allclose(before, after, atol=1e-5)
        (line,) = [record.message for record in caplog.records if 'simulated' in record.message]
        assert ('s1 (unit unknown)' if 'kind' in settings else 's1 (kind and unit unknown)') in line
        assert 'dem (kind and unit unknown)' in line

    def test_power_stays_positive_and_keeps_its_mean(self, scenes: Path) -> None:
        torch.manual_seed(0)
        before, after = self.augmented(scenes, kind='radar', unit='power', all_bands=['VV', 'VH'])
        assert after.min() > -1e-6
        assert (after / before).mean().item() == pytest.approx(1, abs=0.03)
        assert (after / before).std().item() == pytest.approx(0.1**0.5, rel=0.1)

    def test_fit_says_it_once(self, scenes: Path, caplog: pytest.LogCaptureFixture) -> None:
        rasters = {'s1': {'path': 's1'}}
        datamodule = MultimodalGeoDataModule(str(scenes), rasters, tile_size=160)
        with caplog.at_level('INFO'):
            datamodule.setup('fit')
            datamodule.setup('fit')
        assert caplog.text.count('simulated') == 1
