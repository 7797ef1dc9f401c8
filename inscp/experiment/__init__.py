"""Whole studies as files: arms x languages x budgets x seeds, run once each, and what they come to."""
