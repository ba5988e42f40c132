"""Data Worker: described files to token ids and labels."""
