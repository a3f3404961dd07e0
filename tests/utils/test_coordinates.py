"""Longitude and latitude of tiles."""

import pytest
import torch
from pyproj import Geod, Transformer
from rasterio.crs import CRS

from torchgeo_omnisat.utils.tensors.coordinates import centre_coordinates


def bounds(xmin, xmax, ymin, ymax):
    return torch.tensor([xmin, xmax, 10, ymin, ymax, 10, torch.nan, torch.nan, 1], dtype=torch.float64)


@pytest.mark.parametrize(
    ('crs', 'box', 'place'),
    [
        ('EPSG:2154', (651400, 652600, 6861600, 6862800), (2.3488, 48.8534)),  # Paris
        ('EPSG:32631', (451200, 452400, 5411000, 5412200), (2.3500, 48.8566)),
        ('EPSG:32733', (260000, 262000, 6240000, 6242000), (12.4, -33.95)),
        ('EPSG:4326', (2.34, 2.36, 48.85, 48.86), (2.35, 48.855)),
    ],
)
@pytest.mark.parametrize('kind', [str, CRS.from_user_input])
def test_centres_within_a_metre(crs, box, place, kind):
    (lon, lat) = centre_coordinates(bounds(*box), kind(crs)).tolist()
    back = Transformer.from_crs('EPSG:4326', crs, always_xy=True).transform(lon, lat)
    x, y = (box[0] + box[1]) / 2, (box[2] + box[3]) / 2
    tolerance = 1 if crs != 'EPSG:4326' else 1e-5
    assert abs(back[0] - x) < tolerance
    assert abs(back[1] - y) < tolerance
    assert Geod(ellps='WGS84').inv(lon, lat, *place)[2] < 15_000


def test_a_metre_in_float64_and_unknown_bounds():
    rows = torch.stack([bounds(651400 + shift, 652600 + shift, 6861600, 6862800) for shift in (0, 1)])
    rows = torch.cat([rows, torch.full((1, 9), torch.nan, dtype=torch.float64)])
    found = centre_coordinates(rows, 'EPSG:2154')
    assert found.dtype == torch.float64
    distance = Geod(ellps='WGS84').inv(*found[0].tolist(), *found[1].tolist())[2]
    assert distance == pytest.approx(1, abs=0.01)
    assert found[2].isnan().all()


def test_antimeridian_and_poles():
    assert centre_coordinates(bounds(179.9, 180.3, -17, -16), 'EPSG:4326').tolist() == pytest.approx([-179.9, -16.5])
    west, _ = centre_coordinates(torch.stack([bounds(-9, 1, 0, 10), bounds(1, 11, 0, 10)]), 'EPSG:3832').tolist()
    assert west[0] == pytest.approx(150, abs=1e-3)  # Pacific, centred on 150 degrees east
    far = centre_coordinates(bounds(5e6, 5e6 + 10, 0, 10), 'EPSG:3832')
    assert -180 <= far[0] < -160
    for crs, latitude in (('EPSG:3413', 90), ('EPSG:3031', -90)):
        assert centre_coordinates(bounds(-10, 10, -10, 10), crs)[1] == pytest.approx(latitude)


def test_box_across_the_antimeridian_and_a_tile_of_each_side_in_utm():
    across = torch.stack([bounds(179.9, -179.7, 1, 2), bounds(179.7, -179.9, 1, 2), bounds(10, 11, 1, 2)])
    assert centre_coordinates(across, 'EPSG:4326')[:, 0].tolist() == pytest.approx([-179.9, 179.9, 10.5])
    for crs in ('EPSG:32660', 'EPSG:32701'):
        for place in ((179.9999, 65.0), (-179.9999, 65.0)):
            x, y = Transformer.from_crs('EPSG:4326', crs, always_xy=True).transform(*place)
            found = centre_coordinates(bounds(x - 640, x + 640, y - 640, y + 640), crs).tolist()
            assert Geod(ellps='WGS84').inv(*found, *place)[2] < 1


def test_tiles_near_the_poles_within_a_metre():
    for crs, latitude in (('EPSG:3413', 89.999), ('EPSG:3031', -89.999)):
        x, y = Transformer.from_crs('EPSG:4326', crs, always_xy=True).transform(100.0, latitude)
        found = centre_coordinates(bounds(x - 640, x + 640, y - 640, y + 640), crs).tolist()
        assert Geod(ellps='WGS84').inv(*found, 100.0, latitude)[2] < 1
    assert centre_coordinates(bounds(-10, 10, 89, 90), 'EPSG:4326').tolist() == pytest.approx([0, 89.5])


def test_no_location():
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    assert centre_coordinates(bounds(0, 10, 0, 10), local).isnan().all()
    assert centre_coordinates(bounds(0, 10, 95, 99), 'EPSG:4326').isnan().all()
