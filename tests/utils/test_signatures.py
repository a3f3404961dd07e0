# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import inspect
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from torchgeo_omnisat.datamodules import PASTISMultimodalDataModule
from torchgeo_omnisat.utils.signatures import with_arguments_of


class Source:
    def __init__(self, root: str = 'data', size: int = 3, split: str = 'train') -> None:
        """Initialize.

        Args:
            root: Directory.
            size: Side of an image
                in pixels.
            split: Name of the split.

        Raises:
            ValueError: Never.
        """


class Wrapper:
    @with_arguments_of(Source, without=('split',), is_last=True)
    def __init__(self, root: str = 'mine', **kwargs: Any) -> None:
        """Initialize.

        Args:
            root: Another directory.
            **kwargs: Other arguments.

        Raises:
            OSError: Never.
        """
        self.arguments = kwargs | {'root': root}


def test_signature_and_docstring() -> None:
    assert str(inspect.signature(Wrapper)) == "(root: str = 'mine', *, size: int = 3) -> None"
    doc = inspect.getdoc(Wrapper.__init__)
    expected = (
        'Args:\n    root: Another directory.\n    size: Side of an image\n        in pixels.\n\nRaises:\n    OSError'
    )
    assert expected in (doc or '')


def test_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Wrapper, 'wrapper')
    assert parser.parse_args(['--wrapper.size', '5']).wrapper.size == 5
    assert 'Side of an image' in parser.format_help()


def test_datamodules_refuse_what_only_check_uses() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PASTISMultimodalDataModule, 'data')
    assert parser.parse_args(['--data.missing', 'allow', '--data.max_dates', '4']).data.max_dates == 4
    for arguments in (['--data.missing', 'check'], ['--data.folds', '[1]']):
        with pytest.raises(Exception, match=arguments[0].rpartition('.')[2]):
            parser.parse_args(arguments)
