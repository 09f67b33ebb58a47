"""Pictures of a report: trade-off figures, and kept tokens over their picture."""
