"""AES-128 in counter mode (FIPS 197, NIST SP 800-38A) in plain Python. Encrypts the event's text."""

import base64

BLOCK = 16
ROUNDS = 10


def times2(byte):
    """Multiplication by x in GF(2^8)."""
    return ((byte << 1) ^ (0x11B if byte & 0x80 else 0)) & 0xFF


def make_substitutions():
    """From the inverses in GF(2^8): powers of the generator 3 forward, of its inverse backward, then the affine map."""
    table = [0] * 256
    power = inverse = 1
    for _ in range(255):
        power ^= times2(power)
        inverse ^= inverse << 1
        inverse ^= inverse << 2
        inverse ^= inverse << 4
        inverse &= 0xFF
        if inverse & 0x80:
            inverse ^= 0x09
        turned = (inverse << 8) | inverse
        table[power] = (inverse ^ (turned >> 7) ^ (turned >> 6) ^ (turned >> 5) ^ (turned >> 4) ^ 0x63) & 0xFF
    table[0] = 0x63
    return table


SUBSTITUTIONS = make_substitutions()
# Columns lie one after another: row r of column c is byte 4c + r, and moves r columns to the left.
SHIFTED = [(index + 4 * (index & 3)) & 15 for index in range(BLOCK)]


def expand_key(key):
    keys = list(key)
    constant = 1
    while len(keys) < BLOCK * (ROUNDS + 1):
        word = keys[-4:]
        if len(keys) % BLOCK == 0:
            word = [SUBSTITUTIONS[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = times2(constant)
        keys.extend(old ^ new for old, new in zip(keys[-BLOCK:-BLOCK + 4], word))
    return [keys[at : at + BLOCK] for at in range(0, len(keys), BLOCK)]


def add_key(state, key):
    return [left ^ right for left, right in zip(state, key)]


def mix_columns(state):
    mixed = []
    for at in range(0, BLOCK, 4):
        a, b, c, d = state[at : at + 4]
        whole = a ^ b ^ c ^ d
        mixed += (a ^ whole ^ times2(a ^ b), b ^ whole ^ times2(b ^ c), c ^ whole ^ times2(c ^ d), d ^ whole ^ times2(d ^ a))
    return mixed


def encrypt_block(block, keys):
    state = add_key(block, keys[0])
    for key in keys[1:ROUNDS]:
        state = add_key(mix_columns([SUBSTITUTIONS[state[at]] for at in SHIFTED]), key)
    return add_key([SUBSTITUTIONS[state[at]] for at in SHIFTED], keys[ROUNDS])


def encrypt(key, counter, text):
    keys = expand_key(key)
    out = bytearray()
    for at in range(0, len(text), BLOCK):
        stream = encrypt_block(counter.to_bytes(BLOCK, "big"), keys)
        counter = (counter + 1) % (1 << 128)
        out += bytes(left ^ right for left, right in zip(text[at : at + BLOCK], stream))
    return bytes(out)


def handler(event, context):
    out = encrypt(bytes.fromhex(event["key"]), int(event["counter"], 16), event["text"].encode("latin-1"))
    return {"encrypted": base64.b64encode(out).decode()}
