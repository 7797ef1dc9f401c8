"""Selection of the records worth training on: scored by perplexity, filtered, and chosen under a budget."""
