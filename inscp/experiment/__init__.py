"""Studies defined in files: arms x languages x budgets x seeds, each run once, and their reports."""
