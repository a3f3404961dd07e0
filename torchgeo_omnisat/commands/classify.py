# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `classify`: map of classes from embeddings and a few labels."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..prediction.classify import (
    Validation,
    classify_map,
    cross_validate,
    default_block,
    fit_classifier,
    read_labels,
    spatial_blocks,
    write_validation,
)
from ..prediction.embedding_maps import EmbeddingMap
from ..prediction.raster import MapBands, class_colors, draw_overview, write_map
from ..prediction.styles import write_raster_style
from ..utils.atomic import naming_errors, publish, scratch_folder
from ..utils.console import align, say
from . import parsers


def main(argv: Sequence[str] | None = None) -> int:
    """Fit a classifier, print its cross-validated scores, and write the map."""
    args = parsers.classify_parser().parse_args(argv)
    if args.output.suffix.lower() not in ('.tif', '.tiff'):
        raise ValueError(f"output is '{args.output}', expected the name of a GeoTIFF such as 'classes.tif'")
    embeddings = EmbeddingMap(args.embeddings)
    pixels = read_labels(args.labels, embeddings, args.column, args.layer, args.max_pixels, args.seed)
    vectors = embeddings.vectors(pixels.rows, pixels.columns)
    observed = np.isfinite(vectors[:, 0])
    if not observed.all():
        say(f'{int((~observed).sum())} of {len(observed)} labelled pixels have no embedding', error=True)
    pixels, vectors = pixels.select(observed), vectors[observed]
    counts = np.bincount(pixels.classes, minlength=len(pixels.labels))
    if (counts > 0).sum() < 2:
        found = dict(zip(pixels.labels, counts.tolist(), strict=True))
        raise ValueError(f'labelled pixels with an embedding are {found}, expected at least 2 classes')
    block = args.block or default_block(pixels, embeddings)
    blocks = spatial_blocks(pixels, embeddings, block)
    validation = cross_validate(args.classifier, vectors, pixels.classes, blocks, pixels.labels, block, args.seed)
    say(report(validation, args.classifier))
    model = fit_classifier(args.classifier, vectors, pixels.classes, args.seed)
    say('\n'.join(['Written:', *map(str, write(args, embeddings, model, validation, len(vectors)))]))
    return 0


def report(validation: Validation, classifier: str) -> str:
    """Return the scores as a table."""
    cells = [('class', 'pixels', 'precision', 'recall', 'F1', 'IoU')]
    for row in validation.rows():
        numbers = [f'{row[key]:.3f}' for key in ('precision', 'recall', 'f1', 'iou')]
        cells.append((row['class'], str(row['pixels']), *numbers))
    scores = validation.scores
    title = (
        f'{classifier}, {validation.folds} folds of {validation.blocks} blocks of {validation.block:g} m: '
        f'accuracy {scores["accuracy"]:.3f}, macro F1 {scores["macro_f1"]:.3f}, mean IoU {scores["mean_iou"]:.3f}'
    )
    return align(cells, '<>>>>>', title)


def write(args: Namespace, embeddings: EmbeddingMap, model: object, validation: Validation, count: int) -> list[Path]:
    """Write map, style, picture and scores atomically, and return their paths."""
    output: Path = args.output
    bands = MapBands(validation.labels, embeddings.sensors, args.probabilities)
    colors = class_colors(len(validation.labels))
    settings = {
        'embeddings': embeddings.paths,
        'labels': str(args.labels),
        'classifier': args.classifier,
        'pixels': count,
        'seed': args.seed,
    }
    tags = {'TIFFTAG_SOFTWARE': 'torchgeo_omnisat', 'CLASSIFIER': args.classifier, 'LABELS': args.labels.name}
    tags |= {key.upper(): f'{value:.4f}' for key, value in validation.scores.items()}
    with scratch_folder(output) as folder, naming_errors(output, folder):
        made, style, picture, table, summary = (
            folder / f'made{ending}' for ending in ('.tif', '.qml', '.png', '.csv', '.json')
        )
        parts = classify_map(model, embeddings, bands)
        write_map(made, folder / 'scratch.tif', embeddings.grid, bands, parts, colors, tags)
        draw_overview(made, bands.labels, colors, output.stem).savefig(picture, dpi=150)
        write_raster_style(style, bands.labels, colors)
        write_validation(validation, table, summary, settings)
        others = (style, picture, table, summary)
        finals = [output, *(output.with_suffix(path.suffix) for path in others)]
        for temporary, final in zip((made, *others), finals, strict=True):
            publish(temporary, final)
    return finals
