"""What `import imgcls_search` offers: one function for each command, and a study, a trial and a model as objects.

The command line calls the same functions and adds nothing but words: it reads arguments and prints what comes back.
"""

import sys
import warnings

if "ipykernel" in sys.modules:
    # Optuna imports it, and it warns of widgets that a notebook lacks and nothing here draws.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tqdm.auto  # noqa: F401
