"""Publishers, a policy that trusts one of them, and prefixes to be published."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest

from apl_guard import Prefix, PrefixRegistry
from apl_guard.testing import random_prefix

sys.path.insert(0, str(Path(__file__).parent))  # for the module that the tests here share

from trusted import with_prefix


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
