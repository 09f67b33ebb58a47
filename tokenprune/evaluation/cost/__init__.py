"""What pruning costs and saves: timed runs beside the unpruned model, in turns."""
