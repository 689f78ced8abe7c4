import argparse
import collections
import enum
import pickle
from pathlib import Path

import numpy as np
import pytest
from torch._weights_only_unpickler import _get_allowed_globals

from ptools.checkpoint.pickles import globals as globals_module
from ptools.checkpoint.pickles.globals import globals_of, is_allowed, is_suspicious
from ptools.checkpoint.pickles.nodes import Call, Dict, Global, List, Tuple
from ptools.checkpoint.pickles.unpickle import unpickle

BENIGN = """argparse.Namespace collections.OrderedDict collections.defaultdict collections.deque
numpy.core.multiarray.scalar numpy._core.multiarray._reconstruct numpy.dtype numpy.ndarray
numpy.float32 pathlib.PosixPath datetime.datetime builtins.set builtins.slice builtins.int
builtins.type builtins.object omegaconf.dictconfig.DictConfig omegaconf.base.ContainerMetadata
typing.Any torch.optim.adam.Adam torch.optim.lr_scheduler.StepLR models.yolo.Model
models.common.Conv torch.nn.modules.conv.Conv2d torch.nn.parallel.data_parallel.DataParallel
torch._dynamo.eval_frame.OptimizedModule torch._utils._rebuild_parameter functools.partial
torch.nn.functional.relu copyreg.__newobj__ copyreg._reconstructor types.SimpleNamespace
numpy.random._pickle.__randomstate_ctor transformers.training_args.TrainingArguments
pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint __main__.Config uuid.UUID
code.model.Net operator.itemgetter lightning_fabric.utilities.data.AttributeDict""".split()
HARMFUL = """os.system posix.system nt.system subprocess.Popen sys.exit builtins.eval builtins.exec
builtins.getattr builtins.compile builtins.__import__ builtins.open io.open socket.socket
shutil.rmtree importlib.import_module runpy.run_path pty.spawn ctypes.CDLL pickle.loads
_pickle.loads marshal.loads webbrowser.open code.InteractiveInterpreter operator.attrgetter
operator.methodcaller torch.hub.load torch.load torch.serialization.load numpy.load
torch.os.system numpy.testing._private.utils.runstring pip.main bdb.Bdb types.FunctionType
collections.abc.sys.modules x.__init__.__globals__ torch.storage._load_from_bytes
commands.getoutput""".split()


class Outer:
    class Colour(enum.Enum):
        RED = 1


def test_whatever_is_allowed_torch_allows_too() -> None:
    # int1 to uint7 are new since 2.6, and CUDA's and sparse tensors differ between builds.
    allowed = set(_get_allowed_globals())
    ours = {path for path in allowed if is_allowed(path)}
    others = {path for path in allowed - ours if ".cuda." not in path}
    assert {f"torch.{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)} == others
    assert allowed >= globals_module._ALLOWED


@pytest.mark.parametrize("path", ["os.system", "builtins.eval", "numpy.dtype", "torch.nn.Module"])
def test_other_names_are_not_allowed(path: str) -> None:
    assert not is_allowed(path)


@pytest.mark.parametrize("path", BENIGN)
def test_what_training_saves_is_not_suspicious(path: str) -> None:
    assert not is_suspicious(path)


def test_nothing_that_torch_allows_is_suspicious() -> None:
    assert not {path for path in _get_allowed_globals() if is_suspicious(path)}


@pytest.mark.parametrize("path", HARMFUL)
def test_known_ways_to_run_code_are_suspicious(path: str) -> None:
    assert is_suspicious(path)


def test_globals_come_with_the_first_place_that_names_them() -> None:
    tree = {
        "args": argparse.Namespace(lr=np.float64(1)),
        "callbacks": [{"path": Path("a")}, collections.OrderedDict(best=np.float32(2))],
    }
    assert globals_of(unpickle(pickle.dumps(tree, 2))) == {
        "argparse.Namespace": "args",
        f"{np.float64.__reduce__(np.float64(1))[0].__module__}.scalar": "args.lr",
        "numpy.dtype": "args.lr",
        "_codecs.encode": "args.lr",
        f"{type(Path()).__module__}.{type(Path()).__name__}": "callbacks[0].path",
        "collections.OrderedDict": "callbacks[1]",
    }


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_class_in_a_class_is_one_name(protocol: int) -> None:
    found = globals_of(unpickle(pickle.dumps(Outer.Colour.RED, protocol)))
    assert found == {f"{__name__}.Outer.Colour": ""}
    assert not any(map(is_suspicious, found))


def test_getattr_of_anything_else_is_itself_named() -> None:
    call = Call(Global("builtins", "getattr"), Tuple([Dict([]), "system"]))
    assert globals_of(List([call])) == {"builtins.getattr": "[0]"}
    hidden = Call(Global("builtins", "getattr"), Tuple([Global("torch", "os"), "system"]))
    assert [is_suspicious(path) for path in globals_of(hidden)] == [True]


def test_deep_and_shared_trees_take_no_time() -> None:
    deep = tree = List([])
    for _ in range(100_000):
        tree = List([tree])
    deep.elements.append(Global("os", "system"))
    assert list(globals_of(tree)) == ["os.system"]
    assert len(globals_of(tree)["os.system"]) < 200
    for _ in range(100):
        tree = List([tree, tree])
    assert list(globals_of(tree)) == ["os.system"]
