"""A trained model in use, after the labelling."""
