#!/usr/bin/env node
/** Prints the highest classes of PNG files, by a bundle that takes the bytes of whole pictures. */

import { parseArgs } from "node:util";

import * as ort from "onnxruntime-web";

import { Bundle } from "./bundle.js";
import { decodePng } from "./picture.js";
import { Problem } from "./problem.js";

const USAGE = "usage: node classify.js [--json] [--top N] BUNDLE PICTURE.png...";

/** Returns scores as probabilities where the model gives logits. */
function probabilities(scores, logits) {
  const found = Array.from(scores);
  if (!found.every(Number.isFinite)) throw new Problem("The artifact gives scores that are not finite.");
  if (!logits) return found;
  const highest = found.reduce((one, other) => Math.max(one, other));
  const powers = found.map((score) => Math.exp(score - highest));
  const sum = powers.reduce((one, other) => one + other);
  return powers.map((power) => power / sum);
}

/** Returns the highest classes; of equal ones the lower number comes first. */
function highest(scores, labels, top) {
  const order = scores.map((_, index) => index).sort((one, other) => scores[other] - scores[one]);
  return order.slice(0, top).map((index, rank) => ({
    index,
    label: labels?.[index] || null,
    score: scores[index],
    margin: rank + 1 < order.length ? scores[index] - scores[order[rank + 1]] : null,
  }));
}

/** Fills a batch with some pictures; the last one is repeated. */
async function pixelsOf(files, bundle) {
  const size = bundle.height * bundle.width * 3;
  const pixels = new Uint8Array(bundle.batch * size);
  for (let sample = 0; sample < bundle.batch; sample++) {
    const file = files[Math.min(sample, files.length - 1)];
    const one = await decodePng(file, bundle.height, bundle.width);
    if (one.some((byte) => byte < bundle.lowest || byte > bundle.highest)) {
      throw new Problem(`${file} holds bytes on which the artifact would not answer as the model does.`);
    }
    pixels.set(one, sample * size);
  }
  return pixels;
}

function requireChecks(holds, bundle) {
  const { said } = bundle.checks;
  if (holds.length !== said.length) throw new Problem("The artifact has other checks than its manifest says.");
  const broken = said.find((_, place) => !holds[place]);
  if (broken !== undefined) {
    throw new Problem(`The artifact would not answer this picture as the model does: ${broken}.`);
  }
}

async function load(bundle) {
  ort.env.logLevel = "fatal";
  ort.env.wasm.numThreads = 1;
  const { model, externalData } = await bundle.readArtifact();
  try {
    return await ort.InferenceSession.create(model, {
      executionProviders: ["wasm"],
      externalData,
      logSeverityLevel: 4,
    });
  } catch (error) {
    throw new Problem(`ONNX Runtime cannot load ${bundle.artifact}: ${error.message}`);
  }
}

/** Returns the scores (batch, classes) of pixels (batch, height, width, 3). */
async function run(session, bundle, pixels) {
  const { input, output, checks } = bundle;
  const tensor = new ort.Tensor("uint8", pixels, [bundle.batch, bundle.height, bundle.width, 3]);
  const found = await session.run({ [input]: tensor }, checks ? [output, checks.output] : [output]);
  if (checks) requireChecks(found[checks.output].data, bundle);
  const { type, data } = found[output];
  if (type !== "float32" || data.length !== bundle.batch * bundle.classes) {
    throw new Problem("The artifact gives other scores than its manifest says.");
  }
  return data;
}

/** Returns the classes of each picture, as tokexport run --json has them. */
async function classify(folder, files, top) {
  const bundle = await Bundle.read(folder);
  if (files.length % bundle.batch && !bundle.independent) {
    throw new Problem(
      `An answer may depend on the other pictures of its batch: pass ${bundle.batch} at once, ` +
        "or compile with --batch 1.",
    );
  }
  let session;
  const pictures = [];
  for (let begin = 0; begin < files.length; begin += bundle.batch) {
    const some = files.slice(begin, begin + bundle.batch);
    const pixels = await pixelsOf(some, bundle);
    session ??= await load(bundle);
    const scores = await run(session, bundle, pixels);
    some.forEach((file, place) => {
      const row = scores.subarray(place * bundle.classes, (place + 1) * bundle.classes);
      pictures.push({ file, classes: highest(probabilities(row, bundle.logits), bundle.labels, top) });
    });
  }
  return { pictures };
}

/** Texts come from files: what would command a terminal becomes "?". */
function printable(text) {
  return text.replace(/\p{Cc}/gu, "?");
}

function table({ pictures }) {
  const percent = (value) => `${(100 * value).toFixed(2)} %`;
  const line = ({ index, label, score, margin }) =>
    `  ${percent(score).padStart(9)}  ${String(index).padStart(5)}  ${printable(label ?? "")}` +
    (margin === null ? "" : `  (${percent(margin)} before the next)`);
  return pictures.flatMap(({ file, classes }) => [printable(file), ...classes.map(line)]).join("\n");
}

function parsed() {
  const options = { json: { type: "boolean", default: false }, top: { type: "string", default: "5" } };
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    const [folder, ...files] = positionals;
    if (files.length && /^[1-9]\d{0,6}$/.test(values.top)) {
      return { folder, files, top: Number(values.top), json: values.json };
    }
  } catch {
    // The usage below says what there is.
  }
  console.error(USAGE);
  process.exit(2);
}

const { folder, files, top, json } = parsed();
try {
  const found = await classify(folder, files, top);
  console.log(json ? JSON.stringify(found, null, 2) : table(found));
} catch (error) {
  console.error(printable(`classify: ${error.message}`));
  process.exitCode = 1;
}
