"""Keep models ready to answer."""
