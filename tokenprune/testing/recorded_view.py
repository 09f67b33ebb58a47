"""A `View` made of given tensors: run a pruner without a model, for tests, golden vectors and documentation."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from tokenprune import dual
from tokenprune.errors import IncompatibleError, UndeclaredNeedError
from tokenprune.pruner import ModelFacts, Pruner, Rows, Site

SITE = Site("layer", 2)
FACTS = ModelFacts(family="recorded", num_layers=32, encoder_layers=24, has_cls=True, encoder_read_layer=22)


@dataclass(frozen=True)
class Recording:
    """What was seen of B units of N visual tokens; whatever is not given cannot be asked for.

    One recording serves every decoder or encoder layer that is asked for. Shapes as in `tokenprune.pruner.View`.

    Args:
        tokens: N.
        hidden: (B, N, D).
        projected: (B, N, D).
        keys: With RoPE, (B, G, N, d).
        keys_nope: Without RoPE, (B, G, N, d).
        values: (B, G, N, d).
        queries: With RoPE, (B, H, R, d) by row name (`last`, `text`, `visual`).
        queries_nope: Without RoPE, by row name.
        masks: Real rows, (B, R) bool, by row name; a name that is missing means that all rows are real.
        attention: Probabilities over the whole causal row, (B, H, R, N), by row name; made from queries, keys and
            `context_keys` where missing.
        attention_output: (B, H, R, d), by row name; made from the same where missing.
        context_keys: Keys of everything else that the rows see (with RoPE), (B, G, C, d).
        context_values: Its values, (B, G, C, d).
        text_keys: Keys of the text after the image, (B, G, T, d), taken for with and without RoPE alike.
        final_visual: Visual hidden states under the final norm, (B, N, D).
        final_text: Text hidden states under the final norm, (B, T, D).
        encoder_features: (B, N, C).
        cls_attention: (B, H, N).
        received_attention: (B, N).
        encoder_keys: (B, H, N, d).
        joint_image: (B, N, P).
        joint_text: (B, P).
        text_embeddings: (B, T, D).
        grid: Rows and columns of the token grid.
    """

    tokens: int
    hidden: Tensor | None = None
    projected: Tensor | None = None
    keys: Tensor | None = None
    keys_nope: Tensor | None = None
    values: Tensor | None = None
    queries: Mapping[str, Tensor] = field(default_factory=dict)
    queries_nope: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    attention: Mapping[str, Tensor] = field(default_factory=dict)
    attention_output: Mapping[str, Tensor] = field(default_factory=dict)
    context_keys: Tensor | None = None
    context_values: Tensor | None = None
    text_keys: Tensor | None = None
    final_visual: Tensor | None = None
    final_text: Tensor | None = None
    encoder_features: Tensor | None = None
    cls_attention: Tensor | None = None
    received_attention: Tensor | None = None
    encoder_keys: Tensor | None = None
    joint_image: Tensor | None = None
    joint_text: Tensor | None = None
    text_embeddings: Tensor | None = None
    grid: tuple[int, int] | None = None

    @property
    def units(self) -> int:
        """B, read from the first tensor that is there."""
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Mapping):
                value = next(iter(value.values()), None)
            if isinstance(value, Tensor):
                return value.shape[0]
        raise IncompatibleError("an empty recording has no units", hint="record at least one tensor")

    def unit(self, index: int) -> Recording:
        """One unit alone, as a recording with B = 1."""
        return self._map(lambda tensor: tensor[index : index + 1])

    def to(self, dtype: torch.dtype) -> Recording:
        """All floating-point tensors in another precision."""
        return self._map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def _map(self, change: Any) -> Recording:
        changed: dict[str, Any] = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                changed[entry.name] = change(value)
            elif isinstance(value, Mapping):
                changed[entry.name] = {name: change(tensor) for name, tensor in value.items()}
        return dataclasses.replace(self, **changed)


class RecordedView:
    """A `tokenprune.pruner.View` on a `Recording`; enforces declared needs as the engine does.

    Args:
        recording: The tensors.
        keep: K, rows that may stay of each unit.
        needs: What the pruner's spec declares; asking for anything else raises.
        site: Where the cut is said to be.
        facts: Shape of the model that is said to be there.
    """

    def __init__(
        self,
        recording: Recording,
        keep: int,
        needs: Iterable[str],
        *,
        site: Site = SITE,
        facts: ModelFacts = FACTS,
    ) -> None:
        self.site = site
        self.facts = facts
        self.units = recording.units
        self.tokens = recording.tokens
        self.original_tokens = recording.tokens
        self.keep = keep
        self._recording = recording
        self._needs = frozenset(needs)

    @classmethod
    def for_pruner(cls, recording: Recording, pruner: Pruner, keep: int, *, site: Site | None = None) -> RecordedView:
        """A view with the needs of this pruner's spec, at its first site unless told otherwise."""
        kind = pruner.spec.sites[0] if pruner.spec.sites else "input"
        default = Site(cast(Any, kind), getattr(pruner, "layer", 0) if kind == "layer" else 0)
        return cls(recording, keep, pruner.spec.needs, site=site or default)

    def hidden(self) -> Tensor:
        """Hidden states at the site, (B, N, D)."""
        return self._get("hidden", "hidden", self._recording.hidden)

    def projected(self) -> Tensor:
        """LLM input embeddings, (B, N, D)."""
        return self._get("projected", "projected", self._recording.projected)

    def keys(self, *, rope: bool, layer: int | None = None) -> Tensor:
        """Keys, (B, G, N, d)."""
        name = "keys" if rope else "keys_nope"
        return self._get("qkv", name, self._recording.keys if rope else self._recording.keys_nope)

    def values(self, *, layer: int | None = None) -> Tensor:
        """Values, (B, G, N, d)."""
        return self._get("qkv", "values", self._recording.values)

    def queries(self, rows: Rows = "text", *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Queries (B, H, R, d) and mask (B, R)."""
        recorded = self._recording.queries if rope else self._recording.queries_nope
        queries = self._get("qkv", f"queries of rows `{rows}`", recorded.get(rows))
        return queries, self._mask(rows, queries.shape[2])

    def attention(
        self,
        rows: Rows = "last",
        *,
        rope: bool = True,
        layer: int | None = None,
        support: Literal["causal", "visual"] = "causal",
    ) -> tuple[Tensor, Tensor]:
        """Attention probabilities (B, H, R, N) and mask (B, R)."""
        self._declared("attention")
        given = self._recording.attention.get(rows)
        if given is None:
            probabilities = self._probabilities(rows, rope)[0][..., : self.tokens]
        elif rope:
            probabilities = given.detach().float()
        else:
            raise IncompatibleError("the recorded attention has RoPE", hint="record queries and keys without it")
        if support == "visual":
            total = probabilities.sum(dim=-1, keepdim=True)
            probabilities = probabilities / total.clamp_min(torch.finfo(torch.float32).tiny)
        return probabilities, self._mask(rows, probabilities.shape[2])

    def attention_output(self, rows: Rows = "last", *, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Attention output (B, H, R, d) over the whole causal row, and mask (B, R)."""
        self._declared("attention")
        given = self._recording.attention_output.get(rows)
        if given is None:
            probabilities, values = self._probabilities(rows, True)
            given = probabilities @ values
        return given.detach().float(), self._mask(rows, given.shape[2])

    def final_hidden(self) -> tuple[Tensor, Tensor, Tensor]:
        """Visual and text hidden states under the final norm, and the text mask."""
        visual = self._get("final_norm", "final_visual", self._recording.final_visual)
        text = self._get("final_norm", "final_text", self._recording.final_text)
        return visual, text, self._mask("text", text.shape[1])

    def text_keys(self, *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys of the text after the image (B, G, T, d), and mask (B, T)."""
        keys = self._get("qkv", "text_keys", self._recording.text_keys)
        return keys, self._mask("text", keys.shape[2])

    def encoder_features(self) -> Tensor:
        """What the projector reads, (B, N, C)."""
        return self._get("encoder", "encoder_features", self._recording.encoder_features)

    def cls_attention(self, layer: int | None = None) -> Tensor:
        """CLS attention on the patches, (B, H, N)."""
        return self._get("encoder_attention", "cls_attention", self._recording.cls_attention)

    def received_attention(self, layer: int | None = None) -> Tensor:
        """Mean attention received by each patch, (B, N)."""
        return self._get("encoder_attention", "received_attention", self._recording.received_attention)

    def encoder_keys(self, layer: int | None = None) -> Tensor:
        """Encoder keys, (B, H, N, d)."""
        return self._get("encoder_attention", "encoder_keys", self._recording.encoder_keys)

    def joint_image(self) -> Tensor:
        """Joint-space patch embeddings, (B, N, P)."""
        return self._get("joint", "joint_image", self._recording.joint_image)

    def joint_text(self) -> Tensor:
        """Joint-space text embedding, (B, P)."""
        return self._get("joint", "joint_text", self._recording.joint_text)

    def text_embeddings(self) -> tuple[Tensor, Tensor]:
        """LLM input embeddings of the text (B, T, D), and mask (B, T)."""
        text = self._get("text", "text_embeddings", self._recording.text_embeddings)
        return text, self._mask("text", text.shape[1])

    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        self._declared("geometry")
        if self._recording.grid is None:
            raise IncompatibleError("`grid` was not recorded", hint="give it to the `Recording`")
        return self._recording.grid

    def coordinates(self) -> Tensor:
        """Row and column of each token, (B, N, 2)."""
        columns = self.grid()[1]
        index = torch.arange(self.tokens)
        places = torch.stack((index // columns, index % columns), dim=-1).float()
        return places.expand(self.units, -1, -1)

    def indices(self) -> Tensor:
        """Original index of each token, (B, N)."""
        return torch.arange(self.tokens).expand(self.units, -1)

    def fingerprints(self) -> tuple[int, ...]:
        """One integer per unit, made from its recorded tensors."""
        self._declared("fingerprint")
        return tuple(_fingerprint(self._recording.unit(index)) for index in range(self.units))

    def _declared(self, need: str) -> None:
        if need not in self._needs:
            raise UndeclaredNeedError(
                f"the pruner asked for `{need}`, which its spec does not declare",
                hint=f'add "{need}" to `needs` in its @pruner decorator',
            )

    def _get(self, need: str, name: str, tensor: Tensor | None) -> Tensor:
        self._declared(need)
        return self._recorded(name, tensor)

    def _recorded(self, name: str, tensor: Tensor | None) -> Tensor:
        if tensor is None:
            raise IncompatibleError(f"`{name}` was not recorded", hint="give it to the `Recording`")
        return tensor.detach().float()

    def _mask(self, rows: str, count: int) -> Tensor:
        mask = self._recording.masks.get(rows)
        return torch.ones(self.units, count, dtype=torch.bool) if mask is None else mask

    def _probabilities(self, rows: str, rope: bool) -> tuple[Tensor, Tensor]:
        """Probabilities over visual and context tokens (B, H, R, N + C), and the values of both, (B, H, N + C, d)."""
        recording = self._recording
        queries = self._recorded("queries", (recording.queries if rope else recording.queries_nope).get(rows))
        keys = self._recorded("keys", recording.keys if rope else recording.keys_nope)
        values = self._recorded("values", recording.values)
        if recording.context_keys is not None:
            keys = torch.cat((keys, recording.context_keys.float()), dim=2)
            values = torch.cat((values, self._recorded("context_values", recording.context_values)), dim=2)
        keys, values = (dual.expand_groups(x, queries.shape[1]) for x in (keys, values))
        return torch.softmax(queries @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5, dim=-1), values


def random_recording(
    seed: int = 0, *, units: int = 2, grid: tuple[int, int] = (6, 8), clusters: int = 6, text: int = 5
) -> Recording:
    """Clustered random tensors for everything that a view can give (D = C = 24, H = 4, G = 2, d = 8, P = 12).

    Args:
        seed: Same seed, same tensors; the global random state is left alone.
        units: B.
        grid: Rows and columns of the token grid; N is their product.
        clusters: Number of centres that the tokens scatter around.
        text: T, rows of text after the image.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]
    label = torch.randint(clusters, (units, tokens), generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def scattered(*lead: int, width: int) -> Tensor:
        """Tokens around cluster centres, (B, *lead, N, width)."""
        centres = 2.0 * normal(units, *lead, clusters, width)
        index = label.view(units, *(1 for _ in lead), tokens, 1).expand(units, *lead, tokens, width)
        return centres.gather(-2, index) + 0.3 * normal(units, *lead, tokens, width)

    heads, groups, width, hidden, joint = 4, 2, 8, 24, 12
    cls = torch.softmax(normal(units, heads, tokens + 1), dim=-1)[..., 1:]
    rows = {"last": 1, "text": text, "visual": tokens}
    return Recording(
        tokens=tokens,
        hidden=scattered(width=hidden),
        projected=scattered(width=hidden),
        keys=scattered(groups, width=width),
        keys_nope=scattered(groups, width=width),
        values=scattered(groups, width=width),
        queries={name: normal(units, heads, count, width) for name, count in rows.items()},
        queries_nope={name: normal(units, heads, count, width) for name, count in rows.items()},
        context_keys=normal(units, groups, text + 2, width),
        context_values=normal(units, groups, text + 2, width),
        text_keys=normal(units, groups, text, width),
        final_visual=scattered(width=hidden),
        final_text=normal(units, text, hidden),
        encoder_features=scattered(width=hidden),
        cls_attention=cls,
        received_attention=cls.mean(dim=1),
        encoder_keys=scattered(heads, width=width),
        joint_image=scattered(width=joint),
        joint_text=normal(units, joint),
        text_embeddings=normal(units, text, hidden),
        grid=grid,
    )


def _fingerprint(recording: Recording) -> int:
    digest = hashlib.sha256()
    for entry in dataclasses.fields(recording):
        value = getattr(recording, entry.name)
        if isinstance(value, Tensor):
            digest.update(value.detach().float().contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1
