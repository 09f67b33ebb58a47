"""The machine: clocks, memory, energy, and whether a device has other work."""
