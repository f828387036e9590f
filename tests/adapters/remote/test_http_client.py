"""HTTP with every bound: one request goes out, to one place, for a limited time, and a limited answer comes back."""

import socket
import ssl
import time

import pytest
from services import FAULTS, TIGHT, Drip, Service, Silent, Status, b64, png, raising

from apl_guard import InvalidInput
from apl_guard.adapters.remote import images
from apl_guard.adapters.remote.http_client import (
    HttpClient,
    RemoteAnswerInvalid,
    RemoteError,
    RemoteRefused,
    RemoteTimeout,
)
from apl_guard.adapters.remote.images import decode, decode_base64


@pytest.fixture
def service():
    service = Service({"GET /things": lambda query: {"things": query}, "POST /draw": lambda body: body})
    yield service
    service.close()


def test_json_goes_out_and_comes_back(service):
    """Query and body arrive as they were given, the base path is kept."""
    client = HttpClient(service.url + "/", headers={"Authorization": "Bearer x"})

    assert client.get("/things", {"a": "b c&d"}) == {"things": {"a": "b c&d"}}
    assert client.post("/draw", {"prompt": "Zoë"}) == {"prompt": "Zoë"}
    assert service.headers[0]["Authorization"] == "Bearer x"
    assert service.headers[0]["Accept-Encoding"] == "identity"


def told(error):
    """What a log says of an error: its message, and those of its causes."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"another shape", "a list"}))
def test_every_fault_is_one_error_one_request_and_in_time(service, fault):
    """Nothing is sent again, no text of the answer is in the message, and the total limit holds."""
    service.routes["POST /draw"] = raising(FAULTS[fault])
    client = HttpClient(service.url, **TIGHT)

    began = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        client.post("/draw", {"prompt": "a photo of Mara Voss"})

    assert time.monotonic() - began < 2.5
    assert len(service.seen) == 1
    assert "Mara" not in "".join(told(caught.value))
    wanted = {
        "error": RemoteRefused, "redirect": RemoteAnswerInvalid, "moved for good": RemoteAnswerInvalid,
        "compressed": RemoteAnswerInvalid, "no JSON": RemoteAnswerInvalid, "endless": RemoteAnswerInvalid,
        "deep JSON": RemoteAnswerInvalid, "slow body": RemoteTimeout, "slow headers": RemoteTimeout,
        "silent": RemoteTimeout,
    }  # fmt: skip
    assert type(caught.value) is wanted.get(fault, RemoteError)


def test_the_detail_of_an_error_is_kept_apart(service):
    """For the program, not for the log."""
    service.routes["POST /draw"] = raising(Status(422, b'{"detail": "Sampler not found"}'))

    with pytest.raises(RemoteRefused) as caught:
        HttpClient(service.url).post("/draw", {})
    assert (caught.value.status, caught.value.detail) == (422, {"detail": "Sampler not found"})


def test_a_service_that_is_not_there():
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    with pytest.raises(RemoteError, match="ConnectError"):
        HttpClient(f"http://127.0.0.1:{port}").get("/things")


@pytest.mark.parametrize(
    ("base_url", "path", "params"),
    [("https://draw..example", "/", {}), (f"https://{'a' * 99}.example", "/", {}),
     ("http://127.0.0.1:1", "/" + "a" * 70_000, {}), ("http://127.0.0.1:1", "/", {"file": "\ud800"}),
     ("http://127.0.0.1:1", "/", {"file": "a" * 70_000})],
    ids=["no name of a host", "a long name of a host", "a long path", "half a letter", "a long query"],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_an_error_of_the_service(base_url, path, params):
    """Its name, or the names of files that it gave."""
    with pytest.raises(RemoteError):
        HttpClient(base_url).get_bytes(path, params)


@pytest.mark.parametrize("value", ["\ud800", float("nan"), object()], ids=["half a letter", "NaN", "object"])
def test_what_is_no_json_is_not_sent(service, value):
    """Named as what the caller gave, for the service had no part in it."""
    with pytest.raises(InvalidInput, match="cannot be written as JSON"):
        HttpClient(service.url).post("/draw", {"prompt": value})
    assert service.seen == []


def test_a_question_is_not_waited_for_as_long_as_a_picture(service):
    """Quick questions have a limit of their own, and never more than the client's."""
    service.routes["GET /things"] = raising(Silent(3))

    with pytest.raises(RemoteTimeout, match=r"0\.3 s"):
        HttpClient(service.url, time_limit=0.3).get("/things")


@pytest.mark.parametrize("limit", ["time_limit", "connect_limit"])
@pytest.mark.parametrize("seconds", [0, float("nan"), "60", None])
def test_a_limit_that_limits_nothing_is_refused_when_the_client_is_made(limit, seconds):
    """Not in the first call, where it would look like a fault of the service."""
    with pytest.raises(InvalidInput, match=f"{limit}: found"):
        HttpClient("https://draw.example", **{limit: seconds})


