"""Language models: loading, their layers, text, perplexity and generation. ``transformers`` is imported only inside functions."""
