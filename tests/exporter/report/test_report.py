from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from tokexport.exporter.parity.accuracy import Accuracy
from tokexport.exporter.parity.gates import Gate
from tokexport.exporter.parity.proof import StageResult
from tokexport.exporter.report.report import FAILED, Report, render
from tokexport.exporter.speed.interleaved import measure
from tokexport.exporter.stages.run import CompileResult
from tokexport.exporter.system.machine import describe_machine
from tokexport.runtimes.bundle.manifest import BUILT_NOT_RUN, PASSED, RuntimeInfo
from tokexport.runtimes.tolerances.comparison import compare
from tokexport.runtimes.tolerances.neighbourhoods import Worst

LOGITS = np.random.default_rng(0).standard_normal((2, 4, 10))
CLOSE = compare(LOGITS, LOGITS + 1e-7)
FAR = compare(LOGITS, LOGITS + 0.1)
BROKEN = compare(LOGITS, np.full_like(LOGITS, np.nan))
GATE = Gate(tolerance=1e-5, eager_error=2e-7, scale=2.5, reason="the floor of fp32")


def passed() -> Report:
    now = [0]

    def taking(ms: int) -> Any:
        def run() -> None:
            now[0] += ms * 1_000_000

        return run

    speed = measure(
        {"eager": taking(36), "artifact": taking(24), "plain export": taking(30)},
        baseline="eager",
        clock=lambda: now[0],
    )
    return Report(
        target="ort",
        status=PASSED,
        precision="fp32",
        source={"kind": "factory", "location": "models.vit:build[0]", "sha256": "ab" * 32},
        inputs="128 samples of data.npz",
        samples=128,
        stages=(
            StageResult("rewritten", {"logits": CLOSE}, True, ""),
            StageResult("artifact", {"logits": CLOSE}, True, ""),
        ),
        gates={"logits": GATE},
        accuracy=Accuracy(before=0.975, after=0.9725, samples=128, lost=1, won=0),
        speed=speed,
        token_schedule=(197, 184, 171),
        recognised={"bipartite_match": 3, "merge_tokens": 6},
        stage_seconds={"capture": 3.25, "verify": 1.5},
        machine=describe_machine({"torch": 2}),
        runtime=RuntimeInfo("ort", "onnxruntime-cpu", "1.32.0"),
        artifact_bytes=88_400_000,
        bundle="/tmp/out",
        warnings=("Two samples were nearly ties.",),
    )


def failed() -> Report:
    return dataclasses.replace(
        passed(),
        status=FAILED,
        stages=(
            StageResult("rewritten", {"logits": CLOSE, "features": BROKEN}, True, ""),
            StageResult(
                "onnx",
                {"logits": FAR},
                False,
                "logits is off by 1.0e-01",
                worst={"logits": Worst(17.2, (0, 3, 2), 0.1, 0.1 / 17.2)},
            ),
        ),
        first_failure="onnx",
        accuracy=None,
        speed=None,
        bundle=None,
    )


def rendered(report: Report, width: int = 100) -> str:
    file = io.StringIO()
    render(report, Console(file=file, width=width, force_terminal=False))
    return file.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def test_json_is_strict_and_reads_back() -> None:
    for report in (passed(), failed()):
        data = report.to_json()
        assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_json_has_every_attribute_under_its_name_whatever_happened() -> None:
    expected = ["schema_version", *(each.name for each in dataclasses.fields(Report))]
    bare = Report(
        target="trt", status=FAILED, precision="fp32", source={}, inputs="none", samples=0
    )
    for report in (passed(), failed(), bare):
        assert list(report.to_json()) == expected


