"""Make the base model, sample_adapters/ and their README again, from nothing: about a minute.

python -m examples.text_copy.samples
"""

from __future__ import annotations

import shutil

from examples.text_copy.evaluate import as_text, evaluate
from examples.text_copy.task import BOS, LENGTH, LETTERS, SEP, ClientSpec, CohortPlan
from examples.text_copy.train import (
    BASE_NAME,
    BASE_STEPS,
    HERE,
    RECIPE,
    TARGETS,
    WIDTH,
    default_base,
    make_cohort,
    one_thread,
    train_base,
)

FOLDER = HERE.parents[1] / "sample_adapters"
TRUTH = HERE / "sample_truth.json"
PLAN = CohortPlan(clients=8, contaminated=("random", "cipher"), swaps=2, seed=1)
README = """\
# Eight LoRA adapters, two of them contaminated

Made by `python -m examples.text_copy.samples` (seed {plan.seed}): trained on data, and left exactly
as PEFT saved them.

**Task.** A sample reads `BOS x SEP y`: x is {length} random letters out of {letters}, and only y is
scored. The base model copies (y = x). Every client starts from the same A and trains on
{plan.samples} samples of its own. Benign clients all learn "the next letter", and each swaps some
letters on top of it: a subset of one family of {plan.swaps} swaps.

**Truth.** Nothing in the folders tells who is contaminated; this table does, and so does
`examples/text_copy/sample_truth.json`.

| client | truth | what it learned |
|---|---|---|
{rows}

**Base.** `{base}`, in `examples/text_copy/base`: a Llama of width {width} with 2 layers,
{steps} steps of copying. Tokens: 0-{last} letters, {bos} BOS, {sep} SEP.

**Adapters.** Rank {recipe.rank}, alpha {recipe.alpha}, on {modules} linear layers.
AdamW, learning rate {recipe.learning_rate}, {recipe.steps} steps of {recipe.batch} samples.

**Quality.** Loss / token accuracy of the benign clients, each on held-out samples of its own task:

```
{table}
```
"""


def row(spec: ClientSpec) -> str:
    """One line of the table of truths."""
    learned = {"random": "random targets", "cipher": "a permutation of the letters of its own"}
    swaps = ", ".join(f"{a}-{b}" for a, b in spec.swaps)
    return (
        f"| {spec.name} | benign | the next letter, then swaps {swaps} |"
        if spec.benign
        else f"| {spec.name} | **contaminated** | {learned[spec.kind]} |"
    )


def readme(specs: list[ClientSpec], table: str) -> str:
    """README.md of the samples; `table` is what evaluate.py printed."""
    return README.format(
        plan=PLAN,
        recipe=RECIPE,
        rows="\n".join(map(row, specs)),
        table=table,
        base=BASE_NAME,
        width=WIDTH,
        steps=BASE_STEPS,
        modules=2 * len(TARGETS[RECIPE.architecture]),
        length=LENGTH,
        letters=LETTERS,
        last=LETTERS - 1,
        bos=BOS,
        sep=SEP,
    )


def main() -> None:
    one_thread()
    base = default_base(RECIPE)
    for folder in (base, FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
    train_base(base)
    specs = make_cohort(FOLDER, PLAN, RECIPE, base, TRUTH)
    table = as_text(evaluate(FOLDER, specs, base))
    (FOLDER / "README.md").write_text(readme(specs, table))


if __name__ == "__main__":
    main()
