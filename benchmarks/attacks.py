"""Attacks planted on trained benign adapters: what the attackers send in place of their own.

The attackers know every benign update. A target is computed on the dense updates, in float64, and
then realised as an adapter: cut to the attacker's rank, brought back to the norm it was meant to have
(sign-like and full-rank targets lose most of theirs in the cut), and put in a random gauge. The
modules here are tiny; with large ones linear combinations would stay factored. What is scaled,
renamed or padded stays exact. Where all attackers of the literature send one update, each sends it in
a gauge of its own.

Not here: label flips and backdoors, which are trained (pools.py), and attackers that search along
clair's score.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from benchmarks.saved import Saved

Benign = list[Saved]
"""The benign clients of the cohort, which the attackers know."""
Strength = Literal["strong", "medium", "weak", "copy"]
Make = Callable[[list[Saved], Benign, Generator], list[Saved]]
"""The m honest adapters of the attackers, the benign ones, draws -> the m adapters they send."""
Shares = Callable[[list[str], Generator], list[str]]
"""All modules, draws -> those that an attacker poisons."""


@dataclass(frozen=True, slots=True)
class Attack:
    """`name` begins with the id of the catalogue; `strength` says how far from honest it is."""

    name: str
    strength: Strength
    make: Make

    @property
    def id(self) -> str:
        """As in `A5`."""
        return self.name.split()[0]


@dataclass(frozen=True, slots=True)
class View:
    """One module in the attackers' eyes: `own` (m, d_out, d_in), `benign` (n, d_out, d_in), float64."""

    own: Tensor
    benign: Tensor
    rank: int

    @property
    def mean(self) -> Tensor:
        """Of the benign updates, (d_out, d_in)."""
        return self.benign.mean(0)

    @property
    def std(self) -> Tensor:
        """Of each coordinate over the benign updates, dividing by n, (d_out, d_in)."""
        return self.benign.std(0, correction=0)

    @property
    def norm(self) -> Tensor:
        """Median Frobenius norm of the benign updates."""
        return _norms(self.benign).median()

    def same(self, update: Tensor) -> Tensor:
        """One update (d_out, d_in) for all attackers, (m, d_out, d_in)."""
        return update.expand_as(self.own)

    def noise(self, norm: Tensor | float, generator: Generator) -> Tensor:
        """Products of Gaussian factors, one for each attacker, of Frobenius norm `norm` exactly."""
        attackers, d_out, d_in = self.own.shape
        noise = _normal(generator, attackers, d_out, self.rank) @ _normal(
            generator, attackers, self.rank, d_in
        )
        return norm * noise / _norms(noise)


Views = dict[str, View]
Target = Callable[[Views, Generator], dict[str, Tensor]]
"""The modules, draws -> module -> the updates that the attackers want, (m, d_out, d_in)."""
ModuleTarget = Callable[[View, Generator], Tensor]


def views(own: list[Saved], benign: Benign) -> Views:
    """Module -> the dense updates of both."""
    return {
        m: View(_stacked(own, m), _stacked(benign, m), b.shape[1])
        for m, (b, _) in own[0].factors.items()
    }


def _stacked(adapters: list[Saved], module: str) -> Tensor:
    """(clients, d_out, d_in), exact in float64."""
    pairs = [(a.scale, *a.factors[module]) for a in adapters]
    return torch.stack([scale * (b.double() @ a.double()) for scale, b, a in pairs])


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthonormal(generator: Generator, *shape: int) -> Tensor:
    """Random orthonormal columns, (..., d, r)."""
    return torch.linalg.qr(_normal(generator, *shape))[0]


def _norms(updates: Tensor) -> Tensor:
    """Frobenius norms, (..., 1, 1)."""
    return torch.linalg.matrix_norm(updates, keepdim=True)


# From a wanted update to an adapter


def truncated(dense: dict[str, Tensor], like: Saved) -> Saved:
    """The nearest adapter of the ranks, scale and dtype of `like`: a truncated SVD per module."""
    factors = {}
    for module, (b, _) in like.factors.items():
        u, s, vh = torch.linalg.svd(dense[module].double(), full_matrices=False)
        rank, root = b.shape[1], s.sqrt()
        up, down = u * root, root[:, None] * vh / like.scale
        factors[module] = (up[:, :rank].to(b.dtype), down[:rank].to(b.dtype))
    return replace(like, factors=factors)


