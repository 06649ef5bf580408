"""How the study of paragraph codes measures sense vectors."""

from collections.abc import Iterator

from etude.data import numpy_stream
from etude.lab.study import Artifact, Job, Measurement
from etude.text import DisambiguatedSkipGram, MultiSenseSkipGram
from etude.text import evaluation as ev


def measure_senses(job: Job, seed: int) -> Iterator[Measurement | Artifact]:
    """Train the arm's sense vectors and score the senses that it gives to the occurrences."""
    c = job.config
    if job.arm in ("gradients", "no_choice"):
        yield Measurement(
            job.arm, seed, "max_relative_error", ev.gradient_error(seed, through_choice=job.arm == "gradients")
        )
        return
    instances = job.task
    if isinstance(instances, ev.TokenCorpus):
        instances = instances.pseudo_words(c.n_pairs, seed, n_documents=c.sense_documents, min_count=c.min_count)
    kind = MultiSenseSkipGram if job.arm == "hard" else DisambiguatedSkipGram
    subsample = None if job.protocol == "topic_words" else 1e-4
    model = kind(
        1 if job.arm == "kmeans" else c.n_senses, c.sense_dim, subsample=subsample, max_epochs=c.sense_epochs,
        batch_size=c.sense_batch, device=job.device, random_state=seed,
    )  # fmt: skip
    if job.arm == "random_senses":
        predicted = numpy_stream(seed, "random senses").integers(0, c.n_senses, len(instances.words))
    elif job.arm == "kmeans":
        predicted = ev.cluster_contexts(model.fit(instances.documents), instances, c.n_senses, seed)
    else:
        predicted = model.fit(instances.documents).predict_proba(instances.words, instances.contexts).argmax(1)
    yield Measurement(job.arm, seed, "ari", ev.induction_score(instances, predicted))
    if job.arm == "dsg" and seed == c.seeds[0]:
        yield Artifact(job.arm, seed, "map", ev.sense_map(model, instances.words[0]))
