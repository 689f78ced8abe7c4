import subprocess
import sys

import pytest

import ptools
from ptools.errors import PtoolsError


def test_import_ptools_imports_no_torch() -> None:
    code = "import sys, ptools; print(ptools.PtoolsError.__name__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "PtoolsError False\n"


def test_public_names_resolve_on_use() -> None:
    assert ptools.PtoolsError is PtoolsError
    assert set(dir(ptools)) == set(ptools.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = ptools.nope
