"""Cuts in the decoder: hooks, rows, masks and positions of layers whose lengths differ."""
