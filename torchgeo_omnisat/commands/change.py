# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `change`: map of the change between two embedding maps."""

from collections.abc import Sequence

from ..prediction.embeddings.reader import EmbeddingMap, check_outputs, write_values
from ..prediction.embeddings.similarity import change
from ..utils.cli.console import say
from . import parsers


def main(argv: Sequence[str] | None = None) -> int:
    """Write 1 - cosine of the embeddings of every pixel."""
    args = parsers.change_parser().parse_args(argv)
    check_outputs([args.output], [args.before, args.after])
    before, after = EmbeddingMap([args.before]), EmbeddingMap([args.after])
    if len(before.weights | after.weights) > 1:
        say(
            f'{args.before} and {args.after} are of models with different weights: their vectors cannot be compared',
            error=True,
        )
    tags = {'TIFFTAG_SOFTWARE': 'torchgeo_omnisat', 'BEFORE': args.before.name, 'AFTER': args.after.name}
    write_values(args.output, before, '1 - cosine similarity', change(before, after), tags)
    say(f'Written: {args.output}')
    return 0
