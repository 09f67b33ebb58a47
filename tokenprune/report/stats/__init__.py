"""Statistics of scores on the same questions."""
