# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `stats`: mean and standard deviation of every band of the training data."""

from collections.abc import Mapping, Sequence

from ..datamodules.common.statistics import Entries
from ..modality import Modality
from ..utils.cli.console import say
from . import parsers
from .data import data_parser, one_error, parse_data


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the statistics of the training data, store and print them; return 1 if some are missing, else 0."""
    _, datamodule = parse_data(parsers.stats_parser(data_parser), argv)
    with one_error('stats'):
        train, entries, path = datamodule.measure()
    say(format_statistics(train.modalities, entries))
    empty = [name for name, groups in entries.items() if not any(entry['mean'] for entry in groups.values())]
    for name in empty:
        say(f'{name!r} has no valid pixel in {train.path}, expected at least one', error=True)
    if path is None:
        return 1
    say(f'Written to {path}, which training, testing and prediction on {train.path} read.')
    return 1 if empty else 0


def format_statistics(modalities: Mapping[str, Modality], entries: Entries) -> str:
    """Return a table of mean and standard deviation by modality, group and band."""
    lines = [f'{"modality":<10}{"group":<10}{"samples":>8}  {"band":<8}{"mean":>14}{"std":>14}']
    for name, groups in entries.items():
        for group, entry in groups.items():
            start = f'{name:<10}{group:<10}{entry["samples"]:>8}  '
            if not entry['mean']:
                lines.append(f'{start}no valid pixels')
            for band, mean, std in zip(modalities[name].bands, entry['mean'], entry['std'], strict=False):
                lines.append(f'{start}{band:<8}{mean:>14.4f}{std:>14.4f}')
                start = ' ' * len(start)
    return '\n'.join(lines)
