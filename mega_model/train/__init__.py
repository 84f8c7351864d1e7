"""One module per training stage, one shared loop."""
