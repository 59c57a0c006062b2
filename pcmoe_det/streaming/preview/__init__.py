"""A stream in the browser: one page, ``/metrics`` for Prometheus and ``/healthz`` for monitors."""

from pcmoe_det.streaming.preview.server import PreviewServer
from pcmoe_det.streaming.preview.sink import PreviewSink

__all__ = ["PreviewServer", "PreviewSink"]
