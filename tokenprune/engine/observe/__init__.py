"""The values that a pruner may read: hidden states, projections, attention, encoder features."""
