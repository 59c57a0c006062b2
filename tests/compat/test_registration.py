"""Who answers ``import mmcv._ext``, and what the operators that we do not have say."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import mmcv
import mmcv.ops
import pytest
import torch

import pcmoe_det
from pcmoe_det.compat import register_mmcv_operators
from pcmoe_det.errors import OperatorUnavailableError


def test_mmdet_imports_and_gets_our_operators() -> None:
    importlib.import_module("mmdet.models")
    importlib.import_module("mmdet.apis")
    extension = importlib.import_module("mmcv._ext")
    from pcmoe_det.compat import nms

    if getattr(extension, "__file__", "").endswith("mmcv_ext.py"):
        assert extension.nms is nms.nms
    else:
        pytest.skip("a compiled mmcv is installed; it wins")


def test_an_operator_that_needs_compiling_says_so_when_called() -> None:
    extension = importlib.import_module("pcmoe_det.compat.mmcv_ext")
    stub = extension.deform_conv_forward
    with pytest.raises(OperatorUnavailableError, match=r"'deform_conv_forward'.*mmcv 2\.1\.0.*source"):
        stub(torch.zeros(1), kernel=3)


def test_a_detector_layer_without_our_operators_fails_with_that_message() -> None:
    if not getattr(importlib.import_module("mmcv._ext"), "__file__", "").endswith("mmcv_ext.py"):
        pytest.skip("a compiled mmcv is installed; it has the operator")
    layer = mmcv.ops.DeformConv2d(2, 2, 3, padding=1)
    with pytest.raises(OperatorUnavailableError, match="deform_conv_forward"):
        layer(torch.zeros(1, 2, 5, 5), torch.zeros(1, 18, 5, 5))


def test_dunder_names_are_not_invented() -> None:
    extension = importlib.import_module("pcmoe_det.compat.mmcv_ext")
    with pytest.raises(AttributeError, match="__wrapped__"):
        _ = extension.__wrapped__


def test_versions_of_a_compiler_that_was_not_there() -> None:
    assert "n/a" in importlib.import_module("pcmoe_det.compat.mmcv_ext").get_compiler_version()


def test_a_compiled_extension_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_ext.py").write_text("compiled = True\n")
    monkeypatch.setattr(mmcv, "__path__", [str(tmp_path), *mmcv.__path__])
    monkeypatch.setattr(mmcv, "_ext", None, raising=False)
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    importlib.invalidate_caches()
    try:
        assert importlib.import_module("mmcv._ext").compiled is True
    finally:
        # monkeypatch puts back the module that was there, if there was one.
        sys.modules.pop("mmcv._ext", None)


def test_registering_again_changes_nothing() -> None:
    before = list(sys.meta_path)
    register_mmcv_operators()
    assert sys.meta_path == before


@pytest.mark.timeout(60)
def test_importing_the_package_loads_neither_torch_nor_mmcv() -> None:
    code = (
        "import sys, pcmoe_det; print([m for m in ('torch', 'mmcv', 'mmdet', 'numpy') if m in sys.modules])"
    )
    root = Path(pcmoe_det.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, timeout=50
    )
    assert done.stdout.strip() == "[]"
