"""`prepare`: the rows of a training in the cache, before a GPU waits for them."""

from inscp.commands.inspect import DataCLI
from inscp.commands.quiet import quiet


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp prepare --config …`"""
    quiet()
    data = PrepareCLI.unrun(arguments).datamodule
    data.require_sources()
    data.setup()
    print(f"data: {data.report}")
    for name, rows in data.validation_rows.items():
        print(f"held-out {name}: {rows.report}")


class PrepareCLI(DataCLI):
    told_as = "prepare"
