"""An optimiser takes on what it has saved, and nothing that would fail in its next step."""

from __future__ import annotations

import copy

import pytest
import torch

from offline.networks.optimizers import load_optimizer


def stepped() -> tuple[torch.nn.Linear, torch.optim.Adam]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return layer, optimizer


def test_it_goes_on_as_it_would_have():
    (_, first), (two, _) = stepped(), stepped()
    second = torch.optim.Adam(two.parameters(), lr=0.1, fused=True)
    saved = copy.deepcopy(first.state_dict())
    del saved["param_groups"][0]["capturable"]  # a version that had no such setting
    load_optimizer(second, saved)
    for optimizer in (first, second):
        optimizer.step()
    assert first.state_dict()["state"].keys() == second.state_dict()["state"].keys()
    moments = zip(first.state.values(), second.state.values(), strict=True)
    assert all(float(a["step"]) == float(b["step"]) == 2 for a, b in moments)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("param_groups", 0, "lr"), "text"),
        (("param_groups", 0, "lr"), float("nan")),
        (("param_groups", 0, "betas"), (0.9,)),
        (("param_groups", 0, "fused"), "yes"),
        (("state", 0, "exp_avg"), torch.zeros(7)),
        (("state", 0, "other"), torch.zeros(1)),
        (("state", 9), {}),
    ],
)
def test_what_it_cannot_have_saved_is_refused(path, value):
    _, optimizer = stepped()
    state = copy.deepcopy(optimizer.state_dict())
    place = state
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match="an optimiser's"):
        load_optimizer(optimizer, state)
