"""How a wrong input reaches the user: one line that says where, what and how to mend, and exit status 2."""


class UserError(Exception):
    """The user's input is wrong.

    Args:
        where: file and line, configuration key, or name of the thing at fault.
        what: what is wrong with it.
        mend: what to do about it, an imperative sentence.
    """

    def __init__(self, where: str, what: str, mend: str) -> None:
        super().__init__(where, what, mend)
        self.where, self.what, self.mend = where, what, mend

    def __str__(self) -> str:
        line = f"{self.where}: {self.what.rstrip('.')}. {self.mend}"
        return " ".join(line.split())


class RunError(Exception):
    """The input was right and the run still cannot go on (a diverged loss, say): exit status 1, no traceback."""
