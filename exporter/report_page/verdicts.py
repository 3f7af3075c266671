"""Says in a sentence how a compile ended, for a reader who knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tokexport.exporter.report_page.page import BAD, GOOD, WARN, Note, Verdict
from tokexport.runtimes.bundle.manifest import BUILT_NOT_RUN, PASSED

RUNTIMES: Final = {"ort": "ONNX Runtime", "openvino": "OpenVINO", "trt": "TensorRT"}
#: What a stage is, in plain words.
STAGES: Final = {
    "captured": "the traced graph",
    "rewritten": "the graph with token operators",
    "onnx": "the ONNX file",
    "lowered": "the ONNX file rewritten for the target",
    "without kernels": "the artifact without the native kernels",
    "artifact": "the finished artifact",
}
#: Whose fault a first failure mostly is, and what helps.
_NEXT: Final = {
    "captured": (
        "Your model answers otherwise when it is traced. Look for a branch on the values of the "
        "input, a counter or cache that the model keeps between runs, and random numbers in "
        "forward."
    ),
    "rewritten": (
        "This is most likely a fault of tokexport and not of your model: please report it with "
        "report.json. Meanwhile, compile without --reduce, or with another method."
    ),
    "onnx": (
        "This is most likely a fault in the translation to ONNX: please report it with "
        "report.json. Meanwhile, write the lines that are named with other operators."
    ),
    "lowered": (
        "This is most likely a fault of tokexport and not of your model: please report it with "
        "report.json. Meanwhile, compile for another target."
    ),
    "without kernels": "Compile for another target, or with another version of OpenVINO.",
}

#: The same of the artifact, by what is known of it.
_NARROWED: Final = (
    "A reduced precision costs more here than its gate allows. Try another precision, or fp32 "
    "first: if that passes, nothing else is wrong."
)
_NEAR: Final = (
    "The error is little more than what rounding does. Give real samples with --inputs: the "
    "tolerance is then measured on them."
)
_FAR: Final = (
    "The error is far more than rounding does, so this is most likely a fault of tokexport or of "
    "the runtime, and not of your model: please report it with report.json. tokexport bisect finds "
    "the node where it comes in. Meanwhile, compile for another target."
)
#: An error of so many times what is allowed is no rounding.
_FAR_SHARE: Final = 10.0
_LOOSER: Final = (
    "Leave --atol out: tokexport then measures how far rounding alone moves each output, and "
    "allows for that. Or pass a larger tolerance, in the units of the output."
)


def times_allowed(share: float) -> str:
    """Returns a share of what is allowed: ``14 %``, or beyond ten times it ``310,000 times``."""
    if share != share or share in (float("inf"), float("-inf")):
        return "no number"
    return f"{share:.0%}" if share <= _FAR_SHARE else f"{share:,.0f} times"


def plural(count: int, noun: str) -> str:
    """Returns a number with its noun: ``1 sample``, ``3 samples``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def title_of(report: Mapping[str, Any]) -> str:
    """Returns what was compiled, and for what."""
    runtime = RUNTIMES.get(str(report["target"]), str(report["target"]))
    reduction = report["reduction"]
    recipe = f" with {reduction['recipe']}" if reduction else ""
    model = report["source"].get("location", "the model")
    return f"{model}{recipe} for {runtime}, {report['precision']}"


def compile_verdict(report: Mapping[str, Any], failure: Mapping[str, Any] | None) -> Verdict:
    """Returns the verdict of a compile.

    Args:
        report: ``report.json``.
        failure: The ``failure`` of ``page.json``; None where the compile did not fail.
    """
    if failure is not None or report["status"] not in (PASSED, BUILT_NOT_RUN):
        return _failed(report, failure)
    model = _model(report)
    samples = plural(report["samples"], "sample")
    if report["status"] == BUILT_NOT_RUN:
        reason = str(report["not_run_reason"] or "nothing here can run it").splitlines()[0]
        return Verdict(
            WARN,
            BUILT_NOT_RUN,
            f"The bundle was built, and it has not run yet: {reason.rstrip('.')}.",
            (
                f"In its place the ONNX file that it was built from gave the answers of {model} "
                f"on {samples}, in ONNX Runtime.",
                "Run `tokexport verify` on a machine that has the device before you ship it.",
            ),
        )
    tied = _tied(report)
    same = "gives the same answers as" if report["precision"] != "int8" else "answers like"
    sentence = f"The compiled model {same} {model} on {samples}{_faster(report)}."
    details = [_said_same(report)]
    if tied:
        details.append(
            f"On {plural(tied, 'batch').replace('batchs', 'batches')} two choices were equally "
            "good, and it took the other one: that is no error, and it was checked. See “Does it "
            "compute the same?” below."
        )
    return Verdict(GOOD, PASSED, sentence, tuple(details))


