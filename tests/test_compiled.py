"""The fast path: compiled steps give the same run, are compiled once a network, and nothing waits within an epoch."""

import pytest
import torch
from support import places_fixture, same_weights, small, trained, tree_fixture  # noqa: F401
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import bpl.machine.compiled as compiled_module
import bpl.train as train_module
from bpl.config import RunConfig
from bpl.data.batches import POLICIES

pytestmark = pytest.mark.usefixtures("places")

aten = torch.ops.aten


# -- compiled steps -----------------------------------------------------------------------------------------------
@pytest.fixture
def captured(monkeypatch):
    """torch.compile as far as capturing the graph, without a minute of C++; counts what it captures."""
    torch._dynamo.reset()
    counter, real = CompileCounterWithBackend("eager"), torch.compile
    counter.options = []

    def compile(model, *, options):
        counter.options.append(options)
        return real(model, backend=counter)

    monkeypatch.setattr(compiled_module.torch, "compile", compile)
    return counter


@pytest.mark.parametrize(
    ("fields", "networks"),
    [
        ({"method": "dense", "precision": "bf16"}, 1),
        ({"method": "bpl", "mask": "soft", "freeze_at": 0.5, "epochs": 4}, 2),  # before and after the network shrinks
        ({"method": "bpl", "slim_at": "none"}, 1),
        ({"method": "bpl", "diversity_form": "feature-squared", "epochs": 2}, 2),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_compiled_run_is_the_run_and_every_network_is_compiled_once(tree, captured, fields, networks):
    """Over epochs, learning rates, evaluations and masks nothing is compiled again."""
    plain = trained(small(tree, **fields))
    assert captured.frame_count == 0
    fast = trained(small(tree, **fields, compile="default"))
    assert captured.frame_count == networks
    assert fast.curves == plain.curves
    assert same_weights(fast.small, plain.small)
    assert type(fast.network) is type(plain.network)  # nothing of the compiler ships


def test_dropout_is_drawn_as_without_compiling_and_modes_are_torchs(tree, captured):
    for mode in ("default", "reduce-overhead"):
        trained(small(tree, "dense", epochs=1, compile=mode))
    default, captures = captured.options
    assert default == {"fallback_random": True}
    assert captures["triton.cudagraphs"] is True
    assert captures["fallback_random"] is True


def test_a_network_that_cannot_be_compiled_runs_as_it_is_and_says_so_once(tree, monkeypatch, capsys):
    torch._dynamo.reset()
    real = torch.compile

    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler found\nand many more lines")

    monkeypatch.setattr(compiled_module.torch, "compile", lambda model, *, options: real(model, backend=broken))
    fast = trained(small(tree, "dense", epochs=2, compile="default"))
    said = capsys.readouterr().err
    assert said.startswith("bpl: the network cannot be compiled and runs as it is: ")
    assert said.count("\n") == 1
    assert same_weights(fast.small, trained(small(tree, "dense", epochs=2)).small)


def test_an_error_of_the_network_itself_is_not_taken_for_one_of_the_compiler(captured):
    class Fails(torch.nn.Module):
        def forward(self, x):
            return x @ torch.ones(7, 7)

    network = compiled_module.Compiled(Fails(), "default")
    with pytest.raises(RuntimeError):
        network(torch.ones(2, 3))


def test_a_compiled_run_is_no_other_run_and_neither_is_its_dense_network():
    plain, fast = (RunConfig("ucm", "kd", compile=mode) for mode in ("off", "max-autotune"))
    assert fast.identity("real") == plain.identity("real")
    assert fast.dense().compile == "max-autotune"
    assert "compile" not in fast.command()
    with pytest.raises(ValueError, match="unknown compile 'fast': allowed are off, default, reduce-overhead"):
        RunConfig("ucm", "bpl", compile="fast")


@pytest.mark.slow
def test_really_compiled_steps_change_a_run_by_rounding_only(tree):
    """Minutes of C++ for two small networks."""
    torch._dynamo.reset()
    # small steps: rounding grows with every step, and with a large rate quickly
    fields = {"method": "bpl", "freeze_at": 0.5, "epochs": 2, "augmentation": "flip", "learning_rate": 1e-3}
    plain, fast = (trained(small(tree, **fields, compile=mode)) for mode in ("off", "default"))
    assert fast.curves["loss"] == pytest.approx(plain.curves["loss"], rel=1e-4)
    assert fast.curves["loss"] != plain.curves["loss"]  # another order of sums: it was compiled
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fast.small(x), plain.small(x), rtol=1e-3, atol=1e-3)


# -- nothing waits ------------------------------------------------------------------------------------------------
class Waits(TorchDispatchMode):
    """Lists the operations whose result the host has to know before it can go on: on a GPU, a wait."""

    NEEDED = {
        aten._local_scalar_dense.default,  # float(x), x.item(), bool(x)
        aten.nonzero.default,
        aten.masked_select.default,
        aten.equal.default,
        aten.is_nonzero.default,
        aten._unique2.default,
        aten.repeat_interleave.Tensor,
    }

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        masked = func in (aten.index.Tensor, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in self.NEEDED or masked:
            self.found.append(str(func))
        return func(*args, **kwargs or {})


def test_waits_are_seen():
    with Waits() as waits:
        x = torch.arange(3.0)
        for wait in (lambda: float(x.sum()), lambda: x[x > 1], x.nonzero, lambda: bool(x.any()), x.unique):
            before = len(waits.found)
            wait()
            assert len(waits.found) > before


@pytest.mark.parametrize(
    "fields",
    [
        *({"method": "dense", "augmentation": policy} for policy in POLICIES),
        {"method": "dense", "label_smoothing": 0.1, "schedule": "released", "precision": "bf16"},
        *({"method": "bpl", "diversity_form": form} for form in ("stage-cosine", "folded-squared", "feature-cosine")),
        {"method": "bpl", "mask": "soft", "freeze_at": 0.5, "slim_at": "none"},
        {"method": "bpl", "mask": "released"},
        {"method": "kd"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_within_an_epoch_the_host_never_waits_for_the_device(tree, monkeypatch, fields):
    """Once an epoch it does: when the mean loss is read."""
    real, epochs = train_module._epoch, []

    def epoch(*arguments):
        with Waits() as waits:
            result = real(*arguments)
        epochs.append(waits)
        return result

    monkeypatch.setattr(train_module, "_epoch", epoch)
    trained(small(tree, **fields, epochs=2))
    assert [waits.found for waits in epochs[-2:]] == [["aten._local_scalar_dense.default"]] * 2
    assert min(waits.seen for waits in epochs) > 100
