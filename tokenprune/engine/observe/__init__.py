"""What a pruner may see: projections, attention, hidden states, and what sessions share of them."""
