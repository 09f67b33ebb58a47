"""A `View` made of given tensors: run a pruner without a model, for tests, golden vectors and documentation."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

from tokenprune import dual
from tokenprune.errors import IncompatibleError, UndeclaredNeedError
from tokenprune.pruner import ModelFacts, Pruner, Rows, Site
from tokenprune.testing.recording import Recording
from tokenprune.view import Heads, Support

SITE = Site("layer", 2)
FACTS = ModelFacts(family="recorded", num_layers=32, encoder_layers=24, has_cls=True, encoder_read_layer=22)


class RecordedView:
    """A `tokenprune.pruner.View` on a `Recording`; enforces declared needs as the engine does.

    Args:
        recording: The tensors.
        keep: K, rows that may stay of each unit.
        needs: What the pruner's spec declares; asking for anything else raises.
        site: Where the cut is said to be.
        facts: Shape of the model that is said to be there.

    Example:
        >>> import torch
        >>> from tokenprune import get_pruner
        >>> from tokenprune.testing import RecordedView, Recording
        >>> features = torch.eye(4).unsqueeze(0)[:, [0, 0, 1, 2]]  # (B, N, D); tokens 0 and 1 are the same
        >>> divprune = get_pruner("divprune")
        >>> view = RecordedView.for_pruner(Recording(tokens=4, projected=features), divprune, keep=3)
        >>> divprune.decide(view, None, {}).units[0].anchors.tolist()
        [0, 2, 3]
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
        return cls(recording, keep, pruner.needs, site=site or default)

    def hidden(self) -> Tensor:
        """Hidden states at the site, (B, N, D)."""
        return self._get("hidden", "hidden", self._recording.hidden)

    def projected(self) -> Tensor:
        """LLM input embeddings, (B, N, D)."""
        return self._get("projected", "projected", self._recording.projected)

    def layer_input(self) -> Tensor:
        """What entered the layer, (B, N, D)."""
        recorded = self._recording.layer_input
        return self.hidden() if recorded is None else self._get("hidden", "layer_input", recorded)

    def mlp_input(self) -> Tensor:
        """What the layer's MLP would read, (B, N, D)."""
        return self._get("hidden", "mlp_input", self._recording.mlp_input)

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
        support: Support = "causal",
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

    def attention_received(
        self,
        rows: Rows = "visual",
        *,
        rope: bool = True,
        layer: int | None = None,
        support: Support = "causal",
        heads: Heads = "mean",
    ) -> Tensor:
        """Attention that each visual token receives from the named rows, mean over the real rows, (B, N)."""
        self._declared("attention")
        recording = self._recording
        queries = (recording.queries if rope else recording.queries_nope).get(rows)
        if recording.attention.get(rows) is not None or queries is None:
            attention, mask = self.attention(rows, rope=rope, layer=layer, support=support)
            return self._received(attention, mask, heads) / mask.sum(dim=1, keepdim=True).clamp_min(1)
        mask = self._mask(rows, queries.shape[2])
        total = torch.zeros(self.units, self.tokens)
        for part in dual.tiles(queries.shape[2], queries.shape[1] * self.tokens):
            cut = {str(rows): queries[:, :, part]}
            few = dataclasses.replace(recording, masks={}, queries=cut, queries_nope=cut)
            view = RecordedView(few, self.keep, self._needs, site=self.site, facts=self.facts)
            attention, _ = view.attention(rows, rope=rope, layer=layer, support=support)
            total += self._received(attention, mask[:, part], heads)
        return total / mask.sum(dim=1, keepdim=True).clamp_min(1)

    @staticmethod
    def _received(attention: Tensor, mask: Tensor, heads: Heads) -> Tensor:
        """Sum of the real rows (B, H, r, N), pooled over the heads, (B, N)."""
        pooled = attention.amax(dim=1) if heads == "max" else attention.mean(dim=1)
        return (pooled * mask.unsqueeze(-1)).sum(dim=1)

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

    def frames(self) -> int:
        """F, frames of each unit."""
        self._declared("geometry")
        return self._recording.frames

    def coordinates(self) -> Tensor:
        """Row and column of each token, (B, N, 2)."""
        rows, columns = self.grid()
        cell = self.indices() % (rows * columns)
        return torch.stack((cell // columns, cell % columns), dim=-1).float()

    def sizes(self) -> Tensor:
        """Original tokens that each row stands for, (B, N)."""
        recorded = self._recording.sizes
        return torch.ones(self.units, self.tokens) if recorded is None else recorded.float()

    def ids(self) -> tuple[int, ...]:
        """0, 1, ... in the recording's order."""
        return tuple(range(self.units))

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


def _fingerprint(recording: Recording) -> int:
    digest = hashlib.sha256()
    for entry in dataclasses.fields(recording):
        value = getattr(recording, entry.name)
        if isinstance(value, Tensor):
            digest.update(value.detach().float().contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1
