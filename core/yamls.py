"""YAML as people write it, read with care: no tags, no aliases, no key twice, not too much."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from core.errors import InputError

MAX_BYTES = 1 << 20


def mapping(text: str, where: str) -> dict[str, Any]:
    """Return the mapping in a YAML text; {} for an empty one."""
    found = value(text, where)
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError("config.not_mapping", where=where)
    return found


def value(text: str, where: str) -> Any:
    """Return the value of a YAML text: safe tags only, no aliases, no key twice, at most 1 MiB."""
    if len(text) > MAX_BYTES:
        raise InputError("config.too_big", where=where, limit=MAX_BYTES)
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error)
        raise InputError("config.yaml", where=where, line=mark.line + 1 if mark else 1, what=what) from None
    except RecursionError:
        raise InputError("config.yaml", where=where, line=1, what="nested too deep") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases (they can grow without bound) and repeated keys (one of them would be lost)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node)
                if key in seen:
                    raise ConstructorError(None, None, f"the key {key} stands twice", key_node.start_mark)
                seen.add(key)
        return mapping
