"""``tokexport bench --on HOST`` against a real sshd on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.cli import command, refusal, tokexport
from helpers.sshd import Server, server
from helpers.torchvision_ops import child_environment

from tokexport.exporter.bench_bundle import own_wheel
from tokexport.exporter.bench_bundle.remote import RemoteConfig
from tokexport.exporter.errors import UsageError

BUNDLES = Path(__file__).parents[2] / "bundles"
SHORT = ("--rounds", "5", "--time-limit", "1", "--threads", "1")
HERE = ("--python", sys.executable)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    kept = ("PYTHONPATH", "TOKEXPORT_NATIVE")
    environment = {name: child_environment()[name] for name in kept if name in child_environment()}
    with server(tmp_path_factory.mktemp("host"), environment) as running:
        yield running


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A bundle in a folder whose name a shell would take apart."""
    return Path(
        shutil.copytree(BUNDLES / "kernels_ort", tmp_path / 'it\'s "a" $(touch pwned) bundle;')
    )


def test_a_bundle_is_measured_there_and_nothing_is_left(host: Server, odd: Path) -> None:
    answer = tokexport("bench", odd, *host.arguments, *HERE, *SHORT, "--json")
    assert answer.code == 0, answer
    found = answer.json
    (row,) = found["rows"]
    assert found["host"].endswith("@127.0.0.1")
    assert row["bundle"] == found["bundles"][0]["bundle"] == str(odd)
    assert found["inputs"] == f"the first batch of the reference inputs of {odd}"
    assert row["latency"]["runs"] == 5
    assert host.left() == []
    assert not list(Path.cwd().glob("pwned"))


