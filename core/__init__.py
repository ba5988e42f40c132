"""Tuneboard's engine: trains, evaluates, serves and exports, headless."""
