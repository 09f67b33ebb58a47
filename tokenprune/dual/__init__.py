"""Pure tensor maths on keys, values, queries and features: magnitude, duplication, selection, merging, error.

Knows no transformers. Importing this package imports no torch, so that a pruner's file may say
`from tokenprune import dual` and still be listed in no time; the functions load on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
