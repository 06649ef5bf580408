"""Rows, nets and scores of the study of sparse recurrent nets."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data import Split, Task, stream
from etude.data.reber import character_rows, reber_strings
from etude.lab.study import Job
from etude.layers.recurrent import GRU, LSTM, ElmanRNN
from etude.layers.sequence_classifier import SequenceClassifier

LONGEST = 60  # characters of a user's document that are read


def accuracy(net: nn.Module, rows: Split) -> float:
    """Right answers in points of 100."""
    net.eval()
    device = next(net.parameters()).device
    with torch.no_grad():
        parts = zip(rows.x.split(1000), rows.lengths.split(1000))
        picked = torch.cat([net(x.to(device), n.to(device)).argmax(-1).cpu() for x, n in parts])
    return 100 * float((picked == rows.y.cpu()).float().mean())


def string_loss(net: nn.Module, batch: Split) -> Tensor:
    """Cross-entropy at the last step."""
    return F.cross_entropy(net(batch.x, batch.lengths), batch.y)


def strings_for(job: Job, seed: int) -> Task:
    c = job.config
    if job.task is not None:
        task = job.task.task(seed, (0.7, 0.0, 0.3))
        parts = [character_rows(list(p.x), p.y, LONGEST) for p in (task.train, task.test)]
        return Task("documents", "documents", parts[0], test=parts[1], num_classes=task.num_classes)
    n = c.train_rows + c.test_rows
    strings, y = reber_strings(n + n % 2, (11, c.longest), generator=stream(seed, "task"))
    rows, test = character_rows(strings, y), slice(c.train_rows, n)
    parts = [rows.take(range(c.train_rows)), rows.take(range(c.train_rows, n))]
    return Task("reber", "strings", parts[0], test=parts[1], num_classes=2, meta={"test": strings[test]})


def classifier(cell: str, c: Any, classes: int) -> SequenceClassifier:
    sizes: dict[str, Any] = dict(num_layers=c.num_layers, batch_first=True)
    rnn: nn.Module
    if cell in ("gru", "lstm"):
        rnn = {"gru": GRU, "lstm": LSTM}[cell](c.embedding_dim, c.hidden_size, **sizes)
    else:
        rnn = ElmanRNN(c.embedding_dim, c.hidden_size, nonlinearity=cell, **sizes)
    return SequenceClassifier(rnn, 128, classes)
