"""One settings model per verb. A default lives here and nowhere else."""

from urbancross.config.adapting import METHODS, AdaptConfig, Method
from urbancross.config.asking import (
    AuditConfig,
    DemoConfig,
    DoctorConfig,
    DuplicatesConfig,
    ExplainConfig,
    ExportConfig,
    GalleryConfig,
    IndexConfig,
    PlanConfig,
    ReportConfig,
    RetryConfig,
    SearchConfig,
    ServeConfig,
    VerifyConfig,
)
from urbancross.config.base import ArchiveConfig, Config, MakerConfig, StageConfig, WorkersConfig
from urbancross.config.learning import EvaluateConfig, PretrainConfig, TrainingConfig
from urbancross.config.making import CaptionConfig, EmbedConfig, GeotagConfig, IngestConfig, RankConfig, SegmentConfig
from urbancross.config.mapping import MapConfig
from urbancross.config.tuning import Budget, TuneConfig

__all__ = [
    "METHODS",
    "AdaptConfig",
    "ArchiveConfig",
    "AuditConfig",
    "Budget",
    "CaptionConfig",
    "Config",
    "DemoConfig",
    "DoctorConfig",
    "DuplicatesConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExplainConfig",
    "ExportConfig",
    "GalleryConfig",
    "GeotagConfig",
    "IndexConfig",
    "IngestConfig",
    "MakerConfig",
    "MapConfig",
    "Method",
    "PlanConfig",
    "PretrainConfig",
    "RankConfig",
    "ReportConfig",
    "RetryConfig",
    "SearchConfig",
    "SegmentConfig",
    "ServeConfig",
    "StageConfig",
    "TrainingConfig",
    "TuneConfig",
    "VerifyConfig",
    "WorkersConfig",
]
