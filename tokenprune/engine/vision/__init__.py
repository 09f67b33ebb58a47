"""Cuts on the vision side: of the image, inside the encoder, and behind it."""
