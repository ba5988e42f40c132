"""The arithmetic of those optimizers that torch and transformers don't have; loaded when one is built."""
