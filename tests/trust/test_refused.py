"""Which registered prefixes may be used: versions that only grow, revocations, pinned digests."""

import json
import os
import shutil

import pytest
import torch
from trusted import draw, needs_signing, with_prefix

from apl_guard import (
    Guard,
    InvalidInput,
    Policy,
    PrefixNotPinned,
    PrefixRegistry,
    PrefixRevoked,
    PrefixRolledBack,
    PrefixUnsigned,
    RegistryUnavailable,
    StorageFailed,
)


@needs_signing
class TestRollback:
    """A registry only grows. What was seen is remembered between processes."""

    @pytest.fixture
    def two(self, publish, keys):
        """A guard's policy has seen version 2."""
        for seed in (1, 2):
            publish(seed)
            PrefixRegistry().sign("sd15", keys["publisher"][0])
        return PrefixRegistry().root / "sd15"

    def test_back_to_an_older_version(self, shared_pipe, two, policy, drawn):
        """Although it is signed by the publisher; a new process remembers as well."""
        guard = Guard(shared_pipe, policy)
        shutil.rmtree(two / "2")

        with pytest.raises(PrefixRolledBack, match="version 1"):
            draw(guard)
        with pytest.raises(PrefixRolledBack, match=r"seen\.json"):
            Guard(shared_pipe, policy)
        assert drawn == []

    def test_a_revocation_that_was_taken_off_the_list(self, shared_pipe, two, policy, drawn):
        """Whoever holds the registry cannot take it back, also from a new process, as each guard here is."""
        PrefixRegistry().revoke(PrefixRegistry().get("sd15").digest, "draws somebody")
        with pytest.raises(PrefixRevoked):
            Guard(shared_pipe, policy)
        (two.parent / "revoked.json").unlink()

        with pytest.raises(PrefixRevoked, match="draws somebody"):
            Guard(shared_pipe, policy)
        assert drawn == []

    def test_another_prefix_under_a_number_that_was_seen(self, shared_pipe, two, policy, publish, keys):
        """Even if the publisher signed both."""
        Guard(shared_pipe, policy)
        shutil.rmtree(two / "2")
        publish(3)
        PrefixRegistry().sign("sd15", keys["publisher"][0])

        with pytest.raises(PrefixRolledBack, match="version 2"):
            Guard(shared_pipe, policy)

    def test_a_later_version_is_taken(self, shared_pipe, two, policy, publish, keys):
        """Without a restart."""
        guard = Guard(shared_pipe, policy)
        newest = publish(3)
        PrefixRegistry().sign("sd15", keys["publisher"][0])

        assert guard.generate("a man", num_inference_steps=1).outcome.prefix_digest == newest.prefix.digest

    def test_an_unsigned_version_is_not_remembered(self, shared_pipe, two, policy, publish):
        """Or a stranger could count the number up and so shut the true ones out."""
        Guard(shared_pipe, policy)
        path = publish(3).path
        with pytest.raises(PrefixUnsigned):
            Guard(shared_pipe, policy)
        shutil.rmtree(path)

        Guard(shared_pipe, policy)

    @pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": "other"}', b"\xff"])
    def test_a_damaged_memory_is_no_memory(self, shared_pipe, two, policy, tmp_path, content):
        """The guard says so and makes no image."""
        Guard(shared_pipe, policy)
        (file,) = (tmp_path / "cache" / "registries").rglob("seen.json")
        file.write_bytes(content)

        with pytest.raises(RegistryUnavailable, match=r"seen\.json"):
            Guard(shared_pipe, policy)

    @pytest.mark.skipif(os.name == "nt", reason="needs POSIX paths")
    def test_a_memory_that_cannot_be_written(self, shared_pipe, two, policy, monkeypatch):
        """The message names the variable that moves it."""
        monkeypatch.setenv("APL_GUARD_CACHE", "/dev/null/cache")

        with pytest.raises(RegistryUnavailable, match="APL_GUARD_CACHE"):
            Guard(shared_pipe, policy)


