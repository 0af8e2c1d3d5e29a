"""Clients' files, honest, damaged or hostile, drawn choice by choice from bytes or by hypothesis.

Whatever a choice falls back to is honest, so that an empty draw is a plain LoRA adapter.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Draw(Protocol):
    """Where choices come from."""

    def pick(self, options: Sequence[T]) -> T:
        """One of the options; the first where nothing is left to draw from."""


class ByteDraw:
    """Choices read off some bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = iter(data)

    def pick(self, options: Sequence[T]) -> T:
        return options[next(self.data, 0) % len(options)]


def seldom(draw: Draw) -> bool:
    """One time in sixteen."""
    return draw.pick([False] * 15 + [True])


# --- tensors

SIZES = {"o": 6, "i": 4, "r": 2, "k": 3, "1": 1, "a": 2, "b": 3, "c": 2, "d": 2, "e": 4, "R": 4}
"""o = a b outputs, i = c d inputs, rank r, kernel k, R = two experts of rank r."""
LORA = {"lora_A.weight": "ri", "lora_B.weight": "or"}
KOHYA = {"lora_down.weight": "ri", "lora_up.weight": "or", "alpha": ""}
HADA = {"hada_w1_a": "or", "hada_w1_b": "ri", "hada_w2_a": "or", "hada_w2_b": "ri"}
FAMILIES: dict[str, dict[str, str]] = {
    "LORA": LORA,
    "dora": LORA | {"lora_magnitude_vector": "o"},
    "lora_bias": LORA | {"lora_B.bias": "o"},
    "conv": {"lora_A.weight": "rikk", "lora_B.weight": "or11"},
    "embedding": {"lora_embedding_A": "ri", "lora_embedding_B": "or"},
    "named": {"lora_A.default.weight": "ri", "lora_B.default.weight": "or"},
    "experts": {"lora_A.weight": "Ri", "lora_B.weight": "oR"},
    "kasa": LORA | {"lora_diag": "r"},
    "ADALORA": {"lora_A": "ri", "lora_B": "or", "lora_E": "r1"},
    "LOHA": HADA,
    "tucker": {"hada_t1": "rrkk", "hada_t2": "rrkk"}
    | dict(zip(HADA, ("ro", "ri") * 2, strict=True)),
    "LOKR": {"lokr_w1": "ac", "lokr_w2": "bd"},
    "lokr halves": {"lokr_w1_a": "ar", "lokr_w1_b": "rc", "lokr_w2_a": "br", "lokr_w2_b": "rd"},
    "lokr tucker": {"lokr_w1": "ac", "lokr_t2": "rrkk", "lokr_w2_a": "rb", "lokr_w2_b": "rd"},
    "VERA": {"vera_lambda_b": "o", "vera_lambda_d": "r"},
    "MISS": {"miss_block": "ro"},
    "DELORA": {"delora_A": "ri", "delora_B": "or", "delora_lambda": "1", "delora_w_norm": "i"},
    "GRALORA": {"gralora_A": "ccr", "gralora_B": "crb"},
    "HIRA": {"hira_A": "ri", "hira_B": "or"},
    "SHIRA": {"shira_weight": "e", "shira_indices": "ce"},
    "IA3": {"ia3_l": "o1"},
    "OFT": {"oft_R.weight": "ce"},
    "kohya": KOHYA,
    "locon": KOHYA | {"lora_mid.weight": "rrkk"},
    "dora_scale": KOHYA | {"dora_scale": "o1"},
    "lycoris loha": HADA | {"alpha": ""},
    "full": {"diff": "oi", "diff_b": "o"},
    "diffusers": {"lora.down.weight": "ri", "lora.up.weight": "or"},
    "text encoder": {"lora_linear_layer.down.weight": "ri", "lora_linear_layer.up.weight": "or"},
    "mlx": {"lora_a": "ir", "lora_b": "ro"},
    "mlx experts": {"lora_a": "cri", "lora_b": "cor"},
    "mlx dora": {"lora_a": "ir", "lora_b": "ro", "m": "o"},
    "torchtune": {"lora_a.weight": "ri", "lora_b.weight": "or", "magnitude": "o"},
    "plain": {"weight": "oi", "bias": "o"},
    "sketch": {"left": "or", "right": "ir"},
}
OWN = {
    "experts": "base_model.model.model.layers.1.mlp.experts",
    "embedding": "base_model.model.embed_tokens",
    "mlx": "model.layers.0.self_attn.v_proj",
    "mlx experts": "model.layers.0.mlp.switch_mlp.up_proj",
    "mlx dora": "model.layers.0.self_attn.v_proj",
    "diffusers": "unet.down_blocks.0.to_q",
    "text encoder": "text_encoder.layers.0.q_proj",
} | dict.fromkeys(
    ("kohya", "locon", "dora_scale", "lycoris loha", "full"),
    "lora_unet_down_blocks_0_attentions_0_to_q",
)
"""What a module is called where it is not called as in PEFT."""
SHARED = {"vera_A": "ri", "vera_B": "or"}
ROLES = sorted({role for family in FAMILIES.values() for role in family} | SHARED.keys())
MODULES = (
    "base_model.model.model.layers.0.self_attn.q_proj",
    "base_model.model.model.layers.1.mlp.experts",
    "base_model.model.model.layers.1.mlp.experts.base_layer",
    "base_model.model.embed_tokens",
    "model.layers.0.self_attn.v_proj",
    "lora_unet_down_blocks_0_attentions_0_to_q",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "unet.down_blocks.0.to_q",
    "transformer.blocks.0.to_q",
    "text_encoder.layers.0.q_proj",
    "diffusion_model.blocks.0.q",
    "module._orig_mod.base_model.model.x",
    "base_model.model",
    "base_model",
    "",
    ".",
    "..",
    "../../etc/passwd",
    "\x1b[31mred\x1b]0;x\x07",
    "[/bold]\u202eevil",
    "two\nlines\r\n::error::",
    "n" * 400,
)
DTYPES = ("F64", "F16", "BF16", "I64", "F8_E4M3", "F4", "BOOL", "C64", "F128", 7)
BITS = {"F64": 64, "I64": 64, "C64": 64, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F4": 4, "BOOL": 8}
FILLS = ("zero", "one", "ff", "inf", "max", "tiny")
BYTES = {"ff": b"\xff", "inf": b"\0\0\x80\x7f", "max": b"\xff\xff\x7f\x7f", "tiny": b"\1\0\0\0"}
BYTES |= {"zero": b"\0", "one": b"\0\0\x80\x3f"}
NOISE = bytes(
    b for i in range(4096) for b in (i * 37 % 251, i * 91 % 255, i % 128, 0x3E + i % 2 * 128)
)
NUMBERS = (0, 1, 2, 3, 5, 64, 2**20, 2**31, 2**62, 2**63, 2**64, -1, 10**30, True, 1.5, "2", None)
FLOATS = ("F32", "F32", "F16", "BF16")
Tensors = dict[str, tuple[Any, list[Any], bytes]]
"""Name -> dtype, shape, bytes."""


def tensors(draw: Draw) -> tuple[str, Tensors]:
    """A family and its tensors for one to three modules, some of them changed."""
    family = draw.pick(list(FAMILIES))
    found: Tensors = {}
    for _ in range(draw.pick((1, 2, 3))):
        own = draw.pick((OWN.get(family, MODULES[0]), *MODULES[:11]))
        module = draw.pick(MODULES) if seldom(draw) else own
        for role, dims in FAMILIES[family].items():
            if not seldom(draw):
                usual = ("F16",) if role in FAMILIES["sketch"] else FLOATS
                found[f"{module}.{role}"] = _tensor(draw, dims, usual)
    if family == "VERA":
        found |= {f"base_model.{role}": _tensor(draw, dims) for role, dims in SHARED.items()}
    while seldom(draw) or seldom(draw):
        found[f"{draw.pick(MODULES)}.{draw.pick(ROLES)}"] = _tensor(draw, "oi")
    return family, found


def _tensor(draw: Draw, dims: str, usual: Sequence[str] = FLOATS) -> tuple[Any, list[Any], bytes]:
    dtype = draw.pick(DTYPES) if seldom(draw) else draw.pick(usual)
    shape = [SIZES[d] for d in dims]
    if seldom(draw):
        shape = draw.pick((shape[::-1], shape[1:], [*shape, 1], [0, *shape[1:]], [1] * 70, [7, 5]))
    count = BITS.get(str(dtype), 32) * math.prod(shape) // 8
    fill = draw.pick(FILLS) if seldom(draw) else "noise"
    data = NOISE if fill == "noise" else BYTES[fill]
    return dtype, shape, (data * (count // len(data) + 1))[:count]


# --- containers


def safetensors(draw: Draw, found: Tensors) -> bytes:
    """A file of these tensors, seldom one whose header lies."""
    entries, at = [], 0
    for name, (dtype, shape, data) in found.items():
        lies = seldom(draw)
        dims = [draw.pick((n, draw.pick(NUMBERS))) for n in shape] if lies else shape
        offsets = [at, draw.pick((at + len(data), draw.pick(NUMBERS))) if lies else at + len(data)]
        entries.append((name, {"dtype": dtype, "shape": dims, "data_offsets": offsets}))
        at += len(data)
    if entries and seldom(draw):
        entries.append(entries[0])
    entries.insert(0, ("__metadata__", metadata(draw, found)))
    text = ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries)
    head = f"{{{text}}}".encode()
    length = draw.pick(NUMBERS[:11]) if seldom(draw) else len(head)
    return (length % 2**64).to_bytes(8, "little") + head + b"".join(t[2] for t in found.values())


METADATA: tuple[Any, ...] = (
    {"format": "pt"},
    {"format": "mlx"},
    {"ss_network_dim": "2", "ss_network_alpha": "1", "ss_network_module": "networks.lora"},
    {"ss_network_dim": "1e400", "ss_network_alpha": "nan", "ss_network_args": "{"},
    {"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 4, "r": 2, "lora_alpha": 4}'},
    {"lora_adapter_metadata": '{"unet.r": 1, "unet.r": 2}'},
    {"lora_adapter_metadata": '{"unet.alpha_pattern": {"(a+)+": 1}, "unet.rank_pattern": [1]}'},
    {"lora_adapter_metadata": "[" * 100_000},
    {"lora_adapter_metadata": '{"unet.lora_alpha": NaN, "r": 1e999}'},
    {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "\x1b[31m": "\u202e"},
    {},
    {"a": 1},
    [],
    None,
)


def metadata(draw: Draw, found: Tensors) -> Any:
    """What lies under __metadata__; beside sides of sketches mostly what belongs to them."""
    names = [name.removesuffix(".left") for name in found if name.endswith(".left")]
    if not names or seldom(draw):
        return draw.pick(METADATA)
    modules = [
        {"name": n, "d_out": 6, "d_in": 4, "rank": 2, "norm": draw.pick((1.0, 0.0, 1e300, -1.0, 2))}
        for n in names
    ]
    head: dict[str, Any] = {"version": 1, "tool": "clair", "size": 8, "seed": 0, "client": "x"}
    head |= {"base": None, "format": "peft", "traits": {}, "files": [], "modules": modules}
    if seldom(draw):
        head[draw.pick(list(head))] = draw.pick(NUMBERS)
    return {"format": "clair-sketch", "sketch": json.dumps(head)}


def npz(draw: Draw, found: Tensors) -> bytes:
    """An .npz of these tensors, some headers of which lie."""
    kinds = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "BF16": "|V2", "BOOL": "|b1"}
    out = io.BytesIO()
    method = draw.pick((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(out, "w", method) as file:
        for number, (name, (dtype, shape, data)) in enumerate(found.items()):
            descr = kinds.get(dtype, draw.pick(("<f4", "|O", "<U3", "<q4", ">f4")))
            dims = tuple(draw.pick(NUMBERS) if seldom(draw) else n for n in shape)
            order = draw.pick((False, True, 1))
            text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {dims}, }}".encode()
            text += b" " * (-(len(text) + 11) % 64) + b"\n"
            member = draw.pick((name.replace("\0", ""), f"arr_{number}")) + ".npy"
            head = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little")
            file.writestr(zipfile.ZipInfo(member), head + text + data, compress_type=method)
    return out.getvalue()


def damaged(draw: Draw, data: bytes) -> bytes:
    """Mostly as it is; seldom cut off, extended, or with bytes changed."""
    if not seldom(draw):
        return data
    found = bytearray(data)
    for _ in range(draw.pick((1, 2, 8))):
        if found:
            at = draw.pick(range(256)) * 256 + draw.pick(range(256))
            found[at % len(found)] = draw.pick(range(256))
    return bytes(found[: len(found) - draw.pick((0, 1, 8, 100))]) + draw.pick(
        (b"", b"x", b"PK\5\6")
    )


# --- configs

KINDS = (
    *("LORA", "ADALORA", "LOHA", "LOKR", "VERA", "MISS", "BONE", "DELORA", "GRALORA", "HIRA"),
    *("SHIRA", "IA3", "OFT", "BOFT", "HRA", "VBLORA", "FOURIERFT", "RANDLORA", "XLORA", "C3A"),
    *("LN_TUNING", "ROAD", "TRAINABLE_TOKENS", "PROMPT_TUNING", "PREFIX_TUNING", "POLY", "WAVEFT"),
    *("lora", "", None, 1, [], "\x1b[31m"),
)
FIELDS = (
    *("r", "lora_alpha", "alpha", "init_r", "target_r", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "bias"),
    *("init_lora_weights", "init_weights", "target_modules", "target_parameters", "auto_mapping"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "layer_replication"),
    *("modules_to_save", "base_model_name_or_path", "peft_type", "trust_remote_code", "auto_map"),
    *("rank_dropout_scale", "use_effective_conv2d", "decompose_both", "decompose_factor"),
    *(
        "projection_prng_key",
        "save_projection",
        "d_initial",
        "gralora_k",
        "hybrid_r",
        "delora_lambda",
    ),
    *(
        "fine_tune_type",
        "lora_parameters",
        "num_layers",
        "loftq_config",
        "eva_config",
        "kasa_config",
    ),
    *(
        "arrow_config",
        "velora_config",
        "corda_config",
        "nblocks",
        "mini_r",
        "bias_only",
        "revision",
    ),
)
TUNERS = {"tucker": "LOHA", "lokr halves": "LOKR", "lokr tucker": "LOKR"}
SAID: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "experts": {"target_parameters": ["mlp.experts.down_proj"]},
}
MLX = {"rank": 2, "scale": 20.0, "dropout": 0.0}
VALUES: tuple[Any, ...] = (
    *(
        2,
        4,
        1,
        8.5,
        0,
        -1,
        True,
        False,
        None,
        "",
        "x",
        "true",
        "pissa",
        "all-linear",
        10**9,
        10**39,
    ),
    *(1e-320, 1e308, -0.0, float("nan"), float("inf"), [], {}, [1], ["q_proj"], [[0, 4]], {"a": 1}),
    *(
        {"q_proj": 2},
        {"q_proj": 1},
        {".*": 2},
        {"(a+)+$": 1},
        {"(.*.*)*Z": 1},
        {"(": 1},
        {"q_proj": -1},
    ),
    *({"base_model.model.model.layers.0.self_attn.q_proj.lora_E": [True, False]}, {"": 2}),
    *(MLX, {"rank": True, "scale": "x"}, {"parent_library": "os"}),
    *({"a": {"b": {"c": [[[[]]]]}}}, "\x1b]0;x\x07\u202e", "n" * 3000, ["q_proj"] * 50, "(a|a)*$"),
)


def config(draw: Draw, family: str) -> bytes:
    """A config that goes with the family, some of its fields changed."""
    kind = TUNERS.get(family, family if family in KINDS else "LORA")
    found: dict[str, Any] = {"peft_type": kind, "r": 2, "lora_alpha": 4, "alpha": 4, "init_r": 2}
    found |= SAID.get(family, {})
    if family.startswith("mlx"):
        found = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": dict(MLX)}
    if seldom(draw):
        found["peft_type"] = draw.pick(KINDS)
    while draw.pick((False, False, False, True)):
        found[draw.pick(FIELDS)] = draw.pick(VALUES)
    text = json.dumps(found)
    if seldom(draw):
        text = draw.pick((text[:-1] + ',"r":3}', "[" * 100_000, text[:-3], f"[{text}]", "", "nul"))
    return damaged(draw, text.encode())


# --- folders

PLACES = (
    *[WEIGHTS] * 12,
    *("pytorch_lora_weights.safetensors", "adapters.safetensors", "my lora.safetensors"),
    *("checkpoint-7/" + WEIGHTS, "rep-1/" + WEIGHTS, "default/" + WEIGHTS, "model.safetensors"),
    *("adapter_model-00001-of-00001.safetensors", "adapter_model-00001-of-00002.safetensors"),
    *("adapter_model.bin", "snapshots/main/" + WEIGHTS, "round-1-weights.npz"),
)


def files(draw: Draw) -> dict[str, bytes]:
    """What lies in one client's folder: relative path -> bytes."""
    place = draw.pick(PLACES)
    family, found = tensors(draw)
    pack = npz if place.endswith(".npz") else safetensors
    made = {place: damaged(draw, pack(draw, found))}
    if not seldom(draw):
        made[str(Path(place).with_name(CONFIG))] = config(draw, family)
    if seldom(draw):
        made[draw.pick(PLACES)] = safetensors(draw, tensors(draw)[1])
    return made


def write(folder: Path, made: dict[str, bytes]) -> Path:
    """These files below the new `folder`."""
    folder.mkdir(parents=True)
    for name, data in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
