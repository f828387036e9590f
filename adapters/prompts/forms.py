"""What a text may turn into between the decision and the text encoder."""

from __future__ import annotations

from collections.abc import Collection
from html import unescape
from urllib.parse import unquote_plus

from apl_guard.errors import GuardUnavailable
from apl_guard.request import Channel, GenerationRequest
from apl_guard.request.canonical import canonical

__all__ = ["canonical_forms", "check_decided", "cleaned_forms"]

_MOST_PASSES = 8


def canonical_forms(text: str) -> set[str]:
    """A text and its canonical form, which is what runs where a policy looks at texts. Its brackets and colons, say,
    may be plain ones where those of the text are not.

    Example:
        >>> sorted(canonical_forms("\uff1cb\uff1e"))
        ['<b>', '\uff1cb\uff1e']
    """
    return {text, canonical(text)}


def cleaned_forms(text: str) -> set[str]:
    """The same, and what pipelines that clean captions make of them: entities of HTML and of URLs are read.

    Example:
        >>> sorted(cleaned_forms("&lt;b%3E"))
        ['&lt;b%3E', '&lt;b>', '<b%3E', '<b>']
    """
    forms = new = canonical_forms(text)
    for _ in range(_MOST_PASSES):
        # Of the new ones alone: what the others become is known, and a long text may have many forms.
        new = {form for known in new for form in (unescape(known), unquote_plus(known), canonical(known))} - forms
        if not new:
            break
        forms = forms | new
    return forms


def check_decided(channels: Collection[Channel], request: GenerationRequest) -> None:
    """Make sure that what runs opens no channel beyond those that were decided about.

    Args:
        channels: Those that the texts of the request open as they are now, rewritten perhaps.
        request: The request.

    Raises:
        GuardUnavailable: One of them was not open when the request was read.
    """
    further = sorted(set(channels) - request.used)
    if further:
        raise GuardUnavailable(
            f"rewritten as the policy wants it, the request uses {further}, which nobody decided about; "
            "change the neutral descriptions of the policy's names and patterns"
        )
