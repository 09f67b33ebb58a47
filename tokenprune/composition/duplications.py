"""The axis `duplication`: how much of a token's update is already there, a symmetric similarity of the N tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenprune import dual
from tokenprune.composition.options import Options
from tokenprune.composition.parts import DECODER, Part, by_name
from tokenprune.view import View

if TYPE_CHECKING:
    from torch import Tensor

    from tokenprune.dual import Duplication, KernelDuplication


@dataclass(frozen=True, kw_only=True)
class DuplicationPart(Part):
    """A duplication.

    Args:
        similarity: (view, options) -> similarity with negative entries; `None` where nothing counts as a duplicate.
        normalised: A token's similarity with itself is 1 (a Gram matrix carries sizes, and only a determinant asks
            for those).
    """

    similarity: Callable[[View, Options], KernelDuplication] | None
    normalised: bool = True

    def of(self, view: View, options: Options, *, signed: bool) -> Duplication | None:
        """The similarity at a stop, or `None` for the part `none`.

        Args:
            view: The stop's view.
            options: Settings.
            signed: Keep negative entries (a determinant and a distance want them, a penalty does not).
        """
        if self.similarity is None:
            return None
        return dataclasses.replace(self.similarity(view, options), signed=signed)


def _layer(options: Options) -> int | None:
    return None if options.duplication_layer < 0 else options.duplication_layer


def _cosine(features: Tensor, options: Options) -> KernelDuplication:
    """Mean over heads of the cosine of features (B, G, N, d)."""
    return dual.KernelDuplication(values=dual.l2_normalize(dual.centre(features) if options.centred else features))


def _value_gauss(view: View, options: Options) -> KernelDuplication:
    layer = _layer(options)
    return dual.value_key_duplication(
        view.values(layer=layer),
        view.keys(rope=options.rope_in_duplication, layer=layer),
        tau=options.tau,
        centred_values=options.centred,
    )


def _value_metric(view: View, options: Options) -> KernelDuplication:
    import torch

    layer, rope = _layer(options), options.rope_in_duplication
    text, real = view.queries("text", rope=rope, layer=layer)
    visual, all_real = view.queries("visual", rope=rope, layer=layer)
    return dual.metric_duplication(
        view.values(layer=layer),
        view.keys(rope=rope, layer=layer),
        torch.cat((text, visual), dim=2),
        torch.cat((real, all_real), dim=1),
        tau=options.tau,
    )


def _gram(view: View, options: Options) -> KernelDuplication:
    """Inner products of the rank-1 updates, each head relative to its largest one, so that no exponential overflows."""
    layer = _layer(options)
    values, keys = view.values(layer=layer), dual.centre(view.keys(rope=options.rope_in_duplication, layer=layer))
    log_size = keys.square().sum(dim=-1) / (2.0 * keys.shape[-1] ** 0.5) + dual.log_norm(values)
    size = (log_size - log_size.amax(dim=-1, keepdim=True)).exp()
    scaled = dual.bandwidth_scaled(keys, 1.0, keys.shape[-1] ** 0.5)
    return dual.KernelDuplication(values=dual.l2_normalize(values) * size.unsqueeze(-1), keys=scaled)


def _values(view: View, options: Options) -> KernelDuplication:
    return _cosine(view.values(layer=_layer(options)), options)


def _keys(view: View, options: Options) -> KernelDuplication:
    return _cosine(view.keys(rope=options.rope_in_duplication, layer=_layer(options)), options)


def _hidden(view: View, options: Options) -> KernelDuplication:
    return _cosine(view.hidden().unsqueeze(1), options)


def _projected(view: View, options: Options) -> KernelDuplication:
    return _cosine(view.projected().unsqueeze(1), options)


def _features(view: View, options: Options) -> KernelDuplication:
    return _cosine(view.encoder_features().unsqueeze(1), options)


def _encoder_keys(view: View, options: Options) -> KernelDuplication:
    return _cosine(view.encoder_keys(_layer(options)), options)


def _spatial(view: View, options: Options) -> KernelDuplication:
    return dual.KernelDuplication(keys=dual.bandwidth_scaled(view.coordinates().unsqueeze(1), options.tau, 1.0))


_LAYER_COSINE = ("duplication_layer", "centred")

DUPLICATIONS = by_name(
    (
        DuplicationPart(name="none", meaning="nothing counts as a duplicate", term="0", similarity=None),
        DuplicationPart(
            name="value-gauss",
            meaning="cosine of values times Gaussian of keys, mean over heads (IWP)",
            term="cos(v_i,v_j) exp(-||k_i-k_j||^2/(2 tau^2 sqrt d))",
            needs=("qkv",),
            sites=DECODER,
            reads=("duplication_layer", "rope_in_duplication", "tau", "centred"),
            similarity=_value_gauss,
        ),
        DuplicationPart(
            name="value-metric",
            meaning="cosine of centred values times Gaussian of keys under the query covariance",
            term="cos(v_i-v,v_j-v) exp(-(k_i-k_j)' Sigma (k_i-k_j)/(2 tau^2 d))",
            needs=("qkv",),
            sites=DECODER,
            reads=("duplication_layer", "rope_in_duplication", "tau"),
            similarity=_value_metric,
        ),
        DuplicationPart(
            name="gram",
            meaning="inner product of the rank-1 updates, sizes included (for determinants)",
            term="kappa(k_i,k_j) <v_i,v_j>",
            needs=("qkv",),
            sites=DECODER,
            reads=("duplication_layer", "rope_in_duplication"),
            similarity=_gram,
            normalised=False,
        ),
        DuplicationPart(
            name="cosine-values",
            meaning="cosine of values, mean over heads",
            term="cos(v_i,v_j)",
            needs=("qkv",),
            sites=DECODER,
            reads=_LAYER_COSINE,
            similarity=_values,
        ),
        DuplicationPart(
            name="cosine-keys",
            meaning="cosine of keys, mean over heads",
            term="cos(k_i,k_j)",
            needs=("qkv",),
            sites=DECODER,
            reads=(*_LAYER_COSINE, "rope_in_duplication"),
            similarity=_keys,
        ),
        DuplicationPart(
            name="cosine-hidden",
            meaning="cosine of hidden states at the site",
            term="cos(x_i,x_j)",
            needs=("hidden",),
            reads=("centred",),
            similarity=_hidden,
        ),
        DuplicationPart(
            name="cosine-projected",
            meaning="cosine of the LLM's input embeddings",
            term="cos(z_i,z_j)",
            needs=("projected",),
            sites=DECODER,
            reads=("centred",),
            similarity=_projected,
        ),
        DuplicationPart(
            name="features",
            meaning="cosine of the encoder's features",
            term="cos(f_i,f_j)",
            needs=("encoder",),
            reads=("centred",),
            similarity=_features,
        ),
        DuplicationPart(
            name="encoder-keys",
            meaning="cosine of the encoder's keys, mean over heads",
            term="cos(k^enc_i,k^enc_j)",
            needs=("encoder_attention",),
            reads=_LAYER_COSINE,
            similarity=_encoder_keys,
        ),
        DuplicationPart(
            name="spatial",
            meaning="Gaussian of the distance in the token grid",
            term="exp(-||p_i-p_j||^2/(2 tau^2))",
            needs=("geometry",),
            reads=("tau",),
            similarity=_spatial,
        ),
    )
)
