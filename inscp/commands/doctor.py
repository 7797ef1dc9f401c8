"""`doctor`: what this machine can run, and whether a training run fits."""

import logging

from inscp.commands.machine import report
from inscp.commands.quiet import quiet


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp doctor [--config …]`"""
    if not arguments:
        quiet()
        print(report())
        return
    # These import Lightning, which the report on the machine does not need.
    from inscp.commands.resources import DoctorCLI, Training, report_training

    quiet()  # after Lightning's import, which sets its log level itself
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # a failure becomes one line
    report_training(Training(DoctorCLI.unrun(arguments)))
