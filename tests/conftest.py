"""What many tests need: a small real pipe, prefixes that fit it, and a registry and metrics of their own."""

import functools
import gc
import importlib.metadata
import ipaddress
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings
from prometheus_client import CollectorRegistry

import apl_guard
from apl_guard import Guard, cli
from apl_guard.audit.durable import LogOptions
from apl_guard.testing import random_prefix, tiny_pipe

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that the tests here share

# Whether a property holds does not depend on how busy the machine is.
settings.register_profile(
    "apl_guard",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("apl_guard")


def pytest_sessionstart():
    """Where the wheel is to be tested, the checkout must not be what is imported."""
    found = Path(apl_guard.__file__).resolve()
    if os.environ.get("APL_GUARD_TEST_WHEEL") and Path(__file__).resolve().parents[1] / "apl_guard" in found.parents:
        pytest.exit(f"expected the installed wheel, imported {found}", returncode=4)


def pytest_collection_finish():
    """What was imported stays, so nobody need look for garbage in it a thousand times."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def started_quickly():
    """Guards start by the thousand: logs make few keys, and adapters of other packages are looked for once.

    Programs that tests run in processes of their own, and `make torture`, do without this.
    """
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("APL_GUARD_TORTURE") != "1":
            patch.setattr("apl_guard.audit.durable.LogOptions", functools.partial(LogOptions, epochs=16))
            patch.setattr("apl_guard.backend.entry_points", functools.cache(importlib.metadata.entry_points))
        yield


@pytest.fixture(autouse=True, scope="session")
def nobodys_folders(tmp_path_factory):
    """What modules and sessions share is not found in, nor left in, the folders of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("APL_GUARD_REGISTRY", "APL_GUARD_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(autouse=True)
def own_registry(tmp_path, monkeypatch):
    """No test sees or changes the prefixes of the person who runs it."""
    root = tmp_path / "registry"
    monkeypatch.setenv("APL_GUARD_REGISTRY", str(root))
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))
    return root


@pytest.fixture(scope="session")
def shared_pipe():
    """A pipe for tests that leave it as it is."""
    return tiny_pipe()


@pytest.fixture
def pipe():
    """A pipe that a test may change."""
    return tiny_pipe()


@pytest.fixture(scope="session")
def prefix(shared_pipe):
    """Ten random vectors for the shared pipe, and for every other pipe of the same seed."""
    return random_prefix(shared_pipe, n=10)


@pytest.fixture
def metrics_registry():
    return CollectorRegistry()


@pytest.fixture
def guard(shared_pipe, prefix, metrics_registry, tmp_path):
    """A guard with the default policy that writes its records to `tmp_path / "audit"`."""
    return Guard(shared_pipe, prefix=prefix, audit=tmp_path / "audit", metrics_registry=metrics_registry)


@pytest.fixture
def calls(shared_pipe, monkeypatch):
    """How often the UNet ran: zero means that no image can have been made."""
    seen = []
    handle = shared_pipe.unet.register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


@pytest.fixture
def draw():
    """Call a pipe or a guard with a fixed seed and few steps; the pictures as one tensor."""

    def call(target, prompt, seed=0, **options):
        options = {"num_inference_steps": 2, "output_type": "pt"} | options
        return target(prompt, generator=torch.Generator().manual_seed(seed), **options).images

    return call


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the program in this process; its exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["apl-guard", *map(str, arguments)])
        # What the program sets for itself and for those whom it starts is of no other test.
        with pytest.raises(SystemExit) as ended, patch.dict(os.environ):
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a model; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipe().save_pretrained(folder)
    return folder


@pytest.fixture
def trained(prefix, tmp_path):
    """The folder of a prefix."""
    return prefix.save(tmp_path / "trained", card="# Card")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 by an authority of its own, with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    return path
