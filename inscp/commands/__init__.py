"""The commands, one a file: each has `run(command, arguments)` and is imported only when it is called."""
