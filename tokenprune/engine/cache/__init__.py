"""KV caches: the record of what was pruned out of them."""
