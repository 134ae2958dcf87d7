"""The way into the farm: requests become resolved renders, and renders become chunks."""
