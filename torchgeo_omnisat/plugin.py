# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Plugin: TorchGeo's command line knows our tasks and datamodules by their short names.

A short name is found among the classes that are imported, so importing this module is
what makes ``--model omnisat`` and ``--data PASTISMultimodalDataModule`` work.
"""

import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask

from . import datamodules, tasks
from .registry import register_models
from .utils import errors
from .utils.configs import load_config
from .utils.console import printable, say, use_utf8
from .utils.help import PlainHelpFormatter

#: What one of our models learns from when the command line names no data.
DEFAULT_DATA = f'{datamodules.__name__}.SyntheticLandscapesDataModule'


class PlainParser(LightningArgumentParser):
    """Parser with help texts without the mark-up of docstrings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create the parser."""
        super().__init__(*args, **{'formatter_class': PlainHelpFormatter, **kwargs})


class BriefParser(PlainParser):
    """Parser that reports an invalid argument in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and exit with status 2; with ``OMNISAT_TRACEBACK=1``, print all that jsonargparse reports.

        Args:
            message: Description of the error.
            ex: The exception that caused it.
        """
        if errors.wants_traceback() or not self.exit_on_error:
            super().error(message, ex)
        parser: Any = getattr(ex, 'subcommand_parser', None) or self
        self.exit(2, f'{parser.prog.replace("[options] ", "")}: error: {printable(errors.of_parser(message))}\n')


class OmniSatCLI(LightningCLI):
    """TorchGeo's command line, where ``--data`` may be left out if the model is one of ours.

    With a model or data of ours, what a user can get wrong ends the program with one line instead of a traceback
    (:mod:`torchgeo_omnisat.utils.errors`). A call of TorchGeo's ``main`` from Python raises the error unchanged.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Run the command line."""
        words = kwargs.get('args')
        if words is None and Path(sys.argv[0]).name == 'torchgeo':
            use_utf8()
        try:
            ours = _is_ours(requested('model', words)) or _is_ours(requested('data', words), BaseDataModule)
        except ValueError as error:
            errors.shorten(error, _program())
            raise
        kwargs.setdefault('parser_class', BriefParser if ours else PlainParser)
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:
            if ours:
                errors.shorten(error, f'{_program()} {getattr(self, "subcommand", None) or ""}'.strip())
            raise

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Call the program what the user typed, ``python -m torchgeo_omnisat`` rather than ``__main__.py``."""
        if Path(sys.argv[0]).name == '__main__.py':
            kwargs.setdefault('prog', _program())
        return super().init_parser(**kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Give ``data`` a default for our models; for all others it stays required.

        Where data are named there is no default: its arguments would be taken for theirs.
        """
        if _is_ours(requested('model', args)) and requested('data', args) is None:
            for subparser in self._subcommand_parsers.values():
                subparser.set_defaults({'data': {'class_path': DEFAULT_DATA}})
        super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Print that the data are synthetic, before anything is read or trained."""
        announce_default_data(self.config[self.subcommand].get('data'))


def announce_default_data(data: Any) -> None:
    """Print that the data are synthetic, if they are the default because no data are configured.

    Args:
        data: ``class_path`` and ``init_args`` of a datamodule, or None.
    """
    if data and data['class_path'].rpartition('.')[-1] == DEFAULT_DATA.rpartition('.')[-1]:
        _announce(
            f'Data: synthetic landscapes ({data["class_path"].rpartition(".")[-1]}, '
            f'root={data["init_args"].get("root")}). They are made up; --data names other data.'
        )


def load() -> None:
    """Add what this package has to TorchGeo; more than once does no harm."""
    from torchgeo import main  # not above: it may be what imports this module, and only half there yet

    register_models()
    if getattr(main, 'LightningCLI', None) is LightningCLI:
        main.LightningCLI = OmniSatCLI  # type: ignore[misc]


def requested(part: str, args: Any) -> str | None:
    """Return the class that a command line requests, None if it is unknown.

    Args:
        part: ``'model'`` or ``'data'``.
        args: A list of words, the nested dictionary that Lightning accepts too, or None for
            the words of this process.

    Raises:
        ValueError: If aliases of a configuration expand to an implausible size.
    """
    args = sys.argv[1:] if args is None else args
    if isinstance(args, Mapping):
        return _configured(part, args)
    peek = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument(f'--{part}', f'--{part}.class_path', dest='named')
    peek.add_argument('-c', '--config', action='append', default=[])
    try:
        known, _ = peek.parse_known_args(args)
        if known.named:
            return str(known.named)
        texts = {path: Path(path).read_text(encoding='utf-8') for path in known.config}
    except (ArgumentError, OSError, ValueError):
        return None  # the real parser explains it better
    try:
        configs = [load_config(text, path) for path, text in texts.items()]
    except yaml.YAMLError:
        return None
    return next(filter(None, (_configured(part, config) for config in reversed(configs))), None)


@rank_zero_only
def _announce(message: str) -> None:
    """Print a line at once, in the first process alone."""
    say(message, error=True)


def _program() -> str:
    """Return what the user typed."""
    program = Path(sys.argv[0])
    return f'python -m {program.parent.name}' if program.name == '__main__.py' else program.name


def _is_ours(model: str | None, base: type[Any] = BaseTask) -> bool:
    """Whether that is the name or the path of a class of this package, a task or another descendant of *base*."""
    package = tasks.__name__.partition('.')[0] + '.'
    names = {task.__name__ for task in _descendants(base) if task.__module__.startswith(package)}
    return model is not None and (model in names or model.startswith(package))


def _descendants(parent: type[Any]) -> Iterator[type[Any]]:
    """All subclasses, and theirs."""
    for child in parent.__subclasses__():
        yield child
        yield from _descendants(child)


def _configured(part: str, config: Any) -> str | None:
    """Return the class of the model or the data in a configuration, or in the section of a subcommand."""
    if not isinstance(config, Mapping):
        return None
    value = config.get(part)
    if isinstance(value, Mapping):
        value = value.get('class_path')
    if isinstance(value, str):
        return value
    return next(filter(None, (_configured(part, config.get(name)) for name in LightningCLI.subcommands())), None)
