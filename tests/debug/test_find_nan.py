"""`ptools.find_nan` around a block."""

import inspect
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.data import dataloader

import ptools


def here() -> int:
    """The number of the line that calls this."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def test_the_block_ends_at_the_first_finding_and_the_program_goes_on() -> None:
    model = nn.Linear(2, 2)
    after = False
    with ptools.find_nan(model) as found:
        line, bad = here(), model(torch.ones(1, 2)) / 0 * 0
        bad.sum().backward()
        after = True
    assert not after
    assert found and found.first is not None
    assert found.first.places[0][1].line == line
    assert found.first.op == "aten::mul"
    assert found.findings == (found.first,)


def test_what_was_found_can_be_printed() -> None:
    with ptools.find_nan() as found:
        torch.tensor(-1.0).sqrt()
    assert "aten::sqrt made NaN" in str(found)
    assert "torch.tensor(-1.0).sqrt()" in repr(found)
    with ptools.find_nan() as found:
        torch.tensor(1.0).sqrt()
    assert str(found) == "nothing found" and not found and found.first is None


def test_a_parameter_that_was_nan_before_the_block_is_named() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight[0, 1] = math.nan
    for given in (model, None):
        with ptools.find_nan(given) as found:
            model(torch.ones(1, 2)).sum().backward()
        assert found.first is not None and found.first.kind == "nan-before"
        assert "Linear.weight" in found.first.summary


def test_blocks_can_be_nested_and_repeated() -> None:
    for _ in range(2):
        with ptools.find_nan() as outer:
            with ptools.find_nan() as inner:
                torch.tensor(1.0, requires_grad=True).log().backward()
            assert not inner
            torch.tensor(-1.0, requires_grad=True).log().backward()
        assert outer.first is not None and outer.first.op == "aten::log"


def test_a_finding_of_the_inner_block_ends_only_that() -> None:
    with ptools.find_nan() as outer:
        with ptools.find_nan() as inner:
            torch.tensor(-1.0, requires_grad=True).log().backward()
        after = True
    assert inner and after and not outer


def test_the_users_exception_passes_and_all_is_as_before() -> None:
    base = dataloader._BaseDataLoaderIter
    before = torch.autograd.backward, nn.Module.__call__, base.__next__, base._next_index
    with pytest.raises(ZeroDivisionError), ptools.find_nan():
        print(1 / 0)
    now = torch.autograd.backward, nn.Module.__call__, base.__next__, base._next_index
    assert now == before
    assert not _get_current_dispatch_mode_stack()


def test_a_block_keeps_no_model_alive() -> None:
    import gc
    import weakref

    model = nn.Linear(2, 1)
    with ptools.find_nan() as found:
        model(torch.ones(1, 2)).sum().backward()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and not found
