"""``pcmoe_det.stream``."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pcmoe_det
from pcmoe_det.errors import CheckpointError, SourceError, UsageError
from pcmoe_det.streaming import JsonLinesSink, OutputFile, StageError, Stream, StreamPipeline
from tests.streaming.stand_ins import CLASS_NAMES, StandInDetector, StandInSource, index_of, make_clip

pytestmark = pytest.mark.timeout(30)


# Of other tests: a stand-in camera that never answers keeps its daemon thread.
_threads_of_others: set[threading.Thread] = set()


def _our_threads() -> set[str]:
    threads = set(threading.enumerate()) - _threads_of_others
    return {thread.name for thread in threads if thread.name.startswith("pcmoe-")}


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    _threads_of_others.clear()
    _threads_of_others.update(threading.enumerate())
    yield
    assert _our_threads() == set()


def test_results_are_the_records_of_the_json_lines(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", ticks=range(15))
    path = tmp_path / "o.jsonl"
    from pcmoe_det.streaming import open_source

    sink = JsonLinesSink(OutputFile(path, overwrite=False), class_names=CLASS_NAMES)
    StreamPipeline([Stream(open_source(str(clip)), [sink])], StandInDetector(), score_threshold=0.3).run()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    results = [json.loads(json.dumps(result)) for result in pcmoe_det.stream(clip, model=StandInDetector())]
    for record in lines + results:
        record["captured_at_seconds"] = 0
        record["latency_ms"] = sorted(record["latency_ms"])
    assert results == lines
    assert len(results) == 15


def test_a_result_also_holds_the_picture_and_arrays() -> None:
    for number, result in enumerate(pcmoe_det.stream(StandInSource(3), model=StandInDetector())):
        assert index_of(result.result.frame.image) == result["frame_index"] == number
        assert result.result.detections.boxes_xyxy.shape == (1, 4)


def test_it_is_lazy() -> None:
    source, detector = StandInSource(10), StandInDetector()
    results = pcmoe_det.stream(source, model=detector)
    assert (detector.seen, results.summary, _our_threads()) == ([], None, set())
    missing = pcmoe_det.stream("no-such-file.mp4", model=detector)
    with pytest.raises(SourceError, match="no-such-file"):
        next(missing)
    assert list(missing) == []
    results.close()
    assert list(results) == []


def test_a_slow_caller_holds_up_a_file() -> None:
    source, detector = StandInSource(200), StandInDetector()
    with pcmoe_det.stream(source, model=detector) as results:
        assert [next(results)["frame_index"] for _ in range(3)] == [0, 1, 2]
        # 3 taken, 1 to be taken, 1 in the sink, 4 results and 4 frames wait, 1 each in reader and detector.
        assert len(detector.seen) <= 3 + 1 + 1 + 4 + 1
        assert [result["frame_index"] for result in results] == list(range(3, 200))
    assert results.summary is not None
    assert (results.summary.outcome, results.summary.frames_dropped) == ("complete", {})


def test_a_slow_caller_gets_the_freshest_of_a_live_source() -> None:
    gate = threading.Event()
    source = StandInSource(50, is_live=True, wait_at=40, gate=gate)
    with pcmoe_det.stream(source, model=StandInDetector()) as results:
        assert next(results)["frame_index"] == 0
        gate.set()
        assert source.waiting.wait(20)  # the reader was never held up
        while _answered(results) < 40:
            threading.Event().wait(0.01)
        source.released.set()
        assert [result["frame_index"] for result in results] == [39]
    assert results.summary is not None
    assert results.summary.frames_dropped == {"replaced_by_newer": 38}
    assert (results.summary.frames_read, results.summary.frames_written) == (40, 2)


def _answered(results: pcmoe_det.ResultStream) -> int:
    summary = results.summary
    assert summary is not None
    return summary.frames_written + sum(summary.frames_dropped.values())


@pytest.mark.parametrize("how", ["break", "close", "with", "error"])
def test_leaving_early_stops_everything(how: str) -> None:
    source = StandInSource(100_000)
    results = pcmoe_det.stream(source, model=StandInDetector())
    if how == "break":
        for result in results:
            if result["frame_index"] == 5:
                break
        del results
    elif how == "close":
        next(results)
        results.close()
        results.close()
    elif how == "with":
        with results:
            next(results)
    else:
        with pytest.raises(KeyError), results:
            raise KeyError(next(results)["frame_index"])
    assert source.closed == 1
    assert _our_threads() == set()


def test_errors_come_after_the_results_before_them() -> None:
    class Failing(StandInDetector):
        def detect(self, images):
            if len(self.seen) == 4:
                raise RuntimeError("no memory")
            return super().detect(images)

    source, seen = StandInSource(20), []
    with pytest.raises(StageError, match="no memory"):
        for result in pcmoe_det.stream(source, model=Failing()):
            seen.append(result["frame_index"])
    assert seen == [0, 1, 2, 3]
    assert source.closed == 1


def test_a_model_that_cannot_be_opened_closes_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def fail(model, arguments, *, score_threshold):
        assert (model, arguments.policy, arguments.expert_budget) == ("weights", "pcmoe", "0.5")
        assert (arguments.threads, arguments.loading, score_threshold) == (2, "background", 0.4)
        raise CheckpointError("the weights are damaged")
        yield

    monkeypatch.setattr("pcmoe_det.api.open_detector", fail)
    source = StandInSource(3)
    options = {"policy": "pcmoe", "expert_budget": "0.5", "threads": 2, "score_threshold": 0.4}
    with pytest.raises(CheckpointError, match="damaged"):
        next(pcmoe_det.stream(source, model="weights", **options))
    assert source.closed == 1


def test_settings_reach_the_pipeline() -> None:
    results = list(
        pcmoe_det.stream(StandInSource(9), model=StandInDetector(), score_threshold=0.05, max_frames=2)
    )
    assert [len(result["detections"]) for result in results] == [2, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "fresh"},
        {"score_threshold": 1.5},
        {"max_frames": 0},
        {"max_latency_seconds": -1.0},
        {"policy": "best"},
        {"on_miss": "cry"},
        {"dtype": "int3"},
        {"track": "eyes"},
        {"threads": 0},
        {"expert_budget": 0.5},
        {"expert_budget": "much", "policy": "pcmoe"},
        {"policy": "pcmoe", "model": StandInDetector()},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_values_that_cannot_be_are_usage_errors_at_once(wrong: dict) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(UsageError, match=f"{value}|{name}|--expert-budget needs --policy"):
        pcmoe_det.stream("clip.mp4", **wrong)


def test_an_open_source_is_closed_also_where_no_result_was_asked_for() -> None:
    for results in (0, 1):
        source = StandInSource(3)
        with pcmoe_det.stream(source, model=StandInDetector()) as stream:
            for _ in range(results):
                next(stream)
        stream.close()
        assert source.closed == 1
        with pytest.raises(StopIteration):
            next(stream)


def test_importing_the_package_stays_cheap() -> None:
    code = (
        "import sys, pcmoe_det; assert 'stream' in dir(pcmoe_det);"
        "print(sorted({'torch', 'cv2', 'av', 'mmdet', 'pcmoe_det.api'} & set(sys.modules)));"
        "pcmoe_det.stream; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False"]
    with pytest.raises(AttributeError, match="no attribute 'strem'"):
        _ = pcmoe_det.strem
