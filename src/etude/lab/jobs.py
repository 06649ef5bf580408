"""From a study to jobs, and one job's execution inside a worker."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from etude.lab.registry import study
from etude.lab.study import Artifact, Job, Measurement, Study, StudyConfig

USER = "user"  # the protocol of the user's own data


@dataclass(frozen=True)
class UserData:
    """The user's own data, as given on the command line."""

    path: str
    target: str | None = None
    on_bad: Literal["raise", "skip"] = "raise"


class Ticket(NamedTuple):
    """One job by names only: small, picklable, sent to a worker."""

    slug: str
    tier: str
    config: dict[str, Any]
    protocol: str
    arm: str
    seeds: tuple[int, ...]
    device: str
    user: UserData | None


@dataclass
class Done:
    """What a worker sends back."""

    items: list[Measurement | Artifact]
    provenance: list[dict[str, Any]] = field(default_factory=list)
    plans: dict[str, int] = field(default_factory=dict)  # seeds trained under each plan of the engine


def tickets(
    the_study: Study,
    config: StudyConfig,
    tier: str,
    *,
    device: str = "cpu",
    workers: int = 1,
    done: frozenset[tuple[str, str, int]] | set[tuple[str, str, int]] = frozenset(),
    user: UserData | None = None,
) -> list[Ticket]:
    """The jobs that are still to do: one a seed, or a group of seeds where many train in one call."""
    protocols = (USER,) if user else config.protocols
    out = []
    for protocol in protocols:
        for name, arm in the_study.arms.items():
            if arm.derived or (user and not arm.own_data) or (arm.protocols and protocol not in (*arm.protocols, USER)):
                continue
            missing = [s for s in config.seeds if (protocol, name, s) not in done]
            together = arm.stacked or device != "cpu"
            size = -(-len(missing) // max(1, workers if device == "cpu" else 1)) if together else 1
            for start in range(0, len(missing), max(1, size)):
                seeds = tuple(missing[start : start + size])
                out.append(
                    Ticket(the_study.slug, tier, config.model_dump(mode="json"), protocol, name, seeds, device, user)
                )
    return out


_tasks: OrderedDict[tuple, Any] = OrderedDict()  # a worker's loaded data; the newest two stay


def _task(the_study: Study, config: StudyConfig, ticket: Ticket) -> Any:
    key = (ticket.slug, ticket.protocol, config.digest(), ticket.user)
    if key not in _tasks:
        if ticket.user is not None:
            from etude.data.user import load_user

            data = load_user(ticket.user.path, target=ticket.user.target, on_bad=ticket.user.on_bad)
            _tasks[key] = the_study.user_task(data, config)
        else:
            _tasks[key] = the_study.task(ticket.protocol, config)
        while len(_tasks) > 2:
            _tasks.popitem(last=False)
    _tasks.move_to_end(key)
    return _tasks[key]


def _check(items: Sequence[Measurement | Artifact], the_study: Study, ticket: Ticket) -> None:
    for item in items:
        if item.arm not in the_study.arms:
            raise LookupError(f"{ticket.slug} yielded the undeclared arm {item.arm!r}; it has {list(the_study.arms)}")
        if item.seed not in ticket.seeds:
            raise LookupError(f"{ticket.slug} yielded seed {item.seed}, its job had {ticket.seeds}")
    missing = set(ticket.seeds) - {i.seed for i in items}
    if missing:
        raise LookupError(f"{ticket.slug}, arm {ticket.arm}: nothing came back for seeds {sorted(missing)}")


def execute(ticket: Ticket) -> Done:
    """Run one job. Called in a worker; everything it needs is in the ticket."""
    from etude.training.tally import counted_plans  # torch only where something trains

    the_study = study(ticket.slug)
    config = type(the_study.configs[ticket.tier]).model_validate(ticket.config)
    task = _task(the_study, config, ticket)
    job = Job(ticket.protocol, ticket.arm, ticket.seeds, config, task, ticket.device)
    with counted_plans() as plans:
        items = list(the_study.measure(job))
    _check(items, the_study, ticket)
    return Done(items, [dict(p) for p in getattr(task, "provenance", ())], dict(plans))
