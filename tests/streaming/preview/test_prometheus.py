"""The text that Prometheus reads: by the rules of format 0.0.4, and by its own parser where installed."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from pcmoe_det.streaming.preview.metrics_page import metric_families, unique_names
from pcmoe_det.streaming.preview.pictures import PictureEncoder
from pcmoe_det.streaming.preview.prometheus import Histogram, MetricFamily, to_text
from pcmoe_det.streaming.preview.sink import PreviewSink
from pcmoe_det.structures import Gap
from tests.streaming.preview.made import FakeClock, committee_record, result, summary

_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
_SAMPLE = re.compile(
    rf"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{(?P<labels>{_LABEL}(?:,{_LABEL})*)\}})? (?P<value>\S+)"
)
AWKWARD = 'C:\\videos\\"new"\nline {a="b"} ü \udcff.mp4'


def page(**changes: Any) -> str:
    clock = FakeClock()
    sink = PreviewSink(AWKWARD, PictureEncoder(clock=clock).feed(), stall_seconds=10, clock=clock)
    for index in range(4):
        gap = Gap("reconnected", 2.0) if index == 2 else None
        sink.write(
            result(index, total_ms=30.0 * (index + 1), gap=gap, accounting={"bytes_read": 70000}), None
        )
    summaries = [summary(AWKWARD, dropped={"replaced_by_newer": 5}), summary(AWKWARD)]
    arguments = {
        "sinks": [sink.snapshot()],
        "summaries": summaries,
        "committee": committee_record(),
        **changes,
    }
    return to_text(metric_families(*arguments.values()))


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Samples by name and labels, every line checked; each family declared once, before its samples."""
    kinds: dict[str, str] = {}
    samples: dict[tuple[str, str], float] = {}
    assert text.endswith("\n")
    family = ""
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in kinds, f"{family} is declared twice"
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family
            assert kind in ("counter", "gauge", "histogram")
            kinds[name] = kind
            continue
        match = _SAMPLE.fullmatch(line)
        assert match is not None, line
        base = (
            re.sub("_(bucket|sum|count)$", "", match["name"])
            if kinds[family] == "histogram"
            else match["name"]
        )
        assert base == family, f"{match['name']} stands under {family}"
        key = (match["name"], match["labels"] or "")
        assert key not in samples, f"{key} is there twice"
        samples[key] = float(match["value"])
    for name, kind in kinds.items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(ms|mb|mib|percent)\b|_milli|_kilo", name), f"{name} is in no base unit"
    return samples


def value(samples: dict[tuple[str, str], float], name: str, **labels: str) -> float:
    wanted = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return samples[(name, wanted)]


ESCAPED = r"C:\\videos\\\"new\"\nline {a=\"b\"} ü ?.mp4"


def test_every_line_follows_the_format_and_the_numbers_are_those_counted() -> None:
    samples = parsed(page())
    assert value(samples, "pcmoe_results_total", source=ESCAPED) == 4
    assert value(samples, "pcmoe_detections_total", source=ESCAPED) == 4
    assert value(samples, "pcmoe_stream_up", source=ESCAPED) == 1
    assert value(samples, "pcmoe_stream_gaps_total", source=ESCAPED, cause="reconnected") == 1
    assert value(samples, "pcmoe_frames_read_total", source=ESCAPED) == 7
    assert value(samples, "pcmoe_frames_dropped_total", source=ESCAPED, cause="replaced_by_newer") == 5
    assert value(samples, "pcmoe_source_faults_total", source=ESCAPED, cause="undecodable") == 3
    assert value(samples, "pcmoe_expert_resident_bytes") == 3 * 2**20
    assert value(samples, "pcmoe_expert_hit_tokens_total", layer="backbone.stages.2.blocks.1.mlp") == 900
    assert value(samples, "pcmoe_experts_resident", layer="backbone.stages.2.blocks.3.mlp") == 4


def test_a_second_stream_of_one_name_has_labels_of_its_own() -> None:
    assert value(parsed(page()), "pcmoe_frames_read_total", source=ESCAPED + " (2)") == 7
    assert unique_names(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]


def test_latencies_are_a_cumulative_histogram_in_seconds() -> None:
    samples = parsed(page())
    name, labels = "pcmoe_frame_latency_seconds", {"source": ESCAPED, "stage": "total"}
    # 30, 60, 90 and 120 ms
    assert value(samples, f"{name}_bucket", **labels, le="0.025") == 0
    assert value(samples, f"{name}_bucket", **labels, le="0.05") == 1
    assert value(samples, f"{name}_bucket", **labels, le="0.1") == 3
    assert value(samples, f"{name}_bucket", **labels, le="+Inf") == 4
    assert value(samples, f"{name}_count", **labels) == 4
    assert value(samples, f"{name}_sum", **labels) == pytest.approx(0.3)
    assert value(samples, f"{name}_count", source=ESCAPED, stage="detect") == 4


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for number in (0.0, 1.0, 1.5, 2.0, 99.0):
        histogram.add(number)
    rows = [
        ("_bucket", "1", 2),
        ("_bucket", "2", 4),
        ("_bucket", "+Inf", 5),
        ("_sum", "", 103.5),
        ("_count", "", 5),
    ]
    assert histogram.samples() == rows
    assert histogram.copy().samples() == rows


def test_without_streams_and_committee_only_the_process_is_left() -> None:
    names = {name for name, _ in parsed(page(sinks=[], summaries=[], committee=None))}
    assert "process_cpu_seconds_total" in names
    assert not [name for name in names if name.startswith("pcmoe_")]


def test_numbers_of_any_kind() -> None:
    family = MetricFamily("m", "gauge", "back\\slash\nand line")
    for index, number in enumerate((0.0, -1.5, 2.0**60, math.inf, -math.inf)):
        family.add(number, index=str(index))
    text = to_text([family])
    assert text.startswith("# HELP m back\\\\slash\\nand line\n")
    assert list(parsed(text).values()) == [0.0, -1.5, 2.0**60, math.inf, -math.inf]


def test_prometheus_own_parser_reads_the_same() -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
    families = {family.name: family for family in parser.text_string_to_metric_families(page())}
    latency = families["pcmoe_frame_latency_seconds"]
    assert latency.type == "histogram"
    assert {sample.labels["stage"] for sample in latency.samples} == {"detect", "total"}
    results = families["pcmoe_results"]
    assert results.type == "counter"
    assert results.samples[0].labels["source"] == AWKWARD.replace("\udcff", "?")
    assert results.samples[0].value == 4


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_the_memory_of_the_process_is_in_bytes() -> None:
    assert 2**20 < value(parsed(page()), "process_resident_memory_bytes") < 2**40
