"""Properties of a text found without a language model: language and script, words, loops and copies, refusals."""
