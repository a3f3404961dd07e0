# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Configurations: YAML whose aliases expand to a bounded size."""

import yaml

#: Greatest number of values that a configuration holds, with every alias expanded.
MOST_VALUES = 100_000


def load_config(text: str, path: str) -> object:
    """Return what a YAML file holds, unless its aliases expand to an implausible size.

    Args:
        text: The content.
        path: The file, for an error.

    Raises:
        ValueError: If aliases refer to themselves or the values are more than :data:`MOST_VALUES`.
        yaml.YAMLError: If it is no YAML.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        count = 0 if node is None else _expanded(node, {})
    except RecursionError:
        raise ValueError(f'{path} is nested too deeply, expected a configuration') from None
    if count > MOST_VALUES:
        raise ValueError(
            f'{path} holds more than {MOST_VALUES} values once its aliases are expanded, expected a configuration'
        )
    return yaml.safe_load(text)


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """Return the number of values of a node; infinity if it contains itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float('inf')  # until all below it is counted
        parts = [part for pair in node.value for part in (pair if isinstance(node, yaml.MappingNode) else (pair,))]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]
