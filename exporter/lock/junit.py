"""Writes how bundles stand to a lock as JUnit's XML, for those who do not use pytest."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from tokexport.exporter.lock.check import BundleCheck, CheckResult
from tokexport.exporter.speed.paired_bundles import PairedSpeed
from tokexport.exporter.system.output_file import written_whole
from tokexport.runtimes.printable import printable


def write_junit(found: CheckResult, path: Path) -> None:
    """Writes a test case per bundle.

    Args:
        found: The check; under its ``strict`` a drift is a failure.
        path: The file; one that is there is replaced.

    Raises:
        WriteError: The file cannot be written.
    """
    slower = found.speed is not None and found.speed.failed() is not None
    failing = sum(one.fails(found.strict) for one in found.bundles) + slower
    suite = ElementTree.Element(
        "testsuite",
        name="tokexport check",
        tests=str(len(found.bundles) + (found.speed is not None)),
        failures=str(failing),
        errors="0",
        skipped="0",
    )
    for one in found.bundles:
        suite.append(_case(one, found))
    if found.speed is not None:
        suite.append(_speed_case(found.speed))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    with written_whole(path, "JUnit report") as partial:
        ElementTree.ElementTree(root).write(partial, encoding="utf-8", xml_declaration=True)


def _case(one: BundleCheck, found: CheckResult) -> ElementTree.Element:
    lock = str(found.lock)
    case = ElementTree.Element(
        "testcase", classname=_text(lock), name=_text(one.item_name), file=_text(lock)
    )
    properties = ElementTree.SubElement(case, "properties")
    ElementTree.SubElement(properties, "property", name="outcome", value=one.outcome)
    said = _text(one.sentences())
    if one.fails(found.strict):
        message = _text(one.findings[0].sentence)
        ElementTree.SubElement(case, "failure", message=message, type=one.outcome).text = said
    elif said:
        ElementTree.SubElement(case, "system-out").text = said
    return case


def _speed_case(speed: PairedSpeed) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase", classname=_text(speed.old.bundle), name=_text(f"{speed.new.bundle}[speed]")
    )
    said = _text("\n".join((f"{speed.verdict}, {speed.ratio:.3f} times as long", *speed.notes)))
    failed = speed.failed()
    if failed is not None:
        attributes = {"message": _text(failed.what), "type": str(speed.verdict)}
        ElementTree.SubElement(case, "failure", attributes).text = said
    else:
        ElementTree.SubElement(case, "system-out").text = said
    return case


def _text(text: str) -> str:
    """Returns a text without what XML has no character for."""
    return "\n".join(printable(line) for line in text.split("\n"))