def failure_notes(report: Mapping[str, Any], failure: Mapping[str, Any] | None) -> list[Note]:
    """Returns what failed, what it means and what to do, for the top of the page."""
    if failure is None:
        return []
    stage = str(report["first_failure"])
    if _asked_too_much(report):
        return [Note(BAD, failure["what"], failure["where"], remedy=_LOOSER)]
    notes = [Note(BAD, failure["what"], failure["where"], remedy=failure["fix"])]
    if advice := _NEXT.get(stage) or (_about_artifact(report) if stage == "artifact" else ""):
        notes.append(Note(WARN, f"Where to look: {stage_words(stage)}", advice))
    return notes


def _about_artifact(report: Mapping[str, Any]) -> str:
    """Returns where to look where the artifact is the first that is off."""
    if report["precision"] != "fp32":
        return _NARROWED
    shares = [float(most["share"]) for most in report["stages"][-1]["worst"].values()]
    return _NEAR if shares and max(shares) <= _FAR_SHARE else _FAR


def stage_words(stage: str) -> str:
    """Returns a stage's name with what it is."""
    return f"{stage} ({STAGES[stage]})" if stage in STAGES else stage


def _failed(report: Mapping[str, Any], failure: Mapping[str, Any] | None) -> Verdict:
    stage = report["first_failure"]
    what = str(failure["what"]) if failure else ""
    if stage is None:
        kind = "A requirement was not met" if report["stages"] else "The compile ended early"
        return Verdict(BAD, "FAILED", f"No bundle was written. {what or kind + '.'}")
    model = _model(report)
    if _asked_too_much(report):
        return Verdict(
            BAD,
            "FAILED",
            "No bundle was written: the tolerance that was asked for is smaller than what rounding "
            "alone does in float32, so nothing can meet it.",
            (f"Nothing is known to be wrong with {model}, or with the compile.",),
        )
    before = [one["name"] for one in report["stages"] if one["passed"]]
    passed = f"Up to there it did: {', '.join(map(stage_words, before))}." if before else ""
    return Verdict(
        BAD,
        "FAILED",
        f"No bundle was written: {STAGES.get(stage, stage)} does not give the answers of {model}.",
        tuple(part for part in (passed,) if part),
    )


def _asked_too_much(report: Mapping[str, Any]) -> bool:
    gates = [gate for stage in report["stages"][-1:] for gate in stage["gates"].values()]
    return any(gate.get("unmeetable") for gate in gates)


def _model(report: Mapping[str, Any]) -> str:
    if report["reduction"]:
        return "your PyTorch model with its token reduction"
    return "your PyTorch model"


def _tied(report: Mapping[str, Any]) -> int:
    ties = [stage["ties"] for stage in report["stages"] if stage["ties"]]
    return max((len(one["batches"]) for one in ties), default=0)


def _faster(report: Mapping[str, Any]) -> str:
    """Returns how many times as fast as its best baseline it is, as the end of a sentence."""
    found = artifact_ratio(report["speed"])
    if found is None:
        return ""
    ratio = found["of_medians"]
    noisy = ", though the timing was disturbed" if found["noisy"] else ""
    if ratio < 1:
        return f", and takes {1 / ratio:.2f} times as long as it on this machine{noisy}"
    return f", and runs {ratio:.2f} times as fast as it on this machine{noisy}"


def artifact_ratio(speed: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Returns the ratio of the artifact, the last candidate timed; None where nothing was."""
    if not speed:
        return None
    names = [name for name in speed["timings"] if name in speed["ratios"]]
    return speed["ratios"][names[-1]] if names else None


def _said_same(report: Mapping[str, Any]) -> str:
    stages = len(report["stages"])
    held = report["edges"]["held"] if report["edges"] else []
    edges = f" and on {plural(len(held), 'kind')} of unusual input" if held else ""
    return (
        f"Each of {plural(stages, 'stage')} of the compile was run and compared with PyTorch on "
        f"the samples{edges}. Inputs: {report['inputs']}."
    )
