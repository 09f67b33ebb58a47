"""VidCom2: frames that stand out from the video get more tokens, and keep those that stand out from both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, Kept, ModelFacts, OneCut, SiteKind, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune_zoo.video import asked_share

if TYPE_CHECKING:
    from torch import Tensor

#: Squared widths of the five Gaussian kernels.
_ALPHAS = (0.125, 0.25, 0.5, 1.0, 2.0)


@pruner(
    "vidcom2",
    summary="Tokens that are least like the mean of the video and of their frame; more of them from unusual frames",
    source=Source(
        title="Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
        authors="Liu et al.",
        venue="EMNLP 2025",
        url="https://arxiv.org/abs/2505.14454",
        code="https://github.com/xuyang-liu16/VidCom2",
    ),
    axes=Axes(
        site="LLM input",
        budget="ratio or tokens, shared out among frames by how unusual they are",
        groups="frame",
        duplication="Gaussian kernels of the distance to the mean token of the video and of the frame",
        selector="quota, then top-k",
    ),
    formula=(
        "s_i = sum_a exp(-|z_i - mean video|^2 / 2a) + the same for the frame; rate_f = R (1 + p_f - mean p), "
        "p = softmax(-mean_i s_video / T); the lowest s_i of each frame"
    ),
    needs=("projected", "geometry"),
    fidelity=(
        "z are unit vectors over the half of the channels with the lowest variance over the video; their means are "
        "not normalised again, as published. Published: each frame's rate is clamped at 1 and rounded on its own, "
        "half to even, to at least one token, so that the total is only about the budget: `published=true`. Otherwise "
        "the budget is shared out in proportion to the rates, what a full frame cannot take goes to the others, and "
        "a budget of hardly one token per frame may leave a frame with none. An image is one frame. Row separators "
        "are not visual tokens of a view and stay where they are (published: behind the frame). Original positions "
        "are kept."
    ),
    variants=(
        {"temperature": 1e-4},
        {"temperature": 10.0},
        {"published": True},
    ),
)
@dataclass(frozen=True)
class VidCom2(OneCut):
    """Compress frames by how unusual they are.

    Args:
        temperature: T of the softmax over frames.
        published: Round each frame's count on its own.
    """

    site: ClassVar[SiteKind] = "input"

    temperature: float = 0.01
    published: bool = False

    def __post_init__(self) -> None:
        if self.temperature <= 0.0:
            raise ConfigError(
                f"option `temperature` of `vidcom2` must be > 0, got {self.temperature}",
                hint="the published value is 0.01",
            )

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop at the LLM input."""
        (stop,) = super().plan(facts, budget, tokens)
        return (Stop(stop.site, stop.budget, auto=self.published),)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Quotas of the frames, then the least usual tokens of each."""
        import torch

        to_video, to_frame = self.similarity(view)
        frames, cells = to_video.shape[1:]
        share = asked_share(stop, view.tokens) if self.published else 1.0
        rates = self.rates(to_video, share)
        if self.published:
            quotas = (rates * cells).round().clamp_min(1.0).long()
        else:
            room = torch.full((frames,), cells, dtype=torch.long, device=rates.device)
            quotas = dual.split_budget(rates, view.keep, room)
        groups = torch.arange(frames, device=rates.device).repeat_interleave(cells)
        kept = dual.quota_members(-(to_video + to_frame).flatten(1), groups, quotas)
        return Decision(tuple(Kept(row.nonzero().squeeze(-1)) for row in kept))

    def similarity(self, view: View) -> tuple[Tensor, Tensor]:
        """Similarity of each token to the mean of the video and to the mean of its frame, (B, F, P) each."""
        features = view.projected().float()
        variance = features.var(dim=1, correction=0)
        calm = dual.top_k(-variance, max(1, features.shape[-1] // 2))
        calm = calm.unsqueeze(1).expand(-1, features.shape[1], -1)
        cells = dual.by_frame(dual.l2_normalize(features.gather(-1, calm)), view.frames())
        means = cells.mean(dim=(1, 2), keepdim=True), cells.mean(dim=2, keepdim=True)
        to_video, to_frame = (_kernels((cells - mean).square().sum(dim=-1)) for mean in means)
        return to_video, to_frame

    def rates(self, to_video: Tensor, share: float) -> Tensor:
        """Share of each frame's tokens that stays, (B, F), where `share` stays of all.

        Args:
            to_video: (B, F, P).
            share: R; with 1 the clamp is left out, and only the proportions mean something.
        """
        unusual = -to_video.mean(dim=-1)
        lead = ((unusual - unusual.amax(dim=-1, keepdim=True)) / self.temperature).softmax(dim=-1)
        rates = share * (1.0 + lead - lead.mean(dim=-1, keepdim=True))
        return rates.clamp_max(1.0) if self.published else rates


def _kernels(squared: Tensor) -> Tensor:
    """Sum of the Gaussian kernels of squared distances."""
    import torch

    return torch.stack([(-squared / (2.0 * alpha)).exp() for alpha in _ALPHAS]).sum(dim=0)
