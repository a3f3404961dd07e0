# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Arguments of the commands for a datamodule, as in TorchGeo's command line."""

from argparse import SUPPRESS
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ..datamodules import MultimodalDataModule
from ..plugin import DEFAULT_DATA, BriefParser, announce_default_data, requested
from ..utils.cli import errors
from .parsers import CONFIG_HELP, describe

#: Other keys of a configuration for ``torchgeo fit``, which our commands accept.
TRAINING = ('seed_everything', 'trainer', 'model', 'optimizer', 'lr_scheduler', 'ckpt_path', 'weights_only', 'verbose')


def data_parser(command: str, description: str) -> ArgumentParser:
    """Create a parser for ``--data NAME --data.root DIR ...`` and ``--config FILE``."""
    parser = BriefParser(prog=f'python -m torchgeo_omnisat {command}', description=describe(description))
    parser.add_argument('-c', '--config', action='config', help=CONFIG_HELP)
    for name in TRAINING:
        parser.add_argument(f'--{name}', type=Any, help=SUPPRESS)
    parser.add_subclass_arguments(MultimodalDataModule, 'data', required=False, help='the datamodule and its arguments')
    return parser


def parse_data(parser: ArgumentParser, argv: Sequence[str] | None = None) -> tuple[Namespace, MultimodalDataModule]:
    """Return the parsed command line and the datamodule that it configures, before any data are read.

    *parser* is that of :func:`data_parser` with the arguments of the command. The arguments of :data:`TRAINING` are
    returned as ``training``.
    """
    words = None if argv is None else list(argv)
    with one_error(parser.prog.rpartition(' ')[-1]):
        named = requested('data', words)
    if named is None:
        # No default if --data is given: the arguments of both would be mixed.
        parser.set_defaults({'data': {'class_path': DEFAULT_DATA}})
    args = parser.parse_args(words)
    training = {name: args.pop(name, None) for name in TRAINING}
    announce_default_data(args.data)
    with one_error(parser.prog.rpartition(' ')[-1]):
        try:
            datamodule: MultimodalDataModule = parser.instantiate_classes(args).data
        except ValueError as error:
            raise ValueError(errors.of_parser(str(error))) from None
    args['training'] = training
    return args, datamodule


def one_error(command: str) -> AbstractContextManager[None]:
    """Return a context in which a user error ends the command with one line and status 1."""
    return errors.one_line(f'python -m torchgeo_omnisat {command}')
