"""Scorers for answers of vision-language benchmarks: pure functions of texts and rows, without torch."""
