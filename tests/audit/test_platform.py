"""Records that the platform's own logging loses are noticed, whatever loses them."""

import json
import subprocess
import sys

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
