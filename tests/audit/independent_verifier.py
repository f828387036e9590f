"""A verifier that does what docs/audit-format.md says: Python's own library, Ed25519, and nothing of the package.

It is held against the product in test_independent_verifier.py. By hand:

python tests/audit/independent_verifier.py LOG [WITNESS …]
python tests/audit/independent_verifier.py RECEIPT PUBLIC_KEY

It ends in 0 where that is valid.
"""

import hashlib
import json
import math
import re
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NUMBERS = {"checkpoint", "epoch", "generation", "size", "v"}
FORMS = {"log": "[0-9a-f]{32}", "writer": "[0-9a-f]{24}", "root": "[0-9a-f]{64}", "history": "[0-9a-f]{64}"}
HEAD = re.compile(rb'\{"writer":"([0-9a-f]{24})","seq":(0|[1-9][0-9]{0,15}),"prev":"([0-9a-f]{64})",')
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z"


class TamperedError(Exception):
    """Somebody changed it."""


def must(what, why):
    if not what:
        raise TamperedError(why)


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def leaf(content):
    return sha(b"\0", content)


class Tree:
    """A Merkle tree of RFC 6962, as a list of its perfect subtrees: height and hash."""

    def __init__(self, leaves=()):
        self.size, self.peaks = 0, []
        for each in leaves:
            self.add(each)

    def add(self, node):
        self.size, height = self.size + 1, 0
        while self.peaks and self.peaks[-1][0] == height:
            node, height = sha(b"\1", self.peaks.pop()[1], node), height + 1
        self.peaks.append((height, node))

    def root(self):
        node = self.peaks[-1][1] if self.peaks else sha()
        for _, peak in reversed(self.peaks[:-1]):
            node = sha(b"\1", peak, node)
        return node.hex()


def root_by_path(node, index, size, path):
    must(bool(path) == (size > 1), "the path has another length")
    if size == 1:
        return node
    split = 1 << (size - 1).bit_length() - 1  # the largest power of two below the size
    if index < split:
        return sha(b"\1", root_by_path(node, index, split, path[:-1]), path[-1])
    return sha(b"\1", path[-1], root_by_path(node, index - split, size - split, path[:-1]))


def is_under(content, index, size, path, root):
    must(0 <= index < size, "there is no such leaf")
    must(root_by_path(leaf(content), index, size, [bytes.fromhex(step) for step in path]).hex() == root, "another root")


def read_json(line):
    def once(pairs):
        must(len(dict(pairs)) == len(pairs), "a key stands there twice")
        return dict(pairs)

    def finite(number):
        must(math.isfinite(float(number)), "a number is not finite")
        return float(number)

    text = line.decode("ascii")
    return json.loads(text, object_pairs_hook=once, parse_constant=finite, parse_float=finite)


def read_checkpoint(line, key):
    """A checkpoint. Its signature is checked where the key is given."""
    found = re.fullmatch(rb'(\{.*),"signature":"([0-9a-f]{128})"\}', line)
    must(found and len(line) <= 4096, "no checkpoint")
    body = found[1] + b"}"
    fields = read_json(body)
    must(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() == body, "another spelling")
    must(fields.keys() == NUMBERS | FORMS.keys() | {"closed", "next", "timestamp"}, "other fields")
    must(all(type(fields[name]) is int and 0 <= fields[name] < 1 << 53 for name in NUMBERS), "a number")
    must(all(re.fullmatch(form, fields[name]) for name, form in FORMS.items()), "a form")
    must(fields["next"] is None or re.fullmatch(FORMS["root"], fields["next"]), "next")
    must(
        fields["v"] == 1 and type(fields["closed"]) is bool and type(fields["timestamp"]) is str, "v, closed, timestamp"
    )
    if key is not None:
        signature = bytes.fromhex(found[2].decode())
        Ed25519PublicKey.from_public_bytes(key).verify(signature, b"apl-guard checkpoint 1\n" + body)
    return fields


def read_record(line):
    must(HEAD.match(line) and len(line) <= 1 << 20 and line.endswith(b"}") and line.isascii(), "no record")
    fields = read_json(line)
    must(type(fields["event"]) is str and re.fullmatch(TIME, fields["timestamp"]), "event, timestamp")
    reasons, *_, pairs = lists = [fields.get(n, []) for n in ("reasons", "channels", "unsafe", "orphans", "records")]
    lists.append(fields["image_sha256"] if fields.get("image_sha256") is not None else [])
    must(all(type(each) is list for each in lists) and all(type(each) is dict for each in reasons), "a list")
    must(all(type(each) is list and len(each) == 2 for each in pairs), "a pair")
    must(type(fields.get("policy", {})) is dict and type(fields.get("decision_id", "")) is str, "policy, decision_id")
    text = [fields.get("subject", ""), *(fields["enc"][n] for n in ("kid", "nonce", "ct") if "enc" in fields)]
    must(all(type(each) is str for each in [*text, fields.get("dead_writer", "")]), "subject, enc, dead_writer")
    torn, before = fields.get("torn", []), fields.get("previous")
    must(type(torn) is list and all(type(each) is dict for each in torn), "torn")
    if before is not None:
        must([type(before[n]) for n in ("segment", "bytes", "suspect")] == [int, int, bool], "previous")
    return fields


