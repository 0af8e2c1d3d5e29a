"""Train a cohort of LoRA adapters on text copying: one folder per client, as PEFT saves it.

python -m examples.text_copy.train --out DIR --clients 8 --contaminated random,cipher
"""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

import torch
from peft import LoraConfig, get_peft_model
from torch import Generator, Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
)
from transformers.utils.logging import disable_progress_bar

from examples.text_copy.task import (
    BOS,
    HETEROGENEITIES,
    VOCABULARY,
    ClientSpec,
    CohortPlan,
    Kind,
    copying_data,
    training_data,
)

HERE = Path(__file__).resolve().parent
BASE_NAME = "text-copy-base"  # what adapter_config.json calls the base: a name, never a path
BASE_STEPS = 120  # copies well; trained for longer, it grows too certain for averaged adapters
WIDTH = 64  # of the base model that comes with the repository
Architecture = Literal["llama", "gpt2"]
TARGETS: dict[str, list[str]] = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],  # Conv1D: weights stored (in, out)
}
log = logging.getLogger("text_copy")
Record = TypeVar("Record", CohortPlan, "Recipe")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How each client trains its adapter."""

    rank: int = 8
    alpha: int = 16
    steps: int = 120
    batch: int = 16
    learning_rate: float = 2e-3
    width: int = WIDTH  # of the base model
    architecture: Architecture = "llama"


PLAN, RECIPE = CohortPlan(), Recipe()


def make_cohort(
    out: Path,
    plan: CohortPlan = PLAN,
    recipe: Recipe = RECIPE,
    base: Path | None = None,
    truth: Path | None = None,
    replicates: int = 0,
) -> list[ClientSpec]:
    """Train every client of the plan into `out`/<client>/, and write down who is who.

    The base model of the recipe is read from `base`, or trained there when it is missing.
    The truth goes to `truth`, by default `out`.truth.json, beside the folder and never in it.
    `replicates` as for `train_client`.
    """
    base = base or default_base(recipe)
    ensure_base(base, recipe)
    specs = plan.specs()
    for spec in specs:
        train_client(spec, recipe, base, out / spec.name, replicates)
        log.info("%s: %s", out.name, spec.name)
    write_truth(truth or truth_path(out), plan, recipe, specs)
    return specs


def train_client(
    spec: ClientSpec, recipe: Recipe, base: Path, out: Path, replicates: int = 0
) -> None:
    """Train one adapter on top of the base model and save it to the folder `out`.

    So many `replicates` from the same first A, each on a part of the client's samples that no other
    has, go to `out`/rep-1, `out`/rep-2, ...
    """
    train_adapter(spec, recipe, base, training_data(spec), out)
    for number in range(1, replicates + 1):
        train_adapter(spec, recipe, base, part(spec, number, replicates), out / f"rep-{number}")


def part(spec: ClientSpec, number: int, parts: int) -> tuple[Tensor, Tensor]:
    """The training data's `number`-th of `parts` runs of samples, counted from 1."""
    ids, labels = (rows.tensor_split(parts)[number - 1] for rows in training_data(spec))
    return ids, labels


def train_adapter(
    spec: ClientSpec, recipe: Recipe, base: Path, data: tuple[Tensor, Tensor], out: Path
) -> None:
    """Train an adapter of the client on these ids and labels, both (samples, 2 + 2 LENGTH)."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.name_or_path = model.config.name_or_path = BASE_NAME
    targets = TARGETS[recipe.architecture]
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=recipe.architecture == "gpt2",
    )
    torch.manual_seed(spec.init_seed)
    adapted = get_peft_model(model, config)
    fit(adapted, client_batches(spec, recipe, data), recipe.learning_rate)
    config.target_modules = targets  # PEFT made it a set, saved in another order each time
    adapted.save_pretrained(str(out), save_embedding_layers=False)


def client_batches(
    spec: ClientSpec, recipe: Recipe, data: tuple[Tensor, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """`recipe.steps` random batches of `data`: token ids and labels, (batch, 2 + 2 LENGTH)."""
    ids, labels = data
    generator = Generator().manual_seed(spec.seed)
    for _ in range(recipe.steps):
        rows = torch.randint(len(ids), (recipe.batch,), generator=generator)
        yield ids[rows], labels[rows]


def fit(
    model: torch.nn.Module, batches: Iterable[tuple[Tensor, Tensor]], learning_rate: float
) -> None:
    """One AdamW step per batch, on every parameter that asks for a gradient."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=learning_rate, weight_decay=0.0)
    model.train()
    for ids, labels in batches:
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def default_base(recipe: Recipe) -> Path:
    """Where a recipe's base model is kept; the Llama of width WIDTH is in the repository."""
    if (recipe.architecture, recipe.width) == ("llama", WIDTH):
        return HERE / "base"
    return HERE / f"base-{recipe.architecture}-{recipe.width}"


