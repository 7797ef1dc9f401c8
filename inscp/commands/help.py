"""The `--help` of the training commands: our own keys in full, then Lightning's by name and default."""

from argparse import Action, HelpFormatter
from collections.abc import Iterable
from typing import Any

from jsonargparse import DefaultHelpFormatter

from inscp.commands import COMMANDS

_KEYS = """\
Each key can be set in the file (row_length: 512 under data:) or on the command line; the last one given wins.
An environment variable ({variable}) applies if neither sets the key.
"""
_TRAINER = "Keys of lightning.Trainer and defaults (https://lightning.ai/docs/pytorch/stable/common/trainer.html)"
_CHECKPOINTS = {
    "ckpt_path": "checkpoint to resume from, or to measure; `last` finds the newest one of this configuration.",
    "weights_only": "read only tensors and plain data, which cannot run code. (default: true)",
}


class TrainingHelp(DefaultHelpFormatter):
    """Help without the names of environment variables, and with one line for each of Lightning's own keys."""

    def add_usage(self, usage: str | None, actions: Iterable[Action], *args: Any, **kwargs: Any) -> None:
        super().add_usage(usage, actions if usage else [], *args, **kwargs)

    def _format_action(self, action: Action) -> str:
        if action.dest.startswith("trainer."):
            default = "null" if action.default is None else action.default
            return "" if action.dest.endswith(".help") else f"  --{action.dest} {default}\n"
        return super()._format_action(action)

    def _format_action_invocation(self, action: Action) -> str:
        return HelpFormatter._format_action_invocation(self, action)

    def _get_help_string(self, action: Action) -> str:
        return _CHECKPOINTS.get(action.dest) or super()._get_help_string(action)


class HelpInOrder:
    """Mixin of a training command's parser: in its help, Lightning's keys follow our own."""

    command_name: str
    env_prefix: str
    _action_groups: list[Any]

    def format_help(self) -> str:
        if not self.command_name:  # the parser of a class inside a key
            return super().format_help()  # type: ignore[misc,no-any-return]
        config = "[--config FILE]" if self.command_name.endswith(" doctor") else "--config FILE"
        self.usage = f"{self.command_name} {config} [--KEY VALUE ...]"
        purpose, variable = (
            COMMANDS[self.command_name.rpartition(" ")[2]],
            f"{self.env_prefix}_DATA__ROW_LENGTH".upper(),
        )
        self.description = f"{purpose[0].upper()}{purpose[1:]}. {_KEYS.format(variable=variable)}"
        self._action_groups[:] = [group for group in self._action_groups if group.title != "Linked arguments"]
        for group in self._action_groups:
            keys = {action.dest for action in group._group_actions}
            group.title = _TRAINER if "trainer" in keys else "A checkpoint" if "ckpt_path" in keys else group.title
        self._action_groups.sort(key=lambda group: group.title == _TRAINER)
        return super().format_help()  # type: ignore[misc,no-any-return]
