"""Studies: questions that many runs answer together, such as the smallest budget that retains an accuracy."""
