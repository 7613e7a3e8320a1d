"""What a config may say, and what stands for what it leaves out: by tier, by method, for all.

`bpl.config.RunConfig` reads these tables; they hold no logic.
"""

from typing import Any

from bpl.pruning.criteria import CRITERIA

METHODS = (
    "dense", "scratch", "bpl",
    "l1", "sfp", "fpgm", "random", "hrank",
    "kd", "self_kd", "compact_kd", "oed", "fcs_mlft", "ddsl",
)  # fmt: skip
FINE_TUNES = ("tft", "mlft")
STRENGTHS = ("dean", "fixed")
MASKS = ("soft", "hard", "leaking", "released")
LEAKING_MASKS = ("leaking", "released")  # under these a pruned channel still emits a constant
KERNEL_NORMS = ("fixed",)
SLIM_AT = ("freeze", "none")
SCHEDULES = ("one-cycle", "released")
PRECISIONS = ("float32", "bf16")
SPLITS = ("protocol", "paper", "aitlas")
DEVICES = ("auto", "cpu", "cuda")
LARGEST_SEED = 2**32 - 1  # the seeds of epochs are made from it, and are to fit into 64 bits

# What a tier fills in where the config says None.
TIERS: dict[str, dict[str, Any]] = {
    # live in notebooks and CI: about a minute on 2 cores
    "quick": {
        "arch": "resnet18", "width": 16, "image_size": 64, "epochs": 20, "batch_size": 32, "schedule": "one-cycle",
        "learning_rate": 0.05, "weight_decay": 5e-4, "label_smoothing": 0.1, "augmentation": "nadir",
        "stored_size": 96, "precision": "bf16",
    },
    # the recorded tables without a GPU: minutes a run
    "cpu": {
        "arch": "resnet18", "width": 32, "image_size": 64, "epochs": 60, "batch_size": 32, "schedule": "one-cycle",
        "learning_rate": 0.05, "weight_decay": 5e-4, "label_smoothing": 0.1, "augmentation": "nadir",
        "stored_size": 96, "precision": "bf16",
    },
    # the paper's own scale, with the released code's schedule
    "paper": {
        "arch": "resnet50", "width": None, "image_size": 256, "epochs": 300, "batch_size": 64, "schedule": "released",
        "learning_rate": 1e-3, "weight_decay": 1e-4, "label_smoothing": 0.0, "augmentation": "released",
        "stored_size": 256, "precision": "bf16",
    },
}  # fmt: skip

# What a method fills in where the config says None. freeze_at is a share of the epochs, at least one epoch: BPL's masks
# are ranked once, after a hundredth of the epochs, early as the released code's are in effect, and the weight of its
# loss is the released code's.
_PRUNING: dict[str, dict[str, Any]] = {
    "bpl": {"criterion": "l2", "mask": "hard", "freeze_at": 0.01, "diversity_weight": 0.01},
    "l1": {"criterion": "l1", "mask": "hard", "freeze_at": 0.5},
    "random": {"criterion": "random", "mask": "hard", "freeze_at": 0.5},
    "sfp": {"criterion": "l2", "mask": "soft", "freeze_at": 0.5},
    "fpgm": {"criterion": "fpgm", "mask": "soft", "freeze_at": 0.5},
}
# The methods that learn from another network, or from copies of themselves, and those that are steered to a budget.
_OTHERS: dict[str, dict[str, Any]] = {
    "hrank": {"criterion": "rank", "samples": 500},
    "kd": {"distill_weight": 1.0, "temperature": 4.0},
    "self_kd": {"distill_weight": 0.1, "temperature": 3.0},
    "compact_kd": {"freeze_at": 0.5, "distill_weight": 1.0, "temperature": 4.0, "feature_weight": 1.0},
    "oed": {"freeze_at": 0.5, "distill_weight": 1.0, "temperature": 3.0, "copies": 2},
    "fcs_mlft": {
        "criterion": "fcs", "samples": 500, "bins": 8, "fine_tune": "mlft", "distill_weight": 1.0, "temperature": 1.0,
    },
    "ddsl": {
        "criterion": "l2", "freeze_at": 0.6, "distill_weight": 1.0, "temperature": 4.0, "strengths": "dean",
    },
}  # fmt: skip
BY_METHOD = _PRUNING | _OTHERS
PULL = 1e-2  # learning rate x rho where a config names no rho: the share of the way to Z - U that a first step goes
# What `criterion` may be: norms of filters for the first, properties of their feature maps for the second.
CRITERIA_OF = {method: tuple(CRITERIA) for method in (*_PRUNING, "ddsl")} | {
    "fcs_mlft": ("fcs", "kernel-norm", "feature-norm"),
    "hrank": ("rank",),
}

# Fields that only some methods read; elsewhere they are set to None so that they do not split one run into two.
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "criterion": tuple(CRITERIA_OF),
    "mask": tuple(_PRUNING),
    "mask_every": tuple(_PRUNING),
    "freeze_at": (*_PRUNING, "compact_kd", "oed", "ddsl"),
    "slim_at": (*_PRUNING, "ddsl"),
    "diversity_weight": ("bpl",),
    "diversity_form": ("bpl",),
    "partner": ("bpl",),
    "kernel_norm": ("bpl",),
    "pretrain": tuple(m for m in METHODS if m not in ("scratch", "self_kd", "oed")),  # fresh networks of their own
    "scope": tuple(m for m in METHODS if m not in ("dense", "oed")),
    "round_to": tuple(m for m in METHODS if m not in ("dense", "oed")),
    "teacher_epochs": ("hrank", "kd", "compact_kd", "fcs_mlft", "ddsl"),
    "distill_weight": ("kd", "self_kd", "compact_kd", "oed", "fcs_mlft", "ddsl"),
    "temperature": ("kd", "self_kd", "compact_kd", "oed", "fcs_mlft", "ddsl"),
    "feature_weight": ("compact_kd",),
    "target": ("scratch", "kd", "self_kd", *_PRUNING),
    "budget": ("compact_kd", "oed"),
    "sparsity": ("compact_kd", "oed"),
    "copies": ("oed",),
    "samples": ("hrank", "fcs_mlft"),
    "bins": ("fcs_mlft",),
    "fine_tune": ("fcs_mlft",),
    "rho": ("ddsl",),
    "strengths": ("ddsl",),
}

# Fields that one value of another field leaves without effect: the field, and its values. They are then set to what a
# config gets that does not name them, so that they do not split one run into two.
IDLE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "mask_every": ("mask", ("hard",)),
    "freeze_at": ("mask", LEAKING_MASKS),
    "slim_at": ("mask", LEAKING_MASKS),
    "diversity_form": ("diversity_weight", (0,)),
    "samples": ("criterion", ("kernel-norm",)),
    "bins": ("criterion", ("kernel-norm", "feature-norm")),
    "distill_weight": ("fine_tune", ("tft",)),
    "temperature": ("fine_tune", ("tft",)),
}

# What every method starts from where a config says None; a config that says so and one that says nothing are one run.
USUAL: dict[str, Any] = {
    "scope": "inner", "round_to": 1, "mask_every": 1, "slim_at": "freeze", "diversity_form": "stage-cosine",
    "partner": "same",
}  # fmt: skip
