"""tokenprune: training-free visual-token pruning for vision-language models, compared honestly.

Its names load on first use, so that `tokenprune --help` imports no torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
