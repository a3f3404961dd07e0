# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `classify`: map of classes from embeddings and a few labels."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..prediction.embeddings.few_labels import (
    Validation,
    classify_map,
    cross_validate,
    default_block,
    fit_classifier,
    read_labels,
    spatial_blocks,
    write_validation,
)
from ..prediction.embeddings.reader import EmbeddingMap, check_outputs
from ..prediction.raster import MapBands, class_colors, draw_overview, write_map
from ..prediction.styles import write_raster_style
from ..utils.atomic import naming_errors, publish, scratch_folder
from ..utils.cli.console import align, printable, say
from ..utils.figures import save_figure
from ..utils.plurals import counted
from . import parsers

#: Extensions of the files beside the map: QGIS style, picture, scores of each class, and all scores.
_ENDINGS = ('.qml', '.png', '.csv', '.json')


def main(argv: Sequence[str] | None = None) -> int:
    """Fit a classifier, print its cross-validated scores, and write the map."""
    args = parsers.classify_parser().parse_args(argv)
    check_outputs(outputs_of(args.output), [*args.embeddings, args.labels])
    embeddings = EmbeddingMap(args.embeddings)
    pixels = read_labels(args.labels, embeddings, args.column, args.layer, args.max_pixels, args.seed)
    unused = list(pixels.unused)
    vectors = embeddings.vectors(pixels.rows, pixels.columns)
    observed = np.isfinite(vectors[:, 0])
    if not observed.all():
        unused.append(f'{int((~observed).sum())} of {counted(len(observed), "labelled pixel")} without an embedding')
    for text in unused:
        say(text, error=True)
    pixels, vectors = pixels.select(observed), vectors[observed]
    counts = np.bincount(pixels.classes, minlength=len(pixels.labels))
    if (counts > 0).sum() < 2:
        found = dict(zip(pixels.labels, counts.tolist(), strict=True))
        reasons = f' ({"; ".join(unused)})' if unused else ''
        raise ValueError(f'labelled pixels with an embedding are {found}, expected at least 2 classes{reasons}')
    block = args.block or default_block(pixels, embeddings)
    blocks = spatial_blocks(pixels, embeddings, block)
    validation = cross_validate(args.classifier, vectors, pixels.classes, blocks, pixels.labels, block, args.seed)
    say(report(validation, args.classifier))
    model = fit_classifier(args.classifier, vectors, pixels.classes, args.seed)
    say('\n'.join(['Written:', *map(str, write(args, embeddings, model, validation, len(vectors)))]))
    return 0


def outputs_of(output: Path) -> list[Path]:
    """Return the paths of the map and of the files beside it."""
    return [output, *(output.with_suffix(ending) for ending in _ENDINGS)]


def report(validation: Validation, classifier: str) -> str:
    """Return the scores as a table."""
    cells: list[tuple[str, ...]] = [('class', 'pixels', 'precision', 'recall', 'F1', 'IoU')]
    for row in validation.rows():
        numbers = [f'{row[key]:.3f}' for key in ('precision', 'recall', 'f1', 'iou')]
        cells.append((printable(row['class']), str(row['pixels']), *numbers))
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
        made, style, picture, table, summary = (folder / f'made{ending}' for ending in ('.tif', *_ENDINGS))
        parts = classify_map(model, embeddings, bands)
        write_map(made, folder / 'scratch.tif', embeddings.grid, bands, parts, colors, tags)
        save_figure(draw_overview(made, bands.labels, colors, output.stem), picture, dpi=150)
        write_raster_style(style, bands.labels, colors)
        write_validation(validation, table, summary, settings)
        finals = outputs_of(output)
        for temporary, final in zip((made, style, picture, table, summary), finals, strict=True):
            publish(temporary, final)
    return finals
