"""Turn a tuned model into one that stands alone."""
