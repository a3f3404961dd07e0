# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Fields of a real area: trained on one half of ``belgium-crops``, predicted and scored on the other half.

The polygons are the connected pixels of one class of the crop map (WorldCereal 2021, a map product), of at least 0.1
ha. So touching fields of one crop are one polygon, which favours connected pixels, the baseline. A half has only 4 to 7
fields of this size: the scores say little.

Each finished run is appended to the tables: the scores of the fields and of connected pixels, and the scores of a grid
of settings of the watershed. A repeated command continues after them.

    python benchmarks/fields_belgium.py --root DIR
"""

import argparse
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import torch
import yaml
from belgium import CONFIG, ROOT, linked
from crops import digest
from fields import LR, Maps, field_scores, grid, read_rows, scores, write_rows
from lightning.pytorch import Trainer, seed_everything
from rasterio.features import rasterize, shapes
from shapely.geometry import box, shape

from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.evaluation.fields import connected_components, merge_small
from torchgeo_omnisat.prediction import GeoTIFFWriter
from torchgeo_omnisat.prediction.fields.segmentation import FieldOptions
from torchgeo_omnisat.prediction.raster import FIELD_BANDS
from torchgeo_omnisat.tasks import OmniSatSegmentation

#: Minimum size of a field in pixels of 10 m.
SMALLEST = 10
#: Side of a token on the ground and of a training tile in metres.
PATCH, TILE = 20, 160


def write_polygons(crops: Path, labels: list[str], output: Path) -> None:
    """Write the connected pixels of each crop as polygons."""
    with rasterio.open(crops) as file:
        found = [(shape(geometry), int(code)) for geometry, code in shapes(file.read(1), transform=file.transform)]
        polygons = [(geometry, labels[code]) for geometry, code in found if code and geometry.area >= 100 * SMALLEST]
        geometries, names = zip(*polygons, strict=True)
        gpd.GeoDataFrame({'crop': names}, geometry=list(geometries), crs=file.crs).to_file(output)


def folder_of(half: str, args: argparse.Namespace) -> Path:
    """Return the folder of model and map."""
    folder: Path = args.output / f'{half}-{args.steps}-{args.seed}-{digest(args.root)}'
    return folder


def run(args: argparse.Namespace, half: str) -> tuple[dict[str, float], dict[str, float], list[dict[str, float]]]:
    """Train on one half, and return the scores of fields, of connected pixels, and of the grid on the other."""
    settings = yaml.safe_load(CONFIG.read_text())['data']['init_args']
    labels, boxes = settings['labels'], settings['split']
    west, east = boxes['train'], boxes['test']
    train, test = (west, east) if half == 'west' else (east, west)
    root = linked(args.root, args.output / 'data')
    (crops,) = (root / 'crops').glob('*.tif')
    polygons = root / 'polygons.gpkg'
    write_polygons(crops, labels, polygons)
    seed_everything(args.seed)
    data = MultimodalGeoDataModule(
        **settings
        | {
            'root': str(root),
            'mask': {'path': polygons.name, 'column': 'crop', 'outside': labels[0]},
            'split': {'train': train, 'test': test},
            'tile_size': TILE,
            'patch_size': PATCH,
            'label_gsd': 10,
            'length': 8 * args.steps,
            'batch_size': 8,
            'temporal_dropout': (0.0, 0.75),
        }
    )
    folder = folder_of(half, args)
    common: dict[str, Any] = {'accelerator': 'cpu', 'logger': False, 'default_root_dir': folder}
    common |= {'enable_checkpointing': False, 'enable_progress_bar': False}
    last, path = folder / 'last.ckpt', folder / 'map.tif'
    if not last.exists():
        trainer = Trainer(max_epochs=1, limit_val_batches=0, num_sanity_val_steps=0, **common)
        trainer.fit(OmniSatSegmentation('omnisat_tiny', instances=True, lr=LR, modality_dropout=0.1), data)
        trainer.save_checkpoint(last)
    writer = GeoTIFFWriter(str(path), fields=True)
    task = OmniSatSegmentation.load_from_checkpoint(last)
    Trainer(callbacks=[writer], **common).predict(task, data, return_predictions=False)
    maps, classes = read_maps(path, polygons, labels, test)
    defaults = FieldOptions()
    fields = field_scores(maps, None, SMALLEST, defaults.threshold, defaults.h)
    classes = merge_small(classes, SMALLEST)
    return fields, scores(connected_components(classes, 0), classes, maps, None), grid(maps, None, SMALLEST)


def read_maps(path: Path, polygons: Path, labels: list[str], bounds: list[float]) -> tuple[Maps, torch.Tensor]:
    """Return predicted and true maps of a box, and the predicted classes."""
    with rasterio.open(path) as file:
        window = file.window(*bounds).round_offsets().round_lengths()
        bands, transform = file.read(window=window), file.window_transform(window)
        values = bands * np.array(file.scales)[:, None, None]
        names = list(file.descriptions)
    interior, boundary, distance = (values[names.index(name)] for name in FIELD_BANDS)
    probabilities = np.stack([values[names.index(f'probability {name}')] for name in labels])
    truth = gpd.read_file(polygons, mask=box(*bounds))
    layers = []
    for codes in (range(1, len(truth) + 1), [labels.index(name) for name in truth['crop']]):
        burnt = zip(truth.geometry, codes, strict=True)
        layers.append(rasterize(burnt, out_shape=distance.shape, transform=transform, dtype='int64'))
    extent = np.stack([1 - interior - boundary, interior, boundary])
    parts = [torch.from_numpy(part)[None] for part in (probabilities, extent, distance, *layers)]
    return Maps(*parts), torch.from_numpy(bands[0].astype(np.int64))[None]


def main() -> None:
    """Run the halves that the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--root', type=Path, default=ROOT.parent / 'shared/data/belgium-crops', help='folder of the data'
    )
    parser.add_argument('--output', type=Path, default=Path('logs/fields_belgium'), help='folder for models and maps')
    parser.add_argument('--results', type=Path, default=Path('benchmarks/results'), help='folder for the tables')
    parser.add_argument('--halves', nargs='+', default=['west', 'east'], choices=['west', 'east'], help='to train on')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, default=150, help='training steps of eight tiles')
    args = parser.parse_args()
    table, search = args.results / 'fields_belgium.csv', args.results / 'fields_belgium_grid.csv'
    for half in args.halves:
        rows = read_rows(table)
        key = {'trained_on': half, 'seed': str(args.seed), 'steps': str(args.steps), 'data': digest(args.root)}
        if any(all(row[name] == value for name, value in key.items()) for row in rows):
            continue
        fields, components, settings = run(args, half)
        write_rows(search, [*read_rows(search), *(key | _text(row) for row in settings)])
        pair = {'fields': fields, 'connected pixels': components}
        write_rows(table, [*rows, *(key | {'method': name} | _text(row) for name, row in pair.items())])
    for row in read_rows(table):
        print(' '.join(row.values()))


def _text(row: dict[str, float]) -> dict[str, str]:
    return {name: f'{value:.6f}' for name, value in row.items()}


if __name__ == '__main__':
    main()