class TestRevocation:
    """What is revoked is refused before the next image."""

    def test_while_the_service_runs(self, shared_pipe, publish, drawn):
        """With the reason, and no way back to an older version by itself."""
        publish(1)
        entry = publish(2)
        guard = Guard(shared_pipe)
        draw(guard)
        drawn.clear()
        PrefixRegistry().revoke(entry.prefix.digest, "draws somebody")

        with pytest.raises(PrefixRevoked, match="draws somebody"):
            draw(guard)
        assert drawn == []

    def test_a_prefix_given_by_hand(self, shared_pipe, prefix):
        """The list of the guard's registry counts for it, too."""
        PrefixRegistry().revoke(prefix.digest, "withdrawn")

        with pytest.raises(PrefixRevoked):
            Guard(shared_pipe, prefix=prefix)

    def test_the_next_version_is_used_again(self, shared_pipe, publish):
        """Which is how a publisher mends it."""
        PrefixRegistry().revoke(publish(1).prefix.digest, "weak")
        newer = publish(2)

        made = Guard(shared_pipe).generate("a man", num_inference_steps=1)
        assert made.outcome.prefix_digest == newer.prefix.digest

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}}", b'{"revoked": [{"digest": "x"}]}', b'{"format": "9"}'])
    def test_a_damaged_list(self, shared_pipe, publish, content):
        """Nobody knows what was revoked, so there is no image."""
        publish(1)
        (PrefixRegistry().root / "revoked.json").write_bytes(content)

        with pytest.raises(RegistryUnavailable, match=r"revoked\.json"):
            Guard(shared_pipe)

    def test_a_file_in_place_of_the_folder(self, shared_pipe, prefix, own_registry):
        """Also where it takes the folder's place while the service runs: its list would count as an empty one."""
        guard = Guard(shared_pipe, prefix=prefix)
        own_registry.write_text("")

        with pytest.raises(InvalidInput, match="not a folder"):
            Guard(shared_pipe, prefix=prefix)
        with pytest.raises(RegistryUnavailable, match="revoked"):
            draw(guard)

    @pytest.mark.parametrize("where", ["folder", "memory://full"])
    def test_a_list_that_would_be_too_long_to_be_read_again_is_not_written(self, prefix, tmp_path, where):
        """It would switch off every guard that uses the registry, here and behind a URL."""
        registry = PrefixRegistry(tmp_path / "full")
        registry.register(prefix.save(tmp_path / "trained"))
        one = {"reason": "x" * 500, "when": "2026-01-01T00:00:00Z"}
        digests = [f"{number:064x}" for number in range(1640)]
        full = {"format": "apl-guard-revoked/1", "revoked": [{"digest": digest} | one for digest in digests]}
        (registry.root / "revoked.json").write_text(json.dumps(full))
        assert len(registry.revoked()) == 1640

        entry = registry.verify("random")
        add = {
            "folder": lambda: registry.revoke("ab" * 32, "x"),
            "memory://full": lambda: registry.publish(entry, "memory://full"),
        }[where]
        with pytest.raises(StorageFailed, match="at most 1048576"):
            add()
        assert len(registry.revoked()) == 1640

    def test_the_first_reason_stays(self):
        """Whoever revokes once more changes nothing."""
        for reason in ("draws somebody", "weak"):
            PrefixRegistry().revoke("ab" * 32, reason)

        assert PrefixRegistry().revoked() == {"ab" * 32: "draws somebody"}

    def test_what_cannot_be_revoked(self):
        """A digest that is none."""
        for digest, reason in (("abc", ""), ("AB" * 32, ""), ("ab" * 32, "x" * 501)):
            with pytest.raises(InvalidInput, match="digest"):
                PrefixRegistry().revoke(digest, reason)


class TestPins:
    """A policy that names digests accepts these and no others."""

    def test_another_one_is_refused(self, shared_pipe, publish):
        """The digest that would have to be added is in the message."""
        entry = publish(1)

        with pytest.raises(PrefixNotPinned, match=entry.prefix.digest):
            Guard(shared_pipe, with_prefix(digests=["ab" * 32]))

    def test_an_older_version_stays_in_use(self, shared_pipe, publish):
        """While a newer one is there already."""
        older = publish(1)
        publish(2)

        guard = Guard(shared_pipe, with_prefix(digests=[older.prefix.digest]))

        assert guard.generate("a man", num_inference_steps=1).outcome.prefix_digest == older.prefix.digest

    def test_of_several_pinned_the_highest_that_may_be_used(self, shared_pipe, publish):
        """Also for a rule that names the prefix, and though an older one is revoked."""
        older, newer = publish(1), publish(2)
        content = with_prefix(digests=[older.prefix.digest, newer.prefix.digest]).model_dump(
            mode="json", exclude_unset=True
        )
        for rule in content["spec"]["rules"]:
            if rule["then"]["action"] == "anonymize":
                rule["then"]["prefix"] = "sd15"
        guard = Guard(shared_pipe, Policy.model_validate(content))

        assert guard.generate("a man", num_inference_steps=1).outcome.prefix_digest == newer.prefix.digest
        PrefixRegistry().revoke(newer.prefix.digest, "weak")
        assert guard.generate("a man", num_inference_steps=1).outcome.prefix_digest == older.prefix.digest
        PrefixRegistry().revoke(older.prefix.digest, "weak, too")
        with pytest.raises(PrefixRevoked):
            draw(guard)

    def test_pinned_and_revoked_is_revoked(self, shared_pipe, publish):
        """The list is stronger."""
        digest = publish(1).prefix.digest
        PrefixRegistry().revoke(digest, "")

        with pytest.raises(PrefixRevoked):
            Guard(shared_pipe, with_prefix(digests=[digest]))


def test_a_prefix_of_the_same_registry_that_is_trusted_takes_the_place_of_one_that_is_not(
    shared_pipe, publish, prefix, tmp_path
):
    """A stranger's newer prefix does not stop the service, and is not used."""
    PrefixRegistry().register(prefix.save(tmp_path / "mine"))
    publish(3)

    made = Guard(shared_pipe, with_prefix(digests=[prefix.digest])).generate("a man", num_inference_steps=1)

    assert made.outcome.prefix_digest == prefix.digest
    assert torch.is_tensor(prefix.vectors["text_encoder"])
