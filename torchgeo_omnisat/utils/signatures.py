# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Signatures and docstrings of constructors that pass keyword arguments on."""

import re
from collections.abc import Callable, Collection, Mapping
from inspect import Parameter, getdoc, signature
from typing import Any


def with_arguments_of[F: Callable[..., Any]](
    source: type, without: Collection[str] = (), is_last: bool = False, **annotations: Any
) -> Callable[[F], F]:
    """Document the arguments of another class on a constructor that passes ``**kwargs`` on to it.

    ``--help``, the command line and the documentation read them from its signature and docstring.

    Args:
        source: Class whose constructor gets the arguments.
        without: Arguments that the constructor sets itself.
        is_last: Whether ``**kwargs`` has no other arguments, and is left out of the signature.
        **annotations: Types of arguments that are narrower than in *source*.
    """

    def document(init: F) -> F:
        own = signature(init)
        *named, rest = own.parameters.values()
        passed = [
            parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=annotations.get(name, parameter.annotation))
            for name, parameter in signature(source).parameters.items()
            if name not in own.parameters and name not in without and parameter.kind is not Parameter.VAR_KEYWORD
        ]
        parameters = [*named, *passed, *([] if is_last else [rest])]
        setattr(init, '__signature__', own.replace(parameters=parameters))  # noqa: B010
        theirs = _entries(getdoc(source.__init__) or '')  # type: ignore[misc]
        ours = (getdoc(init) or '') + '\n'
        added = ''.join(theirs[parameter.name] for parameter in passed)
        last = _entries(ours)[rest.name]
        init.__doc__ = ours.replace(last, added + last * (not is_last)).rstrip()
        return init

    return document


def refuse_unexpected(init: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise TypeError for keyword arguments that the signature of a constructor does not have."""
    signature(init).bind_partial(None, **arguments)


def _entries(doc: str) -> dict[str, str]:
    """Return the entries of a section ``Args``, with their indented lines."""
    _, _, arguments = doc.partition('Args:\n')
    entries = re.findall(r'^    \**(?:\w+): .*\n?(?:     .*\n?)*', arguments.partition('\n\n')[0] + '\n', re.MULTILINE)
    return {re.findall(r'\w+', entry)[0]: entry for entry in entries}
