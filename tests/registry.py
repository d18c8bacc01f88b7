"""Every public loss, teacher, memory, method and laboratory, once: what tests/conformance/ walks over. A sixth paper gets every
property by a line in `PAPERS` of arcbook.probes and a line per loss here."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable

import torch
from torch import nn

from arcbook import losses, memory, probes, teachers
from arcbook.experiments import Lab

LABS = probes.PAPERS


@dataclass(frozen=True)
class Case:
    "A loss module and inputs that it takes; float64, so that other precisions have something to be compared with."
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict]                 # name -> tensor or value; a batch of B rows
    rows: tuple[str, ...]                      # inputs whose first axis is the batch
    grad: tuple[str, ...]                      # inputs that get a gradient
    constant: tuple[str, ...] = ()             # floating inputs that must get none

    def call(self, module=None, **changes):
        "The loss: the result, or its field `loss`."
        result = (module or self.make())(**{**self.inputs(), **changes})
        return getattr(result, "loss", result)


def normal(seed, *shape):
    return torch.from_numpy(probes.random_stream(seed, 3).standard_normal(shape))


def labels(n, classes): return torch.arange(n) % classes


B, D, C, K = 6, 5, 4, 9
two = lambda: dict(z0=normal(0, B, D), z1=normal(1, B, D))
memory_inputs = lambda: dict(queries=normal(2, B, D), labels=labels(B, C), keys=normal(3, K, D), key_labels=labels(K, C))
consistency_inputs = lambda: dict(logits=normal(4, B, C), momentum_queries=normal(5, B, D), keys=normal(6, K, D), key_probs=normal(7, K, C).softmax(1))
clim_inputs = lambda: dict(queries=normal(8, B, D), anchor_keys=normal(9, B, D), neighbour_keys=normal(10, B, D), negatives=normal(11, K, D), lam=0.3)

LOSSES = [
    Case("NTXentLoss", lambda: losses.NTXentLoss(0.5), two, ("z0", "z1"), ("z0", "z1")),
    Case("InfoNCELoss", lambda: losses.InfoNCELoss(0.5), lambda: dict(queries=normal(0, B, D), positives=normal(1, B, D), negatives=normal(2, K, D)),
         ("queries", "positives"), ("queries",)),
    Case("SupConLoss", lambda: losses.SupConLoss(0.5), lambda: dict(embeddings=normal(0, B, D), labels=labels(B, 3)), ("embeddings", "labels"), ("embeddings",)),
    Case("ConsistencyLoss", lambda: losses.ConsistencyLoss(), lambda: dict(student_logits=normal(0, B, C), teacher_logits=normal(1, B, C)),
         ("student_logits", "teacher_logits"), ("student_logits",), ("teacher_logits",)),
    Case("SymmetricCrossEntropyLoss", lambda: losses.SymmetricCrossEntropyLoss(0.5, 0.2), lambda: dict(logits=normal(0, B, C), target=labels(B, C)),
         ("logits", "target"), ("logits",)),
    Case("ContrastiveRegularizationLoss", lambda: losses.ContrastiveRegularizationLoss(0.5, 0.2), two, ("z0", "z1"), ("z0", "z1")),
    Case("AttractRepulseLoss", lambda: losses.AttractRepulseLoss(), lambda: dict(logits=normal(0, 2, B, C), target=labels(B, C), embeddings=normal(1, 2, B, D),
                                                                                 teacher_logits=normal(2, 2, B, C)), (), ("logits", "embeddings"), ("teacher_logits",)),
    Case("FeatureDistillationLoss", lambda: losses.FeatureDistillationLoss(2.0), lambda: dict(source=normal(0, B, D), target=normal(1, B, D)),
         ("source", "target"), ("source", "target")),
    Case("ADNetLoss", lambda: losses.ADNetLoss(0.5), lambda: dict(logits=normal(2, B, C), labels=labels(B, C), source=normal(0, B, D), target=normal(1, B, D)),
         ("logits", "labels", "source", "target"), ("logits", "source", "target")),
    Case("CentroidContrastLoss", lambda: losses.CentroidContrastLoss(0.5), lambda: dict(embeddings=normal(0, B, D), centroids=normal(1, C, D), labels_a=labels(B, C),
                                                                                       labels_b=labels(B, 3), lam=0.3),
         ("embeddings", "labels_a", "labels_b"), ("embeddings",), ("centroids",)),
    Case("ICCLLoss", lambda: losses.ICCLLoss(temperature=0.5), lambda: dict(labels_a=labels(B, C), labels_b=labels(B, 3), lam=0.3, logits=normal(0, B, C),
                                                                            mixed_logits=normal(1, B, C), mixed_embeddings=normal(2, B, D), centroids=normal(3, C, D)),
         ("labels_a", "labels_b", "logits", "mixed_logits", "mixed_embeddings"), ("logits", "mixed_logits", "mixed_embeddings"), ("centroids",)),
    Case("CLIMLoss", lambda: losses.CLIMLoss(0.5), clim_inputs, ("queries", "anchor_keys", "neighbour_keys"), ("queries",), ("anchor_keys", "neighbour_keys", "negatives")),
    Case("NeighbourContrastLoss", lambda: losses.NeighbourContrastLoss(k=4, temperature=0.5), memory_inputs, ("queries", "labels"), ("queries",), ("keys",)),
    Case("DistributionalConsistencyLoss", lambda: losses.DistributionalConsistencyLoss(0.5), consistency_inputs, ("logits", "momentum_queries"), ("logits",),
         ("momentum_queries", "keys", "key_probs")),
    Case("CoNeLoss", lambda: losses.CoNeLoss(k=4, sup_temperature=0.5, dc_temperature=0.5), lambda: {**consistency_inputs(), **memory_inputs()},
         ("logits", "labels", "queries", "momentum_queries"), ("logits", "queries"), ("momentum_queries", "keys", "key_probs")),
]

STATES: dict[str, Callable[[], nn.Module]] = {     # modules that remember
    "EMATeacher": lambda: teachers.EMATeacher(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), 0.9),
    "MemoryQueue": lambda: memory.MemoryQueue(5, keys=3, labels=torch.long),
    "ClassCentroids": lambda: memory.ClassCentroids(3, 4, 0.9),
}


def public_losses() -> set[str]:
    "Modules that the shelf offers as losses."
    return {name for name in losses.__all__ if isinstance(getattr(losses, name), type) and issubclass(getattr(losses, name), nn.Module)}


def rungs(): return [(key, variant) for key in LABS for variant in probes.lab_of(key).variants]


def shrunk_lab(key: str) -> Lab:
    "A paper's laboratory whose every plan is that of a probe: nine steps of eight images a stage."
    lab = probes.lab_of(key)
    def plan(profile, budget, **changes):
        whole = lab.plan(profile, "smoke", **{**lab.probes.tiny, **changes})
        brief = lambda stage: stage and replace(stage, epochs=3, batch_size=8, warmup_epochs=0.0, precision="no", checkpoint_seconds=0.0)
        return replace(whole, stages=tuple(brief(stage) for stage in whole.stages), test_stride=1)
    return replace(lab, plan=plan, equal={})


def changed(value: Any, hint: Any) -> list:
    "Other values that a field may hold: every other option, the opposite, or a number that is clearly different."
    from typing import Literal, get_args, get_origin
    if get_origin(hint) is Literal: return [option for option in get_args(hint) if option != value]
    if isinstance(value, bool): return [not value]
    return []
