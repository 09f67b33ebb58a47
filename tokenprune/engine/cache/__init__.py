"""KV caches: what was pruned out of them, layer by layer, and cuts of layers that have already run."""
