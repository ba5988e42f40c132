"""What every stage shares: transformers' Trainer set up from our settings, watched, resumed, and its results."""
