"""Says what to do about a finding, and what its subject is, for one who sees it first."""

from __future__ import annotations

from typing import Final

from tokexport.exporter.lock.findings import BREAK, Finding

_UPDATE: Final = "Where the change is meant, accept it with tokexport check --update."
#: What to do, by what differs.
_REMEDIES: Final = {
    "bundle": "Copy the bundle again from where it was made, or compile the model anew.",
    "output": "Do not ship it. Find the node that does it: tokexport bisect SOURCE BUNDLE. Another "
    "environment may turn a near-tie, in half precisions above all: check --source says whether it "
    "is that alone.",
    "tolerance": "Compile with the tolerance that was locked: a wider one proves less. " + _UPDATE,
    "weights": "Compile the weights that were locked. A new training has to be locked anew: "
    + _UPDATE,
    "structure": "Look at what changed in the model's code. " + _UPDATE,
    "reference": "Look at what changed in the model's code or weights, or in torch. " + _UPDATE,
    "reference inputs": "Compile with the --inputs or the --seed of before, so that answers can be "
    "compared.",
    "preprocessing": "Give the model the preprocessing that it was trained with. " + _UPDATE,
    "precision": "Compile with the --precision that was locked. " + _UPDATE,
    "token reduction": "Compile with the --reduce that was locked. " + _UPDATE,
    "labelled samples": "Use the samples that were locked: the same files, preprocessed alike.",
    "labels": "Check how the labels are numbered: a list that begins at 1, or another order of "
    "classes, moves all of them.",
    "accuracy": "Do not ship this bundle before you know why: tokexport verify BUNDLE --against "
    "SOURCE says whether it is still the model.",
    "source": "Compile the source anew, or name the source that the bundle was compiled from: "
    "tokexport bisect SOURCE BUNDLE finds the node.",
    "environment": "Lock the same bundle here beside its other runs: tokexport check --update.",
    "artifact": _UPDATE,
    "native kernels": "Run tokexport doctor: it says whether the kernels load.",
    "run": "Check it on a machine that has the device.",
}
_OTHERS: Final = {
    BREAK: "Compile the model that was locked. " + _UPDATE,
    "drift": "It is inside its tolerance: nothing has to be done. " + _UPDATE,
}


def remedy(finding: Finding) -> str:
    """Returns what to do about a finding.

    Args:
        finding: It.
    """
    subject = finding.what.partition(" of '")[0].partition(" '")[0]
    return _REMEDIES.get(subject, _OTHERS[finding.kind])
