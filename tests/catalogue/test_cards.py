"""Every card of the catalogue against the schema, the table of rooms, the public names and the studies."""

import importlib
import json
import re
from pathlib import Path

import pytest

import etude
from etude.catalogue import load, papers
from etude.catalogue.card import Claim, Paper

ROOMS = {
    "layers": "pointer-networks rnn-review recoding-rnn after-transformers-survey llm-overview",
    "hypernetworks": "hypernetworks-review mip-hypernetworks",
    "kernels": "wide-deep-optimal-classification",
    "training": "train-longer guidance phyll rich-representations fantastic-gains "
    "degradation-classification-pretraining deep-learning-review-2019",
    "continual": "discrete-key-value-bottleneck continual-learning-thesis dependency-preserving-hypernetworks",
    "incontext": "gpicl incontext-boolean icl-linear-models data-distribution-icl fast-slow-memory raml",
    "selection": "active-learning-text data-selection-survey data-filtering-networks "
    "data-factors-compositional points-vlm",
    "text": "binary-paragraph-vector moe-sentence-embeddings vacancy-sbert text-as-images fralbert-qa "
    "foundation-models-nlp",
    "compression": "quantization-survey transformer-inference-survey eda-dm learngene-pool rnn-sparsity",
    "generative": "score-forgetting-distillation",
    "trust": "prototype-network codebook-features calibrated-hallucination backdoor-audit "
    "high-stakes-reliability mvp-robustness",
    "decision": "neural-contextual-bandits auto-gnn",
    "reasoning": "explanation-roles itool math-program-synthesis",
}
ROOM_OF = {slug: room for room, slugs in ROOMS.items() for slug in slugs.split()}

FOLDER = Path(etude.__path__[0]) / "catalogue" / "papers"
SLUGS = sorted(f.stem for f in FOLDER.glob("*.toml"))
RESULTS = Path(__file__).parents[2] / "results"
REFERENCE = re.compile(r"^[a-z0-9_]+(@[a-z0-9_]+)?$")
MEASURED = re.compile(
    r"Laptop: (?:inconclusive, )?(?:[.\d]+ against [.\d]+(?: %)?, )?([+-][.\d]+) \[(-?[.\d]+), (-?[.\d]+)\]"
)


def references(claim: Claim) -> list[str]:
    """Every arm that a claim names, as written."""
    if claim.arms is None:
        return []
    named: list[str | float | None] = [claim.arms.method, claim.arms.baseline]
    if claim.arms.control is not None:
        named += [claim.arms.control.arm, claim.arms.control.loses_to]
    return [n for n in named if isinstance(n, str)]


def study_arms(paper: Paper) -> set[str] | None:
    """The arms of the paper's study, or None while it has no study."""
    from etude.lab.study import Study

    name = paper.slug.replace("-", "_")
    if not (FOLDER.parents[1] / "studies" / f"{name}.py").exists():
        return None
    module = importlib.import_module(f"etude.studies.{name}")
    own = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Study) and c.__module__ == module.__name__
    ]
    assert len(own) == 1, f"{name}.py must define one Study, found {own}"
    return set(own[0].arms)


def test_the_52_papers_of_the_design_are_in_the_catalogue() -> None:
    """Others may be there too: `etude new` adds them."""
    assert len(ROOM_OF) == 52
    slugs = [p.slug for p in papers()]
    assert set(ROOM_OF) <= set(slugs)
    assert slugs == SLUGS


def test_rooms_are_those_of_the_package() -> None:
    assert set(ROOMS) == set(etude.ROOMS)


@pytest.mark.parametrize("slug", SLUGS)
def test_card_loads_into_its_room(slug: str) -> None:
    paper = load(slug)
    assert paper.slug == slug
    assert paper.room in ROOMS
    assert paper.room == ROOM_OF.get(slug, paper.room)


@pytest.mark.parametrize("slug", SLUGS)
def test_summary_has_60_to_120_words(slug: str) -> None:
    assert 60 <= len(load(slug).summary.split()) <= 120


@pytest.mark.parametrize("slug", SLUGS)
def test_every_claim_says_where_the_paper_says_it(slug: str) -> None:
    for claim in load(slug).claims:
        assert claim.paper is not None, claim.id
        assert claim.paper.source.strip(), claim.id


@pytest.mark.parametrize("slug", SLUGS)
def test_arm_references_are_well_formed(slug: str) -> None:
    for claim in load(slug).claims:
        for name in references(claim):
            assert REFERENCE.match(name), f"{claim.id}: {name!r}"
        if claim.arms is not None:
            assert claim.arms.method != claim.arms.baseline, claim.id
            if claim.arms.control is not None:
                assert claim.arms.control.arm != claim.arms.method, claim.id


@pytest.mark.parametrize("slug", SLUGS)
def test_a_paper_has_something_to_test(slug: str) -> None:
    paper = load(slug)
    assert any(c.status == "tested" for c in paper.claims)
    if paper.kind == "survey":
        assert paper.checklist, "a survey's row is its checklist"
    for item in paper.checklist:
        if item.status == "out_of_reach":
            assert item.reason, item.box
        if item.status in ("implemented", "integrated"):
            assert item.where, item.box


@pytest.mark.parametrize("slug", [s for s in SLUGS if study_arms(load(s)) is not None])
def test_claims_name_arms_of_the_study(slug: str) -> None:
    paper = load(slug)
    arms = study_arms(paper)
    assert arms is not None
    for claim in paper.claims:
        for name in references(claim):
            assert name.split("@")[0] in arms, f"{claim.id}: no arm {name!r} among {sorted(arms)}"


@pytest.mark.parametrize("slug", SLUGS)
def test_entries_resolve_to_documented_names(slug: str) -> None:
    for entry in load(slug).entry:
        room, _, name = entry.rpartition(".")
        thing = getattr(importlib.import_module(f"etude.{room}"), name)
        assert (thing.__doc__ or "").strip(), f"{entry} has no docstring"


@pytest.mark.parametrize("slug", [s for s in SLUGS if load(s).usage])
def test_usage_is_at_most_ten_lines_of_python(slug: str) -> None:
    usage = load(slug).usage
    assert usage is not None
    compile(usage, f"{slug}.usage", "exec")
    assert len([line for line in usage.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("slug", [s for s in SLUGS if (RESULTS / s / "laptop.json").is_file()])
def test_an_effect_that_a_note_opens_with_is_the_published_one(slug: str) -> None:
    """Of notes with "Laptop: +1.2 [0.3, 2.1]": effect and interval of one of the claim's data sets, as rounded there."""
    verdicts = json.loads((RESULTS / slug / "laptop.json").read_text("utf-8"))["verdicts"]
    for claim in load(slug).claims:
        for said in MEASURED.findall(claim.notes or ""):
            runs = [(v["effect"], v["low"], v["high"]) for v in verdicts if v["claim"] == claim.id]
            off = [0.501 * 10.0 ** -len(text.partition(".")[2]) for text in said]
            assert any(
                all(abs(float(text) - value) <= slack for text, value, slack in zip(said, run, off, strict=True))
                for run in runs
            ), f"{claim.id}: the note has {said}, the run {runs}"
