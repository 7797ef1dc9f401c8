"""From files to packed batches: sources, tagging, tokenization, packing, cache, sampling."""
