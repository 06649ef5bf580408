"""Neural bandits on digits (K = 10, d = 64): ours beside the loops in which public baselines are written.

The first peer follows the public NeuralUCB baseline: block contexts of length K d, one backward pass an arm for the
exploration bonus, and every tenth round single-row gradient steps over everything stored until the mean loss is 1e-3
or 2,000 steps are done. The second does the same work a round as ours (one step on 32 rows), one seed after another.
Regrets are not compared here: the settings differ, and the study compares policies at equal settings.
"""

import torch
from torch import nn

from etude.data import load_images, seeded_build, stream
from etude.decision import BanditSettings, ClassificationBandit, simulate
from etude.lab.bench import Case

K, ROUNDS, WIDTH = 10, 60, 64


def _network(inputs: int, seed: int) -> nn.Sequential:
    build = lambda: nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))  # noqa: E731
    return seeded_build(build, stream(seed, "init"))


def _blocks(x: torch.Tensor) -> torch.Tensor:
    """(K, K d): the context in each arm's block."""
    return torch.einsum("d,kl->kld", x, torch.eye(K)).flatten(1)


def _public_ucb(env: ClassificationBandit, seed: int, rounds: int, lam: float = 0.1, nu: float = 0.001) -> float:
    drawn = env.rounds(seed, rounds)
    net = _network(K * env.n_features, seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    u = lam * torch.ones(sum(p.numel() for p in net.parameters()))
    stored: list[tuple[torch.Tensor, torch.Tensor]] = []
    order = stream(seed, "replay")
    mistakes = 0.0
    for t in range(rounds):
        arms = _blocks(drawn.contexts[t])
        scores, gradients = [], []
        for value in net(arms):
            net.zero_grad()
            value.backward(retain_graph=True)
            g = torch.cat([p.grad.flatten() for p in net.parameters()])
            gradients.append(g)
            scores.append(value.item() + torch.sqrt((lam * nu * g * g / u).sum()).item())
        arm = max(range(K), key=scores.__getitem__)
        u += gradients[arm] * gradients[arm]
        loss = drawn.losses[t, arm]
        mistakes += float(loss)
        stored.append((arms[arm], 1 - loss))
        if t % 10 == 0:
            steps = 0
            while steps < 2000:
                total = 0.0
                for i in torch.randperm(len(stored), generator=order).tolist():
                    x, reward = stored[i]
                    optimizer.zero_grad()
                    error = (net(x)[0] - reward) ** 2
                    error.backward()
                    optimizer.step()
                    total += error.item()
                    steps += 1
                    if steps >= 2000:
                        break
                if total / len(stored) <= 1e-3:
                    break
    return mistakes


def _plain_squarecb(env: ClassificationBandit, seed: int, rounds: int) -> float:
    drawn = env.rounds(seed, rounds)
    net = _network(K * env.n_features, seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    x = torch.zeros(rounds, K * env.n_features)
    y = torch.zeros(rounds)
    draws, mistakes = stream(seed, "actions"), 0.0
    for t in range(rounds):
        arms = _blocks(drawn.contexts[t])
        with torch.no_grad():
            predicted = net(arms)[:, 0].clamp(0, 1)
        p = 1 / (K + 10 * (K * (t + 1)) ** 0.5 * (predicted - predicted.min()))
        best = int(predicted.argmin())
        p[best] = 0
        p[best] = 1 - p.sum()
        arm = int(torch.multinomial(p, 1, generator=draws))
        x[t], y[t] = arms[arm], drawn.losses[t, arm]
        mistakes += float(y[t])
        rows = torch.cat([torch.randint(t + 1, (31,), generator=draws), torch.tensor([t])])
        optimizer.zero_grad()
        (0.5 * (net(x[rows])[:, 0] - y[rows]) ** 2).mean().backward()
        optimizer.step()
    return mistakes


def cases() -> list[Case]:
    """Rounds of four seeds against the public loop, of twenty against a plain loop over them."""
    digits = load_images("digits")
    env = ClassificationBandit(digits.x, digits.y)
    ucb = BanditSettings("ucb", nu=0.001, lr=0.3)
    square = BanditSettings("squarecb", "sqrt", gamma_scale=10.0, lr=0.3, c_p=0.0)
    return [
        Case(
            f"UCB, 4 seeds, {ROUNDS} rounds",
            lambda: simulate(env, ucb, range(4), ROUNDS),
            lambda: [_public_ucb(env, seed, ROUNDS) for seed in range(4)],
            "per-sample loop of the public NeuralUCB baseline",
            None,
            10.0,
        ),
        Case(
            f"SquareCB, 20 seeds, {ROUNDS} rounds, one step of 32 rows a round",
            lambda: simulate(env, square, range(20), ROUNDS),
            lambda: [_plain_squarecb(env, seed, ROUNDS) for seed in range(20)],
            "the same work, one seed after another (plain torch)",
            None,
            3.0,
        ),
    ]
