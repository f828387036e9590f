"""The tree that a checkpoint signs: RFC 6962, section 2.1, with SHA-256.

One hash stands for all records up to a point. That a record is among them, and that one state of the log
continues another, is shown with a number of hashes that grows with the logarithm of the length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from itertools import islice

__all__ = [
    "EMPTY_ROOT",
    "Tree",
    "consistency_proof",
    "inclusion_proof",
    "inclusion_proofs",
    "leaf_hash",
    "root_of",
    "verify_consistency",
    "verify_inclusion",
]

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(content: bytes) -> bytes:
    """The hash of a leaf. Its first byte keeps it from ever being taken for an inner node."""
    return hashlib.sha256(b"\0" + content).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


class Tree:
    """A tree that only grows. It keeps the roots of its perfect subtrees, at most one for each bit of its size.

    Args:
        size: Number of leaves so far.
        peaks: The roots of the perfect subtrees, the largest first.

    Raises:
        ValueError: Number of peaks and size do not fit together.

    Example:
        >>> tree = Tree()
        >>> for word in (b"one", b"two", b"three"):
        ...     tree.append(leaf_hash(word))
        >>> tree.size, tree.root == root_of([leaf_hash(b"one"), leaf_hash(b"two"), leaf_hash(b"three")])
        (3, True)
    """

    __slots__ = ("peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self.peaks = list(peaks)
        if len(self.peaks) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} peaks, found {len(self.peaks)}")

    def append(self, leaf: bytes) -> None:
        """Add the hash of a leaf."""
        size = self.size
        while size & 1:
            leaf = _node_hash(self.peaks.pop(), leaf)
            size >>= 1
        self.peaks.append(leaf)
        self.size += 1

    def copy(self) -> Tree:
        """The tree as it is now, unmoved by what is appended later."""
        return Tree(self.size, self.peaks)

    @property
    def root(self) -> bytes:
        """The hash of all leaves so far."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = _node_hash(peak, root)
        return root


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over the hashes of leaves."""
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from one leaf to the root.

    Args:
        leaves: Hashes of all leaves.
        index: Which of them.
    """
    (proof,) = inclusion_proofs(leaves, [(index, len(leaves))])
    return proof


def inclusion_proofs(leaves: Iterable[bytes], places: Iterable[tuple[int, int]]) -> list[list[bytes]]:
    """The same for many leaves, each in the tree over the first of them, from one look at them that keeps few.

    Args:
        leaves: Hashes of leaves; more than the largest tree has are not looked at.
        places: Which of them, and the size of the tree.

    Raises:
        ValueError: There are fewer leaves than a tree has.
    """
    paths = [_siblings(index, size) for index, size in places]
    roots = _roots_over(leaves, {part for path in paths for part in path})
    return [[roots[part] for part in path] for path in paths]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether a leaf stands at a place in the tree with this size and root.

    Example:
        >>> leaves = [leaf_hash(bytes([i])) for i in range(5)]
        >>> verify_inclusion(leaves[3], 3, 5, inclusion_proof(leaves, 3), root_of(leaves))
        True
        >>> verify_inclusion(leaves[3], 2, 5, inclusion_proof(leaves, 3), root_of(leaves))
        False
    """
    if not 0 <= index < size:
        return False
    position, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            found = _node_hash(sibling, found)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            found = _node_hash(found, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and found == root


def consistency_proof(leaves: Iterable[bytes], first: int, second: int) -> list[bytes]:
    """The hashes that show that a tree continues the one over the first of its leaves, from one look that keeps few.

    Args:
        leaves: Hashes of leaves; more than the later tree has are not looked at.
        first: Size of the earlier tree, at least 1.
        second: Size of the later tree.

    Raises:
        ValueError: There are fewer leaves than the later tree has.
    """
    path, low, high = [], 0, second
    while high != first:
        split = low + _split(high - low)
        if first <= split:
            path.append(range(split, high))
            high = split
        else:
            path.append(range(low, split))
            low = split
    if low:  # who has the root of the earlier tree has this one too where it is all of it
        path.append(range(low, high))
    roots = _roots_over(leaves, path)
    return [roots[part] for part in reversed(path)]


def verify_consistency(first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes) -> bool:
    """Whether the tree of the second size and root continues that of the first.

    Example:
        >>> leaves = [leaf_hash(bytes([i])) for i in range(7)]
        >>> proof = consistency_proof(leaves, first=3, second=7)
        >>> verify_consistency(3, 7, proof, root_of(leaves[:3]), root_of(leaves))
        True
        >>> verify_consistency(3, 7, proof, root_of(leaves[1:4]), root_of(leaves))
        False
    """
    if not 0 < first <= second:
        return False
    if first == second:
        return not proof and first_root == second_root
    hashes = list(proof)
    if first.bit_count() == 1:
        hashes.insert(0, first_root)
    if not hashes:
        return False
    position, last = first - 1, second - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old, new = _node_hash(sibling, old), _node_hash(sibling, new)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            new = _node_hash(new, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and old == first_root and new == second_root


def _split(size: int) -> int:
    """The largest power of two below the size."""
    return 1 << (size - 1).bit_length() - 1


def _siblings(index: int, size: int) -> list[range]:
    """The leaves under each hash that leads from one leaf to the root."""
    path, low, high = [], 0, size
    while high - low > 1:
        split = low + _split(high - low)
        if index < split:
            path.append(range(split, high))
            high = split
        else:
            path.append(range(low, split))
            low = split
    return path[::-1]


def _roots_over(leaves: Iterable[bytes], parts: Collection[range]) -> dict[range, bytes]:
    """The root over each part of the leaves. A part begins where its largest perfect subtree can stand in the tree."""
    pieces = {part: _perfect(part) for part in parts}
    wanted = {piece for found in pieces.values() for piece in found}
    ends = {piece.stop for piece in wanted}
    found: dict[range, bytes] = {}
    tree = Tree()
    for leaf in islice(leaves, max(ends, default=0)):
        if tree.size + 1 in ends:
            stop, node, span = tree.size + 1, leaf, 1
            for peak in (*reversed(tree.peaks), b""):
                if (piece := range(stop - span, stop)) in wanted:
                    found[piece] = node
                if not tree.size & span:
                    break
                node, span = _node_hash(peak, node), 2 * span
        tree.append(leaf)
    if len(found) < len(wanted):
        raise ValueError(f"{tree.size} leaves are fewer than the tree has")
    return {part: Tree(len(part), [found[piece] for piece in pieces[part]]).root for part in parts}


def _perfect(part: range) -> list[range]:
    """The perfect subtrees over a part of the leaves, the largest first."""
    found, start = [], part.start
    for bit in reversed(range(len(part).bit_length())):
        if len(part) >> bit & 1:
            found.append(range(start, start + (1 << bit)))
            start += 1 << bit
    return found
