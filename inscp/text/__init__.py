"""What a text shows without a language model: its language and script, its words, loops and copies, refusals."""
