"""What a pruner may read: the needs that its spec declares, and the `View` that provides them.

Shape letters as in `tokenprune.pruner`, and F frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from tokenprune.site import ModelFacts, Site

if TYPE_CHECKING:
    from torch import Tensor

Rows = Literal["last", "text", "visual"]
Support = Literal["causal", "visual", "all"]
Heads = Literal["mean", "max"]

#: Needs that a spec may declare, and the methods of the view that each allows.
NEEDS: Mapping[str, str] = {
    "hidden": "hidden(), layer_input(), mlp_input(): hidden states at the site, (B, N, D)",
    "qkv": "keys(), values(), queries(): decoder projections with or without RoPE, at the site's own layer or another",
    "attention": "attention(), attention_received(), attention_output(): decoder attention of named rows",
    "final_norm": "final_hidden(): hidden states of visual and text tokens under the decoder's final norm",
    "encoder": "encoder_features(): what the projector reads, (B, N, C)",
    "encoder_attention": "cls_attention(), received_attention(), encoder_keys(): inside the vision encoder",
    "projected": "projected(): the LLM input embeddings of the visual tokens, (B, N, D)",
    "joint": "joint_image(), joint_text(): joint image-text space of a CLIP pair, (B, N, P) and (B, P)",
    "text": "text_embeddings(): LLM input embeddings of the text after the image",
    "geometry": "coordinates(), grid(), frames(): where in the picture or the video the visual tokens are",
    "fingerprint": "fingerprints(): one integer per unit made from its content, for reproducible randomness",
}


class View(Protocol):
    """What a pruner may read of B units with N visual tokens each. Values are detached and float32.

    A method raises `UndeclaredNeedError` if the spec does not declare its need, and `IncompatibleError` if the model
    cannot provide it. Results for text are padded at the end of their row axis to the longest text, and come with a
    boolean mask (True = real row).
    """

    site: Site
    facts: ModelFacts
    units: int
    """B."""
    tokens: int
    """N: remaining visual tokens of each unit."""
    original_tokens: int
    """Visual tokens of each unit before the first cut."""
    keep: int
    """K: number of rows that the stop's budget allows."""

    def ids(self) -> tuple[int, ...]:
        """A number for each unit, the same at every stop of a prompt; use it as the key in `State`."""
        ...

    def sizes(self) -> Tensor:
        """Number of original tokens that each row represents, (B, N), float; 1 unless tokens were merged."""
        ...

    def hidden(self) -> Tensor:
        """Hidden states at the site, (B, N, D); those of the encoder, (B, N, C), at `encoder` and `tower` sites.

        At a `mid` point this is the residual stream between attention and MLP.
        """
        ...

    def layer_input(self) -> Tensor:
        """At a `mid` point the input of the layer, (B, N, D) or (B, N, C); elsewhere the same as `hidden()`."""
        ...

    def mlp_input(self) -> Tensor:
        """At a `mid` point the input of the layer's MLP (after its norm), (B, N, D) or (B, N, C).

        Raises:
            IncompatibleError: The site is not a `mid` point.
        """
        ...

    def projected(self) -> Tensor:
        """LLM input embeddings of the remaining visual tokens, (B, N, D)."""
        ...

    def keys(self, *, rope: bool, layer: int | None = None) -> Tensor:
        """Keys of the visual tokens, (B, G, N, d).

        Args:
            rope: With the rotary position embedding, or without it.
            layer: Decoder layer, up to the site's own. `None` is the site's own layer; its projections are computed
                before the layer runs.
        """
        ...

    def values(self, *, layer: int | None = None) -> Tensor:
        """Values of the visual tokens, (B, G, N, d)."""
        ...

    def queries(self, rows: Rows = "text", *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Queries (B, H, R, d) of the named rows, and the mask (B, R).

        `text` rows are all text tokens after the unit's image, `last` is the last prompt token (R = 1), and `visual`
        rows are the unit's own visual tokens (R = N).
        """
        ...

    def attention(
        self,
        rows: Rows = "last",
        *,
        rope: bool = True,
        layer: int | None = None,
        support: Support = "causal",
    ) -> tuple[Tensor, Tensor]:
        """Attention probabilities (B, H, R, N) from the named rows to the unit's visual tokens, and the mask (B, R).

        They are computed from queries and keys for these rows only. `support="causal"` normalises over all tokens
        before the row, so rows sum to less than 1. `"visual"` normalises over the unit's visual tokens, and `"all"`
        over the whole sequence without a causal mask.

        At a `decode` stop `last` is the new token, and N the number of the unit's visual tokens in the layer's cache.
        """
        ...

    def attention_received(
        self,
        rows: Rows = "visual",
        *,
        rope: bool = True,
        layer: int | None = None,
        support: Support = "causal",
        heads: Heads = "mean",
    ) -> Tensor:
        """Attention that each visual token receives from the named rows, mean over the real rows, (B, N).

        `heads` takes the mean or the maximum over the heads of each row. This pools `attention()` for some rows at a
        time, because with `visual` rows the whole tensor would be (B, H, N, N).
        """
        ...

    def attention_output(self, rows: Rows = "last", *, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Attention output (B, H, R, d) of the named rows before the output projection, and the mask (B, R).

        It is the model's own output: over all tokens before the row (text too), with RoPE. Together with
        `attention(support="causal")` it gives the exact error of every subset, leave-one-out included.
        """
        ...

    def final_hidden(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the site's layer after the decoder's *final* norm.

        Returns:
            Visual (B, N, D), text after the image (B, T, D), mask (B, T).
        """
        ...

    def text_keys(self, *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys of the text after the image, (B, G, T, d), and the mask (B, T)."""
        ...

    def encoder_features(self) -> Tensor:
        """Input of the projector for the remaining tokens, before any merge, (B, N, C)."""
        ...

    def cls_attention(self, layer: int | None = None) -> Tensor:
        """Attention from the CLS row to the patches in encoder layer `layer`, (B, H, N); rows sum to less than 1.

        `None` is the layer that the projector reads; at `tower` sites it is the site's own layer. For a row that was
        merged inside the tower, it is the attention to its anchor in layers before the merge, to the row itself after.
        """
        ...

    def received_attention(self, layer: int | None = None) -> Tensor:
        """Mean attention that each patch receives from all encoder rows, head mean, (B, N)."""
        ...

    def encoder_keys(self, layer: int | None = None) -> Tensor:
        """Encoder keys of the patches before any rotation, (B, H, N, d)."""
        ...

    def joint_image(self) -> Tensor:
        """Joint-space embeddings of the patches, not normalised, (B, N, P)."""
        ...

    def joint_text(self) -> Tensor:
        """Joint-space embedding of the question, (B, P)."""
        ...

    def text_embeddings(self) -> tuple[Tensor, Tensor]:
        """LLM input embeddings of the text after the image, (B, T, D), and the mask (B, T)."""
        ...

    def grid(self) -> tuple[int, int]:
        """Rows and columns of the original token grid of the image, or of one frame."""
        ...

    def frames(self) -> int:
        """F: frames of the unit, 1 for an image; the F x rows x columns original tokens are in frame order."""
        ...

    def coordinates(self) -> Tensor:
        """Row and column of each remaining visual token, (B, N, 2), float."""
        ...

    def indices(self) -> Tensor:
        """Original index of each remaining visual token, (B, N), int64."""
        ...

    def fingerprints(self) -> tuple[int, ...]:
        """One integer per unit, a hash of its content that does not depend on the batch."""
        ...
