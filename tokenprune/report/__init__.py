"""Tables, statistics and pictures of a sweep, made from its directory and nothing else."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
