"""Streams: sources, the reader -> detector -> renderer pipeline, and outputs."""

from pcmoe_det.streaming.camera_source import CameraSource
from pcmoe_det.streaming.failures import StageError
from pcmoe_det.streaming.file_source import FileSource
from pcmoe_det.streaming.jsonl_sink import JsonLinesSink, result_record
from pcmoe_det.streaming.lanes import Stream
from pcmoe_det.streaming.modes import STREAM_MODES, StreamMode
from pcmoe_det.streaming.output_files import OutputFile
from pcmoe_det.streaming.pipeline import StreamPipeline
from pcmoe_det.streaming.queues import BoundedQueue, QueueEnded, QueuePolicy
from pcmoe_det.streaming.render import draw_detections
from pcmoe_det.streaming.sinks import ResultSink, SinkOutcome
from pcmoe_det.streaming.source_factory import open_camera, open_source
from pcmoe_det.streaming.sources import FrameSource
from pcmoe_det.streaming.summary import StreamSummary
from pcmoe_det.streaming.video_sink import VideoSink

__all__ = [
    "STREAM_MODES",
    "BoundedQueue",
    "CameraSource",
    "FileSource",
    "FrameSource",
    "JsonLinesSink",
    "OutputFile",
    "QueueEnded",
    "QueuePolicy",
    "ResultSink",
    "SinkOutcome",
    "StageError",
    "Stream",
    "StreamMode",
    "StreamPipeline",
    "StreamSummary",
    "VideoSink",
    "draw_detections",
    "open_camera",
    "open_source",
    "result_record",
]
