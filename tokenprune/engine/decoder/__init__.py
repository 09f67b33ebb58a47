"""Cuts in the decoder: hooks, rows, masks and positions for layers whose lengths differ."""
