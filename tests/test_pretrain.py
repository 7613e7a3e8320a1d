"""Starting from a network that was trained on another data set."""

import json
import shutil

import pytest
import torch
from support import (  # noqa: F401
    make_tree,
    no_stopwatch_fixture,
    places_fixture,
    run_module,
    same_weights,
    small,
    trained,
    tree_fixture,
)

from bpl.config import RunConfig
from bpl.data import load_images
from bpl.machine.ending import Stopped
from bpl.models import build_model
from bpl.pretrain import Pretraining, transfer
from bpl.records import record_path
from bpl.run import run
from bpl.train import Start, pretraining_of

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """Another data set, of five classes."""
    return make_tree(tmp_path_factory.mktemp("images") / "other", classes=5)


def network(classes: int = 4, width: int = 8, name: str = "resnet18") -> torch.nn.Module:
    return build_model(name, classes, 32, width)


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "mobilenet_v2", "resnet56"])
def test_all_but_the_classifier_is_taken_over(name):
    source, target = network(5, name=name), network(4, name=name)
    with torch.no_grad():
        for buffer in source.buffers():  # statistics come along
            buffer.add_(1)
    fresh = {key: value.clone() for key, value in target.state_dict().items()}
    transfer(source, target)
    after = target.state_dict()
    differ = [key for key in after if after[key].shape != source.state_dict()[key].shape or
              not torch.equal(after[key], source.state_dict()[key])]  # fmt: skip
    assert len(differ) == 2  # weight and bias
    assert all(torch.equal(after[key], fresh[key]) for key in differ)


@pytest.mark.parametrize("other_network", [{"width": 4}, {"name": "resnet56"}])
def test_another_architecture_is_refused(other_network):
    with pytest.raises(ValueError, match="is not alike in both networks"):
        transfer(network(**other_network), network())


@pytest.mark.parametrize(
    "text", ["aid", "aid:", "aid:0", "aid:-1", "aid:2.5", "moon:20", ":20", "aid:20:", "a" * 5000 + ":3"]
)
def test_what_is_no_data_set_and_no_number_of_epochs_is_refused(tree, text):
    with pytest.raises(ValueError, match="pretrain is .*: it must be DATASET:EPOCHS, such as aid:20"):
        small(tree, "dense", pretrain=text)


def test_a_folder_with_a_colon_is_a_data_set_too(tmp_path):
    folder = make_tree(tmp_path / "a:b", classes=2, per_class=1)
    assert Pretraining.parse(f"{folder}:3", ()) == Pretraining(str(folder), 3)


