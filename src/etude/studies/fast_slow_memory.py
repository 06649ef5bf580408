"""Fast and slow learning: do controllers that step along synthetic gradients inside an episode learn it faster?

The equations are our reconstruction (see `etude.incontext.memory_network`). Two families of episodes on a laptop:
points of a sinusoid, and items of three classes of which one is rare; the control is shown no label.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from etude.data import load_images
from etude.incontext import Feedback
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies import _memory_problems as problems
from etude.studies._memory_nets import PermutedFeedback, build, trained
from etude.studies._memory_plots import memory_plots
from etude.studies._memory_scores import CosineTrace, scores, switched

BOTH = ("sinusoids", "classes", "omniglot")


class MemoryConfig(StudyConfig):
    """Sizes of the episodes, the nets and the runs."""

    protocols: tuple[str, ...] = ("sinusoids", "classes")
    points: PositiveInt = 10
    """Points of a sinusoid in training; the claims name the 6th and the 10th."""
    items: Annotated[int, Field(ge=4)] = 15
    """Items of an episode of classes; accuracy is measured three items after a switch."""
    hidden_size: PositiveInt = 64
    slots: PositiveInt = 16
    width: PositiveInt = 40
    lstm_size: PositiveInt = 96
    channels: PositiveInt = 64
    """Of each of four convolutions, for images."""
    steps: PositiveInt = 400
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 3e-3
    test_episodes: PositiveInt = 1000
    omniglot_ways: PositiveInt = 5
    omniglot_items: PositiveInt = 50


class MemoryStudy(Study):
    """All arms of a seed are trained on the same episodes and tested on the same new ones."""

    kinds: ClassVar = ("images",)
    configs = {
        "quick": MemoryConfig(
            n_seeds=3, points=6, items=8, hidden_size=32, slots=8, width=12, lstm_size=32, steps=30, batch_size=32,
            lr=1e-2, test_episodes=200,
        ),
        "laptop": MemoryConfig(),
        "gpu": MemoryConfig(
            protocols=("sinusoids", "classes", "transfer", "omniglot"), hidden_size=200, slots=128, steps=2000, lr=1e-3,
            n_seeds=3,
        ),
    }  # fmt: skip
    arms = {
        "plain": Arm("memory network without fast weights", role="baseline", protocols=BOTH),
        "fast": Arm("fast weights along synthetic gradients", protocols=BOTH),
        "labels_hidden": Arm("memory network that is shown no label", role="control", protocols=BOTH),
        "fast_no_synthetic_loss": Arm("fast weights trained end to end only", role="ablation", protocols=BOTH[:1]),
        "fast_no_meta": Arm("fast weights of a feedback trained on L_syn only", role="ablation", protocols=BOTH[:1]),
        "lstm": Arm("LSTM that is fed the last label", role="baseline", protocols=BOTH),
        "maml_1": Arm("MAML, one inner step", role="baseline", protocols=BOTH),
        "maml_5": Arm("MAML, five inner steps", role="baseline", protocols=BOTH),
        "prototypes": Arm("nearest mean of the labelled items so far", role="reference", protocols=BOTH[1:]),
        "label_counter": Arm("guesses the commonest label so far", role="reference", derived=True),
        "feedback_reused": Arm(
            "feedback trained on sinusoids, frozen, on triangles", protocols=("transfer",), own_data=False
        ),
        "feedback_permuted": Arm("the same, each row told its neighbour's", role="control", derived=True),
    }

    def task(self, protocol: str, config: MemoryConfig) -> problems.Problem:
        """Generators of episodes; characters of Omniglot for the GPU."""
        c = config
        if protocol == "omniglot":
            return problems.images(load_images("omniglot", size=28), c, c.omniglot_ways, c.omniglot_items, 0.0)
        return problems.classes(c) if protocol == "classes" else problems.sinusoids(c)

    def user_task(self, data: Any, config: MemoryConfig) -> problems.Problem:
        """Episodes of three of the user's classes, one of them rare; half of the classes are kept for the tests."""
        return problems.images(data, config, 3, config.items, 1.5)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train the arm's net on fresh episodes and test it on new ones."""
        problem, arm = job.task, job.arm
        if job.arm == "feedback_reused":
            yield from _transfer(job) if job.protocol == "transfer" else ()
            return
        if problem.images == () and job.protocol not in ("sinusoids", "classes"):
            return
        trace = CosineTrace(problem, job.config.batch_size, job.device)
        watched = arm == "fast" and problem.kind == "regression"
        done = trained(
            job, problem, lambda seed: build(arm, problem, job.config), arm=arm,
            callbacks=(trace,) if watched else (),
        )  # fmt: skip
        for d in done:
            yield from scores(job, problem, arm, d.module, d.seed)
            yield Measurement(arm, d.seed, "ms_per_update", 1e3 * d.seconds / d.steps, "ms")
            if watched:
                yield from trace.measurements(arm, d.seed, d.steps)
            if job.protocol == "classes":
                yield from switched(job, arm, d.module, d.seed)

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy by presentation, error by point, writes around a switch, cosine over training."""
        return memory_plots(results)


def _transfer(job: Job) -> Iterator[Measurement]:
    """Updates until the loss on triangles is the plain net's last one; the run's length and one where it never is."""
    c, every = job.config, max(1, job.config.steps // 50)
    target = problems.sinusoids(c, "triangle")

    def run(problem: problems.Problem, arm: str, feedback: Any = None) -> dict[int, Any]:
        def make(seed: int) -> Any:
            net: Any = build(arm, problem, c)
            if feedback is not None:
                net.feedback, net.synthetic = feedback(seed), False
            return net

        return {d.seed: d for d in trained(job, problem, make, arm=arm, every=every)}

    source, plain, scratch = run(job.task, "fast"), run(target, "plain"), run(target, "fast")
    reused: dict[str, Any] = {"fast": scratch}
    for name, kind in (("feedback_reused", Feedback), ("feedback_permuted", PermutedFeedback)):
        reused[name] = run(target, "fast", lambda seed, kind=kind: _frozen(source[seed].module.feedback, kind))
    for seed, base in plain.items():
        last = base.curve[-5:]
        goal = sum(p["loss"] for p in last) / len(last)
        for name, runs in reused.items():
            task = [(p["step"], p.get("task", p["loss"])) for p in runs[seed].curve]
            reached = next((step for step, loss in task if loss <= goal), c.steps + 1)
            yield Measurement(name, seed, "steps_to_plain_loss", float(reached), "steps")


def _frozen(feedback: Feedback, kind: type[Feedback]) -> Feedback:
    made = kind(feedback.sizes, feedback.width, feedback.output_size)
    made.load_state_dict(feedback.state_dict())
    return made.requires_grad_(False)
