"""Everything that somebody with write access to a log, and even with its signing key, might do to it."""

import json
import shutil

from apl_guard.audit.checkpoint import Checkpoint
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.merkle import Tree, leaf_hash
from apl_guard.audit.record import Record
from apl_guard.audit.seal_key import SealKey
from apl_guard.audit.witness import CHECKPOINTS

KINDS = [
    "edit a byte",
    "edit a value",
    "delete a record",
    "delete the last record",
    "swap two records",
    "repeat a record",
    "insert a record",
    "cut off bytes",
    "cut off records",
    "add bytes",
    "delete a segment",
    "swap two segments",
    "delete a writer",
    "forge the chain from a record on",
    "forge everything with the live key",
    "edit a checkpoint",
    "delete a checkpoint",
    "cut off checkpoints",
    "cut off records and checkpoints",
    "go back to an earlier state and go on with the live key",
    "change the public keys",
    "start the log anew",
]


def mutate(log, kind, chance):
    """Change a log in one way, at a random place; what was done."""
    segments = sorted((log / "segments").iterdir())
    segment = chance.choice(segments)
    content = segment.read_bytes()
    lines = content.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    place = chance.randrange(len(content))
    match kind:
        case "edit a byte":
            changed = bytearray(content)
            changed[place] ^= 1 << chance.randrange(8)
            segment.write_bytes(changed)
        case "edit a value":
            segment.write_bytes(replace_one(lines, at, lines[at].replace(b'"mono_us":', b'"mono_us":1')))
        case "delete a record":
            segment.write_bytes(b"".join(lines[:at] + lines[at + 1 :]))
        case "delete the last record":
            segment.write_bytes(b"".join(lines[:-1]))
        case "swap two records":
            other = (at + chance.randrange(1, len(lines))) % len(lines)
            lines[at], lines[other] = lines[other], lines[at]
            segment.write_bytes(b"".join(lines))
        case "repeat a record":
            segment.write_bytes(b"".join([*lines[:at], lines[at], *lines[at:]]))
        case "insert a record":
            forged = lines[at].replace(b'"mono_us":', b'"mono_us":9')
            segment.write_bytes(b"".join([*lines[:at], forged, *lines[at:]]))
        case "cut off bytes":
            segment.write_bytes(content[:place])
        case "cut off records":
            segment.write_bytes(b"".join(lines[:at]))
        case "add bytes":
            segment.write_bytes(content + chance.choice([b"x", b"\n", b"{}\n", lines[at], bytes(20)]))
        case "delete a segment":
            segment.unlink()
        case "swap two segments":
            other = chance.choice([path for path in segments if path != segment])
            swapped = other.read_bytes()
            other.write_bytes(content)
            segment.write_bytes(swapped)
        case "delete a writer":
            for path in (log / "segments").glob(segment.name.split(".")[0] + "*"):
                path.unlink()
        case "forge the chain from a record on":
            forge(log, segment, at)
        case "forge everything with the live key":
            forge(log, segment, at)
            sign_anew(log)
        case "edit a checkpoint":
            path = log / CHECKPOINTS
            changed = bytearray(path.read_bytes())
            place = chance.randrange(len(changed))
            changed[place] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
        case "delete a checkpoint":
            rows = (log / CHECKPOINTS).read_bytes().splitlines(keepends=True)
            del rows[chance.randrange(len(rows))]
            (log / CHECKPOINTS).write_bytes(b"".join(rows))
        case "cut off checkpoints":
            rows = (log / CHECKPOINTS).read_bytes()
            (log / CHECKPOINTS).write_bytes(rows[: chance.randrange(len(rows))])
        case "cut off records and checkpoints":
            cut_back(log, chance)
        case "go back to an earlier state and go on with the live key":
            cut_back(log, chance)
            sign_anew(log)
        case "change the public keys":
            path = chance.choice(sorted(log.glob("keys-*.pub")))
            changed = bytearray(path.read_bytes())
            changed[chance.randrange(len(changed))] ^= 1
            path.write_bytes(changed)
        case "start the log anew":
            shutil.rmtree(log)
            DurableLog(log).close()
    return segment.name, at, place


def replace_one(lines, at, line):
    return b"".join([*lines[:at], line, *lines[at + 1 :]])


def forge(log, segment, at, changes=None):
    """Change a record and compute every hash after it anew, over all segments of its writer.

    The changes are fields and their new values; None stands for another time of the machine's counter.
    """
    writer = segment.name.split(".")[0]
    prev, length, changed = None, 0, False
    tree = Tree()
    paths = sorted((log / "segments").glob(writer + "*"))
    for path in paths:
        rewritten = []
        for number, line in enumerate(path.read_bytes().splitlines()):
            fields = json.loads(line)
            if path == segment and number == at:
                fields |= {"mono_us": fields["mono_us"] + 1} if changes is None else changes
                changed = True
            if changed and prev is not None:
                fields["prev"] = prev
            if changed and fields["event"] == "audit.segment" and (path, number) != (segment, at):
                fields["peaks"] = [peak.hex() for peak in tree.peaks]
                if fields["previous"]:
                    fields["previous"]["bytes"] = length
            forged = json.dumps(fields, separators=(",", ":")).encode()
            rewritten.append(forged + b"\n")
            leaf = leaf_hash(forged)
            tree.append(leaf)
            prev = leaf.hex()
        length = sum(map(len, rewritten))
        path.write_bytes(b"".join(rewritten))


def sign_anew(log):
    """Sign checkpoints over the records as they are now, all with the key that is still there."""
    key = SealKey(log / "keys" / "seal.key").read()[-1]
    rows = [Checkpoint.parse(line) for line in (log / CHECKPOINTS).read_bytes().splitlines()]
    trees = {}
    for path in sorted((log / "segments").iterdir()):
        for line in path.read_bytes().splitlines():
            writer, seq, _ = Record.head(line)
            tree = trees.setdefault(writer, {0: Tree()})
            tree[seq + 1] = tree[seq].copy()
            tree[seq + 1].append(leaf_hash(line))
    history, signed = Tree(), []
    for row in rows:
        tree = trees.get(row.writer, {}).get(row.size)
        if tree is None:
            continue
        changes = {"number": len(signed), "root": tree.root.hex(), "history": history.root.hex()}
        signed.append(Checkpoint(**{**row.__dict__, **changes}).signed(key))
        history.append(leaf_hash(signed[-1]))
    (log / CHECKPOINTS).write_bytes(b"".join(line + b"\n" for line in signed))


def cut_back(log, chance):
    """As if the log had ended at an earlier checkpoint: nothing is left that is newer."""
    rows = (log / CHECKPOINTS).read_bytes().splitlines(keepends=True)
    kept = rows[: chance.randrange(1, len(rows))]
    (log / CHECKPOINTS).write_bytes(b"".join(kept))
    sizes = {}
    for line in kept:
        row = Checkpoint.parse(line[:-1])
        sizes[row.writer] = row.size
    for path in sorted((log / "segments").iterdir()):
        writer = path.name.split(".")[0]
        lines = [line for line in path.read_bytes().splitlines() if Record.parse(line).seq < sizes.get(writer, 0)]
        if lines:
            path.write_bytes(b"".join(line + b"\n" for line in lines))
        else:
            path.unlink()
