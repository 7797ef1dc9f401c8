"""Reading YAML files of keys, with one-line errors."""

from pathlib import Path
from typing import Any

import yaml

from inscp.errors import UserError, first_line


def read_yaml(path: str | Path, fix: str) -> dict[str, Any]:
    """The keys and values of a file.

    Args:
        path: the file.
        fix: what to do about a file without keys.

    Raises:
        UserError: it does not exist, is not YAML, has no keys, or has one of them twice.
    """
    try:
        held = yaml.load(Path(path).expanduser().read_text("utf-8"), _Loader)
    except FileNotFoundError as error:
        raise UserError(str(path), "no such file", "Check the path (it is relative to the current folder).") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        if isinstance(error, _DuplicateKey):
            raise UserError(f"{path}{line}", str(error.problem), "Remove one of them.") from error
        raise UserError(f"{path}{line}", f"invalid YAML ({error.problem})", "Fix the file.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(str(path), f"not YAML in UTF-8 ({first_line(error)})", "Fix the file.") from error
    if not isinstance(held, dict):
        raise UserError(str(path), "it contains no keys", fix)
    return held


class _DuplicateKey(yaml.MarkedYAMLError):
    pass


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which PyYAML would silently drop the first."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Check before anchors (`<<`) are merged into the mapping, which may have the same keys."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise _DuplicateKey(problem=f"the key {key.value} is given twice", problem_mark=key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node
