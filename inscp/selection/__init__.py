"""Which records are worth training on: scored by perplexity, filtered, and chosen under a budget."""