def regauged(adapter: Saved, generator: Generator) -> Saved:
    """(B G, G^-1 A) with a random G per module, of condition number 4 at most."""
    factors = {}
    for module, (b, a) in adapter.factors.items():
        rank = b.shape[1]
        left, right = orthonormal(generator, 2, rank, rank)
        stretch = 2 ** (2 * torch.rand(rank, generator=generator, dtype=torch.float64) - 1)
        gauge, inverse = left * stretch @ right.T, right / stretch @ left.T
        factors[module] = ((b.double() @ gauge).to(b), (inverse @ a.double()).to(a))
    return replace(adapter, factors=factors)


def realised(dense: dict[str, Tensor], like: Saved, generator: Generator) -> Saved:
    """`truncated`, with the norm that `dense` has in each module, in a random gauge."""
    cut = truncated(dense, like)
    factors = {}
    for module, (b, a) in cut.factors.items():
        norm = (like.scale * (b.double() @ a.double())).norm()
        factors[module] = ((b * (dense[module].norm() / norm)).to(b.dtype), a)
    return regauged(replace(cut, factors=factors), generator)


def scaled(adapter: Saved, by: float) -> Saved:
    """The update times `by`, in B."""
    return replace(adapter, factors={m: (by * b, a) for m, (b, a) in adapter.factors.items()})


def widened(adapter: Saved, more: dict[str, tuple[Tensor, Tensor]]) -> Saved:
    """`more` (d_out, r), (r, d_in) beside the factors: rank 2 r, and twice the alpha for one scale."""
    config = adapter.config
    return Saved(
        {
            m: (torch.cat([b, more[m][0].to(b)], 1), torch.cat([a, more[m][1].to(a)]))
            for m, (b, a) in adapter.factors.items()
        },
        config | {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]},
    )


# From a rule to an attack


def planted(target: Target) -> Make:
    """Every attacker sends its part of the target, realised."""

    def make(own: list[Saved], benign: Benign, generator: Generator) -> list[Saved]:
        wanted = target(views(own, benign), generator)
        return [
            realised({m: updates[k] for m, updates in wanted.items()}, adapter, generator)
            for k, adapter in enumerate(own)
        ]

    return make


def each(rule: ModuleTarget) -> Target:
    """The same rule in every module."""
    return lambda modules, generator: {m: rule(view, generator) for m, view in modules.items()}


def changed(change: Callable[[Saved], Saved], gauge: bool = True) -> Make:
    """Every attacker sends its own adapter, changed exactly; in a random gauge unless told otherwise."""
    return lambda own, _, generator: [
        regauged(change(a), generator) if gauge else change(a) for a in own
    ]


# The rules


def alie(z: float | None) -> Target:
    """mean + z std per coordinate; None: mean - z_max std (Baruch et al., NeurIPS 2019)."""

    def rule(view: View, _: Generator) -> Tensor:
        factor = -z_max(len(view.own), len(view.benign)) if z is None else z
        return view.same(view.mean + factor * view.std)

    return each(rule)


def z_max(attackers: int, benign: int) -> float:
    """The largest z at which enough benign clients lie further out; the attackers are a minority."""
    supporters = (attackers + benign) // 2 + 1 - attackers
    return max(0.0, NormalDist().inv_cdf((benign - supporters) / benign))


def spread(direction: Callable[[Views], dict[str, Tensor]], total: bool = False) -> Target:
    """mean + gamma * direction over all modules together, with the largest gamma that hides it.

    Min-Max: no benign client is further from it than two benign ones from each other. `total`,
    Min-Sum: the sum of its squared distances is no larger than that of some benign client (Shejwalkar
    & Houmansadr, NDSS 2021). Both are quadratic in gamma, so the largest is a root, not a search.
    """

    def target(modules: Views, _: Generator) -> dict[str, Tensor]:
        towards = direction(modules)
        off = _vectors({m: v.benign - v.mean for m, v in modules.items()})  # (n, p)
        step = _vectors({m: d[None] for m, d in towards.items()})[0]  # (p,)
        distances = torch.cdist(off, off, compute_mode="donot_use_mm_for_euclid_dist").square()
        square, along, free = step @ step, off @ step, -off.square().sum(1)
        if total:
            square, along, free = len(off) * square, along.sum(), free.sum()
            free = free + distances.sum(1).max()
        else:
            free = free + distances.max()
        gamma = ((along + (along.square() + square * free).sqrt()) / square).min()
        return {m: v.same(v.mean + gamma * towards[m]) for m, v in modules.items()}

    return target


