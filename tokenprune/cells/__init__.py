"""A cell of a sweep, and the events that tell what happens to cells: plain facts that hooks speak of."""
