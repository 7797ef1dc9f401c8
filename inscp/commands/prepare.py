"""`prepare`: tag and pack the training data into the cache, before a GPU waits for it."""

from inscp.commands.inspect import DataCLI
from inscp.commands.quiet import quiet
from inscp.signals import stopping_well


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp prepare --config …`"""
    quiet()
    data = PrepareCLI.unrun(arguments).datamodule
    data.require_sources()
    with stopping_well():  # else a signal would leave incomplete rows in the cache
        data.setup()
    print(f"data: {data.report}")
    for name, rows in data.validation_rows.items():
        print(f"held-out {name}: {rows.report}")


class PrepareCLI(DataCLI):
    command_name = "prepare"
