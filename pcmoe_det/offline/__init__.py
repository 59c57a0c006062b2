"""Whole folders of videos, offline: a job that many workers share and that survives a crash."""

from pcmoe_det.offline.job import JobOptions, find_sources
from pcmoe_det.offline.output_folder import OutputFolder
from pcmoe_det.offline.plan import JobPlan, plan_job, recover
from pcmoe_det.offline.pool import OpenDetector, WorkerError, WorkerPool, WorkerSetup
from pcmoe_det.offline.report import JobReport
from pcmoe_det.offline.runner import JobProgress, JobRunner
from pcmoe_det.offline.status import FileStatus, StatusJournal

__all__ = [
    "FileStatus",
    "JobOptions",
    "JobPlan",
    "JobProgress",
    "JobReport",
    "JobRunner",
    "OpenDetector",
    "OutputFolder",
    "StatusJournal",
    "WorkerError",
    "WorkerPool",
    "WorkerSetup",
    "find_sources",
    "plan_job",
    "recover",
]
