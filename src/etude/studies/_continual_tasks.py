"""The first setting of the study of continual-learning tools: permuted tasks with a head each."""

from collections.abc import Iterator

from etude import continual
from etude.data import permuted_stream
from etude.lab.study import Artifact, Job, Measurement
from etude.studies import _continual_problems as problems
from etude.training import TrainConfig

TASKS = {  # arms on permuted tasks: settings with the weight of the penalty, and of a term of their own
    "fine_tune": (), "l2": ("l2_weight",), "ewc": ("ewc_weight",), "mas": ("mas_weight",), "mas_batch": ("mas_weight",),
    "mas_shuffled": ("mas_weight",), "mas_slnid": ("mas_weight", "slnid_weight"), "si": ("si_weight",),
    "lwf": ("lwf_weight",), "ebll": ("lwf_weight", "ebll_weight"),
}  # fmt: skip
SMALL = ("fine_tune", "mas", "mas_slnid")  # also at the small width


def task_accuracy(job: Job, seed: int) -> Iterator[Measurement | Artifact]:
    c, arm, by_width = job.config, job.arm, {}
    task = problems.flat_task(job.task, seed, c.rows, job.device)
    for width in (c.width, c.small_width) if arm in SMALL else (c.width,):
        model = problems.headed_net(task.train.x.shape[1], width, seed).to(job.device)
        weights = [float(getattr(c, name)) for name in TASKS[arm]]
        own = problems.method(arm, model, weights, c.importance_rows, seed)
        found = continual.learn_tasks(
            model, permuted_stream(task, c.tasks, seed=seed), config=TrainConfig(epochs=c.epochs), penalty=own.penalty,
            before=own.before, after=own.after, loss=own.loss, callbacks=own.callbacks, seed=seed, device=job.device,
        )  # fmt: skip
        by_width[width] = found.average
        if width == c.width:
            yield Measurement(arm, seed, "average_accuracy", 100 * found.average, "points")
            yield Measurement(arm, seed, "average_forgetting", 100 * found.forgetting, "points")
            yield Measurement(arm, seed, "learning_accuracy", 100 * found.learned, "points")
            yield Artifact(
                arm, seed, "matrix", [[None if v != v else round(v, 4) for v in r] for r in found.R.tolist()]
            )
    if arm in SMALL:
        yield Measurement(arm, seed, "average_accuracy_small", 50 * sum(by_width.values()), "points")