def against_std(modules: Views) -> dict[str, Tensor]:
    """-std of each coordinate."""
    return {m: -v.std for m, v in modules.items()}


def against_mean(modules: Views) -> dict[str, Tensor]:
    """-mean; its length does not matter, gamma takes it."""
    return {m: -v.mean for m, v in modules.items()}


def against_sign(modules: Views) -> dict[str, Tensor]:
    """-sign of the mean."""
    return {m: -v.mean.sign() for m, v in modules.items()}


def _vectors(stacks: dict[str, Tensor]) -> Tensor:
    """(clients, coordinates of all modules)."""
    return torch.cat([s.flatten(1) for s in stacks.values()], 1)


def fang(view: View, generator: Generator, b: float = 2) -> Tensor:
    """Past the benign extreme against the mean's sign, by up to `b` (Fang et al., USENIX Sec. 2020)."""
    up = view.mean > 0
    edge = torch.where(up, view.benign.amin(0), view.benign.amax(0))
    far = torch.where((edge > 0) == up, edge / b, edge * b)
    draws = torch.rand(view.own.shape, generator=generator, dtype=torch.float64)
    return edge + draws * (far - edge)


def mimic(modules: Views, generator: Generator) -> dict[str, Tensor]:
    """The benign client furthest out on the widest direction, with jitter.

    Karimireddy, He & Jaggi, ICLR 2022; their warm-up finds that client over rounds, here it is known.
    """
    off = _vectors({m: v.benign - v.mean for m, v in modules.items()})
    chosen = int(torch.linalg.eigh(off @ off.T)[1][:, -1].abs().argmax())
    return {m: _jittered(v, v.benign[chosen], generator) for m, v in modules.items()}


def _jittered(view: View, update: Tensor, generator: Generator) -> Tensor:
    """`update` for all attackers, each with noise of a thousandth of the benign norm."""
    return update + view.noise(1e-3 * view.norm, generator)


def collusion(rho: float, q: int = 2) -> Target:
    """(1 - rho) own + rho N U C V': U and V common to the colluders, of rank q, C each one's own."""

    def rule(view: View, generator: Generator) -> Tensor:
        attackers, d_out, d_in = view.own.shape
        u, v = orthonormal(generator, d_out, q), orthonormal(generator, d_in, q)
        c = _normal(generator, attackers, q, q)
        return (1 - rho) * view.own + rho * view.norm * (u @ (c / _norms(c)) @ v.T)

    return each(rule)


def disguised(view: View, generator: Generator) -> Tensor:
    """Benign mean, and noise up to the benign norm (after Fraboni, Vidal & Lorenzi, AISTATS 2021)."""
    rest = (view.norm.square() - view.mean.square().sum()).clamp(min=0).sqrt()
    return view.mean + view.noise(rest, generator)


def orthogonal(view: View, generator: Generator) -> Tensor:
    """Benign norm, own spectrum, off the 2 r leading directions of the benign updates on both sides."""
    _, d_out, d_in = view.own.shape
    spectrum = torch.linalg.svdvals(view.own)[:, None, : view.rank]  # (m, 1, r)
    left = _off(view.benign.transpose(0, 1).reshape(d_out, -1), view, generator)
    right = _off(view.benign.reshape(-1, d_in).T, view, generator)
    update = left * spectrum @ right.mT
    return view.norm * update / _norms(update)


def _off(columns: Tensor, view: View, generator: Generator) -> Tensor:
    """Random orthonormal columns (m, d, r) off the leading directions of `columns` (d, any)."""
    basis = torch.linalg.svd(columns)[0][:, 2 * view.rank :]  # (d, d - 2 r)
    return basis @ orthonormal(generator, len(view.own), basis.shape[1], view.rank)


