/** Draws an image of 96 x 96 pixels, encodes it as PNG, decodes that again, halves it, and sums the channels. */
import pngjs from "pngjs";

const SIDE = 96;

export const handler = async (event) => {
  const drawn = new pngjs.PNG({ width: SIDE, height: SIDE });
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      const at = (y * SIDE + x) * 4;
      drawn.data[at] = (x * 3 + event.seed) & 255;
      drawn.data[at + 1] = (y * 5 + event.seed) & 255;
      drawn.data[at + 2] = (x * y + event.seed) & 255;
      drawn.data[at + 3] = 255;
    }
  }
  const read = pngjs.PNG.sync.read(pngjs.PNG.sync.write(drawn));
  const sums = [0, 0, 0, 0];
  for (let y = 0; y < SIDE; y += 2) {
    for (let x = 0; x < SIDE; x += 2)
      for (let channel = 0; channel < 4; channel++) sums[channel] += read.data[(y * SIDE + x) * 4 + channel];
  }
  return { width: read.width, height: read.height, seed: event.seed, sums };
};
