"""Published training-free pruners as compositions for tokenprune, one file each.

Each method is registered by its import here.
"""

from __future__ import annotations

from collections.abc import Callable

import tokenprune
from tokenprune.pruner import Pruner
from tokenprune.registry import PrunerSpec
from tokenprune_zoo.cdpruner import CDPruner as CDPruner
from tokenprune_zoo.dart import Dart as Dart
from tokenprune_zoo.divprune import DivPrune as DivPrune
from tokenprune_zoo.dycoke import DyCoke as DyCoke
from tokenprune_zoo.evs import EVS as EVS
from tokenprune_zoo.fastervlm import FasterVLM as FasterVLM
from tokenprune_zoo.fastv import FastV as FastV
from tokenprune_zoo.fastvid import FastVID as FastVID
from tokenprune_zoo.feather import Feather as Feather
from tokenprune_zoo.fitprune import FitPrune as FitPrune
from tokenprune_zoo.gprune import GPrune as GPrune
from tokenprune_zoo.hiprune import HiPrune as HiPrune
from tokenprune_zoo.holitom import HoliTom as HoliTom
from tokenprune_zoo.holov import HoloV as HoloV
from tokenprune_zoo.illava import ILLaVA as ILLaVA
from tokenprune_zoo.mustdrop import MustDrop as MustDrop
from tokenprune_zoo.prumerge import PruMerge as PruMerge
from tokenprune_zoo.prumerge_plus import PruMergePlus as PruMergePlus
from tokenprune_zoo.prunevid import PruneVid as PruneVid
from tokenprune_zoo.pyramiddrop import PyramidDrop as PyramidDrop
from tokenprune_zoo.scope import Scope as Scope
from tokenprune_zoo.sparsevlm import SparseVLM as SparseVLM
from tokenprune_zoo.tome import ToMe as ToMe
from tokenprune_zoo.topv import TopV as TopV
from tokenprune_zoo.trim import Trim as Trim
from tokenprune_zoo.vidcom2 import VidCom2 as VidCom2
from tokenprune_zoo.visionzip import VisionZip as VisionZip
from tokenprune_zoo.vispruner import VisPruner as VisPruner
from tokenprune_zoo.vscan import VScan as VScan
from tokenprune_zoo.vtw import VTW as VTW

__version__ = "0.1.0"

METHODS = tuple(
    method
    for method in list(vars().values())
    if isinstance(method, type) and issubclass(method, Pruner) and method is not Pruner
)


@tokenprune.hookimpl
def register_pruners(register: Callable[[PrunerSpec], None]) -> None:
    """Add every method of the zoo."""
    for method in METHODS:
        register(method.spec)
