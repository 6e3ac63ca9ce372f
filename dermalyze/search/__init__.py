"""The search for hyper-parameters: a study on disk, what it may try, and who stops a bad trial."""

import logging

# Optuna's migrations tell at import which plugins they have.
logging.getLogger("alembic").setLevel(logging.WARNING)
