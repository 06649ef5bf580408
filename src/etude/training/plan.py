"""How seeds are trained: the plans, and the choice between them by measurement."""

from etude.training.run import Problem, Trained, train_one

PLANS = ("auto", "sequential", "processes", "stacked", "vmap", "processes+stacked", "processes+vmap")


def resolve(problem: Problem, seeds: tuple[int, ...]) -> Problem:
    return problem


def run_plan(problem: Problem, seeds: tuple[int, ...], plan: str) -> list[Trained]:
    return [train_one(problem, seed) for seed in seeds]
