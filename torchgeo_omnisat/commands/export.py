# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""``python -m torchgeo_omnisat export``: a trained backbone as a folder that can be shared."""

import argparse
from pathlib import Path

from ..tasks.checkpoints import CONFIG, MODEL
from ..tasks.hub import export_hub


def main(argv: list[str]) -> int:
    """Export the backbone of a checkpoint.

    Args:
        argv: The words after ``export``.

    Returns:
        The exit status, 0 for success.
    """
    parser = argparse.ArgumentParser(prog='python -m torchgeo_omnisat export', description=__doc__.splitlines()[0])
    parser.add_argument('--ckpt', type=Path, required=True, help='checkpoint of one of our tasks')
    parser.add_argument('--output', type=Path, required=True, help=f'folder for {CONFIG} and {MODEL}')
    words = parser.parse_args(argv)
    export_hub(words.ckpt, words.output)
    print(f'{words.output / MODEL}\n{words.output / CONFIG}\nFine-tune with --model.weights {words.output}')
    return 0
