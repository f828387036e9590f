"""What the log says, in the forms that others ask for: a table, or statements of reasons."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from apl_guard.audit.reading import read_log, unwritten
from apl_guard.decision import Protection
from apl_guard.decision.rules import NO_RULE
from apl_guard.errors import AuditUnavailable, InvalidInput
from apl_guard.policy import Action

__all__ = ["Platform", "calls", "statements", "write_csv"]

CSV_COLUMNS = [
    *("decision_id", "decided", "ended", "policy", "policy_version", "mode", "tenant", "route", "backend", "action"),
    *("effective_action", "category", "rules", "why", "channels", "unsafe", "result", "images", "image_sha256"),
    *("protection", "prefix", "prefix_digest", "error", "overhead_ms", "generation_ms"),
]
_UNION = frozenset(
    [
        *("AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU"),
        *("LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK"),
    ]
)
_EEA = _UNION | {"IS", "LI", "NO"}
_AREAS = {"EU": _UNION, "EEA": _EEA}
# Of the database, in characters: a statement that is longer is refused, with all that are sent along.
_MAX_TERMS = _MAX_URL = _MAX_OTHER = 500
_MAX_EXPLANATION = 2000
_MAX_FACTS = 5000


@dataclass(frozen=True)
class Platform:
    """What a statement of reasons needs and the log does not know.

    Raises:
        InvalidInput: No territory is named, or one that is not of the European Economic Area; or the database would not
            take the terms or their address.
    """

    territories: Sequence[str]
    """Where the decisions hold: two-letter codes, `EU` or `EEA`."""
    terms: str = "The terms of service forbid images of people who have not agreed."
    """The ground in the platform's own terms."""
    terms_url: str | None = None
    category: str = "STATEMENT_CATEGORY_DATA_PROTECTION_AND_PRIVACY_VIOLATIONS"

    def __post_init__(self) -> None:
        expected = "where the decisions hold, in codes such as DE, or EU, or EEA"
        if not self.territories:
            raise InvalidInput(f"found none; expected {expected}", where="territory")
        unknown = sorted(set(self.territories) - _EEA - _AREAS.keys())
        if unknown:
            raise InvalidInput(f"found {unknown}; expected {expected}", where="territory")
        if not self.terms.strip() or len(self.terms) > _MAX_TERMS:
            raise InvalidInput(f"found {len(self.terms)} characters; expected 1 to {_MAX_TERMS}", where="terms")
        if self.terms_url is not None and not (
            re.fullmatch(r"https?://[^\s/]+\S*", self.terms_url) and len(self.terms_url) <= _MAX_URL
        ):
            raise InvalidInput(
                f"found {self.terms_url[:40]!r}; expected an address such as https://example.org/terms, of at most "
                f"{_MAX_URL} characters",
                where="terms_url",
            )

    @property
    def codes(self) -> list[str]:
        """The two-letter codes of all territories, sorted."""
        return sorted({code for each in self.territories for code in _AREAS.get(each, {each})})


def calls(folder: Path) -> Iterator[dict[str, Any]]:
    """One row for each call: its decision and its outcome together, or its refusal.

    A call whose outcome is nowhere has the result `unknown`. One of which a record could not be written has failed; it
    ended before the time that stands there, that of the record which says so.

    Raises:
        InvalidInput: The folder holds no log.
    """
    open_rows: dict[str, dict[str, Any]] = {}
    for found in read_log(folder, containing=b'"guard.'):
        fields = found.record.fields
        decision, event = str(fields.get("decision_id")), fields["event"]
        if event == "guard.decision":
            open_rows[decision] = _decided(fields)
        elif event == "guard.outcome":
            row = open_rows.pop(decision, {"decision_id": decision})
            row |= {name: fields[name] for name in CSV_COLUMNS if name in fields}
            row |= {"ended": fields["timestamp"]}
            # Decided is one thing and done another, where a part of the guard failed and the policy let the call pass.
            row |= {"effective_action": fields["effective"]} if "effective" in fields else {}
            yield row | {"image_sha256": " ".join(map(str, fields.get("image_sha256") or ()))}
        elif event == "guard.refusal":
            yield _decided(fields) | {"ended": fields["timestamp"]}
        elif event == "audit.gap":
            for missing, decision in unwritten(fields)[0]:
                if missing.startswith("guard."):
                    row = open_rows.pop(decision, {"decision_id": decision})
                    yield row | {"ended": fields["timestamp"], "result": "failed", "error": AuditUnavailable.__name__}
    for row in open_rows.values():
        yield row | {"result": "unknown"}


def write_csv(rows: Iterator[dict[str, Any]], stream: TextIO) -> int:
    """Write rows as CSV.

    Returns:
        Number of rows.
    """
    writer = csv.writer(stream)
    writer.writerow(CSV_COLUMNS)
    count = 0
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in CSV_COLUMNS])
        count += 1
    return count