def test_two_bundles_are_measured_there_and_shown_with_the_host(
    host: Server, odd: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle-bench.json"
    both = (odd, BUNDLES / "kernels_openvino")
    answer = tokexport("bench", *both, *host.arguments, *HERE, *SHORT, "--output", output)
    assert answer.code == 0, answer
    written = json.loads(output.read_text())
    processor = written["machine"]["processor"]
    assert f"@127.0.0.1: {processor}, " in answer.stdout
    assert [row["bundle"] for row in written["rows"]] == [str(one) for one in both]
    assert written["rows"][1]["ratio"] is not None
    assert host.left() == []


def program(folder: Path, text: str) -> tuple[str, str]:
    """An interpreter that answers something of its own."""
    path = folder / "my python's"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return "--python", str(path)


def test_a_python_without_tokexport_is_said(host: Server, tmp_path: Path) -> None:
    python = program(tmp_path, f'exec "{sys.executable}" -I -S "$@"')
    answer = tokexport("bench", BUNDLES / "kernels_ort", *host.arguments, *python, *SHORT)
    refusal(answer, 5, tmp_path, "did not answer with measurements: 1", "No module named")
    assert host.left() == []


def test_an_interpreter_that_is_not_there_is_said(host: Server, tmp_path: Path) -> None:
    python = ("--python", "/no such/python; touch pwned")
    answer = tokexport("bench", BUNDLES / "kernels_ort", *host.arguments, *python, *SHORT)
    refusal(answer, 5, tmp_path, "did not answer with measurements: 127")
    assert host.left() == []


ANSWERS: dict[str, tuple[str, int, str]] = {
    "no JSON": ("echo hello", 5, "did not answer with measurements: 0"),
    "a list": ("echo '[]'", 5, "did not answer with measurements"),
    "another object": ("echo '{\"rows\": 1}'", 5, "did not answer with measurements"),
    "deep": ("yes '[' | head -c 200000", 5, "did not answer with measurements"),
    "a broken error": ("echo '{\"error\": null}'; exit 1", 5, "did not answer"),
    "its own death": ("kill -9 $$", 5, "did not answer with measurements: 137"),
    "an error of the user": (
        'printf \'{"error": {"kind": "UsageError", "what": "Too few.", "where": "\\\\u001b[2J", '
        '"fix": "Pass more."}}\'; exit 2',
        2,
        "Too few.",
    ),
    "a bug of its own": (
        'printf \'{"error": {"kind": "InternalError", "what": "Oh.", "where": "", "fix": ""}}\'; '
        "exit 70",
        5,
        "Oh.",
    ),
    "an error without a class": (
        'printf \'{"error": {"kind": "os", "what": "Odd.", "where": "", "fix": ""}}\'; exit 1',
        5,
        "Odd.",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_a_machine_answers_instead(case: str, host: Server, tmp_path: Path) -> None:
    text, code, said = ANSWERS[case]
    python = program(tmp_path, text)
    answer = tokexport("bench", BUNDLES / "kernels_ort", *host.arguments, *python, *SHORT)
    message = refusal(answer, code, tmp_path, said)
    assert "\x1b" not in message
    assert host.left() == []


def test_a_machine_that_is_not_reached_is_said(host: Server, tmp_path: Path) -> None:
    arguments = list(host.arguments)
    arguments[arguments.index("--port") + 1] = "1"
    answer = tokexport("bench", BUNDLES / "kernels_ort", *arguments, *HERE, *SHORT)
    refusal(answer, 5, tmp_path, "was not reached over ssh", "Connection refused")


def test_a_key_that_is_not_known_is_said(host: Server, tmp_path: Path) -> None:
    options = [one for one in host.arguments if "IdentityFile" not in one]
    answer = tokexport("bench", BUNDLES / "kernels_ort", *options, *HERE, *SHORT)
    refusal(answer, 5, tmp_path, "was not reached over ssh", "Permission denied")


def waiting(folder: Path) -> tuple[tuple[str, str], Path]:
    """An interpreter that says that it runs, and waits for a long time."""
    seen = folder / "seen"
    return program(folder, f'echo $$ > "{seen}"; exec sleep 600'), seen


def awaited(path: Path) -> int:
    for _ in range(400):
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError("it does not run")


def ended(process: int) -> bool:
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_broken_connection_is_said_and_all_of_it_ends_there(host: Server, tmp_path: Path) -> None:
    python, seen = waiting(tmp_path)
    found: list[int] = []

    def cut() -> None:
        found.append(awaited(seen))
        for session in host.sessions():
            os.kill(session, signal.SIGKILL)

    cutting = threading.Thread(target=cut)
    cutting.start()
    answer = tokexport("bench", BUNDLES / "kernels_ort", *host.arguments, *python, *SHORT)
    cutting.join()
    refusal(answer, 5, tmp_path, "The connection broke before", "in the part 'bench'")
    assert host.left() == []
    assert ended(found[0])


def test_ctrl_c_ends_it_there_too(host: Server, tmp_path: Path) -> None:
    python, seen = waiting(tmp_path)
    given = ("bench", BUNDLES / "kernels_ort", *host.arguments, *python, *SHORT)
    process = subprocess.Popen(
        command(*given), env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    there = awaited(seen)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert host.left() == []
    assert ended(there)


def test_an_altered_bundle_is_not_sent(odd: Path, tmp_path: Path) -> None:
    (odd / "model.onnx").write_bytes(b"altered")
    answer = tokexport("bench", odd, "--on", "nowhere.invalid", *HERE)
    refusal(answer, 5, tmp_path, "is not the one that was written")


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "an option for a host": (("--on=-oProxyCommand=touch pwned", *HERE), "is no name of a machine"),
    "a space": (("--on", "a b", *HERE), "is no name of a machine"),
    "a line": (("--on", "a\nb", *HERE), "is no name of a machine"),
    "nothing": (("--on", "", *HERE), "is no name of a machine"),
    "a port": (("--on", "a", "--port", "0", *HERE), "--port is 0"),
    "an option of ssh": (("--on", "a", "--ssh-option", "-F/x", *HERE), "has no name and value"),
    "an empty interpreter": (("--on", "a", "--python", ""), "--python names no interpreter"),
    "no wheel": (("--on", "a", "--wheel", "nowhere.whl"), "no file with the name of one"),
    "no host": (HERE, "There is no --on HOST, and --python"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_before_anything_is_sent(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options, said = REFUSED[case]
    refusal(tokexport("bench", BUNDLES / "kernels_ort", *options), 2, tmp_path, said)
    assert list(tmp_path.iterdir()) == []


def test_without_a_checkout_something_has_to_say_what_runs_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_wheel, "checkout", lambda: None)  # as where it was installed
    answer = tokexport("bench", BUNDLES / "kernels_ort", "--on", "a")
    refusal(answer, 2, tmp_path, "Nothing says what runs on a")


def test_a_wheel_that_cannot_be_built_is_said(tmp_path: Path) -> None:
    assert own_wheel.checkout() == Path(__file__).parents[3]
    (tmp_path / "pyproject.toml").write_text("[project\n")
    with pytest.raises(UsageError, match="pip built no wheel") as caught:
        own_wheel.build_wheel(tmp_path, tmp_path)
    assert "TOMLDecodeError" in caught.value.where


def test_a_wheel_whose_name_is_none_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "a b$(x).whl"
    wheel.write_bytes(b"")
    with pytest.raises(UsageError, match="name of one"):
        RemoteConfig(host="a", wheel=wheel)


def test_a_wheel_that_does_not_install_is_said(host: Server, tmp_path: Path) -> None:
    wheel = tmp_path / "tokexport-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"no archive")
    options = (*HERE, "--wheel", wheel)
    answer = tokexport("bench", BUNDLES / "kernels_ort", *host.arguments, *options, *SHORT)
    refusal(answer, 5, tmp_path, "cannot install the wheel")
    assert host.left() == []


def test_a_model_is_not_measured_on_another_machine(tmp_path: Path) -> None:
    answer = tokexport("bench", "models.cli_models:plain_vit", "--on", "a", *HERE)
    refusal(answer, 2, tmp_path, "Only a bundle is measured on another machine: --on, --python")