def partly(share: Shares, rule: ModuleTarget) -> Target:
    """`rule` in a share of the modules, drawn for each attacker; honest in the others."""

    def target(modules: Views, generator: Generator) -> dict[str, Tensor]:
        attackers = len(next(iter(modules.values())).own)
        chosen = [share(list(modules), generator) for _ in range(attackers)]
        wanted = {}
        for module, view in modules.items():
            poisoned = torch.tensor([module in c for c in chosen])[:, None, None]
            wanted[module] = torch.where(poisoned, rule(view, generator), view.own)
        return wanted

    return target


def quarter(modules: list[str], generator: Generator) -> list[str]:
    """A quarter of the modules, rounded up."""
    order = torch.randperm(len(modules), generator=generator).tolist()
    return [modules[k] for k in order[: -(-len(modules) // 4)]]


def one(modules: list[str], generator: Generator) -> list[str]:
    """A single module."""
    return quarter(modules, generator)[:1]


def first_layer(modules: list[str], _: Generator) -> list[str]:
    """The modules of the first layer."""
    first = min(map(layer, modules))
    return [m for m in modules if layer(m) == first]


def layer(module: str) -> int:
    """The layer number in a module's name."""
    found = re.search(r"\.(\d+)\.", module)
    if found is None:
        raise ValueError(f"no layer number in {module!r}")
    return int(found[1])


def noise(factor: float) -> ModuleTarget:
    """Gaussian low-rank noise of `factor` times the benign norm (Blanchard et al., NeurIPS 2017)."""
    return lambda view, generator: view.noise(factor * view.norm, generator)


def extra_directions(factor: float) -> Make:
    """Own update exactly, and noise of `factor` times the benign norm in r further columns: rank 2 r."""

    def make(own: list[Saved], benign: Benign, generator: Generator) -> list[Saved]:
        wanted = each(noise(factor))(views(own, benign), generator)
        sent = []
        for k, adapter in enumerate(own):
            more = truncated({m: updates[k] for m, updates in wanted.items()}, adapter)
            sent.append(regauged(widened(adapter, more.factors), generator))
        return sent

    return make


def in_subspace(view: View, _: Generator, q: int = 3) -> Tensor:
    """mean - t U U' own, U the q widest directions of the benign deviations, up to the benign 90 % norm.

    After LoRA-FL (TMLR submission 7820): the goal is a sign flip, hidden where benign clients vary.
    """
    off = view.benign - view.mean
    u = torch.linalg.svd(off.transpose(0, 1).flatten(1), full_matrices=False)[0][:, :q]
    flip = -(u @ (u.T @ view.own))
    square, along = flip.square().sum((1, 2), keepdim=True), (flip * view.mean).sum((1, 2), True)
    free = (torch.quantile(_norms(view.benign), 0.9) ** 2 - view.mean.square().sum()).clamp(min=0)
    return view.mean + (-along + (along.square() + square * free).sqrt()) / square * flip


def with_entry(adapter: Saved, value: float) -> Saved:
    """One entry of the first module's B is `value`."""
    module, (b, a) = next(iter(adapter.factors.items()))
    b = b.clone()
    b[0, 0] = value
    return replace(adapter, factors=adapter.factors | {module: (b, a)})


def next_layers(adapter: Saved) -> Saved:
    """Every layer holds the factors of the next one, the last those of the first."""
    numbers = sorted({layer(m) for m in adapter.factors})
    after = dict(zip(numbers, numbers[1:] + numbers[:1], strict=True))
    return replace(
        adapter,
        factors={
            m: adapter.factors[re.sub(r"\.\d+\.", f".{after[layer(m)]}.", m, count=1)]
            for m in adapter.factors
        },
    )


def swapped_q_and_k(adapter: Saved) -> Saved:
    """q_proj holds the factors of k_proj and the other way round; in c_attn their thirds of the rows."""
    other = {"q_proj": "k_proj", "k_proj": "q_proj"}
    factors = {}
    for module in adapter.factors:
        start, _, last = module.rpartition(".")
        b, a = adapter.factors[f"{start}.{other.get(last, last)}"]
        if last == "c_attn":
            q, k, v = b.chunk(3)
            b = torch.cat([k, q, v])
        factors[module] = (b, a)
    return replace(adapter, factors=factors)


def configured(adapter: Saved, **fields: Any) -> Saved:
    """Honest tensors under another config."""
    return replace(adapter, config=adapter.config | fields)


def alpha(factor: float) -> Make:
    """lora_alpha times `factor`, so that the update is that much larger."""
    return changed(lambda a: configured(a, lora_alpha=factor * a.config["lora_alpha"]), gauge=False)


ATTACKS: tuple[Attack, ...] = (
    Attack("A1 noise 0.3x", "weak", planted(each(noise(0.3)))),
    Attack("A1 noise 1x", "strong", planted(each(noise(1)))),
    Attack("A1 noise 3x", "strong", planted(each(noise(3)))),
    Attack("A1 own + noise 1x", "weak", planted(each(lambda v, g: v.own + noise(1)(v, g)))),
    Attack("A2 sign flip", "strong", changed(lambda a: scaled(a, -1))),
    Attack("A3 boost x3", "strong", changed(lambda a: scaled(a, 3))),
    Attack("A3 boost x10", "strong", changed(lambda a: scaled(a, 10))),
    Attack("A5 ALIE z=+1.5", "medium", planted(alie(1.5))),
    Attack("A5 ALIE z=-1.5", "medium", planted(alie(-1.5))),
    Attack("A5 ALIE z_max", "weak", planted(alie(None))),
    Attack("A6 IPM eps=0.1", "weak", planted(each(lambda v, _: v.same(-0.1 * v.mean)))),
    Attack("A6 IPM eps=0.5", "strong", planted(each(lambda v, _: v.same(-0.5 * v.mean)))),
    Attack("A6 IPM eps=2", "strong", planted(each(lambda v, _: v.same(-2 * v.mean)))),
    Attack("A7 Min-Max std", "weak", planted(spread(against_std))),
    Attack("A7 Min-Max unit", "weak", planted(spread(against_mean))),
    Attack("A7 Min-Max sign", "weak", planted(spread(against_sign))),
    Attack("A8 Min-Sum std", "weak", planted(spread(against_std, total=True))),
    Attack("A9b Fang trimmed mean b=2", "weak", planted(each(fang))),
    Attack("A10 mimic", "copy", planted(mimic)),
    Attack("A11 collusion rho=0.3", "weak", planted(collusion(0.3))),
    Attack("A11 collusion rho=0.5", "medium", planted(collusion(0.5))),
    Attack("A11 collusion rho=1", "strong", planted(collusion(1))),
    Attack("A13 zero update", "strong", changed(lambda a: scaled(a, 0))),
    Attack("A13 benign mean", "weak", planted(each(lambda v, _: v.same(v.mean)))),
    Attack("A13 benign mean + noise", "weak", planted(each(disguised))),
    Attack("A14 orthogonal subspace", "strong", planted(each(orthogonal))),
    Attack("A15 noise in a quarter", "medium", planted(partly(quarter, noise(1)))),
    Attack("A15 sign flip in a quarter", "medium", planted(partly(quarter, lambda v, _: -v.own))),
    Attack("A15 noise in the first layer", "weak", planted(partly(first_layer, noise(1)))),
    Attack("A15 noise in one module", "weak", planted(partly(one, noise(1)))),
    Attack("A16 rank 2r, tiny noise", "weak", extra_directions(0.01)),
    Attack("A16 rank 2r, noise 1x", "weak", extra_directions(1)),
    Attack(
        "A16 config says rank 2r",
        "weak",
        changed(lambda a: configured(a, r=2 * a.config["r"]), gauge=False),
    ),
    Attack("A17 in the benign subspace", "weak", planted(each(in_subspace))),
    Attack("A18 one NaN", "strong", changed(lambda a: with_entry(a, torch.nan), gauge=False)),
    Attack("A18 one Inf", "strong", changed(lambda a: with_entry(a, torch.inf), gauge=False)),
    Attack("A18 one 3e38", "strong", changed(lambda a: with_entry(a, 3e38), gauge=False)),
    Attack("A19 layers moved by one", "weak", changed(next_layers)),
    Attack("A19 q and k swapped", "weak", changed(swapped_q_and_k)),
    Attack("A20 alpha x0.25", "weak", alpha(0.25)),
    Attack("A20 alpha x2", "strong", alpha(2)),
    Attack("A20 alpha x4", "strong", alpha(4)),
    Attack("A21 copies of one", "copy", lambda own, _, __: [own[0]] * len(own)),
    Attack(
        "A21 jittered copies of one",
        "copy",
        planted(each(lambda v, g: _jittered(v, v.own[0], g))),
    ),
)
