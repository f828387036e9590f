"""A backend that answers at once, with an adapter of its own as a third party would write it."""

from apl_guard.backend import Generation, Receipt
from apl_guard.request import Channel, GenerationRequest, texts


class Pipe:
    """Counts what it is asked for. The prompt "break" breaks it."""

    def __init__(self):
        self.calls = 0


class Adapter:
    """Reads the prompt and, by name, a callback."""

    name = "instant:Pipe"
    carries_prefix = True
    slots = ()

    def __init__(self, pipe):
        self._pipe = pipe

    def read(self, args, kwargs):
        (prompt,) = args  # anything else does not fit the signature
        prompts = texts(prompt, where="prompt")
        used = frozenset({Channel.PROMPT, *(Channel.CALLBACK for name in kwargs if name == "callback")})
        unknown = tuple(name for name in kwargs if name != "callback")
        return GenerationRequest(self.name, {Channel.PROMPT: prompts}, used, unknown=unknown, slots=self.slots)

    def fingerprints(self):
        return None

    def check_prefix(self, prefix):
        pass

    def generate(self, request, prefix):
        self._pipe.calls += 1
        if request.prompts[0] == "break":
            raise RuntimeError("the backend broke")
        rows = {} if prefix is None else {slot: (prefix.n,) * len(request.prompts) for slot in prefix.metadata.widths}
        return Generation("an image", 1, Receipt(prefix_rows=rows))

    def get_setting(self, name):
        raise AttributeError(name)

    def set_setting(self, name, value):
        raise AttributeError(name)
