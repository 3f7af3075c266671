"""A folder of OpenVINO Model Server: its config.json, and OpenVINO on the model that it names."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import openvino
from helpers.cli import refusal, tokexport
from helpers.plain_runtime import hold_to_reference
from helpers.small_bundles import WEIGHT, WIDTH, product_bundle

from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.bundle.reference import read_reference

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


def test_each_artifact_of_a_ladder_is_a_model(tmp_path: Path) -> None:
    bundle = product_bundle(tmp_path / "product", 1, 2, 8, target="openvino")
    given = ("package", bundle, "--format", "ovms", "--output", tmp_path / "served", "--json")
    answer = tokexport(*given)
    assert answer.code == 0, answer
    said = "product takes 1, product-batch2 takes 2, product-batch8 takes 8 samples"
    assert said in answer.json["notes"][0]
    config = json.loads((tmp_path / "served" / "config.json").read_text(encoding="utf-8"))
    jsonschema.validate(config, DOCUMENTED)
    core = openvino.Core()
    served = [one["config"] for one in config["model_config_list"]]
    assert [one["name"] for one in served] == ["product", "product-batch2", "product-batch8"]
    for one, batch in zip(served, (1, 2, 8), strict=True):
        version = tmp_path / "served" / one["base_path"] / "1"
        assert sorted(path.name for path in version.iterdir()) == ["model.bin", "model.xml"]
        x = np.random.default_rng(0).random((batch, WIDTH), np.float32)
        plugin = {key: str(value) for key, value in one["plugin_config"].items()}
        model = core.compile_model(version / "model.xml", "CPU", plugin)
        found = model([x, np.zeros((batch, 1), np.int64)])
        np.testing.assert_allclose(found["y"], x @ WEIGHT, rtol=1e-5)
    assert tokexport(*given, "--force").code == 0


def test_another_runtimes_bundle_is_refused(ort_bundle: Path, tmp_path: Path) -> None:
    given = ("package", ort_bundle, "--format", "ovms", "--output", tmp_path / "served")
    refusal(tokexport(*given), 2, tmp_path, "this one is for ort", "--target openvino")
    assert not (tmp_path / "served").exists()
