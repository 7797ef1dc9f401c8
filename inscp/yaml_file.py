"""YAML files of keys, or one line that says why a file is none."""

from pathlib import Path
from typing import Any

import yaml

from inscp.errors import UserError, first_line


def read_yaml(path: str | Path, fix: str) -> dict[str, Any]:
    """The keys of a file and what they hold.

    Args:
        path: of the file.
        fix: what to do about one that holds no keys.

    Raises:
        UserError: it is not there, no YAML, holds no keys, or has one of them twice.
    """
    try:
        held = yaml.load(Path(path).expanduser().read_text("utf-8"), _Loader)
    except FileNotFoundError as error:
        raise UserError(str(path), "no such file", "Check the path (it is relative to the current folder).") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        if isinstance(error, _KeyTwice):
            raise UserError(f"{path}{line}", str(error.problem), "Remove one of them.") from error
        raise UserError(f"{path}{line}", f"invalid YAML ({error.problem})", "Fix the file.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(str(path), f"not YAML in UTF-8 ({first_line(error)})", "Fix the file.") from error
    if not isinstance(held, dict):
        raise UserError(str(path), "it contains no keys", fix)
    return held


class _KeyTwice(yaml.MarkedYAMLError):
    pass


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would drop the first in silence."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Looks before anchors (`<<`) are merged into the section, which may have the same keys."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise _KeyTwice(problem=f"the key {key.value} is given twice", problem_mark=key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node
