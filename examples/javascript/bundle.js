/** Reads the manifest of a bundle, as far as it says how pictures are classified. */

import { createHash } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { basename, join } from "node:path";

import { Problem } from "./problem.js";

const SCHEMA_VERSION = 1;
const LARGEST_MANIFEST = 1 << 24;
const FORMS = ["logits", "probabilities", "independent"];

/** Reads a regular file whole, and names the file where that fails. */
export async function readWhole(path, most = Infinity) {
  try {
    const found = await stat(path);
    if (!found.isFile()) throw new Problem(`${path} is no regular file.`);
    if (found.size > most) throw new Problem(`${path} is too large: ${found.size} bytes.`);
    return await readFile(path);
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(`${path} cannot be read: ${error.code ?? error.message}.`);
  }
}

/**
 * A bundle for ONNX Runtime that takes the bytes of whole pictures and scores their classes.
 *
 * batch, height, width   the input is (batch, height, width, 3) uint8: red, green, blue
 * classes                the output is (batch, classes) float32
 * logits                 whether a softmax makes probabilities of it
 * labels                 a name for each class, "" for one without; null without names
 */
export class Bundle {
  /** Throws Problem: the folder is no bundle, or one that takes or gives something else. */
  static async read(folder) {
    const path = join(folder, "manifest.json");
    const text = (await readWhole(path, LARGEST_MANIFEST)).toString("utf8");
    try {
      return new Bundle(folder, JSON.parse(text));
    } catch (error) {
      if (error instanceof Problem) throw error;
      throw new Problem(`${path} is not valid: ${error.message}.`);
    }
  }

  constructor(folder, manifest) {
    checkVersion(manifest);
    this.folder = folder;
    this.files = field(manifest, "files", "object");
    this.artifact = field(manifest, "artifact", "string");
    this.#readInput(manifest);
    this.#readScores(manifest);
    this.independent = manifest.samples_independent === true;
    this.checks = manifest.checks && {
      output: field(manifest.checks, "output", "string"),
      said: field(manifest.checks, "held", "array").map((one) => field(one, "said", "string")),
    };
  }

  /** Returns the artifact and the files of weights beside it, each held to its hash. */
  async readArtifact() {
    const weights = Object.keys(this.files).filter((name) => name.endsWith(".data"));
    const [model, ...external] = await Promise.all([this.artifact, ...weights].map((one) => this.#readFile(one)));
    return { model, externalData: weights.map((path, place) => ({ path, data: external[place] })) };
  }

  async #readFile(name) {
    if (basename(name) !== name) throw new Problem(`The manifest names a file elsewhere: ${name}`);
    const path = join(this.folder, name);
    const data = await readWhole(path);
    if (createHash("sha256").update(data).digest("hex") !== this.files[name]) {
      throw new Problem(`${path} is not what compile wrote: copy the bundle again.`);
    }
    return data;
  }

  #readInput(manifest) {
    const inputs = specs(manifest, "inputs");
    const [spec] = inputs;
    if (inputs.length !== 1 || spec.shape.length !== 4 || spec.shape[3] !== 3 || spec.dtype !== "uint8") {
      throw new Problem(
        `The artifact takes no bytes of pictures, but ${described(inputs)}: ` +
          "compile with --embed-preprocess HEIGHTxWIDTH.",
      );
    }
    const steps = manifest.preprocessing;
    if (!steps?.embedded || steps.resize || steps.crop) {
      throw new Problem(
        "The artifact leaves resizing or cropping to its caller, which this program does not do: " +
          "compile with --embed-preprocess HEIGHTxWIDTH.",
      );
    }
    [this.batch, this.height, this.width] = spec.shape;
    this.input = spec.name;
    [this.lowest, this.highest] = (manifest.input_ranges?.[spec.name] ?? [0, 255]).map(Number);
  }

  #readScores(manifest) {
    const { scores, labels } = manifest;
    if (!scores) {
      throw new Problem("The model is no classifier: its manifest names no output that scores classes.");
    }
    if (!FORMS.includes(scores.form)) throw new Error(`scores.form is '${scores.form}', which is unknown`);
    const outputs = specs(manifest, "outputs");
    const spec = outputs.find((one) => one.name === scores.output);
    if (spec?.shape.length !== 2 || spec.shape[0] !== this.batch || spec.dtype !== "float32") {
      throw new Problem(
        `The output of the scores should be float32 (pictures, classes); the artifact gives ${described(outputs)}.`,
      );
    }
    this.output = spec.name;
    this.classes = spec.shape[1];
    this.logits = scores.form === "logits";
    this.labels = labels ? field(manifest, "labels", "array").map(String) : null;
    if (this.labels && this.labels.length !== this.classes) {
      throw new Error(`there are ${this.labels.length} labels for ${this.classes} classes`);
    }
  }
}

/** Returns a field of an object; throws Error where it is missing or of another type. */
function field(object, key, type) {
  const value = object?.[key];
  const found = Array.isArray(value) ? "array" : value === null ? "null" : typeof value;
  if (found !== type) throw new Error(`${key} should be of type ${type}, and it is ${found}`);
  return value;
}

function checkVersion(manifest) {
  const version = field(manifest, "schema_version", "number");
  if (version !== SCHEMA_VERSION) {
    throw new Problem(`The bundle has schema version ${version}, and this program reads ${SCHEMA_VERSION}.`);
  }
  const target = field(manifest, "target", "string");
  if (target !== "ort") throw new Problem(`The bundle is for '${target}': compile with --target ort.`);
  if (manifest.status !== "PASSED") throw new Problem("The bundle was never run: tokexport verify BUNDLE.");
  if (manifest.requires?.instruction_sets?.length) {
    throw new Problem(
      "The artifact answers rightly on some processors only, which this program cannot look at: " +
        "compile with --weight-bits 7.",
    );
  }
}

/** Returns the inputs or outputs: name, dtype, and a shape of whole numbers above 0. */
function specs(manifest, key) {
  return field(manifest, key, "array").map((one) => {
    const shape = field(one, "shape", "array");
    if (!shape.every((size) => Number.isSafeInteger(size) && size > 0)) {
      throw new Error(`${key} has a size that is no whole number above 0`);
    }
    return { name: field(one, "name", "string"), dtype: field(one, "dtype", "string"), shape };
  });
}

function described(found) {
  return found.map((one) => `${one.name} ${one.dtype} [${one.shape}]`).join("; ") || "nothing";
}
