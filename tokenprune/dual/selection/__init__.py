"""Which tokens stay: from scores, or from scores and duplication, with a count that is given or found."""