def test_json_keeps_the_numbers() -> None:
    data = passed().to_json()
    assert data["schema_version"] == 2
    assert data["stages"][0]["comparisons"]["logits"]["max_abs"] == CLOSE.max_abs
    assert data["gates"]["logits"]["tolerance"] == 1e-5
    assert data["speed"]["ratios"]["artifact"]["of_medians"] == 1.5
    assert data["speed"]["ratios"]["plain export"]["of_medians"] == 1.2
    assert len(data["speed"]["timings"]["eager"]["samples_ms"]) == 40
    assert data["token_schedule"] == [197, 184, 171]
    counts = {"samples": 128, "lost": 1, "won": 0}
    assert data["accuracy"] == {"before": 0.975, "after": 0.9725, **counts}
    assert data["runtime"]["version"] == "1.32.0"


def test_json_writes_numbers_that_are_not_finite_as_texts() -> None:
    assert math.isinf(BROKEN.max_abs)
    assert failed().to_json()["stages"][0]["comparisons"]["features"]["max_abs"] == "Infinity"
    source = {"a": np.float32("nan"), "b": -math.inf, "c": np.int64(3), "d": Path("/x")}
    found = dataclasses.replace(passed(), source=source).to_json()["source"]
    assert found == {"a": "NaN", "b": "-Infinity", "c": 3, "d": "/x"}


def test_json_refuses_what_it_has_no_form_for() -> None:
    with pytest.raises(TypeError, match="set"):
        dataclasses.replace(passed(), source={"a": {1, 2}}).to_json()


def test_writes_a_file_that_reads_back(tmp_path: Path) -> None:
    report = failed()
    report.write(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text(encoding="utf-8")

    def refuse(token: str) -> None:
        raise ValueError(token)

    assert json.loads(text, parse_constant=refuse) == report.to_json()


def test_the_summary_says_what_passed_and_how_fast_it_is() -> None:
    said = rendered(passed())
    lines = [words(line) for line in said.splitlines()]
    assert lines[0] == "PASSED models.vit:build[0] → ort, fp32"
    assert "inputs 128 samples of data.npz" in lines
    assert "tokens 197 184 171" in lines
    assert "found bipartite_match × 3, merge_tokens × 6" in lines
    assert "accuracy 97.50% before, 97.25% after (128 labelled samples)" in lines
    assert "runtime onnxruntime-cpu 1.32.0" in lines
    assert "time 4.8 s, of which capture 3.2 s" in lines
    parity = next(line for line in lines if line.startswith("rewritten logits"))
    assert parity.endswith("1.0e-05 1.000000 100.0% passed")
    assert f"logits {CLOSE.max_abs:.1e} 1.0e-05" in parity
    assert "Speed over eager, 40 interleaved pairs" in lines
    assert "eager 36.00 36.00" in lines
    assert "artifact 24.00 24.00 1.50 1.50 … 1.50 1.50" in lines
    assert "plain export 30.00 30.00 1.20 1.20 … 1.20 1.20" in lines
    assert "warning Two samples were nearly ties." in lines
    assert lines[-1] == "bundle /tmp/out (artifact 88.4 MB)"
    assert "first failure" not in said


def test_the_summary_names_the_first_stage_that_failed() -> None:
    said = rendered(failed())
    lines = [words(line) for line in said.splitlines()]
    assert lines[0].startswith("FAILED ")
    assert next(line for line in lines if line.startswith("onnx logits")).endswith("failed")
    assert next(line for line in lines if line.startswith("features inf")).endswith("0.0%")
    assert "first failure onnx: logits is off by 1.0e-01" in lines
    assert "gate of logits: 1.0e-05 of 2.5 (the floor of fp32)" in lines
    assert "bundle" not in said
    assert "Speed" not in said


def test_an_engine_that_did_not_run_is_never_called_passed() -> None:
    report = dataclasses.replace(
        passed(),
        target="trt",
        status=BUILT_NOT_RUN,
        not_run_reason="no GPU on this machine.\nmore of it",
        stages=(StageResult("lowered", {"logits": CLOSE}, True, ""),),
        speed=None,
    )
    said = words(rendered(report))
    assert said.startswith("BUILT, NOT RUN models.vit:build[0] → trt, fp32")
    assert "no GPU on this machine. It did not run here;" in said
    assert "the lowered ONNX passed the gate in ONNX Runtime." in said
    assert "PASSED" not in said


def test_a_stage_whose_shapes_differ_still_has_its_row() -> None:
    report = dataclasses.replace(
        failed(), stages=(StageResult("onnx", {}, False, "(2, 4) is (2, 5)"),)
    )
    lines = [words(line) for line in rendered(report).splitlines()]
    assert "onnx failed" in lines
    assert "first failure onnx: (2, 4) is (2, 5)" in lines


def test_the_summary_fits_a_terminal_of_80_columns() -> None:
    for report in (passed(), failed()):
        lines = rendered(report, width=80).splitlines()
        assert max(map(len, lines)) <= 80
        assert any(line.startswith("rewritten  logits") for line in lines)


def test_a_passed_line_is_green_and_a_value_outside_its_gate_is_red() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="standard")
    render(passed(), console)
    assert "\x1b[1;32mPASSED" in file.getvalue()
    assert "\x1b[31m" not in file.getvalue()
    render(failed(), console)
    assert re.search(r"\x1b\[31m *1720%", file.getvalue())


