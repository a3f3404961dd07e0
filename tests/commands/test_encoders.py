# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The table of encoders, without a download."""

from pathlib import Path

import pytest
from torchgeo.models import ResNet50_Weights

from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.commands import parsers
from torchgeo_omnisat.models.encoders.pretrained.catalogue import SENSORS, catalogue


def test_the_table_lists_a_sensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path))
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints' / ResNet50_Weights.SENTINEL1_ALL_MOCO.url.rpartition('/')[2]).touch()
    assert main(['encoders', '--sensor', 's1']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['name', 'weights', 'bands', 'M', 'stride', 'on', 'disk', 'licence']
    (moco,) = (line for line in lines if line.startswith('resnet50') and 'SENTINEL1_ALL_MOCO' in line)
    assert ' '.join(moco.split()).startswith('resnet50 SENTINEL1_ALL_MOCO VV VH 23.5 2..32 ')
    assert moco.split()[6] == 'yes'
    assert any(line.startswith('presto') for line in lines)
    assert not any('SENTINEL2' in line for line in lines)


def test_the_table_of_all_sensors_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['encoders']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ['sensor', 'name']
    assert {line.split()[0] for line in lines[1 : lines.index('')]} == set(SENSORS)


def test_pixel_encoders_are_listed() -> None:
    rows = {(row.sensor, row.name): row for row in catalogue() if row.name == 'tessera'}
    assert {key: row.weights for key, row in rows.items()} == {
        ('s2', 'tessera'): 'TESSERA_SENTINEL2_ENCODER',
        ('s1', 'tessera'): 'TESSERA_SENTINEL1_ENCODER',
    }
    assert {(round(row.parameters / 1e6), row.licence) for row in rows.values()} == {(44, 'cc0-1.0')}


def test_foundation_models_are_listed() -> None:
    rows = {(row.sensor, row.weights): row for row in catalogue()}
    found = {key: (round(row.parameters / 1e6), row.strides, row.licence) for key, row in rows.items()}
    assert found['s1', 'CROMABase_Weights.CROMA_VIT'] == (43, '8', 'mit')
    assert found['s2', 'CROMABase_Weights.CROMA_VIT'] == (86, '8', 'mit')
    assert found['rgb', 'DOFABase16_Weights.DOFA_MAE'] == (111, '16', 'cc-by-4.0')
    assert found['s2', 'DOFALarge16_Weights.DOFA_MAE'][0] > 300
    assert found['landsat', 'Panopticon_Weights.VIT_BASE14'][1:] == ('14', 'apache-2.0')
    assert found['s2', 'DEO_Weights.DEO_SWIN'] == (87, '4..32', 'MIT')
    assert found['s1', 'CopernicusFM_Base_Weights.CopernicusFM_ViT'][2] == 'cc-by-4.0'


def test_licences_of_repositories_are_stated() -> None:
    rows = {(row.name, row.weights): row.licence for row in catalogue()}
    assert rows['resnet18', 'SENTINEL2_ALL_MOCO'] == 'cc-by-4.0'
    assert rows['swin_v2_t', 'SENTINEL2_MI_MS_SATLAS'] == 'odc-by'
    assert rows['resnet50', 'LANDSAT_OLI_SR_MOCO'] == 'cc0-1.0'
    assert rows['swin_t', 'CITYSCAPES_SEMSEG'] == 'cc-by-nc-4.0 *'
    assert rows['resnet50', 'SENTINEL2_ALL_SOFTCON'] == 'cc-by-4.0'
    assert rows['resnet50', 'SENTINEL2_ALL_SECO_ECO'] == 'mit'
    assert not [name for name, licence in rows.items() if licence.startswith('see ')]


def test_olmoearth_is_listed_without_its_package() -> None:
    rows = [row for row in catalogue('s1') if row.name == 'olmoearth']
    assert [row.weights for row in rows] == ['BASE', 'LARGE', 'NANO', 'TINY']
    assert all(row.licence == 'OlmoEarth Artifact License *' and row.strides == '4' for row in rows)


def test_restricted_licences_are_marked() -> None:
    rows = {row.name: row for row in catalogue('rgb')}
    assert rows['convnext_tiny.dinov3_lvd1689m'].licence.endswith('*')
    assert rows['resnet18.a1_in1k'].licence == 'apache-2.0'
    assert parsers.SENSORS == SENSORS
