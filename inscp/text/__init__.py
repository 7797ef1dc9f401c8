"""What can be told of a text without a model: its language and script, its words, loops and copies, refusals."""
