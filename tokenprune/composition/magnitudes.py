"""The axis `magnitude`: how big is the update that a token adds, (B, N), higher is kept first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.composition.options import Options
from tokenprune.composition.parts import DECODER, Part, by_name
from tokenprune.view import View

if TYPE_CHECKING:
    from torch import Tensor

_FLOOR = 1e-30
"""Below every magnitude that moves an output, so that a logarithm stays finite."""


@dataclass(frozen=True, kw_only=True)
class Magnitude(Part):
    """A magnitude.

    Args:
        score: (view, options) -> (B, N) float32.
        signed: The score may be negative (a logarithm, a cosine), so that it cannot weigh anything as it is.
    """

    score: Callable[[View, Options], Tensor]
    signed: bool = False


def _layer(options: Options) -> int | None:
    return None if options.magnitude_layer < 0 else options.magnitude_layer


def _one(view: View, options: Options) -> Tensor:
    import torch

    return torch.ones_like(view.indices(), dtype=torch.float32)


def _norm(view: View, options: Options) -> Tensor:
    length: Tensor = view.hidden().norm(dim=-1)
    return length


def _value_norm(view: View, options: Options) -> Tensor:
    length: Tensor = view.values(layer=_layer(options)).norm(dim=-1)
    return length.mean(dim=1)


def _attention(view: View, options: Options) -> Tensor:
    attention, _ = view.attention("last", rope=options.rope_in_magnitude, layer=_layer(options))
    return attention.mean(dim=1).squeeze(1)


def _attention_text(view: View, options: Options) -> Tensor:
    attention, mask = view.attention("text", rope=options.rope_in_magnitude, layer=_layer(options))
    return dual.mean_rows(attention, mask).mean(dim=1)


def _attention_value(view: View, options: Options) -> Tensor:
    layer = _layer(options)
    attention, mask = view.attention(
        options.rows,  # type: ignore[arg-type]  # checked when built
        rope=options.rope_in_magnitude,
        layer=layer,
    )
    return dual.attention_magnitude(attention, view.values(layer=layer), mask)


def _kernel(view: View, options: Options) -> Tensor:
    layer, rope = _layer(options), options.rope_in_magnitude
    queries, mask = view.queries(options.rows, rope=rope, layer=layer)  # type: ignore[arg-type]  # checked when built
    return dual.kernel_magnitude(
        queries,
        view.keys(rope=rope, layer=layer),
        view.values(layer=layer),
        mask,
        normalise=options.normalise,
        rows=options.row_pooling,  # type: ignore[arg-type]
        heads=options.head_pooling,  # type: ignore[arg-type]
    )


def _leave_one_out(view: View, options: Options) -> Tensor:
    layer = _layer(options)
    attention, mask = view.attention(options.rows, layer=layer)  # type: ignore[arg-type]  # checked when built
    output, _ = view.attention_output(options.rows, layer=layer)  # type: ignore[arg-type]
    moved = dual.leave_one_out(attention, view.values(layer=layer), output, mask)
    return moved.clamp_min(_FLOOR).log()


def _cls(view: View, options: Options) -> Tensor:
    return view.cls_attention(_layer(options)).mean(dim=1)


def _received(view: View, options: Options) -> Tensor:
    return view.received_attention(_layer(options))


def _relevance(view: View, options: Options) -> Tensor:
    cosine = (dual.l2_normalize(view.joint_image()) @ dual.l2_normalize(view.joint_text()).unsqueeze(-1)).squeeze(-1)
    return -cosine if options.negate else cosine


def _key_l1(view: View, options: Options) -> Tensor:
    return view.keys(rope=options.rope_in_magnitude, layer=_layer(options)).abs().sum(dim=(1, 3))


MAGNITUDES = by_name(
    (
        Magnitude(name="one", meaning="every token counts the same", term="1", score=_one),
        Magnitude(
            name="norm",
            meaning="length of the token's hidden state at the site",
            term="||x_i||",
            needs=("hidden",),
            score=_norm,
        ),
        Magnitude(
            name="value-norm",
            meaning="length of the value, mean over heads",
            term="||v_i||",
            needs=("qkv",),
            sites=DECODER,
            reads=("magnitude_layer",),
            score=_value_norm,
        ),
        Magnitude(
            name="attention",
            meaning="attention of the last prompt token, mean over heads",
            term="a_last,i",
            needs=("attention",),
            sites=DECODER,
            reads=("magnitude_layer", "rope_in_magnitude"),
            score=_attention,
        ),
        Magnitude(
            name="attention-text",
            meaning="attention of the text after the image, mean over rows and heads",
            term="mean_text a_t,i",
            needs=("attention",),
            sites=DECODER,
            reads=("magnitude_layer", "rope_in_magnitude"),
            score=_attention_text,
        ),
        Magnitude(
            name="attention-value",
            meaning="attention times the length of the value, mean over rows and heads",
            term="a_i ||v_i||",
            needs=("attention", "qkv"),
            sites=DECODER,
            reads=("magnitude_layer", "rope_in_magnitude", "rows"),
            score=_attention_value,
        ),
        Magnitude(
            name="kernel",
            meaning="log of the query-key kernel times the length of the value (IWP)",
            term="log kappa(q, k_i) ||v_i||",
            needs=("qkv",),
            sites=DECODER,
            reads=("magnitude_layer", "rope_in_magnitude", "rows", "row_pooling", "head_pooling", "normalise"),
            score=_kernel,
            signed=True,
        ),
        Magnitude(
            name="leave-one-out",
            meaning="log of how far the attention output moves without the token",
            term="log a_i/(1-a_i) ||v_i - o||",
            needs=("attention", "qkv"),
            sites=DECODER,
            reads=("magnitude_layer", "rows"),
            score=_leave_one_out,
            signed=True,
        ),
        Magnitude(
            name="cls",
            meaning="attention of the encoder's CLS token, mean over heads",
            term="a_cls,i",
            needs=("encoder_attention",),
            reads=("magnitude_layer",),
            score=_cls,
        ),
        Magnitude(
            name="received",
            meaning="mean attention that the patch receives inside the encoder",
            term="mean_j a_j,i",
            needs=("encoder_attention",),
            reads=("magnitude_layer",),
            score=_received,
        ),
        Magnitude(
            name="relevance",
            meaning="cosine with the question in the joint image-text space",
            term="cos(e_i, t)",
            needs=("joint",),
            reads=("negate",),
            score=_relevance,
            signed=True,
        ),
        Magnitude(
            name="key-l1",
            meaning="L1 norm of the key over all heads",
            term="||k_i||_1",
            needs=("qkv",),
            sites=DECODER,
            reads=("magnitude_layer", "rope_in_magnitude"),
            score=_key_l1,
        ),
    )
)