def test_a_connection_that_stands_too_late(service, monkeypatch):
    """Where looking up the name takes all the time, a byte now and then does not hold the caller either."""
    service.routes["GET /things"] = raising(Drip())
    look_up = socket.getaddrinfo

    def look_up_slowly(*args, **options):
        time.sleep(0.6)
        return look_up(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_slowly)

    began = time.monotonic()
    with pytest.raises(RemoteTimeout, match=r"0\.5 s"):
        HttpClient(service.url, **TIGHT).get("/things")
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("limit", [0.0, -0.5])
def test_nothing_is_asked_when_no_time_is_left(service, limit):
    """What is left of a longer run may be nothing, or less."""
    with pytest.raises(RemoteTimeout, match="no time is left"):
        HttpClient(service.url).get_bytes("/things", limit=limit)

    assert service.seen == []


@pytest.mark.parametrize(
    "url",
    ["draw.example", "ftp://draw.example", "http://", "http://draw.example", "http://10.0.0.1:7860",
     "https://user:secret@draw.example", "https://draw.example?x=1", "https://draw.example#x", "", None,
     "http://127.0.0.1.example.com", "file:///etc/passwd", "https://draw.example?", "https://draw.example#",
     "https://xn--a"],
)  # fmt: skip
def test_urls_that_are_refused(url):
    """Where the service is must be plain, and encrypted unless it is this machine; no secret is in the message."""
    with pytest.raises(InvalidInput, match="base_url") as caught:
        HttpClient(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://draw.example/x/"]
)
def test_urls_that_are_taken(url):
    """This machine without encryption, others with it."""
    assert HttpClient(url).base_url == url.rstrip("/")


def test_http_to_another_machine_must_be_asked_for():
    """In so many words."""
    assert HttpClient("http://10.0.0.1:7860", insecure_http=True).base_url == "http://10.0.0.1:7860"


def test_proxies_of_the_environment_are_not_used(service, monkeypatch):
    """Prompts and pictures go where the platform said, and nowhere else."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    assert HttpClient(service.url).get("/things") == {"things": {}}


def test_an_unencrypted_answer_to_https_is_no_answer(service):
    """TLS is verified, so a plain server behind an https URL is an error."""
    with pytest.raises(RemoteError):
        HttpClient(service.url.replace("http:", "https:")).get("/things")


class TestTLS:
    """The same bounds hold for an encrypted connection."""

    @pytest.fixture
    def service(self, certificate):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        service = Service({"POST /draw": lambda body: body}, tls)
        yield service
        service.close()

    def test_an_authority_of_your_own(self, service, certificate):
        """It is trusted where the platform says so, and nowhere else."""
        assert HttpClient(service.url, ca_file=certificate).post("/draw", {"a": 1}) == {"a": 1}

        with pytest.raises(RemoteError, match="ConnectError"):
            HttpClient(service.url).post("/draw", {})

    @pytest.mark.parametrize("fault", ["slow body", "slow headers", "silent", "endless"])
    def test_the_limits_hold(self, service, certificate, fault):
        """A byte now and then does not hold the caller, nor does an answer without end."""
        service.routes["POST /draw"] = raising(FAULTS[fault])

        began = time.monotonic()
        with pytest.raises((RemoteTimeout, RemoteAnswerInvalid)):
            HttpClient(service.url, ca_file=certificate, **TIGHT).post("/draw", {})

        assert time.monotonic() - began < 2.5

    def test_certificates_that_cannot_be_read(self, tmp_path):
        """A missing file, and one that holds none."""
        (tmp_path / "empty.pem").write_text("no certificate")

        for name in ("missing.pem", "empty.pem"):
            with pytest.raises(InvalidInput, match="ca_file"):
                HttpClient("https://draw.example", ca_file=tmp_path / name)


class TestPictures:
    """Pictures of an answer are bounded before they are unpacked."""

    def test_a_picture(self):
        """With or without the header of a data URL."""
        for text in (b64(png()), "data:image/png;base64," + b64(png())):
            assert decode_base64(text).size == (8, 8)

    def test_too_many_pixels(self):
        """Twenty kilobytes can hold a gigabyte; the size in the header counts."""
        content = png(size=(3000, 3000))
        assert len(content) < 50_000

        with pytest.raises(RemoteAnswerInvalid, match="3000×3000"):
            decode(content, max_pixels=1 << 20)

    def test_too_many_pixels_together(self, monkeypatch):
        """Of a thousand such pictures in one answer only as many are unpacked as may be."""
        monkeypatch.setattr(images, "_MAX_PIXELS_TOGETHER", 3 * 64)
        unpacked = []

        with pytest.raises(RemoteAnswerInvalid, match="together"):
            images.together(unpacked.append(1) or decode(png()) for _ in range(1000))
        assert len(unpacked) == 4

    @pytest.mark.parametrize(
        "wrong", [None, 7, "", "%%%", "https://example.com/a.png", b64(b"GIF89a"), b64(png()[:40]), b64(b"<svg/>")]
    )
    def test_what_is_no_picture(self, wrong):
        """Also URLs, which are never followed, and formats that nobody asked for."""
        with pytest.raises(RemoteAnswerInvalid):
            decode_base64(wrong)
