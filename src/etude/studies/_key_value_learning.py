"""How each arm of the study of the key-value bottleneck learns its stream."""

from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from etude import continual
from etude.continual import EWC, KeyValueBottleneck, StreamRecord, learn_key_values, learn_stream
from etude.data import class_stream, seeded_build, stream
from etude.data.streams import Segment
from etude.data.tasks import Task
from etude.lab.study import Job
from etude.layers import class_means, mean_logits, mlp
from etude.training import TrainConfig

Records = dict[int, StreamRecord]
HEADS: dict[str, tuple[int, ...]] = {"linear": (), "linear_paper_rate": (), "mlp": (128,)}

# What is best in the i.i.d. run on validation rows, seeds 0 and 1, from five rates of the tables and four of each head.
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"key_dim": 8, "tuned_rate": ("sgd", 300.0), "linear": ("sgd", 0.05), "mlp": ("sgd", 0.5)},
    "cifar10": {"key_dim": 8, "tuned_rate": ("sgd", 100.0), "linear": ("adam", 1e-3), "mlp": ("adam", 1e-3)},
    "wikilead": {"key_dim": 8, "tuned_rate": ("sgd", 300.0), "linear": ("sgd", 5.0), "mlp": ("adam", 3e-4)},
}
PAPER = {"bottleneck": ("sgd", 0.3), "linear_paper_rate": ("sgd", 1e-3)}  # the paper's rates


def seed_task(job: Job, seed: int) -> Task:
    """A seed's rows on the job's device, with shuffled labels for the arm that has them."""
    task = job.task.task(seed)
    order = torch.randperm(task.train.n, generator=stream(seed, "shuffle"))
    y = task.train.y[order] if job.arm == "shuffled" else task.train.y
    return replace(task, train=task.train._replace(y=y).to(job.device), test=task.test.to(job.device))


def learn(job: Job, tasks: dict[int, Task], size: tuple[int, int], *, together: bool = False) -> Records:
    """Every seed's stream under the job's arm; `together`: all classes at once, with as many updates."""
    n, width = next(iter(tasks.values())).num_classes, next(iter(tasks.values())).train.x.shape[1]
    cut = (2,) * (n // 2 - 1) + (2 + n % 2,) if n > 3 else (1,) * n
    segments = {s: class_stream(t, n if together else cut, seed=s) for s, t in tasks.items()}
    if job.arm == "class_mean":
        means = {s: class_means(t.train.x, t.train.y, n) for s, t in tasks.items()}
        said = {s: continual.evaluate_stream(lambda x, m=m: mean_logits(x, m), segments[s]) for s, m in means.items()}
        return {s: StreamRecord(segments[s], [r.by_class[0].tolist()]) for s, r in said.items()}
    setting = SETTINGS.get(job.protocol.removesuffix("_minilm"), SETTINGS["digits"])
    if job.arm == "linear_ewc":
        return {s: _with_ewc(job, segments[s], (width, n), setting["linear"], s) for s in tasks}
    optimizer, lr = (setting | PAPER).get(job.arm, PAPER["bottleneck"])
    steps, clip = job.config.steps * (len(cut) if together else 1), None if job.arm in HEADS else 1.0
    config = TrainConfig(steps=steps, batch_size=32, optimizer=optimizer, lr=lr, clip_norm=clip)
    if job.arm in HEADS:
        return learn_stream(
            lambda s: mlp((width, *HEADS[job.arm], n)), segments, loss=lambda m, b: F.cross_entropy(m(b.x), b.y),
            predict=lambda m, x: m(x), config=config, device=job.device,
        )  # fmt: skip
    made = {}
    for seed, task in tasks.items():
        key_dim, x = job.config.key_dim or setting["key_dim"], task.train.x
        other = {"other_keys": task.meta["other"], "far_keys": x + 10 * x.std(0)}
        kv = KeyValueBottleneck(width, *size, key_dim, n, generator=stream(seed, "init")).to(job.device)
        made[seed] = kv.initialize_keys(other.get(job.arm, x), generator=stream(seed, "keys")).freeze_keys()
    return learn_key_values(made, segments, config=config, device=job.device)


def _with_ewc(
    job: Job, segments: list[Segment], sizes: tuple[int, int], rate: tuple[str, float], seed: int
) -> StreamRecord:
    head = seeded_build(lambda: mlp(sizes), stream(seed, "init")).to(job.device)
    ewc = EWC(head, job.config.ewc_weight, lr=rate[1] if rate[0] == "sgd" else None)
    config = TrainConfig(steps=job.config.steps, batch_size=32, optimizer=rate[0], lr=rate[1])
    found = continual.learn_tasks(
        head, segments, config=config, penalty=ewc.penalty, after=lambda s: ewc.update(s.train.x), seed=seed,
        device=job.device,
    )  # fmt: skip
    return StreamRecord(segments, found.by_class.tolist())
