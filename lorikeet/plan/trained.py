"""What an adapter trains in a network, found by attaching it to one without numbers: no kind has a formula here."""

from __future__ import annotations

from torch._subclasses.fake_tensor import FakeTensorMode

from lorikeet.adapters._contract import Adapter
from lorikeet.plan.memory import Trained
from lorikeet.plan.simulate import Network


def trained_by(adapter: Adapter, network: Network) -> Trained:
    """Raises what attaching raises: RecipeError where a target matches nothing."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = network.build()
        before = sum(one.numel() for one in model.parameters())
        adapter.attach(model, seed=0)
        parameters = {id(one): one for one in adapter.parameters(model).values()}
        numbers = sum(one.numel() for one in parameters.values())
        frozen = sum(one.numel() for one in model.parameters() if id(one) not in parameters)
        return Trained(numbers, before - frozen, adapter.kept_per_token(model))
