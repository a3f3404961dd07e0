# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Extension of TorchGeo's command line by the tasks and datamodules of this package.

jsonargparse resolves short names among imported classes, so importing this module enables
``--model omnisat`` and ``--data PASTISMultimodalDataModule``.
"""

import os
import re
import shlex
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask

from . import datamodules, tasks
from .datasets.common.arguments import class_at
from .datasets.synthetic.writing import Recipe
from .models.encoders.registry import class_paths, plain_encoders
from .registry import register_models
from .tasks.base import OmniSatTask
from .tasks.checkpoints import limited_size, read_hyper_parameters
from .tasks.console.overview import shorten_defaults
from .tasks.console.progress import EpochSummary
from .utils.cli import errors
from .utils.cli.console import brief_warnings, hide_noise, printable, say, use_utf8
from .utils.cli.help import PlainHelpFormatter
from .utils.plurals import counted
from .utils.reading import load_config

#: Default datamodule of the tasks of this package.
DEFAULT_DATA = f'{datamodules.__name__}.SyntheticLandscapesDataModule'
#: Length of a training on it: maximum number of epochs, and epochs without a better validation score before it ends.
EPOCHS, PATIENCE = 20, 5
#: Arguments of the trainer that set the length of a training.
LENGTHS = {'max_epochs': None, 'max_steps': -1, 'max_time': None, 'fast_dev_run': False}


class PlainParser(LightningArgumentParser):
    """Parser whose help texts do not contain the mark-up of docstrings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{'formatter_class': PlainHelpFormatter, **kwargs})


class BriefParser(PlainParser):
    """Parser that reports an invalid argument in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and exit with status 2; with ``OMNISAT_TRACEBACK=1``, print the full message.

        Args:
            message: Description of the error.
            ex: The exception that caused it.
        """
        if errors.wants_traceback() or not self.exit_on_error:
            super().error(message, ex)
        parser: Any = getattr(ex, 'subcommand_parser', None) or self
        self.exit(2, f'{parser.prog.replace("[options] ", "")}: error: {printable(errors.of_parser(message))}\n')


