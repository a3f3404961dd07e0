# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `shard`: write the samples of a datamodule to shards, which are large files."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..datamodules.adapters import describe_samples
from ..datamodules.common.statistics import stream
from ..datasets.common.arguments import SPLITS
from ..datasets.shards import FILE, encode_sample, write_split
from ..utils.atomic import atomic_folder
from ..utils.cli.console import say
from ..utils.plurals import counted
from . import parsers
from .data import data_parser, one_error, parse_data


def main(argv: Sequence[str] | None = None) -> int:
    """Write shards of all splits."""
    args, datamodule = parse_data(parsers.shard_parser(data_parser), argv)
    with one_error('shard'):
        shards = write(datamodule, args.output, args.megabytes)
    for split, lengths in shards.items():
        say(f'{split}: {counted(sum(lengths), "sample")} in {counted(len(lengths), "file")}')
    say(f'Wrote {args.output}, for --data ShardedDataModule --data.root {args.output}')
    return 0


def write(datamodule: Any, output: Path, megabytes: float) -> dict[str, list[int]]:
    """Write the shards of all splits of a datamodule; *output* must not exist, and each split needs samples."""
    if output.exists():
        raise ValueError(f'output is {output}, which exists already, expected a new folder')
    if not megabytes > 0:
        raise ValueError(f'megabytes is {megabytes}, expected a positive number')
    datamodule.prepare_data()
    datamodule.setup('fit')
    description = describe_samples(datamodule)
    datamodule.setup('test')
    datasets = {split: getattr(datamodule, f'{split}_dataset') for split in SPLITS}
    if lacking := [split for split, dataset in datasets.items() if dataset is None or len(dataset) == 0]:
        raise ValueError(f'splits {lacking} of {type(datamodule).__name__} are empty, expected samples in every split')
    try:
        with atomic_folder(output, exclusive=True) as temporary:
            if output.exists():
                raise ValueError(f'output is {output}, which another process has written, expected a new folder')
            shards = {}
            for split, dataset in datasets.items():
                samples = stream(partial(_encoded, dataset), len(dataset), datamodule.num_workers, split)
                shards[split] = write_split(samples, temporary / split, megabytes)
            (temporary / FILE).write_text(json.dumps({**description, 'shards': shards}, indent=1) + '\n')
    except BlockingIOError:
        raise ValueError(f'output is {output}, which another process is writing, expected another folder') from None
    return shards


def _encoded(dataset: Any, index: int) -> bytes:
    return encode_sample(dataset[index])
