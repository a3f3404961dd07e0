# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `encoders`: table of encoders and pre-trained weights for a sensor."""

from ..models.encoders.pretrained.catalogue import Row, catalogue
from ..utils.cli.console import align, say
from . import parsers


def main(argv: list[str]) -> int:
    """Print the table."""
    words = parsers.encoders_parser().parse_args(argv)
    say(report(catalogue(words.sensor), sensors=words.sensor is None))
    say('\n  --model.backbone_args \'{"encoders": {"s2": {"name": NAME, "weights": WEIGHTS}}}\'')
    say('  weights of timm: {"name": NAME, "pretrained": true}. * non-commercial or restricted: read the licence.')
    return 0


def report(rows: list[Row], sensors: bool) -> str:
    """Return the table of encoders, with a column of *sensors* on request."""
    head = ('sensor', 'name', 'weights', 'bands', 'M', 'stride', 'on disk', 'licence')
    lines = [
        (
            row.sensor,
            row.name,
            row.weights,
            row.bands,
            f'{row.parameters / 1e6:.1f}',
            row.strides,
            'yes' if row.on_disk else 'no',
            row.licence,
        )
        for row in rows
    ]
    return align([line[0 if sensors else 1 :] for line in [head, *lines]])
