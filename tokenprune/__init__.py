"""tokenprune: training-free visual-token pruning for vision-language models, compared honestly.

What users of the package need stands here (`__init__.pyi` lists it); a name is imported on first use, so that
`import tokenprune` and the command line load no torch before they need it.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