def test_a_gate_over_all_samples_shows_both_figures_and_what_lies_outside() -> None:
    gate = Gate(math.inf, None, 2.5, "the default of int8", least_cosine=0.99, spread=0.5)
    stage = StageResult(
        "artifact", {"logits": FAR}, True, "", gates={"logits": gate}, outside=(3, 7)
    )
    report = dataclasses.replace(passed(), stages=(stage,), batches=16, precision="int8")
    said = rendered(report, width=80)
    lines = [words(line) for line in said.splitlines()]
    assert max(map(len, said.splitlines()[: lines.index("spread 0.5")])) <= 80
    assert "logits is off by 0.200 of its spread between samples at artifact" in lines
    assert any(line.startswith("outside at artifact 2 of 16 batches") for line in lines)
    assert report.to_json()["stages"][0]["outside"] == [3, 7]


def test_a_result_is_shown_in_a_line_with_the_verdict_first() -> None:
    report = passed()
    assert repr(report) == (
        "PASSED: models.vit:build[0] → ort, fp32; 2 stages agree with eager; artifact 1.50 times "
        "as fast as eager; plain export 1.20 times as fast as eager; bundle /tmp/out"
    )
    assert repr(CompileResult(PASSED, report, Path("/tmp/out"))) == repr(report)
    assert repr(failed()).startswith(
        "FAILED: models.vit:build[0] → ort, fp32; onnx is the first stage that differs from eager"
    )


def test_a_notebook_shows_the_verdict_first_and_every_stage() -> None:
    shown = ElementTree.fromstring(CompileResult(PASSED, passed(), Path("/"))._repr_html_())
    texts = list(shown.itertext())
    assert texts[0] == PASSED
    assert ["rewritten", "logits", f"{CLOSE.max_abs:.1e}", "1.000000", "passed"] in [
        list(row.itertext()) for row in shown.iter("tr")
    ]
    assert "Two samples were nearly ties." in texts
    assert "failed" in ElementTree.fromstring(failed()._repr_html_()).itertext()


def test_what_a_notebook_and_a_terminal_obey_is_escaped() -> None:
    location = "<script>run()</script> & \x1b[31m\nred"
    report = dataclasses.replace(passed(), source={"location": location}, inputs="<b>file</b>")
    shown = ElementTree.fromstring(report._repr_html_())
    assert {each.tag for each in shown.iter()} <= {"div", "p", "strong", "table", "tr", "th", "td"}
    assert "<b>file</b>" in shown.itertext()
    assert "\x1b" not in report._repr_html_()
    assert repr(report).startswith("PASSED: <script>run()</script> & \\x1b[31m red → ort, fp32;")
