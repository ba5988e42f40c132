"""Model Loader: folders and hub ids to models in memory, checked on the way."""
