"""Runs the table of faults. One case: ``pytest tests/faults -k "camera and frozen"``."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.bench import Bench, Case
from tests.faults.cases import CASES
from tests.faults.checks import check
from tests.faults.in_process import run_in_process
from tests.faults.process_cases import PROCESS_CASES, ProcessCase

pytestmark = pytest.mark.timeout(280)


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    case = request.node.callspec.params["case"]
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        yield Bench(folder, out, patch, stack, random.Random(case.id))


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_in_process(case: Case, bench: Bench) -> None:
    options = [*case.arrange(bench), *bench.output_options()]
    with bench.while_running:
        ran = run_in_process(bench, options, limit_seconds=case.expected.seconds)
    check(case, bench, ran)


@pytest.mark.parametrize("case", PROCESS_CASES, ids=[case.id for case in PROCESS_CASES])
def test_as_a_process(case: ProcessCase, bench: Bench) -> None:
    check(case, bench, case.run(bench))


def test_the_table_is_as_large_as_it_says() -> None:
    ids = [case.id for case in (*CASES, *PROCESS_CASES)]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert len(ids) >= 200
    assert len(PROCESS_CASES) >= 20
