"""Which registered prefixes may be used: signatures, versions that only grow, revocations, pinned digests."""

import base64
import json
import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from apl_guard import (
    Guard,
    InvalidInput,
    Policy,
    Prefix,
    PrefixNotPinned,
    PrefixRegistry,
    PrefixRevoked,
    PrefixRolledBack,
    PrefixSignatureInvalid,
    PrefixUnsigned,
    RegistryUnavailable,
)
from apl_guard.policy.acceptance import Acceptance
from apl_guard.testing import random_prefix

try:
    import model_signing
except ImportError:
    model_signing = None

needs_signing = pytest.mark.skipif(model_signing is None, reason="apl-guard[signing] is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two publishers: name → (private key file, public key as text)."""
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec", reason="apl-guard[signing] is missing")
    from cryptography.hazmat.primitives import serialization as s

    folder = tmp_path_factory.mktemp("keys")
    found = {}
    for name in ("publisher", "stranger"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pem").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)
        found[name] = (folder / f"{name}.pem", public.decode())
    return found


@pytest.fixture
def policy(keys):
    """The default policy, which accepts the publisher's prefixes only."""
    return with_prefix(signers=[keys["publisher"][1]])


def with_prefix(**fields):
    content = Policy.load("anonymize_faces").model_dump(mode="json", exclude_unset=True)
    content["spec"]["prefix"] = fields
    return Policy.model_validate(content)


@pytest.fixture
def publish(shared_pipe, tmp_path):
    """Register the next version of `sd15` with other vectors."""

    def register(seed, registry=None):
        made = random_prefix(shared_pipe, n=4, seed=seed, name="sd15")
        later = made.metadata.model_copy(update={"created": made.metadata.created + timedelta(days=seed)})
        folder = Prefix(made.vectors, later).save(tmp_path / f"made{seed}", card=f"# {seed}")
        return (registry or PrefixRegistry()).register(folder, replace=True)

    return register


@pytest.fixture
def drawn(shared_pipe):
    """How often the UNet ran: zero means that no image can have been made."""
    seen = []
    handle = shared_pipe.unet.register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


def draw(guard):
    return guard("a man", num_inference_steps=1)


@needs_signing
class TestSignatures:
    """A policy that names signers accepts what one of them signed, and nothing else."""

    def test_signed_by_the_publisher(self, shared_pipe, publish, keys, policy):
        """The image is made."""
        publish(1)
        PrefixRegistry().sign("sd15", keys["publisher"][0])

        assert draw(Guard(shared_pipe, policy)).images

    def test_unsigned(self, shared_pipe, publish, policy, drawn):
        """The command that signs is in the message."""
        publish(1)

        with pytest.raises(PrefixUnsigned, match="apl-guard prefix sign"):
            Guard(shared_pipe, policy)
        assert drawn == []

    def test_signed_by_a_stranger(self, shared_pipe, publish, keys, policy, drawn):
        """Although the signature is good as such."""
        publish(1)
        PrefixRegistry().sign("sd15", keys["stranger"][0])

        with pytest.raises(PrefixSignatureInvalid):
            Guard(shared_pipe, policy)
        assert drawn == []

    def test_one_of_several_signers_is_enough(self, shared_pipe, publish, keys):
        """As while a key is replaced by another."""
        publish(1)
        PrefixRegistry().sign("sd15", keys["stranger"][0])

        Guard(shared_pipe, with_prefix(signers=[keys["publisher"][1], keys["stranger"][1]]))

    def test_another_prefix_under_a_good_signature(self, shared_pipe, publish, keys, policy):
        """With an entry that fits it: only the signature tells."""
        path = publish(1).path
        PrefixRegistry().sign("sd15", keys["publisher"][0])
        signature = (path / "model.sig").read_bytes()
        other = random_prefix(shared_pipe, n=4, seed=9, name="sd15")
        said = json.loads((path / "entry.json").read_text())
        (path / "prefix.safetensors").write_bytes(other.to_bytes())
        (path / "entry.json").write_text(json.dumps(said | {"digest": other.digest}))
        assert PrefixRegistry().list()[0].problem is None

        with pytest.raises(PrefixSignatureInvalid, match="mismatch"):
            Guard(shared_pipe, policy)
        assert (path / "model.sig").read_bytes() == signature

    @pytest.mark.parametrize("file", ["prefix.safetensors", "entry.json", "card.md", "model.sig"])
    def test_every_file_is_covered(self, publish, keys, file):
        """One more byte in any of them is noticed, by the digest or by the signature."""
        registry, path = PrefixRegistry(), publish(1).path
        registry.sign("sd15", keys["publisher"][0])
        content = (path / file).read_bytes()
        accepts = Acceptance(signers=(keys["publisher"][1],))
        registry.check(registry.list()[0], accepts)

        if file == "model.sig":
            bundle = json.loads(content)
            envelope = bundle["dsseEnvelope"]
            made = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
            made[-1] ^= 1
            envelope["signatures"][0]["sig"] = base64.b64encode(made).decode()
            (path / file).write_text(json.dumps(bundle))
        else:
            (path / file).write_bytes(content + b" ")

        with pytest.raises((PrefixSignatureInvalid, Exception)) as caught:
            registry.check(registry.list()[0], accepts)
        assert type(caught.value).__name__ in ("PrefixSignatureInvalid", "PrefixInvalid")

    @pytest.mark.parametrize("content", [b"", b"{}", b"null", b"[1]", b"garbage", b"\xff", b"{" * 9000])
    def test_signatures_that_are_none(self, publish, keys, content):
        """Whatever it is, the error is the typed one."""
        path = publish(1).path
        (path / "model.sig").write_bytes(content)
        registry = PrefixRegistry()

        with pytest.raises(PrefixSignatureInvalid):
            registry.check(registry.list()[0], Acceptance(signers=(keys["publisher"][1],)))

    def test_a_version_passed_off_as_a_later_one(self, publish, keys):
        """Version 1, signed, copied to where version 2 belongs."""
        path = publish(1).path
        registry = PrefixRegistry()
        registry.sign("sd15", keys["publisher"][0])
        shutil.copytree(path, path.with_name("2"))

        entry = registry.list()[0]
        assert "is about version 1" in entry.problem

    def test_a_folder_given_by_hand_must_be_signed_too(self, shared_pipe, publish, keys, policy, prefix):
        """By its path; a prefix in memory cannot be."""
        path = publish(1).path
        PrefixRegistry().sign("sd15", keys["publisher"][0])

        Guard(shared_pipe, policy, prefix=path)
        with pytest.raises(PrefixUnsigned):
            Guard(shared_pipe, policy, prefix=prefix)
        with pytest.raises(PrefixUnsigned):
            Guard(shared_pipe, policy, prefix=path / "prefix.safetensors")

    def test_a_signature_that_is_removed_while_the_service_runs(self, shared_pipe, publish, keys, policy, drawn):
        """The guard looks again on each call."""
        path = publish(1).path
        PrefixRegistry().sign("sd15", keys["publisher"][0])
        guard = Guard(shared_pipe, policy)
        (path / "model.sig").unlink()

        with pytest.raises(PrefixUnsigned):
            draw(guard)
        assert drawn == []

    def test_the_signature_is_one_of_model_signing(self, publish, keys, tmp_path):
        """Its own command line verifies the folder."""
        path = publish(1).path
        PrefixRegistry().sign("sd15", keys["publisher"][0])
        key = tmp_path / "publisher.pub"
        key.write_text(keys["publisher"][1])
        command = ["verify", "key", path, "--signature", path / "model.sig", "--public_key", key]

        program = shutil.which("model_signing", path=str(Path(os.sys.executable).parent))
        ended = subprocess.run(
            [program, *command, "--ignore-paths", path / "model.sig"], capture_output=True, text=True
        )

        assert ended.returncode == 0, ended.stdout + ended.stderr

    def test_keys_that_cannot_be_used(self, publish, tmp_path):
        """For signing, and in a policy."""
        publish(1)
        (tmp_path / "no.pem").write_text("hello")
        for path in (tmp_path / "no.pem", tmp_path / "nothing.pem"):
            with pytest.raises(InvalidInput, match=r"\.pem"):
                PrefixRegistry().sign("sd15", path)
        for text in ("", "hello", "-----BEGIN PUBLIC KEY-----\n*\n-----END PUBLIC KEY-----", "x" * 20_000):
            with pytest.raises(ValidationError, match="signers"):
                Acceptance(signers=(text,))


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

    def test_pinned_and_revoked_is_revoked(self, shared_pipe, publish):
        """The list is stronger."""
        digest = publish(1).prefix.digest
        PrefixRegistry().revoke(digest, "")

        with pytest.raises(PrefixRevoked):
            Guard(shared_pipe, with_prefix(digests=[digest]))


class TestBehindAUrl:
    """A registry that fsspec reaches is copied, and the copy is read as any other registry."""

    @pytest.fixture
    def there(self, tmp_path):
        """A folder that stands for a bucket, and its URL."""
        return tmp_path / "bucket", f"file://{tmp_path / 'bucket'}"

    def test_push_and_find(self, shared_pipe, publish, there):
        """The prefix that was pushed makes the image."""
        entry = publish(1)
        PrefixRegistry().publish(entry, there[1])

        made = Guard(shared_pipe, registry=there[1]).generate("a man", num_inference_steps=1)

        assert made.outcome.prefix_digest == entry.prefix.digest

    def test_in_memory_as_in_a_bucket(self, shared_pipe, publish):
        """Another file system of fsspec, which has no folders of its own."""
        entry = publish(1)
        PrefixRegistry().publish(entry, "memory://bucket/prefixes")

        found = PrefixRegistry("memory://bucket/prefixes")

        assert found.get("sd15").digest == entry.prefix.digest
        with pytest.raises(InvalidInput, match="behind a URL"):
            found.revoke(entry.prefix.digest, "")

    def test_the_next_version_comes_with_a_look(self, publish, there):
        """Not before it is due."""
        PrefixRegistry().publish(publish(1), there[1])
        lazy, eager = PrefixRegistry(there[1]), PrefixRegistry(there[1], refresh_after=0)
        assert lazy.list()[0].version == 1
        PrefixRegistry().publish(publish(2), there[1])

        assert lazy.list()[0].version == 1
        assert eager.list()[0].version == 2
        lazy.refresh()
        assert [entry.version for entry in lazy.history("sd15")] == [1, 2]

    def test_versions_only_grow(self, publish, there):
        """Pushing what is there already, or something older."""
        first = publish(1)
        PrefixRegistry().publish(first, there[1])

        with pytest.raises(InvalidInput, match="only grow"):
            PrefixRegistry().publish(first, there[1])
        PrefixRegistry().publish(publish(2), there[1])
        with pytest.raises(InvalidInput, match="version 2"):
            PrefixRegistry().publish(first, there[1])

    def test_rolled_back_without_any_signature(self, shared_pipe, publish, there, drawn):
        """Whoever holds the bucket goes back to version 1."""
        PrefixRegistry().publish(publish(1), there[1])
        PrefixRegistry().publish(publish(2), there[1])
        Guard(shared_pipe, registry=there[1])
        shutil.rmtree(there[0] / "sd15" / "2")

        with pytest.raises(PrefixRolledBack):
            Guard(shared_pipe, registry=PrefixRegistry(there[1], refresh_after=0))
        assert drawn == []

    def test_a_revocation_is_remembered_when_the_list_vanishes(self, shared_pipe, publish, there):
        """Whoever holds the bucket cannot take it back."""
        entry = publish(1)
        PrefixRegistry().revoke(entry.prefix.digest, "weak")
        PrefixRegistry().publish(entry, there[1])
        with pytest.raises(PrefixRevoked, match="weak"):
            Guard(shared_pipe, registry=there[1])
        (there[0] / "revoked.json").write_text('{"format": "apl-guard-revoked/1", "revoked": []}')

        with pytest.raises(PrefixRevoked, match="weak"):
            Guard(shared_pipe, registry=PrefixRegistry(there[1], refresh_after=0))

    def test_the_copy_serves_while_the_registry_is_away(self, shared_pipe, publish, there):
        """For as long as it is valid, and not longer."""
        PrefixRegistry().publish(publish(1), there[1])
        PrefixRegistry(there[1]).refresh()
        shutil.move(there[0], there[0].with_name("away"))

        draw(Guard(shared_pipe, registry=PrefixRegistry(there[1], refresh_after=0)))
        with pytest.raises(RegistryUnavailable, match="bucket"):
            Guard(shared_pipe, registry=PrefixRegistry(there[1], refresh_after=0, valid_for=0))
        with pytest.raises(RegistryUnavailable):
            PrefixRegistry(there[1]).refresh()

    def test_a_registry_that_was_never_there(self, shared_pipe, there):
        """No copy, no image."""
        with pytest.raises(RegistryUnavailable, match="holds no prefix"):
            Guard(shared_pipe, registry=there[1])

    def test_only_what_a_registry_has_is_copied(self, publish, there, tmp_path):
        """Other names, other files, files too large, ways out: none of it comes along."""
        PrefixRegistry().publish(publish(1), there[1])
        bucket = there[0]
        for place in ("sd15/1/evil.py", "sd15/x/prefix.safetensors", ".ssh/1/prefix.safetensors", "README.md"):
            (bucket / place).parent.mkdir(parents=True, exist_ok=True)
            (bucket / place).write_bytes(b"evil")

        PrefixRegistry(there[1]).refresh()
        copied = {p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()}
        assert copied == {"prefix.safetensors", "entry.json", "card.md", "seen.json", "copied"} - {"seen.json"}

        (bucket / "sd15" / "2").mkdir()
        with (bucket / "sd15" / "2" / "prefix.safetensors").open("wb") as stream:
            stream.truncate(1 << 33)
        with pytest.raises(RegistryUnavailable, match="larger than"):
            PrefixRegistry(there[1]).refresh()

    @pytest.mark.parametrize("url", ["nothing://bucket", "s3://bucket/prefixes"])
    def test_file_systems_that_are_not_there(self, url):
        """The message says what to install."""
        if url.startswith("s3"):
            pytest.importorskip("fsspec")
            try:
                import s3fs  # noqa: F401
            except ImportError:
                pass
            else:
                pytest.skip("s3fs is installed")
        with pytest.raises(InvalidInput, match=r"s3fs|[Pp]rotocol"):
            PrefixRegistry(url)


def test_a_prefix_of_the_same_registry_that_is_trusted_takes_the_place_of_one_that_is_not(
    shared_pipe, publish, prefix, tmp_path
):
    """A stranger's newer prefix does not stop the service, and is not used."""
    PrefixRegistry().register(prefix.save(tmp_path / "mine"))
    publish(3)

    made = Guard(shared_pipe, with_prefix(digests=[prefix.digest])).generate("a man", num_inference_steps=1)

    assert made.outcome.prefix_digest == prefix.digest
    assert torch.is_tensor(prefix.vectors["text_encoder"])
