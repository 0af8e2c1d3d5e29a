"""What other projects make of a folder of adapters, each as a whole process: files in, answer out.

python -m benchmarks.beside_peers NAME ROOT OUT BAD

ROOT/<client>/ are plain LoRA adapters of one rank, as PEFT saves them. OUT/answer.json says whom the
peer names, None where its answer has no room for that. A rule that must know how many clients are
contaminated is told BAD. Every function imports what it needs, so that a peer pays for itself alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Named = list[str] | None
Work = Callable[[Path, Path, int], Named]
"""Of ROOT, OUT, BAD."""
UP, DOWN = ".lora_B.weight", ".lora_A.weight"
PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


def clients(root: Path) -> list[str]:
    return sorted(p.parent.name for p in root.glob(f"*/{WEIGHTS}"))


def files(root: Path) -> list[dict[str, Tensor]]:
    return [load_file(root / name / WEIGHTS) for name in clients(root)]


def scale(root: Path) -> float:
    """lora_alpha over the rank, which all clients share."""
    config = json.loads((root / clients(root)[0] / "adapter_config.json").read_text())
    return float(config["lora_alpha"]) / float(config["r"])


def shapes(root: Path) -> dict[str, tuple[int, int]]:
    """Module -> (d_out, d_in)."""
    first = load_file(root / clients(root)[0] / WEIGHTS)
    names = [key.removesuffix(UP) for key in first if key.endswith(UP)]
    return {n: (len(first[n + UP]), first[n + DOWN].shape[1]) for n in names}


def flat(root: Path) -> Tensor:
    """The factors of every client as one row, (K, d)."""
    rows = [[t.float().flatten() for _, t in sorted(one.items())] for one in files(root)]
    return torch.stack([torch.cat(row) for row in rows])


def dense(root: Path) -> Tensor:
    """Delta W of all modules of every client as one row, (K, d), formed in place."""
    everyone, by = files(root), scale(root)
    each = shapes(root)
    rows = torch.empty(len(everyone), sum(out * into for out, into in each.values()))
    for row, one in zip(rows, everyone, strict=True):
        parts = row.split([out * into for out, into in each.values()])
        for part, (name, shape) in zip(parts, each.items(), strict=True):
            up, down = one[name + UP].float(), one[name + DOWN].float()
            torch.matmul(by * up, down, out=part.view(shape))
    return rows


def columns(root: Path) -> Iterator[Tensor]:
    """Delta W of one module after the other, a column per client, (d, K)."""
    everyone, by = files(root), scale(root)
    for name, (out, into) in shapes(root).items():
        found = torch.empty(out * into, len(everyone))
        for k, one in enumerate(everyone):
            up, down = one[name + UP].float(), one[name + DOWN].float()
            found[:, k] = (by * up @ down).flatten()
        yield found


# PEFT


def base(root: Path) -> nn.Module:
    """A model of nothing but the linear layers that the adapters change, in bfloat16."""
    model = nn.Module()
    for name, (out, into) in shapes(root).items():
        *path, last = name.removeprefix(PREFIX).split(".")
        at = model
        for part in path:
            if part not in dict(at.named_children()):
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.add_module(last, nn.Linear(into, out, bias=False, dtype=torch.bfloat16))
    return model


def peft(combination: str, root: Path, out: Path, bad: int, **options: Any) -> Named:
    """All adapters on the base, merged with equal weights by `add_weighted_adapter`, and saved."""
    from peft import PeftModel

    names = clients(root)
    model = PeftModel.from_pretrained(base(root), root / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(root / name, adapter_name=name)
    if combination.endswith("svd"):
        rank = model.peft_config[names[0]].r
        options |= {"svd_rank": rank, "svd_full_matrices": False}
    weights = [1 / len(names)] * len(names)
    model.add_weighted_adapter(names, weights, "all", combination_type=combination, **options)
    model.save_pretrained(out, selected_adapters=["all"], save_embedding_layers=False)
    return None


# chorus-fl


def chorus(name: str, root: Path, out: Path, bad: int) -> Named:
    """Its server's step: who is an outlier by norm, then the aggregate of the others."""
    from chorus.server.aggregation import detect_outlier_deltas, get_strategy

    everyone = files(root)
    odd = detect_outlier_deltas(everyone)
    kept = [one for k, one in enumerate(everyone) if k not in odd]
    save_file(get_strategy(name).aggregate(kept), out / "aggregate.safetensors")
    return [clients(root)[k] for k in odd]


# byzfl


def byzfl(view: Callable[[Path], Tensor], rule: str, root: Path, out: Path, bad: int) -> Named:
    """One vector for all, of rows of `view`."""
    from benchmarks.byzfl_alone import aggregators

    library: Any = aggregators()
    aggregate = library.MultiKrum(f=bad) if rule == "MultiKrum" else library.GeometricMedian()
    save_file({"vector": aggregate(view(root))}, out / "aggregate.safetensors")
    return None


# robust PCA, one module after the other


def furthest(root: Path, energies: Sequence[Tensor], bad: int) -> Named:
    """The `bad` clients of which most is called an outlier, by the mean share over the modules."""
    shares = torch.stack(list(energies)).mean(dim=0)
    return [clients(root)[k] for k in shares.topk(bad).indices.tolist()]


def pursuit(root: Path, out: Path, bad: int) -> Named:
    """Outlier pursuit, told which share of the clients is contaminated."""
    from benchmarks.outlier_pursuit import outlier_pursuit

    found = []
    for matrix in columns(root):
        outliers = outlier_pursuit(matrix, bad / matrix.shape[1])[1]
        found.append((outliers.norm(dim=0) / matrix.norm(dim=0)).square())
    return furthest(root, found, bad)


def entries(root: Path, out: Path, bad: int) -> Named:
    """Principal component pursuit: single entries are outliers."""
    from skpcp import PCP

    found = []
    for matrix in columns(root):
        rows = matrix.T.contiguous().numpy()
        sparse = torch.from_numpy(PCP().fit(rows).sparse_)
        found.append((sparse.norm(dim=1) / matrix.norm(dim=0)).square())
    return furthest(root, found, bad)


WORK: dict[str, Work] = {
    "peft-svd": partial(peft, "svd"),
    "peft-ties-svd": partial(peft, "ties_svd", density=0.2),
    "peft-dare-svd": partial(peft, "dare_linear_svd", density=0.2),
    "peft-dare": partial(peft, "dare_linear", density=0.2),
    "chorus-fedex": partial(chorus, "fedex-lora"),
    "chorus-fedavg": partial(chorus, "fedavg"),
    "krum-dense": partial(byzfl, dense, "MultiKrum"),
    "median-dense": partial(byzfl, dense, "GeometricMedian"),
    "krum-flat": partial(byzfl, flat, "MultiKrum"),
    "median-flat": partial(byzfl, flat, "GeometricMedian"),
    "pursuit": pursuit,
    "pcp": entries,
}


def main(name: str, root: str, out: str, bad: str) -> None:
    with torch.no_grad():
        named = WORK[name](Path(root), Path(out), int(bad))
    (Path(out) / "answer.json").write_text(json.dumps(named))


if __name__ == "__main__":
    main(*sys.argv[1:])
