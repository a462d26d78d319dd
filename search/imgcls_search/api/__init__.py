"""The functions and classes of `import imgcls_search`: one function per command, and studies, trials and models.

The command line calls the same functions: it only reads arguments and prints results.
"""

import sys
import warnings

if "ipykernel" in sys.modules:
    # Optuna imports it, and it warns about notebook widgets that are not used here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tqdm.auto  # noqa: F401
