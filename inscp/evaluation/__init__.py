"""Measuring a model folder: responses, their language, whether they end, loop or copy."""
