/** AES-128 in counter mode (FIPS 197, NIST SP 800-38A) in plain JavaScript, a byte at a time. Encrypts the event's text. */
const BLOCK = 16;
const ROUNDS = 10;

/** Multiplication by x in GF(2^8). */
const times2 = (byte) => ((byte << 1) ^ (byte & 0x80 ? 0x11b : 0)) & 0xff;

/** From the inverses in GF(2^8): powers of the generator 3 forward, of its inverse backward, then the affine map. */
function makeSubstitutions() {
  const table = new Uint8Array(256);
  for (let power = 1, inverse = 1, step = 0; step < 255; step++) {
    power ^= times2(power);
    inverse ^= inverse << 1;
    inverse ^= inverse << 2;
    inverse ^= inverse << 4;
    inverse &= 0xff;
    if (inverse & 0x80) inverse ^= 0x09;
    const turned = (inverse << 8) | inverse;
    table[power] = (inverse ^ (turned >> 7) ^ (turned >> 6) ^ (turned >> 5) ^ (turned >> 4) ^ 0x63) & 0xff;
  }
  table[0] = 0x63;
  return table;
}

const SUBSTITUTIONS = makeSubstitutions();

function expandKey(key) {
  const keys = new Uint8Array(BLOCK * (ROUNDS + 1));
  keys.set(key);
  const word = new Uint8Array(4);
  for (let at = BLOCK, constant = 1; at < keys.length; at += 4) {
    word.set(keys.subarray(at - 4, at));
    if (at % BLOCK === 0) {
      word.set([word[1], word[2], word[3], word[0]]);
      for (let index = 0; index < 4; index++) word[index] = SUBSTITUTIONS[word[index]];
      word[0] ^= constant;
      constant = times2(constant);
    }
    for (let index = 0; index < 4; index++) keys[at + index] = keys[at + index - BLOCK] ^ word[index];
  }
  return keys;
}

function addKey(state, keys, round) {
  for (let index = 0; index < BLOCK; index++) state[index] ^= keys[round * BLOCK + index];
}

/** Columns lie one after another: row r of column c is byte 4c + r, and moves r columns to the left. */
function substituteAndShift(state, scratch) {
  for (let index = 0; index < BLOCK; index++) {
    const row = index & 3;
    scratch[index] = SUBSTITUTIONS[state[(index + 4 * row) & 15]];
  }
  state.set(scratch);
}

function mixColumns(state) {
  for (let at = 0; at < BLOCK; at += 4) {
    const [a, b, c, d] = [state[at], state[at + 1], state[at + 2], state[at + 3]];
    const all = a ^ b ^ c ^ d;
    state[at] = a ^ all ^ times2(a ^ b);
    state[at + 1] = b ^ all ^ times2(b ^ c);
    state[at + 2] = c ^ all ^ times2(c ^ d);
    state[at + 3] = d ^ all ^ times2(d ^ a);
  }
}

function encryptBlock(state, keys, scratch) {
  addKey(state, keys, 0);
  for (let round = 1; round < ROUNDS; round++) {
    substituteAndShift(state, scratch);
    mixColumns(state);
    addKey(state, keys, round);
  }
  substituteAndShift(state, scratch);
  addKey(state, keys, ROUNDS);
}

function increment(counter) {
  for (let index = BLOCK - 1; index >= 0; index--) {
    counter[index] = (counter[index] + 1) & 0xff;
    if (counter[index] !== 0) return;
  }
}

function encrypt(key, counter, text) {
  const keys = expandKey(key);
  const [stream, scratch] = [new Uint8Array(BLOCK), new Uint8Array(BLOCK)];
  const out = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += BLOCK) {
    stream.set(counter);
    encryptBlock(stream, keys, scratch);
    increment(counter);
    for (let index = 0; index < BLOCK && at + index < text.length; index++) out[at + index] = text[at + index] ^ stream[index];
  }
  return out;
}

export const handler = async ({ key, counter, text }) => {
  const out = encrypt(Buffer.from(key, "hex"), Buffer.from(counter, "hex"), Buffer.from(text, "latin1"));
  return { encrypted: Buffer.from(out).toString("base64") };
};
