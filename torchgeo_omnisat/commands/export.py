# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `export`: write a trained backbone to a folder for sharing, or a trained model as a program."""

from ..tasks.backbone import export_hub
from ..tasks.checkpoints import CONFIG, MODEL
from ..tasks.deployment.export import TOLERANCE, export_model
from ..utils.cli.console import say
from . import parsers


def main(argv: list[str]) -> int:
    """Export the backbone or the model of a checkpoint."""
    words = parsers.export_parser().parse_args(argv)
    if words.format == 'hub':
        if given := {f'--{name}' for name in ('size', 'dates') if getattr(words, name) is not None}:
            raise ValueError(f'{sorted(given)} are set, but --format is hub, expected them with torch or onnx only')
        export_hub(words.ckpt, words.output)
        say(f'{words.output / MODEL}\n{words.output / CONFIG}\nFine-tune with --model.weights {words.output}')
        return 0
    if words.size is None:
        raise ValueError(f'--size is not set, expected the side of a tile in pixels for --format {words.format}')
    written = export_model(words.ckpt, words.output, words.format, words.size, words.dates)
    say(f'{words.output}\n{written.description}')
    say(f'batch size: {"any" if written.any_batch else "1, because the model depends on it"}')
    if written.difference is None:
        say('The outputs were not checked: onnxruntime is not installed.')
    else:
        say(f'checked: the outputs differ from the model by at most {written.difference:.1e}')
        if written.difference > TOLERANCE:
            say(f'Rounding alone changes the outputs of this model by {written.rounding:.1e}; larger tiles may help.')
    return 0
