"""The commands, one a file with `run(command, arguments)` that is imported only when it is called, and their parts."""
