"""Codebook features: what does it cost to put a network's states into a few codes, and what do the codes stand for?

A transformer learns a state machine that is written in digits. From the same trained net three are fine-tuned on the
same batches: as it is, and with codebooks of one and of four codes. Language models on real text: `_codebook_text`.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from etude.data import TokenMachine, load_texts, stream, token_machine
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._codebook_nets import LARGE_ARMS, train_nets
from etude.studies._codebook_plots import codebook_plots, top_codes
from etude.studies._codebook_probes import forced, losses, purities
from etude.studies._codebook_text import LM_ARMS, text_measurements

MACHINE = "tokfsm"


class CodebookConfig(StudyConfig):
    """The machine, the net, the codebooks; and the language models of the text protocols."""

    protocols: tuple[str, ...] = (MACHINE,)
    num_states: Annotated[int, Field(ge=2)] = 50
    num_successors: PositiveInt = 5
    length: Annotated[int, Field(ge=2)] = 16
    """States in a sequence."""
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 2
    hidden_dim: PositiveInt = 64
    batch_size: PositiveInt = 32
    steps: PositiveInt = 2000
    finetune_steps: PositiveInt = 600
    lr: PositiveFloat = 3e-3
    num_codes: PositiveInt = 400
    many_codes: PositiveInt | None = None
    """Codes in the codebooks of a second net for each k; None: no such nets."""
    scratch: bool = False
    """Also train a net with codebooks from its start, for all updates."""
    ks: tuple[int, ...] = (1, 4)
    dead_after: PositiveInt = 50
    """Updates after which an idle code is replaced, during the first 60 % of the fine-tuning."""
    test_rows: PositiveInt = 470
    text_sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(((64, 2),), min_length=1)
    """Width and layers of the language models: the small one, and the large one where there is one."""
    text_steps: PositiveInt = 300
    text_codes: PositiveInt = 500
    text_vocab: PositiveInt = 1000

    @field_validator("num_successors")
    @classmethod
    def _are_states(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("num_states", value):
            raise ValueError(f"must be at most num_states = {info.data['num_states']}")
        return value

    @field_validator("hidden_dim")
    @classmethod
    def _fits_the_heads(cls, value: int, info: ValidationInfo) -> int:
        if value % (2 * info.data.get("num_heads", 1)):
            raise ValueError(f"must be a multiple of 2 * num_heads = {2 * info.data['num_heads']}")
        return value

    @field_validator("ks")
    @classmethod
    def _are_arms(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if 1 not in value or len(set(value)) < len(value) or not set(value) <= {1, 4, 16}:
            raise ValueError("ks must hold 1 and may hold 4 and 16, each once: these have arms")
        for name in ("num_codes", "many_codes"):
            if max(value) > (info.data.get(name) or max(value)):
                raise ValueError(f"k must be at most {name} = {info.data[name]}")
        return value


class CodebookStudy(Study):
    """Everything of a seed comes from one job, since its nets share their first training."""

    configs: ClassVar = {
        "quick": CodebookConfig(
            n_seeds=3, num_states=20, num_successors=3, length=6, hidden_dim=32, steps=300, finetune_steps=80, lr=1e-2,
            num_codes=60, test_rows=100, batch_size=48, dead_after=20,
        ),
        "laptop": CodebookConfig(),
        "gpu": CodebookConfig(
            protocols=(MACHINE, "wikitext2"), num_states=100, num_successors=10, length=64, num_layers=4, num_heads=4,
            hidden_dim=128, batch_size=512, dead_after=25, steps=6000, finetune_steps=6000, lr=1e-3, num_codes=1000,
            many_codes=10_000, scratch=True, ks=(1, 4, 16),
            text_sizes=((128, 1), (320, 6)), text_steps=5000, text_codes=10_000, text_vocab=8000,
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "plain": Arm("fine-tuned without codebooks; its job brings all other arms", role="baseline"),
        "codebook_k1": Arm("one code in attention heads and MLPs", derived=True),
        "codebook_k4": Arm("four codes", derived=True),
        "codebook_k16": Arm("sixteen codes", role="ablation", derived=True),
        **LARGE_ARMS,
        "codes_shuffled": Arm("one code, each token with another token's", role="control", derived=True),
        "codes_shuffled_k4": Arm("four codes, each token with another token's", role="control", derived=True),
        "codebook_untrained": Arm("one code in a net that was never trained", role="control", derived=True),
        "no_patch": Arm("no code is forced", role="control", derived=True),
        **LM_ARMS,
    }
    kinds: ClassVar = ("documents",)

    def task(self, protocol: str, config: CodebookConfig) -> Any:
        """A text set by name; the machine is drawn for each seed."""
        return None if protocol == MACHINE else load_texts(protocol)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train, fine-tune three times and look into the codes."""
        if job.protocol != MACHINE:
            yield from text_measurements(job)
        else:
            c = job.config
            machines = {
                s: token_machine(c.num_states, c.num_successors, generator=stream(s, "machine")) for s in job.seeds
            }
            nets = train_nets(job, machines)
            for i, seed in enumerate(job.seeds):
                yield from _measure(job, seed, machines[seed], {arm: found[i] for arm, found in nets.items()})

    def plots(self, results: Results) -> list[Plot]:
        """Loss against k, purity by layer, divergence removed by place, codes with their states."""
        return codebook_plots(results)


@torch.no_grad()
def _measure(job: Job, seed: int, machine: TokenMachine, nets: dict[str, Any]) -> Iterator[Measurement | Artifact]:
    c = job.config
    width = machine.digits * c.length + 1
    test = machine.sample(c.test_rows, width, stream(seed, "test")).symbols.to(job.device)
    floor = machine.entropy(width) / (width - 1)
    yield Measurement("plain", seed, "ce_floor", floor, "nats")
    for arm, net in nets.items():
        yield from losses(arm, seed, machine, net, test)
        for name, value in purities(net, machine, test).items():
            yield Measurement(arm, seed, name, value)
        if arm in ("codebook_k1", "codebook_k4"):
            control = "codes_shuffled" if arm == "codebook_k1" else "codes_shuffled_k4"
            with net.shuffled(stream(seed, "shuffle")):
                yield from losses(control, seed, machine, net, test)
        if arm.startswith("codebook_k"):
            for name, layer in net.layers.items():
                yield Measurement(arm, seed, f"live {name}", layer.live_fraction(within=100))
            yield from forced(arm, seed, machine, net, job.device)
    if seed == c.seeds[0]:
        yield Artifact("codebook_k1", seed, "codes", top_codes(nets["codebook_k1"], machine, test))
