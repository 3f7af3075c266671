/** Decodes PNG files to the pixels that tokexport's own decoder gives. */

import { inflateSync } from "node:zlib";

import { PNG } from "pngjs";

import { readWhole } from "./bundle.js";
import { Problem } from "./problem.js";

const SIGNATURE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
const LARGEST = 1 << 28;
const PALETTE = 3;
/** Channels by the type of colour, and the passes of an interlaced picture: first row and column, and steps. */
const CHANNELS = { 0: 1, 2: 3, [PALETTE]: 1, 4: 2, 6: 4 };
const INTERLACED = [
  [0, 0, 8, 8],
  [0, 4, 8, 8],
  [4, 0, 8, 4],
  [0, 2, 4, 4],
  [2, 0, 4, 2],
  [0, 1, 2, 2],
  [1, 0, 2, 1],
];
/** The chunks of text, and the words they begin with where they may turn a picture. */
const TEXTS = ["tEXt", "zTXt", "iTXt"];
const TURNING = ["Raw profile type ", "XML:com.adobe.xmp\0"];

/**
 * Returns pixels (height, width, 3): red, green, blue. Transparency is dropped, and the colours beneath it stay.
 *
 * Throws Problem: the file is missing, no PNG or damaged, or not as large as the artifact takes it; or it holds
 * what this decoder would read otherwise: 16 bits a channel, a transparent colour, metadata that may turn it.
 */
export async function decodePng(path, height, width) {
  const file = await readWhole(path, LARGEST);
  if (!file.subarray(0, 8).equals(SIGNATURE) || file.length < 33) throw new Problem(`${path} is no PNG file.`);
  const [wide, tall] = [file.readUInt32BE(16), file.readUInt32BE(20)];
  if (tall !== height || wide !== width) {
    throw new Problem(
      `${path} has ${tall} x ${wide} pixels (height x width), and the artifact takes ${height} x ${width}.`,
    );
  }
  refuseWhatIsReadOtherwise(path, file);
  let data;
  try {
    checkStream(file, height, width);
    ({ data } = PNG.sync.read(file));
  } catch (error) {
    throw new Problem(`${path} is damaged or cut off: ${error.message}.`);
  }
  const pixels = new Uint8Array(height * width * 3);
  for (let pixel = 0; pixel < height * width; pixel++) {
    pixels.set(data.subarray(4 * pixel, 4 * pixel + 3), 3 * pixel);
  }
  return pixels;
}

function refuseWhatIsReadOtherwise(path, file) {
  if (file[24] === 16) throw new Problem(`${path} has 16 bits a channel: save it with 8.`);
  for (const { type, data } of chunks(file)) {
    if (type === "tRNS" && file[25] !== PALETTE) {
      throw new Problem(`${path} has a transparent colour: save it without transparency.`);
    }
    const word = TEXTS.includes(type) ? data.toString("latin1", 0, 32) : "";
    if (type === "eXIf" || TURNING.some((one) => word.startsWith(one))) {
      throw new Problem(`${path} has metadata that may turn it: save it without.`);
    }
  }
}

/** Throws where the compressed rows are damaged or too few: pngjs looks at neither their checksum nor their number. */
function checkStream(file, height, width) {
  const parts = [...chunks(file)].filter(({ type }) => type === "IDAT").map(({ data }) => data);
  const rows = inflateSync(Buffer.concat(parts), { maxOutputLength: 4 * height * width + 16 * (height + width) });
  if (rows.length < streamLength(file, height, width)) throw new Error("rows are missing");
}

/** Returns how many bytes the rows take: each begins with the byte of its filter. */
function streamLength(file, height, width) {
  const bits = file[24] * CHANNELS[file[25]];
  const passes = file[28] ? INTERLACED : [[0, 0, 1, 1]];
  const lengths = passes.map(([top, left, down, right]) => {
    const [tall, wide] = [Math.ceil((height - top) / down), Math.ceil((width - left) / right)];
    return tall > 0 && wide > 0 ? tall * (1 + Math.ceil((wide * bits) / 8)) : 0;
  });
  return lengths.reduce((one, other) => one + other);
}

function* chunks(file) {
  for (let place = 8; place + 12 <= file.length; ) {
    const end = place + 8 + file.readUInt32BE(place);
    yield { type: file.toString("latin1", place + 4, place + 8), data: file.subarray(place + 8, end) };
    place = end + 4;
  }
}
