"""What a worker does with cells: it asks, measures, and writes what they gave."""
