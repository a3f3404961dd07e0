# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""YAML configurations, with a limit on the expansion of aliases."""

import yaml

#: Maximum number of values in a configuration after aliases are expanded.
MAX_EXPANDED_VALUES = 100_000


def load_config(text: str, path: str) -> object:
    """Parse a YAML configuration; raise ValueError if its aliases expand to too many values."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        count = 0 if node is None else _expanded(node, {})
    except RecursionError:
        raise ValueError(f'{path} exceeds the recursion limit, expected a configuration with less nesting') from None
    if count > MAX_EXPANDED_VALUES:
        raise ValueError(f'{path} has more than {MAX_EXPANDED_VALUES} values with expanded aliases, expected fewer')
    return yaml.safe_load(text)


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float('inf')  # until its children are counted, so that recursive aliases are infinite
        parts = [part for pair in node.value for part in (pair if isinstance(node, yaml.MappingNode) else (pair,))]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]
