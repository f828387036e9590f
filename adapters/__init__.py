"""One file for each foreign system that the guard can stand in front of, and the injection they share.

Import this as `apl_guard.adapters`. The folder lies at the top of the repository for visibility only.
"""

# Outside the package this import fails, so `import adapters` cannot make a second copy of every class.
from ..errors import AplGuardError as AplGuardError
