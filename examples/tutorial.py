# %% [markdown]
# # From training to refined adapters
#
# Six small clients are trained here, two of them on bad data. Then `detect` finds the two,
# `refine` writes better adapters for the others, and both are measured on data that nobody
# trained on. It takes less than a minute on one core.
#
# The cells are those of `examples/tutorial.py`. Run it in a checkout with `python -m
# examples.tutorial`, or open it as a notebook in an editor that knows `# %%`. It needs `peft` and
# `transformers`.

# %%
from pathlib import Path
from tempfile import mkdtemp

from clair_cli import Settings, detect, refine
from examples.text_copy.evaluate import as_text, average, evaluate
from examples.text_copy.task import CohortPlan
from examples.text_copy.train import RECIPE, default_base, make_cohort, one_thread

one_thread()
home = Path(mkdtemp())

# %% [markdown]
# ## Train
#
# The base copies letters. Four clients learn "the next letter", each with some letters swapped.
# One of the others was given random targets, and one a cipher of its own. Each adapter is saved
# as PEFT saves it, into a folder of the client's name.

# %%
plan = CohortPlan(clients=6, contaminated=("random", "cipher"), swaps=2, seed=7)
specs = make_cohort(home / "round", plan)
truth = sorted(spec.name for spec in specs if not spec.benign)

# %% [markdown]
# ## Detect
#
# clair sees the folder and nothing else: no data, no base, no truth.

# %%
report = detect(home / "round")
for client in report.clients:
    print(client.client, client.verdict, client.score, [r.code for r in client.reasons])
found = sorted(c.client for c in report.clients if c.verdict == "contaminated")
print("found", found, "- true", truth)

# %% [markdown]
# ## Look
#
# The same as a page for people: `clair detect round -o html=page.html`, where your clair has that
# format. On a screen, `clair detect round --explain CLIENT` tells why. [The reason
# codes](../docs/reference/reasons.md) say what each code means.

# %% [markdown]
# ## Refine
#
# The clients do related tasks with little data each, and we know it. That is worth saying.

# %%
refined = refine(home / "round", home / "refined", Settings(tasks="related"))
print(sorted(path.name for path in (home / "refined").iterdir()))

# %% [markdown]
# ## Evaluate
#
# Loss and token accuracy of the benign clients, each on fresh samples of its own task. Lower loss
# is better.

# %%
table = evaluate(home / "round", specs, default_base(RECIPE), home / "refined")
print(as_text(table))
losses = {method: average(column.values()).loss for method, column in table.items()}
