"""Evaluation of a model: its responses, their language, and whether they end, loop or copy the prompt."""
