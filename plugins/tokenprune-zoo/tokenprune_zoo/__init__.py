"""Published training-free pruners as compositions for tokenprune, one file each."""

from __future__ import annotations

from collections.abc import Callable

import tokenprune
from tokenprune.registry import PrunerSpec
from tokenprune_zoo.cdpruner import CDPruner
from tokenprune_zoo.dart import Dart
from tokenprune_zoo.divprune import DivPrune
from tokenprune_zoo.dycoke import DyCoke
from tokenprune_zoo.evs import EVS
from tokenprune_zoo.fastervlm import FasterVLM
from tokenprune_zoo.fastv import FastV
from tokenprune_zoo.fastvid import FastVID
from tokenprune_zoo.feather import Feather
from tokenprune_zoo.fitprune import FitPrune
from tokenprune_zoo.gprune import GPrune
from tokenprune_zoo.hiprune import HiPrune
from tokenprune_zoo.holitom import HoliTom
from tokenprune_zoo.holov import HoloV
from tokenprune_zoo.illava import ILLaVA
from tokenprune_zoo.mustdrop import MustDrop
from tokenprune_zoo.prumerge import PruMerge
from tokenprune_zoo.prumerge_plus import PruMergePlus
from tokenprune_zoo.prunevid import PruneVid
from tokenprune_zoo.pyramiddrop import PyramidDrop
from tokenprune_zoo.scope import Scope
from tokenprune_zoo.sparsevlm import SparseVLM
from tokenprune_zoo.tome import ToMe
from tokenprune_zoo.topv import TopV
from tokenprune_zoo.trim import Trim
from tokenprune_zoo.vidcom2 import VidCom2
from tokenprune_zoo.visionzip import VisionZip
from tokenprune_zoo.vispruner import VisPruner
from tokenprune_zoo.vscan import VScan
from tokenprune_zoo.vtw import VTW

__version__ = "0.1.0"
__all__ = [
    "EVS",
    "VTW",
    "CDPruner",
    "Dart",
    "DivPrune",
    "DyCoke",
    "FastV",
    "FastVID",
    "FasterVLM",
    "Feather",
    "FitPrune",
    "GPrune",
    "HiPrune",
    "HoliTom",
    "HoloV",
    "ILLaVA",
    "MustDrop",
    "PruMerge",
    "PruMergePlus",
    "PruneVid",
    "PyramidDrop",
    "Scope",
    "SparseVLM",
    "ToMe",
    "TopV",
    "Trim",
    "VScan",
    "VidCom2",
    "VisPruner",
    "VisionZip",
    "register_pruners",
]

METHODS = (
    FastV,
    DivPrune,
    VisionZip,
    Dart,
    CDPruner,
    FasterVLM,
    VisPruner,
    Scope,
    Trim,
    HoloV,
    HiPrune,
    GPrune,
    PruMerge,
    PruMergePlus,
    PyramidDrop,
    VTW,
    Feather,
    VScan,
    SparseVLM,
    MustDrop,
    FitPrune,
    TopV,
    ILLaVA,
    ToMe,
    PruneVid,
    DyCoke,
    FastVID,
    HoliTom,
    VidCom2,
    EVS,
)


@tokenprune.hookimpl
def register_pruners(register: Callable[[PrunerSpec], None]) -> None:
    """Add every method of the zoo."""
    for pruner in METHODS:
        register(pruner.spec)
