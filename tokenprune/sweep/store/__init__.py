"""The directory of a sweep: files that are written as a whole, and the lock on them."""
