# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""``python -m torchgeo_omnisat``: TorchGeo's command line without import hook, and further commands."""

import sys
from difflib import get_close_matches
from importlib import import_module

from torchgeo_omnisat.utils.cli import errors
from torchgeo_omnisat.utils.cli.console import brief_warnings, expand_home, use_utf8

#: Commands of this package: modules of :mod:`torchgeo_omnisat.commands` with ``main(argv) -> int``.
COMMANDS = {
    'init': 'write a configuration for a folder of rasters and labels',
    'demo': 'train on synthetic landscapes, score the model and draw its predictions',
    'reproduce': 'reproduce published scores on a public dataset, and write a report',
    'encoders': 'list encoders and pre-trained weights for a sensor',
    'export': 'write the backbone of a checkpoint to a folder for the Hugging Face Hub',
    'baseline': 'score pixel-wise classifiers as baselines',
    'stats': 'compute mean and standard deviation of every band of the training data',
    'report': 'write the results of a run to one HTML file',
    'robustness': 'score a model with missing and degraded sensors',
    'shard': 'write samples into large files, for clusters and object stores',
    'check': 'check files, values, dates and labels of a dataset before training',
    'classify': 'make a map of classes from embeddings and a few labels',
    'similar': 'make a map of the similarity to the embedding of a place',
    'change': 'make a map of the change between two embedding maps',
}
TORCHGEO = {
    'fit': 'train a model',
    'validate': 'score a model on the validation data',
    'test': 'score a model on the test data, for every subset of the modalities',
    'predict': 'apply a model and write its maps',
}


def main(argv: list[str] | None = None) -> int:
    """Run a command with the arguments *argv*, ``sys.argv[1:]`` by default."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ('-h', '--help'):
        print(_help())
        return 0
    if words[0] in COMMANDS and {'-h', '--help'} & set(words):
        import_module('torchgeo_omnisat.commands.parsers').PARSERS[words[0]]().print_help()
        return 0
    if words[0] in COMMANDS:
        if not errors.wants_traceback():
            brief_warnings()
        with errors.one_line(f'python -m torchgeo_omnisat {words[0]}'):
            return int(import_module(f'torchgeo_omnisat.commands.{words[0]}').main(expand_home(words[1:])))
    if words[0] not in TORCHGEO and not words[0].startswith('-'):
        near = get_close_matches(words[0], [*TORCHGEO, *COMMANDS], 1)
        hint = f'; did you mean {near[0]}?' if near else ''
        print(
            f'python -m torchgeo_omnisat: error: unknown command {words[0]!r}, expected one of '
            f'{", ".join([*TORCHGEO, *COMMANDS])}{hint}',
            file=sys.stderr,
        )
        return 2
    torchgeo = import_module('torchgeo.main')
    import_module('torchgeo_omnisat.plugin').load()
    torchgeo.main(argv)
    return 0


def _help() -> str:
    lines = ['usage: python -m torchgeo_omnisat COMMAND ...', '']
    lines += ['Commands of TorchGeo, with our models and datamodules:']
    lines += [f'  {name:<11}{text}' for name, text in TORCHGEO.items()]
    lines += ['', 'Our own commands:']
    lines += [f'  {name:<11}{text}' for name, text in COMMANDS.items()]
    lines += ['', 'python -m torchgeo_omnisat fit --model omnisat trains on synthetic landscapes,']
    lines += ['python -m torchgeo_omnisat COMMAND --help says more.']
    return '\n'.join(lines)


if __name__ == '__main__':
    use_utf8()
    sys.exit(main())
