"""YAML written by users, read so that nothing in it can ask for all memory or be lost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

MAX_SHOWN = 300  # characters of a reason


class PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can ask for all memory, and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node; refuse an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not read; write the text out", None
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; refuse a key that occurs twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        counts = Counter(map(repr, keys))
        if repeated := [key for key, count in counts.items() if count > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{repeated[0]} occurs twice in one mapping", node.start_mark
            )
        return super().construct_mapping(node, deep)


def parse_yaml(content: bytes) -> Any:
    """Return the plain values of a YAML file; raise `ValueError` with the reason for any other."""
    try:
        return yaml.load(content.decode("utf-8"), PlainLoader)
    except RecursionError:
        raise ValueError("it nests too deep") from None
    except Exception as error:  # constructors of dates, numbers and keys raise errors of any type
        reason = " ".join(str(error).split())[:MAX_SHOWN] or type(error).__name__
        raise ValueError(reason) from None
