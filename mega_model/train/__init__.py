"""One script per training stage, one shared loop."""