class OmniSatCLI(LightningCLI):
    """TorchGeo's command line, in which ``--data`` is optional for the tasks of this package.

    With a task or datamodule of this package, errors of the user are printed in one line instead of a traceback
    (:mod:`torchgeo_omnisat.utils.cli.errors`). A call of TorchGeo's ``main`` from Python raises the error unchanged.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        words = kwargs.get('args')
        if words is None and Path(sys.argv[0]).name == 'torchgeo':
            use_utf8()
        try:
            ours = _is_ours(requested('model', words)) or _is_ours(requested('data', words), BaseDataModule)
        except (OSError, ValueError) as error:
            errors.shorten(error, _program())
            raise
        self._ours, self._by_default, self._brief = ours, False, False
        if ours:
            hide_noise(trains=_first_word(words) == 'fit')
            if not errors.wants_traceback():
                brief_warnings()
        kwargs.setdefault('parser_class', BriefParser if ours else PlainParser)
        self._first_word, self._args = _first_word(words), sys.argv[1:] if words is None else words
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:
            if ours:
                errors.shorten(error, f'{_program()} {getattr(self, "subcommand", None) or ""}'.strip())
            raise

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Set the name of the program to ``python -m torchgeo_omnisat`` instead of ``__main__.py``."""
        if Path(sys.argv[0]).name == '__main__.py':
            kwargs.setdefault('prog', _program())
        return super().init_parser(**kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Set a default of ``data`` for the tasks of this package; for others it is required.

        The default is not set if a datamodule is configured, because both would share their arguments.
        """
        if _is_ours(requested('model', args)) and requested('data', args) is None:
            self._by_default = True
            for name, subparser in self._subcommand_parsers.items():
                if self._needs_arguments(name):
                    subparser.set_defaults({'data': {'class_path': DEFAULT_DATA}})
        super().parse_arguments(parser, args)

    def _prepare_subcommand_parser(self, klass: type[Any], subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if self._needs_arguments(subcommand):
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self._subcommand_method_arguments[subcommand] = []
        return self.init_parser(**kwargs)

    def _needs_arguments(self, subcommand: str) -> bool:
        # The arguments of one subcommand take about as long as the rest of the command line.
        return self._first_word not in self.subcommands() or self._first_word == subcommand

    def _parse_ckpt_path(self) -> None:
        """Parse the hyper-parameters of ``--ckpt_path``, which import no class and read no other file.

        They replace those of the command line, which are named if they differ.
        """
        command = self.config.get('subcommand')
        path = (self.config.get(command) or {}).get('ckpt_path')
        if not path or not Path(path := os.path.expanduser(path)).is_file():
            return
        named = class_paths(_plain_config(self.config[command].get('model')))
        if kept := read_hyper_parameters(path, named):
            before = self.config.get(f'{command}.model.init_args')
            self.config = self.parser.parse_object({command: {'model': kept}}, self.config)
            after = self.config.get(f'{command}.model.init_args')
            _announce_replaced(path, _model_arguments(self._args), _plain_config(before), _plain_config(after))
        arguments = self.config.get(f'{command}.model.init_args.backbone_args')
        if arguments and arguments.get('encoders'):
            self.config[f'{command}.model.init_args.backbone_args'] = plain_encoders(arguments)

    def instantiate_classes(self) -> None:
        """Instantiate the classes; a model of ``--ckpt_path`` must not be much larger than this file."""
        path = (self.config.get(self.config.get('subcommand')) or {}).get('ckpt_path')
        with limited_size(path) if path else nullcontext():
            super().instantiate_classes()

    def before_instantiate_classes(self) -> None:
        """Print that the data are synthetic, before anything is read or trained, and limit training on them."""
        announce_default_data(self.config[self.subcommand].get('data'))
        if self.subcommand == 'fit' and self._by_default:
            self._limit_training()

    def _limit_training(self) -> None:
        """Set length, early stopping and checkpoint of a training on the default data, unless they are configured."""
        given = self.config['fit.trainer']
        if any(given.get(name) != unset for name, unset in LENGTHS.items()):
            return
        changes: dict[str, Any] = {'max_epochs': EPOCHS}
        if given.get('callbacks') is None and given.get('enable_checkpointing') is not False:
            score, _, mode = class_at(self.config['fit.model.class_path'], OmniSatTask, '--model').validation_score()
            stopping = {'monitor': score, 'mode': mode, 'patience': PATIENCE}
            checkpoint = {'monitor': score, 'mode': mode, 'filename': 'best', 'enable_version_counter': False}
            changes['callbacks'] = [
                {'class_path': 'lightning.pytorch.callbacks.EarlyStopping', 'init_args': stopping},
                {'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint', 'init_args': checkpoint},
            ]
            self._brief = True
        self.config = self.parser.parse_object({'fit': {'trainer': changes}}, self.config)

    def before_fit(self) -> None:
        """Print how long the training is and where it writes."""
        trainer: Any = self.trainer
        if not self._ours:
            return
        found = self.config['fit.trainer.callbacks'] or []
        callbacks = found if isinstance(found, list) else [found]
        shorten_defaults(trainer, [str(callback.class_path) for callback in callbacks])
        if trainer.fast_dev_run:
            return
        epochs = trainer.max_epochs
        length = 'until it is interrupted' if epochs in (None, -1) else counted(epochs, 'epoch')
        if trainer.max_steps > 0:
            length = counted(trainer.max_steps, 'step')
        if self._brief:
            _, title, _ = self.model.validation_score()
            length = f'at most {length}, or until {PATIENCE} epochs have not improved the {title} of the validation'
        given = self.config['fit.trainer']
        if all(given.get(name) == unset for name, unset in LENGTHS.items()) and not self._by_default:
            length += ', the default of Lightning'
        _announce(f'Training: {length}. Change this with --trainer.max_epochs N.')
        _announce(f'Output: {_log_dir(trainer)}: logs, figures of the validation and checkpoints.')

    def after_fit(self) -> None:
        """Print the best score, the checkpoint and the command that tests it."""
        trainer: Any = self.trainer
        checkpoint = trainer.checkpoint_callback
        best = getattr(checkpoint, 'best_model_path', '')
        path = best or getattr(checkpoint, 'last_model_path', '')  # the only one with save_top_k: 0
        if not self._ours or not path or trainer.interrupted:
            return
        summary = next((c for c in trainer.callbacks if isinstance(c, EpochSummary)), None)
        if summary is not None and summary.best is not None:
            epochs = f'{summary.best[1]} of {trainer.current_epoch}'
            _announce(f'Best {summary.title}: {summary.best[0]:.3f}, in epoch {epochs}.')
        config = Path(_log_dir(trainer), 'config.yaml')
        which = 'the last epoch'
        if best and checkpoint.monitor:
            is_shown = summary is None or summary.score == checkpoint.monitor
            end = 'lowest' if checkpoint.mode == 'min' else 'highest'
            which = 'the best epoch' if is_shown else f'the epoch with the {end} {checkpoint.monitor}'
        _announce(f'Checkpoint of {which}: {_shortest(path)}')
        if config.is_file():
            words = ['torchgeo', 'test', '--config', _shortest(config), '--ckpt_path', _shortest(path)]
            _announce(f'Test it with: {shlex.join(words)}')


def announce_default_data(data: Any) -> None:
    """Print that the data are synthetic, if they are the default.

    Args:
        data: ``class_path`` and ``init_args`` of a datamodule, or None.
    """
    if data and data['class_path'].rpartition('.')[-1] == DEFAULT_DATA.rpartition('.')[-1]:
        _announce(
            f'Data: synthetic landscapes ({data["class_path"].rpartition(".")[-1]}, '
            f'root={data["init_args"].get("root")}{_to_write(data["init_args"])}). Select other data with --data.'
        )


def _to_write(settings: Mapping[str, Any]) -> str:
    """Return how much synthetic data will be written, or an empty text if they exist."""
    root = settings.get('root')
    if not root or ((folder := Path(root).expanduser()).is_dir() and any(folder.iterdir())):
        return ''
    try:
        recipe = Recipe(*(settings[name] for name in ('num_tiles', 'seed', 'size', 'dates', 'version')))
    except (KeyError, TypeError, ValueError):
        return ''  # the dataset reports the error
    return f', to which about {max(1, round(recipe.bytes / 1e6))} MB are written'


def _log_dir(trainer: Any) -> str:
    """Return the folder of the first logger or of the trainer, without communication between ranks."""
    logger = trainer.logger
    folder = getattr(logger, 'log_dir', None) or getattr(logger, 'save_dir', None) or trainer.default_root_dir
    return _shortest(folder)


def _shortest(path: str | Path) -> str:
    """Return a path relative to the working directory if it is below it."""
    full, here = Path(path).absolute(), Path.cwd()
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(path)


def load() -> None:
    """Add the models and the command line of this package to TorchGeo; repeated calls have no effect."""
    from torchgeo import main  # not at the top: it may be importing this module

    register_models()
    if getattr(main, 'LightningCLI', None) is LightningCLI:
        main.LightningCLI = OmniSatCLI  # type: ignore[misc]


def requested(part: str, args: Any) -> str | None:
    """Return the requested class of a command line, None if it is unknown.

    Args:
        part: ``'model'`` or ``'data'``.
        args: List of arguments, nested dictionary as accepted by Lightning, or None for ``sys.argv``.

    Raises:
        FileNotFoundError: If a configuration does not exist.
        ValueError: If a configuration is not valid YAML, or its aliases expand to an implausible size.
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
    except (ArgumentError, ValueError):
        return None  # the parser reports the error
    configs = [_read_config(path) for path in known.config]
    return next(filter(None, (_configured(part, config) for config in reversed(configs))), None)


def _read_config(path: str) -> object:
    """Read a configuration; None for one that is not a local file, which is left to the parser."""
    path = os.path.expanduser(path)
    if not Path(path).is_file():
        if re.search(r'[{}:\n]', path) or Path(path).exists():
            return None
        raise FileNotFoundError(f'config is {path!r}, which does not exist, expected a YAML file, such as one of init')
    try:
        config = load_config(Path(path).read_text(encoding='utf-8'), path)
    except UnicodeDecodeError as error:
        raise ValueError(f'config {path} is not text in UTF-8, expected a YAML file') from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, 'problem_mark', None), getattr(error, 'problem', None) or error
        where = '' if mark is None else f' in line {mark.line + 1}'
        tab = '' if "'\\t'" not in str(problem) else ': indent with spaces instead of tabs'
        raise ValueError(f'config {path} is not valid YAML{where}: {problem}{tab}') from error
    if not isinstance(config, Mapping):
        raise ValueError(
            f'config {path} has no settings, expected a YAML file with data and model, such as one of init'
        )
    return config


