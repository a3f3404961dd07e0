# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `export`: write a trained backbone to a folder for sharing."""

from ..tasks.backbone import export_hub
from ..tasks.checkpoints import CONFIG, MODEL
from ..utils.cli.console import say
from . import parsers


def main(argv: list[str]) -> int:
    """Export the backbone of a checkpoint."""
    words = parsers.export_parser().parse_args(argv)
    export_hub(words.ckpt, words.output)
    say(f'{words.output / MODEL}\n{words.output / CONFIG}\nFine-tune with --model.weights {words.output}')
    return 0
