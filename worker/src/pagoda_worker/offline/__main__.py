"""`python -m pagoda_worker.offline`: see batch.py."""

import sys

from pagoda_worker.offline.batch import main

if __name__ == "__main__":
    sys.exit(main())