def statements(
    rows: Iterator[dict[str, Any]], platform: Platform, actions: Sequence[str] = ("block",)
) -> Iterator[dict[str, Any]]:
    """Statements of reasons, as the DSA Transparency Database takes them (article 17 and 24(5) of the DSA).

    Whether a decision needs one, and whether these words are the right ones, is for the platform to judge. There is
    none about a call that gave no image because something failed, none about one that was blocked for its form alone
    (too long, an argument that nobody knows), and none that says of an image that something was done where it was not.

    Args:
        rows: The calls.
        platform: What the log does not know.
        actions: Which effective actions get a statement. Images that the output check withheld count as blocked.
    """
    for row in rows:
        measure = _measure(row)
        if measure is None or measure.action not in actions:
            continue
        date = str(row["decided"])[:10]
        by = [f"{name} {row[name]}".removeprefix("why ") for name in ("rules", "why") if row.get(name)]
        statement: dict[str, Any] = {
            "puid": row["decision_id"],
            "decision_ground": "DECISION_GROUND_INCOMPATIBLE_CONTENT",
            "incompatible_content_ground": platform.terms,
            "incompatible_content_explanation": (
                f"Policy {row['policy']}, version {row['policy_version']} ({', '.join(by)}): {measure.explanation}."
            )[:_MAX_EXPLANATION],
            "content_type": ["CONTENT_TYPE_SYNTHETIC_MEDIA"],
            "category": platform.category,
            "territorial_scope": platform.codes,
            "content_date": date,
            "application_date": date,
            "decision_facts": (f"{measure.fact}. Channels used: {row.get('channels')}. Result: {row.get('result')}.")[
                :_MAX_FACTS
            ],
            "source_type": "SOURCE_VOLUNTARY",
            "automated_detection": "Yes",
            "automated_decision": "AUTOMATED_DECISION_FULLY",
        }
        if measure.action == "block":
            statement["decision_visibility"] = ["DECISION_VISIBILITY_CONTENT_DISABLED"]
        else:
            statement["decision_visibility"] = ["DECISION_VISIBILITY_OTHER"]
            statement["decision_visibility_other"] = f"{measure.explanation[0].upper()}{measure.explanation[1:]}."[
                :_MAX_OTHER
            ]
        if platform.terms_url is not None:
            statement["decision_ground_reference_url"] = platform.terms_url
        yield statement


@dataclass(frozen=True)
class _Measure:
    """What was done about a request, in words that claim no more than the log shows."""

    action: str
    explanation: str
    fact: str


def _measure(row: Mapping[str, Any]) -> _Measure | None:
    """What was done about a call; None where nothing was, or nothing that its records show."""
    action, result, protection = row.get("effective_action"), row.get("result"), row.get("protection")
    if "decided" not in row:
        return None
    if action == "block" and (result == "failed" or row.get("is_of_form")):  # nobody could look, or had to
        return None
    if action == "block":
        return _Measure("block", "the request was not carried out", "A request was blocked before generation")
    if result == "withheld":
        explanation = "the images were not released, for they show somebody who is protected"
        return _Measure("block", explanation, "The images made for a request were withheld after generation")
    if action not in _HOW or result != "passed" or protection == Protection.MISSING or row.get("is_unchanged"):
        return None
    proof = "" if protection == Protection.APPLIED else "; the log does not prove that nothing undid this"
    return _Measure(action, _HOW[action] + proof, f"{_HOW[action][0].upper()}{_HOW[action][1:]}")


_HOW = {
    "anonymize": "the image was generated with a prefix that was trained to keep the likeness of real people out",
    "rewrite": "the image was generated from a text in which names of people are replaced by descriptions",
}


def _decided(fields: Mapping[str, Any]) -> dict[str, Any]:
    policy = fields.get("policy", {})
    led = [reason for reason in fields.get("reasons", ()) if reason.get("action") == fields.get("action")]
    return {
        **{name: fields.get(name) for name in CSV_COLUMNS if name in fields},
        "decided": fields["timestamp"],
        "policy": policy.get("name"),
        "policy_version": policy.get("version"),
        "mode": policy.get("mode"),
        "why": "; ".join(sorted({str(reason["why"]) for reason in led if reason.get("why")})),
        # What no rule is about, and was looked at by nothing, says nothing about what would be in the image.
        "is_of_form": bool(led) and not any(reason.get("rule") or reason.get("why") == NO_RULE for reason in led),
        # A backend that takes text alone gets every prompt by `rewrite`, even one with nothing to replace.
        "is_unchanged": fields.get("action") == Action.REWRITE and fields.get("findings_count") == 0,
        "channels": " ".join(map(str, fields.get("channels", ()))),
        "unsafe": "; ".join(map(str, fields.get("unsafe", ()))),
    }


_FORMULA = re.compile('(^|[;\n])(?=[ "]*[-=+@\t\r\n\uff1d\uff0b\uff0d\uff20])')
"""Where a spreadsheet would see a formula begin: in many countries it cuts at semicolons, whatever quotes say, and then
takes a quote behind one for the beginning of a quoted cell. Wide letters too, which those of East Asia take for the
others."""


def _cell(value: Any) -> Any:
    return _FORMULA.sub(r"\1'", value) if isinstance(value, str) else value
