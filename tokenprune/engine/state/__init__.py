"""The state of one forward pass: its images, the remaining rows, what was observed of the encoder."""
