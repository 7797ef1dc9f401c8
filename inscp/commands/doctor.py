"""`doctor`: what this machine can run, and whether a training fits."""

import logging

from inscp.commands.machine import report
from inscp.commands.quiet import quiet


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp doctor [--config …]`"""
    if not arguments:
        quiet()
        print(report())
        return
    # With Lightning, which the machine's report does without.
    from inscp.commands.resources import DoctorCLI, Training, report_training

    quiet()  # behind Lightning's import, which sets how much it says itself
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # what fails becomes one line
    report_training(Training(DoctorCLI.unrun(arguments)))
