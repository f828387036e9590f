"""The tree of RFC 6962: against another implementation, and against every wrong proof of a small tree."""

import pymerkle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apl_guard.audit import merkle

# The example tree of the reference implementation of Certificate Transparency, with its published roots.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def leaves(count):
    return [merkle.leaf_hash(bytes([i])) for i in range(count)]


def test_published_roots():
    """The roots that the reference implementation of Certificate Transparency is tested with."""
    hashes = [merkle.leaf_hash(bytes.fromhex(text)) for text in INPUTS]

    for size, root in ROOTS.items():
        assert merkle.root_of(hashes[:size]).hex() == root


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=70), st.data())
def test_roots_and_proofs_are_those_of_another_implementation(entries, data):
    """Hash for hash, at every size."""
    other = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in entries:
        other.append_entry(entry)
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    index = data.draw(st.integers(0, len(entries) - 1))
    first = data.draw(st.integers(1, len(entries)))

    assert merkle.root_of(hashes) == other.get_root()
    proof = merkle.inclusion_proof(hashes, index)
    theirs = other.prove_inclusion(index + 1)
    assert pymerkle.verify_inclusion(hashes[index], other.get_root(), theirs) is None
    assert [item.hex() for item in proof] == [
        item if isinstance(item, str) else item.hex() for item in theirs.serialize()["path"][1:]
    ]
    assert merkle.verify_inclusion(hashes[index], index, len(hashes), proof, other.get_root())
    assert merkle.verify_consistency(
        first,
        len(hashes),
        merkle.consistency_proof(hashes, first, len(hashes)),
        other.get_root(first),
        other.get_root(),
    )


def test_every_wrong_inclusion_proof_of_small_trees_is_refused():
    """Wrong place, wrong leaf, wrong size, a hash missing, a hash too many, a hash changed."""
    for size in range(1, 12):
        hashes = leaves(size)
        root = merkle.root_of(hashes)
        for index in range(size):
            proof = merkle.inclusion_proof(hashes, index)
            assert merkle.verify_inclusion(hashes[index], index, size, proof, root)
            for other in set(range(-1, size + 1)) - {index}:
                assert not merkle.verify_inclusion(hashes[index], other, size, proof, root)
                if 0 <= other < size:
                    assert not merkle.verify_inclusion(hashes[other], index, size, proof, root)
            assert not merkle.verify_inclusion(hashes[index], index, size, [*proof, root], root)
            for cut in range(len(proof)):
                assert not merkle.verify_inclusion(hashes[index], index, size, proof[:cut], root)
                changed = [*proof[:cut], bytes(32), *proof[cut + 1 :]]
                assert not merkle.verify_inclusion(hashes[index], index, size, changed, root)


def test_every_wrong_consistency_proof_of_small_trees_is_refused():
    """An earlier tree that is not a beginning of the later one, a hash missing or changed."""
    for second in range(1, 12):
        hashes = leaves(second)
        root = merkle.root_of(hashes)
        for first in range(1, second + 1):
            proof = merkle.consistency_proof(hashes, first, len(hashes))
            early = merkle.root_of(hashes[:first])
            assert merkle.verify_consistency(first, second, proof, early, root)
            forked = merkle.root_of([*hashes[: first - 1], bytes(32)])
            assert not merkle.verify_consistency(first, second, proof, forked, root)
            assert not merkle.verify_consistency(first, second, [*proof, root], early, root)
            for cut in range(len(proof)):
                assert not merkle.verify_consistency(first, second, proof[:cut], early, root)
                changed = [*proof[:cut], bytes(32), *proof[cut + 1 :]]
                assert not merkle.verify_consistency(first, second, changed, early, root)
        assert not merkle.verify_consistency(0, second, [], merkle.EMPTY_ROOT, root)


def test_a_proof_for_a_larger_tree_proves_nothing_about_a_smaller_one():
    """Its end fits the path of the smaller one; what is left over leads on to a root that is not of this size."""
    hashes = leaves(8)
    root, early = merkle.root_of(hashes), merkle.root_of(hashes[:7])

    assert not merkle.verify_inclusion(hashes[7], 0, 1, merkle.inclusion_proof(hashes, 7), root)
    assert not merkle.verify_consistency(3, 4, merkle.consistency_proof(hashes, 7, 8), early, root)


def test_a_proof_for_a_smaller_tree_proves_nothing_about_a_larger_one():
    """Its steps all fit, and there are too few."""
    hashes = leaves(4)
    root, early = merkle.root_of(hashes), merkle.root_of(hashes[:2])

    assert not merkle.verify_inclusion(hashes[0], 0, 8, merkle.inclusion_proof(hashes, 0), root)
    assert not merkle.verify_consistency(2, 8, merkle.consistency_proof(hashes, 2, 4), early, root)


def test_no_tree_continues_an_empty_or_a_larger_one():
    """Whatever comes as the proof; and the answer comes at once."""
    hashes = leaves(4)
    root = merkle.root_of(hashes)

    for first in (-1, 0, 5, 8):
        assert merkle.verify_consistency(first, 4, [root, root], root, root) is False


def test_a_tree_restored_from_its_peaks_goes_on():
    """As a writer does when it goes on in a new segment."""
    hashes = leaves(40)
    for cut in range(40):
        tree = merkle.Tree()
        for leaf in hashes[:cut]:
            tree.append(leaf)
        restored = merkle.Tree(tree.size, tree.copy().peaks)
        for leaf in hashes[cut:]:
            restored.append(leaf)
        assert restored.root == merkle.root_of(hashes)
    with pytest.raises(ValueError, match="peaks"):
        merkle.Tree(3, [bytes(32)])
