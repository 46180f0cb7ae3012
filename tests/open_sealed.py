"""Opens a stored message without Gatepost: python3 open_sealed.py DATA_DIR MESSAGE_ID

Prints its payload. The format is in docs/encryption.md. Needs the package `cryptography`; SQLite only.
"""

import hashlib, hmac, pathlib, sqlite3, struct, sys, uuid

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LABEL = b"gatepost seal 1"


def mac(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def branches(database, keys, tree):
    version, body = database.execute("SELECT key, body FROM keyring WHERE tree = ?", (tree,)).fetchone()
    seal_key = bytes.fromhex((keys / f"seal-{version}.key").read_text().strip())
    bound = b"gatepost tree 1" + struct.pack(">QI", tree, version)
    assert body[0] == 1, "wrapped with AES-256-GCM"
    plain = AESGCM(seal_key).decrypt(body[1:13], body[13:], bound)
    return {struct.unpack(">BI", plain[at : at + 5]): plain[at + 5 : at + 37] for at in range(0, len(plain), 37)}


def data_key(database, keys, tree, leaf):
    left = branches(database, keys, tree)
    depth = next((depth for depth in range(6) if (depth, leaf >> 4 * (5 - depth)) in left), None)
    if depth is None:
        sys.exit("its key has been erased")
    key = left[depth, leaf >> 4 * (5 - depth)]
    for level in range(depth, 5):
        key = mac(key, bytes([leaf >> 4 * (4 - level) & 15]))
    return key


def opened(database, keys, sealed, belongs_to):
    if sealed[0] == 0:
        return sealed[9:]
    key = data_key(database, keys, *struct.unpack(">QI", sealed[9:21]))
    assert hmac.compare_digest(sealed[33:65], mac(key, b"\x02", LABEL, belongs_to)), "sealed with another key"
    return AESGCM(mac(key, b"\x01", LABEL, belongs_to)).decrypt(sealed[21:33], sealed[65:], sealed[9:21])


data_dir, message = pathlib.Path(sys.argv[1]), uuid.UUID(sys.argv[2]).bytes
database = sqlite3.connect(f"file:{data_dir / 'gatepost.db'}?mode=ro", uri=True)
data, salt = database.execute("SELECT data, salt FROM message WHERE id = ?", (message,)).fetchone()
if data[0] == 2:
    pieces = "SELECT bytes FROM piece WHERE message = ? AND number > 0 ORDER BY number"
    data = b"".join(piece for (piece,) in database.execute(pieces, (message,)))
sys.stdout.buffer.write(opened(database, data_dir / "keys", data, b"\x02" + message + salt))
