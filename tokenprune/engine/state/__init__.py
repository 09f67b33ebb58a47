"""What one forward pass knows: its images, the rows that are left, what was seen of the encoder."""
