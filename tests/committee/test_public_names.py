"""What ``pcmoe_det.committee`` exports, and that docs/committee.md's example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pcmoe_det.committee as package
from pcmoe_det.committee.packing import pack_random
from tests.committee.packed_samples import pictures, tiny_info

DOCS = Path(__file__).resolve().parents[2] / "docs" / "committee.md"


def test_every_public_name_is_there_and_nothing_heavy_is_loaded_for_the_package() -> None:
    assert all(callable(getattr(package, name)) for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing
    code = "import sys, pcmoe_det.committee; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_random(tiny_info(num_experts=4), tmp_path / "packed", dtype=torch.float32, seed=0)
    monkeypatch.chdir(tmp_path)
    (example,) = [
        code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "import" in code
    ]
    names: dict[str, object] = {"picture": pictures(1)[0]}
    exec(compile(example, str(DOCS), "exec"), names)
    assert "found" in names
