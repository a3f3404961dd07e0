# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `similar`: map of the similarity to the embedding of a place."""

from collections.abc import Sequence

from ..prediction.embeddings.reader import EmbeddingMap, check_outputs, write_values
from ..prediction.embeddings.similarity import reference_vector, similarity
from ..utils.cli.console import say
from . import parsers


def main(argv: Sequence[str] | None = None) -> int:
    """Write the cosine similarity of every pixel to the mean embedding of the places."""
    args = parsers.similar_parser().parse_args(argv)
    check_outputs([args.output], args.embeddings)
    embeddings = EmbeddingMap(args.embeddings)
    places = [(lon, lat) for lon, lat in args.at]
    reference = reference_vector(embeddings, places)
    tags = {'TIFFTAG_SOFTWARE': 'torchgeo_omnisat', 'PLACES': '; '.join(f'{lon:g} {lat:g}' for lon, lat in places)}
    write_values(args.output, embeddings, 'cosine similarity', similarity(embeddings, reference), tags)
    say(f'Written: {args.output}')
    return 0
