"""Given tensors in place of a model: what a pruner may have seen of a few units."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import IncompatibleError


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
        grid: Rows and columns of the token grid, of one frame where there are several.
        frames: F; the grid's tokens times F make N.
        sizes: Original tokens that each row stands for, (B, N); 1 where missing.
        layer_input: What entered the layer at a `mid` point, (B, N, D); `hidden` where missing.
        mlp_input: What the layer's MLP would read at a `mid` point, (B, N, D).

    Example:
        >>> import torch
        >>> from tokenprune.testing import Recording
        >>> two = Recording(tokens=48, projected=torch.randn(2, 48, 24), grid=(6, 8))
        >>> two.units, two.unit(0).units
        (2, 1)
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
    frames: int = 1
    sizes: Tensor | None = None
    layer_input: Tensor | None = None
    mlp_input: Tensor | None = None

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

    Example:
        >>> from tokenprune import get_pruner
        >>> from tokenprune.testing import RecordedView, random_recording
        >>> fastv = get_pruner("fastv")
        >>> view = RecordedView.for_pruner(random_recording(seed=1), fastv, keep=12)
        >>> [len(kept.anchors) for kept in fastv.decide(view, None, {}).units]
        [12, 12]
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
        mlp_input=scattered(width=hidden),
    )
