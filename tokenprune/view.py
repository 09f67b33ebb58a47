"""What a pruner may ask for: declared needs, and the `View` that answers them.

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

#: What a spec may declare, and the view accessor that it opens.
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
    """What a pruner may ask about B units of N visual tokens each. Values are detached and float32.

    Every accessor raises `UndeclaredNeedError` where the spec does not declare the need, and `IncompatibleError`
    where the model cannot give it. Where text lengths differ between units, text-like results are padded at the
    end of their row axis and come with a boolean mask (True = real).
    """

    site: Site
    facts: ModelFacts
    units: int
    """B."""
    tokens: int
    """N: visual tokens of each unit that are still there."""
    original_tokens: int
    """Visual tokens of each unit before the first cut."""
    keep: int
    """K: rows that the stop's budget allows."""

    def ids(self) -> tuple[int, ...]:
        """A number for each unit, the same at every stop of a prompt: the key under which state is kept."""
        ...

    def sizes(self) -> Tensor:
        """How many original tokens each row stands for, (B, N), float; 1 until something was merged."""
        ...

    def hidden(self) -> Tensor:
        """Hidden states at the site, (B, N, D); at `encoder` and inside the `tower` the encoder's, (B, N, C).

        At a `mid` point the residual stream between attention and MLP.
        """
        ...

    def layer_input(self) -> Tensor:
        """At a `mid` point, what entered the layer's attention norm, (B, N, D) or (B, N, C); elsewhere `hidden()`."""
        ...

    def mlp_input(self) -> Tensor:
        """At a `mid` point, what the layer's MLP would read (after its norm), (B, N, D) or (B, N, C).

        Raises:
            IncompatibleError: The site is not a `mid` point.
        """
        ...

    def projected(self) -> Tensor:
        """LLM input embeddings of the visual tokens still there, (B, N, D)."""
        ...

    def keys(self, *, rope: bool, layer: int | None = None) -> Tensor:
        """Keys of the visual tokens, (B, G, N, d).

        Args:
            rope: With the rotary position embedding or without.
            layer: Decoder layer; `None` is the layer that the cut enters (its projections are computed ahead).
                Layers before the site are as they ran. Only layers `<=` the site's own are available.
        """
        ...

    def values(self, *, layer: int | None = None) -> Tensor:
        """Values of the visual tokens, (B, G, N, d)."""
        ...

    def queries(self, rows: Rows = "text", *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Queries (B, H, R, d) of the named rows with their mask (B, R).

        `text`: every text token after the unit's image; `last`: the last prompt token (R = 1);
        `visual`: the visual tokens of the unit themselves (R = N).
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
        """Attention probabilities (B, H, R, N) of the named rows on the unit's visual tokens, and the mask (B, R).

        Recomputed from queries and keys for these rows only. `support="causal"` normalises over the whole causal
        row (so rows sum to less than 1), `"visual"` over the unit's visual tokens, `"all"` over the whole
        sequence without a causal mask.

        At a `decode` stop: `last` is the token being decoded, N the unit's visual tokens in the cache of that layer.
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

        `heads` takes the mean or the largest over the heads of each row. It is `attention()` pooled, some rows at a
        time: with `visual` rows the whole would be (B, H, N, N).
        """
        ...

    def attention_output(self, rows: Rows = "last", *, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Attention output (B, H, R, d) of the named rows before the output projection, and the mask (B, R).

        Over the whole causal row (text before and after the image too), with RoPE, as the model itself computes it:
        together with `attention(support="causal")` it gives the exact error of every subset (leave-one-out too).
        """
        ...

    def final_hidden(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states entering the site under the decoder's *final* norm.

        Returns:
            Visual (B, N, D), text after the image (B, T, D), mask (B, T).
        """
        ...

    def text_keys(self, *, rope: bool, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys of the text after the image, (B, G, T, d), and the mask (B, T)."""
        ...

    def encoder_features(self) -> Tensor:
        """What the projector would read of the tokens still there, before any merge, (B, N, C)."""
        ...

    def cls_attention(self, layer: int | None = None) -> Tensor:
        """Attention of the CLS query on the patches in encoder layer `layer`, (B, H, N); rows sum to less than 1.

        `None` is the layer that the projector reads, inside the `tower` the site's own. Where rows were merged inside
        the tower, the attention on a merged row in the layers after, on its anchor in the layers before.
        """
        ...

    def received_attention(self, layer: int | None = None) -> Tensor:
        """Mean attention that each patch receives from all encoder rows, head mean, (B, N)."""
        ...

    def encoder_keys(self, layer: int | None = None) -> Tensor:
        """Raw encoder keys of the patches, (B, H, N, d)."""
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
        """F: frames of the unit, 1 for an image; original tokens are frame-major, F x rows x columns of them."""
        ...

    def coordinates(self) -> Tensor:
        """Row and column of each visual token still there, (B, N, 2), float."""
        ...

    def indices(self) -> Tensor:
        """Original index of each visual token still there, (B, N), int64."""
        ...

    def fingerprints(self) -> tuple[int, ...]:
        """One integer per unit made from its content (not from its place in the batch)."""
        ...