def or_tampered(check):
    """Whatever cannot be read was changed."""

    def checked(*arguments):
        try:
            return check(*arguments)
        except (OSError, InvalidSignature, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise TamperedError(repr(error)) from error

    return checked


@or_tampered
def check_receipt(receipt, public_key):
    """The records that a receipt proves."""
    must(receipt["kind"] == "apl-guard audit receipt 1" and type(receipt["epochs"]) is int, "kind, epochs")
    roots = [public_key]

    def signed(entry):
        key = bytes.fromhex(entry["key"])
        fields = read_checkpoint(entry["line"].encode("ascii"), key)
        must(fields["log"] == receipt["log"], "another log")
        is_under(key, fields["epoch"], receipt["epochs"], entry["path"], roots[fields["generation"]])
        return fields

    for number, entry in enumerate(receipt["generations"]):
        end = signed(entry)
        must((end["generation"], end["epoch"]) == (number, receipt["epochs"] - 1), "not the last of its generation")
        must(end["next"], "announces nothing")
        roots.append(end["next"])
    checkpoints, proved = [signed(entry) for entry in receipt["checkpoints"]], []
    for entry in receipt["records"]:
        line, checkpoint = entry["line"].encode("ascii"), checkpoints[entry["checkpoint"]]
        fields, wanted = read_record(line), receipt["decision_id"]
        must(fields["writer"] == checkpoint["writer"], "another writer")
        is_under(line, fields["seq"], checkpoint["size"], entry["proof"], checkpoint["root"])
        named = [*(id for _, id in fields.get("records", [])), *fields.get("orphans", [])]
        must(wanted in [*named, fields.get("decision_id"), fields.get("guard")], "about something else")
        proved.append(fields)
    must(proved, "no records")
    return proved


def read_identity(folder):
    content = (folder / "log.json").read_bytes()
    fields = read_json(content)
    must(fields.keys() == {"epochs", "log", "root", "v"} and fields["v"] == 1, "log.json")
    must(json.dumps(fields, sort_keys=True).encode() + b"\n" == content, "another spelling of log.json")
    must(all(re.fullmatch(FORMS[name], fields[name]) for name in ("log", "root")), "log.json")
    must(type(fields["epochs"]) is int and 1 <= fields["epochs"] <= 1 << 20, "epochs")
    return fields


def read_keys(folder, generation, epochs, root):
    content = (folder / f"keys-{generation:06d}.pub").read_bytes()
    keys = [content[at : at + 32] for at in range(0, len(content), 32)]
    must(len(content) == 32 * epochs and Tree(map(leaf, keys)).root() == root, f"keys of generation {generation}")
    return keys


def whole_lines(path):
    content = path.read_bytes() if path.is_file() else b""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def check_checkpoints(folder, content, identity):
    """Writer → size → root, and the writers that are closed."""
    epochs, history, last, sealed, closed = identity["epochs"], Tree(), None, {}, set()
    keys = read_keys(folder, 0, epochs, identity["root"])
    for number, line in enumerate(content.split(b"\n")[:-1]):
        now = read_checkpoint(line, None)
        if last is None:
            may_be = [(0, 0)]
        elif last["next"]:
            may_be = [(last["generation"] + 1, 0)]
        else:
            may_be = [(last["generation"], last["epoch"]), (last["generation"], last["epoch"] + 1)]
        must((now["generation"], now["epoch"]) in may_be and now["epoch"] < epochs, f"{number}: epoch")
        must(not now["next"] or now["epoch"] == epochs - 1, f"{number}: next")
        if last is not None and last["next"]:
            keys = read_keys(folder, now["generation"], epochs, last["next"])
        read_checkpoint(line, keys[now["epoch"]])
        must((now["checkpoint"], now["log"]) == (number, identity["log"]), f"{number}: number, log")
        must(now["history"] == history.root(), f"{number}: history")
        roots = sealed.setdefault(now["writer"], {0: Tree().root()})
        must(now["writer"] not in closed and now["size"] >= max(roots), f"{number}: goes back")
        must(roots.setdefault(now["size"], now["root"]) == now["root"], f"{number}: says something else")
        closed |= {now["writer"]} if now["closed"] else set()
        history.add(leaf(line))
        last = now
    return sealed, closed


def find_following(content, here):
    """The segment that goes on from another, how many bytes of that count, and whether more may follow these."""
    found = None, len(content[here]), True
    for later in sorted(number for number in content if number > here):
        first, line_end, _ = content[later].partition(b"\n")
        try:
            fields = read_record(first) if line_end else None
            before = fields["previous"]
            if fields["event"] != "audit.segment":
                continue
            if before["segment"] == here:
                found = later, before["bytes"], before["suspect"]
            elif found[0] is not None:
                break
        except (TamperedError, LookupError, TypeError, ValueError, RecursionError):
            continue  # begun in vain
    return found


def read_row(folder, writer, numbers):
    """The lines that count of a writer, what follows them, and whether that is torn. Where it is not, it is wrong."""
    must(numbers[:1] == [0], f"{writer}: the first segment is missing")
    content = {n: (folder / f"{writer}.{n:06d}.jsonl").read_bytes() for n in numbers}
    lines, prev, here = [], "0" * 64, 0
    while True:
        following, end, is_suspect = find_following(content, here)
        counted, at, has_half = content[here][:end], 0, False
        must(len(counted) == end and (is_suspect or len(content[here]) == end), f"{writer}: end of segment {here}")
        while at < len(counted):
            line, line_end, _ = counted[at:].partition(b"\n")
            head = HEAD.match(line)
            place = head and (head[1].decode(), int(head[2]), head[3].decode())
            has_half = not line_end
            if has_half or place != (writer, len(lines), prev) or not (line.endswith(b"}") and line.isascii()):
                break
            lines.append(line)
            prev, at = leaf(line).hex(), at + len(line) + 1
        must(following is None or at == len(counted), f"{writer}: record {len(lines)}")
        if following is None:
            break
        here = following
    rests = [(here, content[here][at:]), *((n, content[n]) for n in numbers if n > here)]
    pieces = [{"segment": n, "bytes": len(rest), "sha256": sha(rest).hex()} for n, rest in rests if rest or n != here]
    torn = all(b"\0" in rest or (has_half if n == here else b"\n" not in rest) for n, rest in rests if rest)
    return lines, pieces, torn


@or_tampered
def check_log(log, witnesses=(), public_key=None):
    """`valid`, `torn` or `unverifiable`. Whoever wrote to the log is taken for dead."""
    identity = read_identity(log)
    must(public_key in (None, identity["root"]), "another public key")
    copies = [copy for witness in witnesses for copy in witness.iterdir() if (copy / "log.json").exists()]
    must(not copies or identity["log"] in {copy.name for copy in copies}, "the witness knows no such log")
    copies = [copy for copy in copies if copy.name == identity["log"]]
    content, cut = whole_lines(log / "checkpoints.jsonl")
    kept = [whole_lines(copy / "checkpoints.jsonl")[0] for copy in copies]
    must(all(read_identity(copy) == identity for copy in copies), "another log.json at the witness")
    must(all(content.startswith(each) for each in kept), "other checkpoints at the witness")
    sealed, closed = check_checkpoints(log, content, identity)
    present, rows, recovered = {}, {}, {}
    for path in sorted((log / "segments").iterdir()):
        if (found := re.fullmatch(r"([0-9a-f]{24})\.([0-9]{6})\.jsonl", path.name)) and path.is_file():
            present.setdefault(found[1], []).append(int(found[2]))
    for writer in present.keys() | sealed.keys():
        lines, *_ = rows[writer] = read_row(log / "segments", writer, present.get(writer, []))
        tree, roots = Tree(), sealed.get(writer, {})
        for seq, line in enumerate(lines):
            fields = read_record(line)
            begins = fields["event"] == "audit.segment" and fields["previous"] is None
            must(seq or begins, f"{writer}: begins with another record")
            must(fields["event"] != "audit.segment" or fields["log"] == identity["log"], f"{writer}: of another log")
            if fields["event"] == "audit.recovery":
                recovered.setdefault(fields["dead_writer"], []).extend(fields["torn"])
            tree.add(leaf(line))
            must(roots.get(tree.size, tree.root()) == tree.root(), f"{writer}: a record before {tree.size}")
        must(tree.size >= max(roots, default=0), f"{writer}: records are missing")
        must(writer not in closed or tree.size == max(roots), f"{writer}: a record after the last one")
    is_torn = bool(cut)
    for writer, (lines, pieces, may_be_torn) in rows.items():
        left = [piece for piece in pieces if piece not in recovered.get(writer, [])]
        must(not left or (may_be_torn and writer not in closed), f"{writer}: bytes were added")
        is_torn = is_torn or bool(left) or (bool(lines) and writer not in sealed)
    return "torn" if is_torn else "valid" if any(kept) else "unverifiable"


@or_tampered
def check_file(path, public_key):
    """The records that the receipt in a file proves."""
    return check_receipt(read_json(path.read_bytes()), public_key)


if __name__ == "__main__":
    place, others = Path(sys.argv[1]), sys.argv[2:]
    try:
        records = check_file(place, *others) if place.is_file() else []
        verdict = "valid" if records else check_log(place, [Path(each) for each in others])
    except TamperedError as error:
        verdict, records = f"tampered: {error}", []
    print(verdict, *map(json.dumps, records), sep="\n")
    sys.exit(verdict != "valid")
