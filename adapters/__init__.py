"""What the guard can stand in front of: one room or file for each foreign system, and three rooms that these share.

`inject` puts a prefix into a text encoder, `prompts` knows what backends read into a text, `remote` speaks HTTP.
Import this as `apl_guard.adapters`. The folder lies at the top of the repository for visibility only.
"""

# Outside the package this import fails, so `import adapters` cannot make a second copy of every class.
from ..errors import AplGuardError as AplGuardError
