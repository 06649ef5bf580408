"""Pictures of the study of prototypes: what each seed leaves to be drawn, and the plots made of it."""

from collections.abc import Iterator, Sequence

import altair as alt

from etude import trust
from etude.data.tasks import Split
from etude.lab.study import Artifact, Job, Plot, Results
from etude.studies._pictures import dots, pixel_records, strip

DRAWN, SHOWN = 8, 15  # pictures in the ablation strip and in the gallery


def prototype_artifacts(
    job: Job,
    net: trust.PrototypeNetwork,
    rows: Split,
    test: Split,
    report: trust.PrototypeReport,
    classes: Sequence[str],
) -> Iterator[Artifact]:
    """Pictures of the first seed's prototypes, and why its first test row got its class."""
    seed, drawn = job.config.seeds[0], net.decode_prototypes()
    if rows.x.ndim == 4:
        yield Artifact(job.arm, seed, "drawn", pixel_records(drawn[:DRAWN], "prototype"))
    if job.arm != "full":
        return
    if rows.x.ndim == 4:
        nearest, own = report.nearest[:SHOWN], net.prototype_classes()[:SHOWN]
        sides = (drawn[:SHOWN], own, "prototype"), (rows.x[nearest], rows.y[nearest], "nearest row")
        cells = [
            record | {"class": classes[int(label[record["j"]])]}
            for pictures, label, what in sides
            for record in pixel_records(pictures, what)
        ]
        yield Artifact("full", seed, "gallery", cells)
    out = net.evidence(test.x[:1].to(job.device))
    (e,) = trust.explanations(out.distances, net.head.weight, report.nearest)
    yield Artifact("full", seed, "explanation", e.records(int(out.logits.argmax())))  # type: ignore[arg-type]


def prototype_plots(results: Results, *, ablations: Sequence[str], sizes: Sequence[str]) -> list[Plot]:
    """Gallery, ablation strip, accuracy by number of prototypes, one explanation."""
    out = []
    for a in results.artifacts("gallery"):
        classes = "class" if "class" in a["value"][0] else None  # runs of earlier versions left none
        caption = "Prototypes, by the class that each speaks for, and the nearest training rows, by their own."
        out.append(Plot(f"gallery-{a['protocol']}", strip(a["value"], color=classes), caption))
    for protocol in results.protocols:
        cells = [r | {"what": a["arm"]} for a in results.artifacts("drawn", protocol=protocol) for r in a["value"]]
        if cells := [r for r in cells if r["what"] in ablations]:
            out.append(Plot(f"ablation-{protocol}", strip(cells), "Decoded prototypes with terms left out."))
        spec = dots(results.select("accuracy", protocol=protocol, arms=sizes), "test accuracy, %", [*sizes])
        out.append(Plot(f"accuracy-{protocol}", spec, "Test accuracy by number of prototypes."))
    for a in results.artifacts("explanation"):
        x = alt.X("contribution:Q", title="added to the logit of the predicted class")
        bars = alt.Chart(alt.Data(values=a["value"])).mark_bar()
        spec = bars.encode(x, alt.Y("prototype:O", sort=alt.SortField("distance")), color="distance:Q").to_dict()
        out.append(Plot(f"explanation-{a['protocol']}", spec, "Why one test row got its class."))
    return out
