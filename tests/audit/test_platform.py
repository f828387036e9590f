"""Records that the platform's own logging loses are noticed, whatever loses them."""

import io
import json
import logging
import subprocess
import sys

import pytest

from apl_guard import InvalidInput
from apl_guard.audit import AuditLog

TRY_EACH = """
import io, itertools, json, logging, logging.config, sys
import apl_guard.audit

found = []
for root, own, handler, disables, structured in itertools.product(
    ("INFO", "WARNING"), (None, "INFO", "WARNING"), ("INFO", "WARNING", None), (True, False), (True, False)
):
    stream = io.StringIO()
    handlers = {} if handler is None else {
        "one": {"class": "logging.StreamHandler", "level": handler, "stream": stream},
        "none": {"class": "logging.NullHandler"}
    }
    logging.config.dictConfig({
        "version": 1,
        "handlers": handlers,
        "root": {"level": root, "handlers": list(handlers)},
        "loggers": {} if own is None else {"apl_guard.audit": {"level": own, "propagate": True}},
        "disable_existing_loggers": disables,
    })
    if structured:
        import structlog
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()],
            logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=structlog.stdlib.BoundLogger,
        )
    logging.lastResort, kept = logging.StreamHandler(stream), logging.lastResort
    logging.lastResort.setLevel("WARNING")
    log = apl_guard.audit.AuditLog()
    log.leak_drawing("1", 2)
    log.leak_drawing("2", 2)
    logging.lastResort = kept
    if structured:
        structlog.reset_defaults()
    if own is None:
        logging.getLogger("apl_guard.audit").setLevel("NOTSET")
    lines = stream.getvalue().splitlines()
    settings = dict(root=root, own=own, handler=handler, disables=disables, structured=structured)
    found.append([settings, sum("pictures" in x for x in lines), sum("are dropped" in x for x in lines)])
print(json.dumps(found))
"""


def test_records_arrive_or_a_warning_says_once_that_they_do_not():
    """In each configuration of levels, handlers and disabled loggers, by Python's logging and structlog before it."""
    done = subprocess.run([sys.executable, "-c", TRY_EACH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

    tried = json.loads(done.stdout)
    assert len({written for _, written, _ in tried}) == 2
    for settings, written, warnings in tried:
        assert (written, warnings) in {(2, 0), (0, 1)}, settings


@pytest.fixture
def lines():
    """A logger of Python's logging that reaches no other, and what it wrote."""
    logger, stream = logging.getLogger("records of a platform"), io.StringIO()
    logger.propagate, logger.level, logger.handlers = False, logging.INFO, [logging.StreamHandler(stream)]
    yield logger, stream
    logger.handlers = []


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_logger_of_pythons_logging_gets_lines_of_json(lines, caplog, level, adapted):
    """Also behind an adapter. One that drops them is named in the warning."""
    logger, stream = lines
    logger.setLevel(level)
    log = AuditLog(logger=logging.LoggerAdapter(logger) if adapted else logger)
    log.leak_drawing("1", 2)
    log.leak_drawing("2", 2)

    written = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [found["decision_id"] for found in written] == (["1", "2"] if level == logging.INFO else [])
    warnings = [record.getMessage() for record in caplog.records if "are dropped" in record.getMessage()]
    assert ["'records of a platform'" in warning for warning in warnings] == ([] if written else [True])


@pytest.mark.parametrize("wrong", [print, "records", object()])
def test_what_is_no_logger_is_refused_at_once(wrong):
    """Not with the first record, whose error would not say what is wrong."""
    with pytest.raises(InvalidInput, match=r"logger: found \w+; expected a logger of structlog or of Python's logging"):
        AuditLog(logger=wrong)