def _first_word(args: Any) -> str | None:
    args = sys.argv[1:] if args is None else args
    return args[0] if isinstance(args, list | tuple) and args else None


@rank_zero_only
def _announce(message: str) -> None:
    say(message, error=True)


def _announce_replaced(path: Any, names: Iterable[str], before: Any, after: Any) -> None:
    """Print which of the arguments *names* of a model the hyper-parameters of a checkpoint replace."""
    kept = {name: after.get(name) for name in names if before and after and name in before}
    replaced = [name for name, value in kept.items() if not isinstance(value, dict) and value != before[name]]
    if replaced:
        ours, theirs = (', '.join(f'{name}={values[name]!r}' for name in replaced) for values in (before, after))
        _announce(f'Model: {theirs} of {path}, with which it was trained, instead of {ours} of the command line.')


def _model_arguments(args: Any) -> list[str]:
    """Return the names of the arguments of the model on a command line."""
    words = [str(word) for word in args] if isinstance(args, list | tuple) else []
    found = [re.match(r'--model\.(?:init_args\.)?(\w+)(?:=|$)', word) for word in words]
    return list(dict.fromkeys(match[1] for match in found if match))


def _program() -> str:
    program = Path(sys.argv[0])
    return f'python -m {program.parent.name}' if program.name == '__main__.py' else program.name


def _is_ours(model: str | None, base: type[Any] = BaseTask) -> bool:
    """Return whether *model* is the name or the import path of a class of this package, a subclass of *base*."""
    package = tasks.__name__.partition('.')[0] + '.'
    names = {task.__name__ for task in _descendants(base) if task.__module__.startswith(package)}
    return model is not None and (model in names or model.startswith(package))


def _plain_config(config: Any) -> Any:
    return config.as_dict() if hasattr(config, 'as_dict') else config


def _descendants(parent: type[Any]) -> Iterator[type[Any]]:
    for child in parent.__subclasses__():
        yield child
        yield from _descendants(child)


def _configured(part: str, config: Any) -> str | None:
    if not isinstance(config, Mapping):
        return None
    value = config.get(part)
    if isinstance(value, Mapping):
        value = value.get('class_path')
    if isinstance(value, str):
        return value
    return next(filter(None, (_configured(part, config.get(name)) for name in LightningCLI.subcommands())), None)
