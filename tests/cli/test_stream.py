"""``tools/stream.py``: checks before the model loads, whole runs, signals."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from pcmoe_det.cli import stream as command
from pcmoe_det.errors import OutputError, PcmoeError
from tests.cli.commands import run_command
from tests.streaming.stand_ins import CLASS_NAMES, StandInDetector, make_clip, read_clip

ROOT = Path(__file__).resolve().parents[2]
SHARED_CLIPS = ROOT.parent / "shared" / "data" / "clips"

# A process whose detector says after every frame that it is done; argv[1] is seconds a frame takes.
PROCESS = """
import sys, time
from pcmoe_det.cli import stream
from tests.streaming.stand_ins import StandInDetector

class Detector(StandInDetector):
    def detect(self, images):
        time.sleep(seconds)
        found = super().detect(images)
        print("detected", len(self.seen), file=sys.stderr, flush=True)
        return found

seconds = float(sys.argv.pop(1))
stream._loader = lambda opened: lambda arguments: Detector()
raise SystemExit(stream.entry())
"""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", ticks=range(24))


@pytest.fixture(autouse=True)
def _signal_handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def _run(*options: object, detector: object = None) -> int:
    arguments = command._parser().parse_args([str(option) for option in options])
    return command.stream(arguments, load=lambda _: detector or StandInDetector())


def _refused(*options: object) -> str:
    """The message of a run that must end before the model is loaded."""

    def load(_: object) -> StandInDetector:
        raise AssertionError("the model was loaded")

    with pytest.raises(PcmoeError) as caught:
        command.stream(command._parser().parse_args([str(option) for option in options]), load=load)
    assert "\n" not in str(caught.value)
    return f"{caught.value.exit_code}: {caught.value}"


def _process(
    *options: object, seconds: float = 0.0, code: str = PROCESS, **settings
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(seconds), *(str(option) for option in options)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings,
    )  # fmt: skip


def test_a_whole_run_writes_what_it_says(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {name: tmp_path / name for name in ("o.mp4", "o.jsonl", "o.json")}
    assert (
        _run(
            "--source", clip, "--output", out["o.mp4"], "--jsonl", out["o.jsonl"], "--summary", out["o.json"]
        )
        == 0
    )
    lines = [json.loads(line) for line in out["o.jsonl"].read_text().splitlines()]
    assert [line["frame_index"] for line in lines] == list(range(24))
    assert {line["source"] for line in lines} == {str(clip)}
    # 0.9 is above the default threshold, 0.1 is not.
    assert all([found["category"] for found in line["detections"]] == ["car"] for line in lines)
    assert list(lines[0]["latency_ms"]) == ["read", "wait", "detect", "render", "encode", "total"]
    times, pictures = read_clip(out["o.mp4"])
    assert times == pytest.approx([line["pts_seconds"] for line in lines], abs=1e-6)
    assert (pictures[0][20, 1] != pictures[0][44, 60]).any()  # the box's left line
    record = json.loads(out["o.json"].read_text())
    assert (record["frames_read"], record["frames_written"], record["outcome"]) == (24, 24, "complete")
    printed = capsys.readouterr()
    assert "24 read, 24 detected, 24 written, 0 dropped" in printed.out
    for stage in ("read", "wait", "detect", "render", "encode"):
        assert f"\n{stage} " in printed.out
    assert printed.err == ""  # no progress bar where there is no terminal
    assert not list(tmp_path.glob("*.part*"))


def test_max_frames_and_threshold(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    assert _run("--source", clip, "--jsonl", path, "--max-frames", 3, "--score-threshold", 0.05) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [len(line["detections"]) for line in lines] == [2, 2, 2]


def test_what_cannot_work_is_refused_before_the_model_loads(clip: Path, tmp_path: Path) -> None:
    existing = tmp_path / "old.mp4"
    existing.write_text("old")
    assert "1: there is no file" in _refused("--source", tmp_path / "no.mp4")
    assert "is not a video" in _refused("--source", existing)
    assert "1: " in _refused("--source", tmp_path)
    assert "already exists; use --overwrite" in _refused("--source", clip, "--output", existing)
    assert "does not exist" in _refused("--source", clip, "--jsonl", tmp_path / "no" / "o.jsonl")
    assert "does not exist" in _refused("--source", clip, "--summary", tmp_path / "no" / "o.json")
    assert "2: the video" in _refused("--source", clip, "--output", tmp_path / "o.gif")
    assert "is the source itself" in _refused("--source", clip, "--output", clip, "--overwrite")
    assert "2: --output and --jsonl" in _refused(
        "--source", clip, "--output", tmp_path / "o.mp4", "--jsonl", tmp_path / "o.mp4"
    )
    assert "2: nothing to read from; give --source or --camera" in _refused()
    assert "2: --source number 2 is given twice" in _refused("--source", clip, "--source", clip)
    assert "2: --max-latency drops frames of live sources" in _refused(
        "--source", clip, "--max-latency", "200ms"
    )
    assert "2: --preview-token needs --preview" in _refused("--source", clip, "--preview-token", "x")
    assert existing.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "old.mp4"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays are found otherwise there")
@pytest.mark.parametrize(
    ("display", "message"),
    [("", "has none"), (":4711", "nothing answers at DISPLAY=:4711"), ("x", "host:number")],
)
def test_show_without_a_screen_is_one_sentence(
    clip: Path, monkeypatch: pytest.MonkeyPatch, display: str, message: str
) -> None:
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert message in _refused("--source", clip, "--show")


@pytest.mark.parametrize(
    "options",
    [
        ["--camera", "-1"],
        ["--source", "a", "--mode", "newest"],
        ["--source", "a", "--max-latency", "200"],
        ["--source", "a", "--max-latency", "0ms"],
        ["--source", "a", "--open-timeout", "soon"],
        ["--source", "a", "--reconnect", "-1"],
        ["--source", "a", "--frozen-after", "0"],
        ["--source", "a", "--preview", "65536"],
        ["--source", "a", "--track", "eyes"],
        ["--source", "a", "--score-threshold", "1.5"],
        ["--source", "a", "--score-threshold", "nan"],
        ["--source", "a", "--max-frames", "0"],
        ["--source", "a", "--threads", "two"],
    ],
)
def test_arguments_that_cannot_be_are_usage_errors(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command._parser().parse_args(options)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_failing_detector_keeps_what_was_written_and_the_older_result(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class FailingDetector(StandInDetector):
        def detect(self, images):
            if len(self.seen) == 7:
                raise RuntimeError("no memory")
            return super().detect(images)

    video, lines = tmp_path / "o.mp4", tmp_path / "o.jsonl"
    video.write_text("older")
    with pytest.raises(PcmoeError, match=r"frame 7 .*no memory"):
        _run("--source", clip, "--output", video, "--jsonl", lines, "--overwrite", detector=FailingDetector())
    assert video.read_text() == "older"
    assert not lines.exists()
    assert len((tmp_path / "o.part.jsonl").read_text().splitlines()) == 7
    assert len(read_clip(tmp_path / "o.part.mp4")[0]) == 7
    assert f"kept, unfinished: {tmp_path / 'o.part.mp4'}" in capsys.readouterr().out


def test_help_is_answered_without_heavy_imports() -> None:
    code = (
        "import sys; from pcmoe_det.cli.stream import _parser; _parser().format_help();"
        "print(sorted({'torch', 'cv2', 'av', 'numpy', 'mmdet', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "pcmoe-stream: interrupted"),
        (OutputError("the trace stops"), 1, "pcmoe-stream: error: the trace stops"),
    ],
)
def test_an_end_while_the_model_closes_is_one_line(
    clip: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    closed = []

    def fail() -> None:
        raise error

    def loader(opened: ExitStack) -> object:
        opened.callback(closed.append, True)
        opened.callback(fail)
        return lambda _: StandInDetector()

    monkeypatch.setattr(command, "_loader", loader)
    outcome = run_command("stream", "--source", clip, "--max-frames", 2)
    assert outcome.code == code
    assert outcome.err.strip() == line
    assert closed == [True]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("thread_left", "is_closed"), [("pcmoe-connection-cam", True), ("pcmoe-detector", False)]
)
def test_model_and_trace_are_closed_unless_the_detector_is_busy(
    monkeypatch: pytest.MonkeyPatch, thread_left: str, is_closed: bool
) -> None:
    closed: list[bool] = []

    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(for_frames=StandInDetector)
        closed.append(True)

    def run(arguments: argparse.Namespace, *, load: Callable[[argparse.Namespace], object]) -> int:
        load(arguments)
        return 0

    monkeypatch.setattr(command, "open_detector", opened)
    monkeypatch.setattr(command, "stream", run)
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, args=(20,), name=thread_left, daemon=True)
    thread.start()
    left_open: list[ExitStack] = []
    arguments = command._parser().parse_args(["--source", "x.mp4"])
    assert command._stream_and_close(arguments, left_open) == 0
    assert bool(closed) == is_closed
    assert len(left_open) == 1  # the process ends without cleaning up under the thread
    go_on.set()
    thread.join(10)
    left_open[0].close()


@pytest.mark.timeout(60)
def test_the_tool_is_a_wrapper_and_a_missing_camera_is_one_sentence() -> None:
    if Path("/dev/video61").exists():
        pytest.skip("there really is a camera 61")
    done = subprocess.run(
        [sys.executable, "tools/stream.py", "--camera", "61"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("pcmoe-stream: error: camera")
    assert done.stderr.count("\n") == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_closes_playable_files(tmp_path: Path, number: signal.Signals) -> None:
    clip = make_clip(tmp_path / "long.mp4", ticks=range(2000))
    video, lines = tmp_path / "o.mp4", tmp_path / "o.jsonl"
    process = _process("--source", clip, "--output", video, "--jsonl", lines, seconds=0.03)
    assert process.stderr is not None
    while "detected 5" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=50)
    assert process.returncode == 130
    assert "interrupted" in out
    assert "Traceback" not in err
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert 5 <= len(records) < 2000
    assert [record["frame_index"] for record in records] == list(range(len(records)))
    assert len(read_clip(video)[0]) == len(records)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.mp4", "o.jsonl", "o.mp4"]


@pytest.mark.timeout(60)
def test_a_detector_that_hangs_cannot_hold_the_first_signal(clip: Path, tmp_path: Path) -> None:
    code = PROCESS.replace("time.sleep", "print('stuck', file=sys.stderr, flush=True); time.sleep")
    process = _process("--source", clip, "--jsonl", tmp_path / "o.jsonl", seconds=1000, code=code)
    assert process.stderr is not None
    while "stuck" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=50)
    assert process.returncode == 130


@pytest.mark.timeout(60)
def test_the_second_signal_leaves_at_once(tmp_path: Path) -> None:
    # A sink that never returns: only the second signal can end this.
    code = PROCESS.replace(
        "seconds = float",
        "from pcmoe_det.streaming import jsonl_sink\n"
        "def write(*_):\n    print('stuck', file=sys.stderr, flush=True)\n    time.sleep(1000)\n"
        "jsonl_sink.JsonLinesSink.write = write\n"
        "seconds = float",
    )
    clip = make_clip(tmp_path / "clip.mp4")
    process = _process("--source", clip, "--jsonl", tmp_path / "o.jsonl", code=code)
    assert process.stderr is not None
    while "stuck" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    while "once more" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert "left at once" in process.communicate(timeout=50)[1]
    assert process.returncode == 130


@pytest.mark.timeout(60)
@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
@pytest.mark.parametrize("option", ["--output", "--jsonl"])
def test_a_disk_that_fills_up_ends_with_one_sentence_and_exit_code_1(tmp_path: Path, option: str) -> None:
    def limit_file_size() -> None:
        import resource

        # The first second of the video takes 18 kB, and less than that is nothing to keep.
        resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))

    clip = make_clip(tmp_path / "long.mp4", ticks=range(300))
    target = tmp_path / ("o.mp4" if option == "--output" else "o.jsonl")
    # The trial before the start would already find this disk full.
    code = "from pcmoe_det.streaming import output_files\noutput_files._TRIAL_BYTES = 0\n" + PROCESS
    process = _process("--source", clip, option, target, code=code, preexec_fn=limit_file_size)
    err = process.communicate(timeout=50)[1]
    assert process.returncode == 1
    sentences = [line for line in err.splitlines() if not line.startswith("detected")]
    assert len(sentences) == 1
    assert sentences[0].startswith(f"pcmoe-stream: error: {target} cannot be")
    assert not target.exists()
    partial = target.with_name(f"o.part{target.suffix}")
    assert partial.exists()
    if option == "--output":
        assert len(read_clip(partial)[0]) == 25
    else:
        assert [json.loads(line)["frame_index"] for line in partial.read_text().splitlines()][:3] == [0, 1, 2]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "frames"),
    [("street_vehicles.mp4", 265), ("motorway_500.avi", 500), ("dashcam_vehicle.mp4", 38)],
)
def test_real_clips_keep_frames_times_and_rate(tmp_path: Path, name: str, frames: int) -> None:
    clip = SHARED_CLIPS / name
    if not clip.exists():
        pytest.skip(f"{clip} is not on this machine")
    video, lines = tmp_path / "o.mp4", tmp_path / "o.jsonl"
    assert _run("--source", clip, "--output", video, "--jsonl", lines) == 0
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["frame_index"] for record in records] == list(range(frames))
    facts = []
    for path in (clip, video):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            times = sorted(
                float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.size
            )
            facts.append((times, float(stream.average_rate), (stream.width, stream.height)))
    (source_times, source_rate, source_size), (times, rate, size) = facts
    assert len(times) == frames
    np.testing.assert_allclose(times, source_times, atol=1e-6)
    assert rate == pytest.approx(source_rate, rel=1e-3)
    assert size == source_size
    assert set(CLASS_NAMES) >= {found["category"] for record in records for found in record["detections"]}
