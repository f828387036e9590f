"""HTTP with every bound: one request goes out, to one place, for a limited time, and a limited answer comes back."""

import socket
import time

import pytest
from services import FAULTS, TIGHT, Service, Silent, Status, b64, png, raising

from apl_guard import InvalidInput
from apl_guard.adapters.http_client import HttpClient, RemoteAnswerInvalid, RemoteError, RemoteRefused, RemoteTimeout
from apl_guard.adapters.remote_images import decode, decode_base64


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


@pytest.mark.parametrize("fault", set(FAULTS) - {"another shape", "a list"})
def test_every_fault_is_one_error_one_request_and_in_time(service, fault):
    """Nothing is sent again, no text of the answer is in the message, and the total limit holds."""
    service.routes["POST /draw"] = raising(FAULTS[fault])
    client = HttpClient(service.url, **TIGHT)

    began = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        client.post("/draw", {"prompt": "a photo of Mara Voss"})

    assert time.monotonic() - began < 2.5
    assert len(service.seen) == 1
    assert "Mara" not in str(caught.value)
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


def test_a_question_is_not_waited_for_as_long_as_a_picture(service):
    """Quick questions have a limit of their own, and never more than the client's."""
    service.routes["GET /things"] = raising(Silent(3))

    with pytest.raises(RemoteTimeout, match=r"0\.3 s"):
        HttpClient(service.url, time_limit=0.3).get("/things")


@pytest.mark.parametrize(
    "url",
    ["draw.example", "ftp://draw.example", "http://", "http://draw.example", "http://10.0.0.1:7860",
     "https://user:secret@draw.example", "https://draw.example?x=1", "https://draw.example#x", "", None,
     "http://127.0.0.1.example.com", "file:///etc/passwd"],
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

    @pytest.mark.parametrize(
        "wrong", [None, 7, "", "%%%", "https://example.com/a.png", b64(b"GIF89a"), b64(png()[:40]), b64(b"<svg/>")]
    )
    def test_what_is_no_picture(self, wrong):
        """Also URLs, which are never followed, and formats that nobody asked for."""
        with pytest.raises(RemoteAnswerInvalid):
            decode_base64(wrong)
