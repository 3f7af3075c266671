"""A folder of OpenVINO Model Server: its config.json, and OpenVINO on the model that it names."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import openvino
import pytest
from helpers.cli import refusal, tokexport
from helpers.plain_runtime import hold_to_reference

from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.verification import read_reference

#: What docs/parameters.md of the server documents of a model in a configuration file.
DOCUMENTED = {
    "type": "object",
    "required": ["model_config_list"],
    "properties": {
        "model_config_list": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["config"],
                "additionalProperties": False,
                "properties": {
                    "config": {
                        "type": "object",
                        "required": ["name", "base_path"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "base_path": {"type": "string"},
                            "target_device": {"type": "string"},
                            "plugin_config": {"type": "object"},
                        },
                    }
                },
            },
        }
    },
    "additionalProperties": False,
}


def test_openvino_runs_the_model_as_the_config_says(openvino_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "served"
    given = ("--format", "ovms", "--output", output, "--name", "digits", "--threads", "1")
    answer = tokexport("package", openvino_bundle, *given)
    assert answer.code == 0, answer
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    jsonschema.validate(config, DOCUMENTED)
    (served,) = (one["config"] for one in config["model_config_list"])
    assert served["name"] == "digits"
    versions = [*(output / served["base_path"]).iterdir()]
    assert [one.name for one in versions] == ["1"]
    plugin = {key: str(value) for key, value in served["plugin_config"].items()}
    assert plugin["INFERENCE_PRECISION_HINT"] == "f32"
    assert plugin["INFERENCE_NUM_THREADS"] == "1"
    core = openvino.Core()
    model = core.compile_model(versions[0] / "model.xml", served["target_device"], plugin)
    reference = read_reference(openvino_bundle, read_manifest(openvino_bundle))
    found = model({"image": reference.inputs["image"][0]})["output"]
    np.testing.assert_allclose(found, reference.outputs["output"][0], atol=1e-4)
    hold_to_reference(versions[0] / "model.xml", openvino_bundle, tmp_path)


@pytest.mark.parametrize("format", ["ovms"])
def test_another_runtimes_bundle_is_refused(ort_bundle: Path, tmp_path: Path, format: str) -> None:
    given = ("package", ort_bundle, "--format", format, "--output", tmp_path / "served")
    refusal(tokexport(*given), 2, tmp_path, "this one is for ort", "--target openvino")
    assert not (tmp_path / "served").exists()
