"""The product people touch: the board and the command line."""
