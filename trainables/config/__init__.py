"""Frozen descriptions of what is trained and how it is evaluated. Nothing here imports torch or looks at the machine.

Steps are optimizer steps. Blocks count from 1 and are read after the block. Unknown keys, NaN and infinity are refused.
"""

from trainables.config.backbones import BACKBONES, BackboneSize, Family
from trainables.config.base import Spec, Steps, WrongKey
from trainables.config.methods import (
    Dispersive,
    DispersiveTerm,
    LayerSync,
    LayerSyncTerm,
    Method,
    NoMethod,
    NoTerm,
    Repa,
    RepaTerm,
    Schedule,
    SelfGuided,
    SelfGuidedTerm,
    Sra,
    SraTerm,
    TeacherPrecision,
    TeacherSpec,
    Term,
    VaeAlign,
    VaeAlignTerm,
)
from trainables.config.probes import GRID_COLUMNS, Metric, ProbeSpec, count_name, error_name
from trainables.config.runs import BATCH_FIELDS, EncoderSpec, OptimizerSpec, Phase, Recipe, Run, TeacherRef, Trial

__all__ = [
    "GRID_COLUMNS",
    "BACKBONES",
    "BATCH_FIELDS",
    "BackboneSize",
    "Dispersive",
    "DispersiveTerm",
    "EncoderSpec",
    "Family",
    "Metric",
    "LayerSync",
    "LayerSyncTerm",
    "Method",
    "NoMethod",
    "NoTerm",
    "OptimizerSpec",
    "Phase",
    "ProbeSpec",
    "Recipe",
    "Repa",
    "RepaTerm",
    "Run",
    "Schedule",
    "SelfGuided",
    "SelfGuidedTerm",
    "Spec",
    "Sra",
    "SraTerm",
    "Steps",
    "TeacherPrecision",
    "TeacherRef",
    "TeacherSpec",
    "Term",
    "Trial",
    "VaeAlign",
    "VaeAlignTerm",
    "WrongKey",
    "count_name",
    "error_name",
]