def ensure_base(path: Path, recipe: Recipe) -> None:
    """Train the recipe's base model into `path`, unless it is there already."""
    if not (path / "config.json").exists():
        train_base(path, recipe)
    found = AutoConfig.from_pretrained(path)
    if (found.model_type, found.hidden_size) != (recipe.architecture, recipe.width):
        raise ValueError(
            f"{path} has a {found.model_type} base of width {found.hidden_size}, not "
            f"{recipe.architecture} of {recipe.width}: give another --base"
        )


def train_base(path: Path, recipe: Recipe = RECIPE, seed: int = 0) -> None:
    """Train a small model of two layers to copy, and save it to `path`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(base_config(recipe))
    generator = Generator().manual_seed(seed)
    fit(model, (copying_data(64, generator) for _ in range(BASE_STEPS)), learning_rate=2e-3)
    model.save_pretrained(path)


def base_config(recipe: Recipe) -> PretrainedConfig:
    """Two layers and four heads of the recipe's architecture and width."""
    if recipe.architecture == "gpt2":
        return GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=recipe.width,
            n_layer=2,
            n_head=4,
            n_positions=64,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=BOS,
            eos_token_id=None,
        )
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.width,
        intermediate_size=2 * recipe.width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=None,
    )


def truth_path(out: Path) -> Path:
    """Beside the folder of adapters, never in it."""
    return out.parent / f"{out.name}.truth.json"


def write_truth(
    path: Path, plan: CohortPlan | None, recipe: Recipe, specs: list[ClientSpec]
) -> None:
    """Write the names of the contaminated clients and everything the cohort was made from."""
    truth = {
        "contaminated": [spec.name for spec in specs if not spec.benign],
        "plan": plan and asdict(plan),
        "recipe": asdict(recipe),
        "clients": [asdict(spec) for spec in specs],
    }
    path.write_text(json.dumps(truth, indent=2) + "\n")


def read_truth(path: Path) -> list[ClientSpec]:
    """The clients that `write_truth` wrote down."""
    entries = json.loads(path.read_text())["clients"]
    return [ClientSpec(**{**e, "swaps": tuple(map(tuple, e["swaps"]))}) for e in entries]


def parse_kinds(text: str) -> tuple[Kind, ...]:
    """Comma-separated contaminations; `CohortPlan` checks the names."""
    return cast(tuple[Kind, ...], tuple(filter(None, text.split(","))))


def parse_arguments() -> Namespace:
    """Options named like the fields of `CohortPlan` and `Recipe`, and two paths."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the adapters")
    add("--clients", type=int, default=PLAN.clients)
    add("--contaminated", type=parse_kinds, default=(), help="kinds, one per client: random,cipher")
    add("--heterogeneity", choices=HETEROGENEITIES, default=PLAN.heterogeneity)
    add("--family-size", "--swaps", dest="swaps", type=int, default=PLAN.swaps)
    add("--samples", type=int, default=PLAN.samples, help="of each client")
    add("--fraction", type=float, default=PLAN.fraction, help="for corrupt and backdoor")
    add("--seed", type=int, default=PLAN.seed)
    add("--different-init", action="store_true", help="every client its own first A")
    add("--rank", type=int, default=RECIPE.rank)
    add("--alpha", type=int, help="default: 2 * rank")
    add("--steps", type=int, default=RECIPE.steps)
    add("--batch", type=int, default=RECIPE.batch)
    add("--learning-rate", type=float, default=RECIPE.learning_rate)
    add("--width", type=int, default=RECIPE.width, help="of the base model")
    add("--architecture", choices=get_args(Architecture), default=RECIPE.architecture)
    add("--base", type=Path, help="base model; trained here if missing")
    add("--replicates", type=int, default=0, help="2: of each half of a client's samples")
    given = parser.parse_args()
    given.alpha = given.alpha or 2 * given.rank
    return given


def pick(record: type[Record], given: Namespace) -> Record:
    """The record whose fields carry the names of the options."""
    return record(**{field.name: getattr(given, field.name) for field in fields(record)})


def one_thread() -> None:
    """The same numbers on every run, and no speed lost: the model is tiny."""
    torch.set_num_threads(1)
    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)


def main() -> None:
    one_thread()
    given = parse_arguments()
    plan, recipe = pick(CohortPlan, given), pick(Recipe, given)
    make_cohort(given.out, plan, recipe, given.base, replicates=given.replicates)


if __name__ == "__main__":
    main()
