"""Cuts on the vision side: pixels, inside the encoder and behind it."""