def test_the_run_starts_from_the_other_network_and_pays_for_it(tree, other):
    source = network(5)
    config = small(tree, "dense", epochs=1, learning_rate=0.0, pretrain=f"{other}:2")
    plain = trained(small(tree, "dense", epochs=1, learning_rate=0.0))
    out = trained(config, start=lambda: Start(source, 1000))
    assert out.training_macs == plain.training_macs + 1000
    assert torch.equal(out.small.conv1.weight, source.conv1.weight)
    assert not torch.equal(plain.small.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize("method", ["fcs_mlft", "bpl"])
def test_every_method_gets_there_by_itself(tree, other, method):
    """The other data set's dense run is recorded, and so is the dense run that a teacher is."""
    config = small(
        tree, method, epochs=1, ratio=0.5, pretrain=f"{other}:1", **({} if method == "bpl" else {"teacher_epochs": 1})
    )
    record = run(config, progress=False)
    source = load_images(str(tree), 32, progress=False).source
    before = config.pretraining()
    assert (before.dataset, before.epochs, before.seed, before.pretrain) == (str(other), 1, 0, None)
    paid = json.loads(record_path(before, source).read_text())["cost"]["training_macs"]
    without = run(
        small(tree, method, epochs=1, ratio=0.5, **({} if method == "bpl" else {"teacher_epochs": 1})), progress=False
    )
    assert record.cost["training_macs"] == without.cost["training_macs"] + paid
    if method != "bpl":
        assert record_path(config.dense(), source).exists()
        assert config.dense().pretrain == config.pretrain


@pytest.mark.parametrize("method", ["bpl", "kd"])
def test_what_is_drawn_does_not_depend_on_whether_the_start_was_trained_or_loaded(tree, method):
    """Partners, or the narrow network, are drawn after the start is there, however it came there."""
    config = small(tree, method, epochs=1, learning_rate=0.0, pretrain=f"{tree}:1")
    source = network()

    def trained_here() -> Start:
        torch.manual_seed(99)
        torch.rand(17)
        return Start(source, 0)

    dense = {"dense": network} if method == "kd" else {}
    loaded = trained(config, start=lambda: Start(source, 0), **dense)
    assert same_weights(loaded.network, trained(config, start=trained_here, **dense).network)


def test_a_run_that_was_interrupted_does_not_start_from_the_other_network_again(tree, other, monkeypatch, tmp_path):
    config = small(tree, "dense", epochs=2, pretrain=f"{other}:1")
    whole = run(config, folder=tmp_path / "a", work=tmp_path / "b", progress=False)
    with pytest.raises(Stopped):
        run(config, progress=False, watch=lambda *_: True)
    monkeypatch.setattr(run_module, "pretrained_network", lambda *_, **__: pytest.fail("the checkpoint has it all"))
    resumed = run(config, progress=False)
    assert resumed.curves == whole.curves
    assert resumed.cost["training_macs"] == whole.cost["training_macs"]


def test_another_results_folder_gets_a_record_of_the_start_too(tree, other, tmp_path):
    """The network alone, which is still among the checkpoints, does not say what its training cost."""
    config = small(tree, "dense", epochs=1, pretrain=f"{other}:1")
    first = run(config, progress=False)
    again = run(config, folder=tmp_path / "elsewhere", progress=False)
    assert again.cost["training_macs"] == first.cost["training_macs"]
    source = load_images(str(tree), 32, progress=False).source
    assert record_path(config.pretraining(), source, tmp_path / "elsewhere").exists()


def test_a_start_on_the_same_images_has_the_runs_own_split(tree, other):
    """Of another seed it would be trained on images that this run tests on."""
    for name in (str(tree), f"{tree}/"):
        before = small(tree, "dense", epochs=1, seed=3, split="paper", pretrain=f"{name}:2").pretraining()
        assert (before.seed, before.split, before.epochs) == (3, "paper", 2)
    before = small(tree, "dense", epochs=1, seed=3, split="paper", pretrain=f"{other}:2").pretraining()
    assert (before.seed, before.split) == (0, "protocol")


def test_the_runs_own_images_under_another_name_are_no_start(tree, tmp_path):
    """Their split is another one, and the start would be trained on images that the run tests on."""
    shutil.copytree(tree, tmp_path / "copied")
    config = small(tree, "dense", epochs=1, seed=3, pretrain=f"{tmp_path / 'copied'}:1")
    for start in (run, trained):
        with pytest.raises(ValueError, match=f"its images are those of {tree}, and it would train on test images"):
            start(config, **({"progress": False} if start is run else {}))
    trained(small(tree, "dense", epochs=1, pretrain=f"{tmp_path / 'copied'}:1"))  # seed 0 has the start's own split


def test_a_start_is_one_run_however_its_folder_is_spelled(tree, other, monkeypatch):
    monkeypatch.setenv("HOME", str(other.parent))
    spelled = (other, f"{other}/", f"~/{other.name}")
    assert len({small(tree, "bpl", pretrain=f"{name}:3").run_name("real") for name in spelled}) == 1


def test_two_shares_of_one_data_set_are_no_start_for_each_other():
    with pytest.raises(ValueError, match="nwpu-45 and nwpu-21 have images in common, and it would train on test"):
        RunConfig("nwpu-21", "dense", pretrain="nwpu-45:5")
    assert RunConfig("nwpu-21", "dense", pretrain="aid:5").pretrain == "aid:5"


def test_drawn_scenes_of_two_data_sets_are_others(monkeypatch):
    """Else a start on the one's would be trained on images that a run on the other's tests on."""
    monkeypatch.setenv("BPL_DATA", "/nonexistent")
    drawn = {name: load_images(name, 32, "synthetic").digest for name in ("synthetic", "ucm", "aid", "nwpu-21")}
    assert drawn.pop("ucm") == drawn["synthetic"] and len(set(drawn.values())) == 3
    common = {"arch": "resnet18", "width": 4, "image_size": 32, "seed": 1, "epochs": 1}
    images = load_images("ucm", 32, "synthetic")
    with pytest.raises(ValueError, match="its images are those of ucm, and it would train on test images"):
        pretraining_of(RunConfig("ucm", "dense", data="synthetic", pretrain="synthetic:1", **common), images)
    before, others, _ = pretraining_of(RunConfig("ucm", "dense", data="synthetic", pretrain="aid:1", **common), images)
    assert before.dataset == "aid" and others.source == "synthetic"


def test_drawn_scenes_are_no_start_for_real_images(tree, monkeypatch):
    monkeypatch.setenv("BPL_DATA", "/nonexistent")
    with pytest.raises(ValueError, match="of synthetic there are synthetic images, of .* real ones"):
        run(small(tree, "dense", epochs=1, pretrain="synthetic:1"), progress=False)


@pytest.mark.parametrize("method", ["scratch", "self_kd", "oed"])
def test_methods_that_begin_with_fresh_weights_have_no_start(tree, method):
    assert small(tree, method, pretrain="aid:20").pretrain is None
