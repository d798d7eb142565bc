"""The public names, for type checkers and for ``fas.__getattr__``: one per line, where it lives."""

from fas._version import __version__ as __version__
from fas.calibration.needs import estimate_conversion as estimate_conversion
from fas.comparison import Plan as Plan
from fas.comparison import compare as compare
from fas.config import FASConfig as FASConfig
from fas.conversion import calibrate as calibrate
from fas.conversion import convert as convert
from fas.conversion import revert as revert
from fas.energy.count import count_operations as count_operations
from fas.energy.estimate import estimate_energy as estimate_energy
from fas.evaluation.evaluate import evaluate as evaluate
from fas.exporting.export import export as export
from fas.loading import Loaded as Loaded
from fas.loading import load as load
from fas.methods.fas import FAS as FAS
from fas.methods.fas_paper import FASPaper as FASPaper
from fas.methods.fast_snn import FastSNN as FastSNN
from fas.methods.las import LAS as LAS
from fas.methods.qcfs_only import QCFSOnly as QCFSOnly
from fas.methods.rate_norm import RateNorm as RateNorm
from fas.methods.threshold_balancing import ThresholdBalancing as ThresholdBalancing
from fas.neurons.adaptive_digit import AdaptiveDigit as AdaptiveDigit
from fas.neurons.clipped_count import ClippedCount as ClippedCount
from fas.neurons.outlier_aware import OutlierAware as OutlierAware
from fas.neurons.phase import Phase as Phase
from fas.neurons.signed_digit import SignedDigit as SignedDigit
from fas.neurons.signed_if import SignedIF as SignedIF
from fas.neurons.soft_reset_if import SoftResetIF as SoftResetIF
from fas.neurons.ternary_phase import TernaryPhase as TernaryPhase
from fas.recording import record as record
from fas.reporting.look import report as report
from fas.reporting.summary import summarise as summarise
from fas.runtime.anytime import Anytime as Anytime
from fas.runtime.plain import load_module as load_module
from fas.stages.finetune import Finetune as Finetune
from fas.storage.card import write_card as write_card
from fas.streaming import stream as stream
from fas.training.finetuning import finetune as finetune
from fas.types import Measurement as Measurement

__all__: list[str]
