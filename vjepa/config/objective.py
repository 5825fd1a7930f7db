"""Settings of the loss: what is predicted, and the terms that are summed."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vjepa.config.section import Section


class Objective(Section):
    """Weigh the terms of the loss, each logged under its name; one of weight 0 is not computed.

    Of the clips of a batch there are views: each mask set shows other tokens, each crop of `data.clips_per_decode`
    another part of the frame. The mean-pooled features of a view, after the projector, are its embedding.
    """

    targets: Literal["ema", "frozen", "pixels", "none"] = Field(
        "ema",
        description="what is predicted: features of the moving average of the encoder (V-JEPA) or of the frozen "
        "`teacher` (SALT, second stage), normalised "
        "pixels (SALT, first stage; VideoMAE), or, with no target encoder, features of the encoder itself, "
        "whose gradient is not stopped (LeJEPA)",
    )
    teacher: str | None = Field(
        None, description="targets: frozen: a run, checkpoint or weights file of any known format; the run keeps a copy"
    )
    loss: Literal["l1", "smooth_l1", "huber", "mse"] = Field(
        "l1", description="distance to layer-normed targets (V-JEPA: l1; I-JEPA: smooth_l1)"
    )
    huber_delta: float = Field(1.0, gt=0, description="huber: squared below this error, linear above")
    prediction: float = Field(1.0, ge=0, description="weight of the distance of predictions to targets")
    context_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the loss on visible tokens, less far from the hidden ones (V-JEPA 2.1's lambda)",
    )
    context_warmup_steps: tuple[int, int] = Field(
        (0, 0), description="context_weight rises linearly between these steps"
    )
    cycle: float = Field(
        0.0,
        ge=0,
        description="weight of the distance of the context, predicted back from the predictions, to its features (no "
        "gradient)",
    )
    projector_widths: list[int] = Field(
        [], description="layers between pooled features and embeddings (LeJEPA, VICReg's expander); []: none"
    )
    view_invariance: float | None = Field(
        None,
        ge=0,
        description="weight of the squared distance of the embeddings of a clip's views to their mean (LeJEPA); null: "
        ".05 where a clip has several and something keeps embeddings apart",
    )
    reversal: float = Field(
        1.0,
        ge=0,
        description="weight of the terms over embeddings for what changes in them when a clip is played backwards: a "
        "scene that stands still cannot satisfy them; of a single frame there are none",
    )
    initial_std: float | None = Field(
        None,
        ge=0,
        description="deviation over clips that embeddings are scaled to at the first step, by a factor that stays, so "
        "that weights mean the same on any data; 0: as they are; null: .1 where features themselves have to agree and "
        "VICReg keeps them apart, else 0",
    )
    vicreg_invariance: float = Field(
        0.0, ge=0, description="weight of the squared distance of predictions to targets (VICReg eq. 5)"
    )
    vicreg_variance: float = Field(
        1.0,
        ge=0,
        description="weight of the hinge on the standard deviation of embeddings over clips (VICReg eq. 1); of "
        "the mean of a clip's views where these have to agree",
    )
    vicreg_covariance: float = Field(
        3.0, ge=0, description="weight of the off-diagonal covariance of embeddings over clips (VICReg eq. 3)"
    )
    sigreg: float = Field(
        0.0,
        ge=0,
        description="weight of the distance of embeddings to a standard Gaussian, along random lines (LeJEPA: .02-.05)",
    )
    sigreg_slices: int = Field(256, ge=1, description="those lines, drawn anew in each step")
    sigreg_knots: int = Field(17, ge=2, description="points of the integral over each characteristic function")

    @property
    def predicts(self) -> bool:
        """Tell whether any term needs predictions; if none does, there is no predictor."""
        return any((self.prediction, self.context_weight, self.cycle, self.vicreg_invariance))

    @property
    def embeds(self) -> bool:
        """Tell whether any term needs the embeddings of views."""
        return any((self.view_invariance, self.vicreg_variance, self.vicreg_covariance, self.sigreg))

    @property
    def keeps_apart(self) -> bool:
        """Tell whether any term keeps the embeddings of different clips apart."""
        return bool(self.sigreg or self.vicreg_variance)

    @property
    def weights(self) -> dict[str, float]:
        """Give the name of a term, as it is logged -> its weight; that of `context` changes with the step."""
        embedding = {
            "view_invariance": self.view_invariance or 0.0,
            "variance": self.vicreg_variance,
            "covariance": self.vicreg_covariance,
            "sigreg": self.sigreg,
        }
        return {
            "prediction": self.prediction,
            "cycle": self.cycle,
            "invariance": self.vicreg_invariance,
            **embedding,
            **{f"reversal_{name}": self.reversal * weight for name, weight in embedding.items()},
        }

    @property
    def networks(self) -> list[str]:
        """Name the networks that a run trains, and the average of one: each is a file of a checkpoint.

        A frozen teacher is none of them.
        """
        there = {
            "encoder": True,
            "target_encoder": self.targets == "ema",
            "predictor": self.predicts,
            "projector": bool(self.projector_widths),
        }
        return [name for name, is_there in there.items() if is_there]

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.targets == "frozen" and self.teacher is None:
            raise ValueError("teacher: targets: frozen needs one; name a run, a checkpoint or a weights file")
        if self.targets != "frozen" and self.teacher is not None:
            raise ValueError(f"teacher: targets: {self.targets} has none; set targets: frozen, or leave it out")
        if not self.predicts and self.view_invariance == 0:
            raise ValueError(
                "prediction: nothing is predicted, and no views have to agree; give prediction or "
                "view_invariance a weight"
            )
        if not self.predicts and self.targets != "none":
            raise ValueError(
                f"targets: nothing is predicted, so {self.targets} is of no use; set targets: none, or give "
                "prediction a weight"
            )
        if (self.targets == "none" or self.view_invariance) and not self.keeps_apart:
            raise ValueError(
                "sigreg: the same features for all clips would be perfect here (collapse); give sigreg or "
                "vicreg_variance a weight"
            )
        if self.projector_widths and not self.embeds:
            raise ValueError(
                "projector_widths: no term reads embeddings; give sigreg, vicreg_variance or view_invariance "
                "a weight, or leave it out"
            )
        if any(width < 1 for width in self.projector_widths):
            raise ValueError(f"projector_widths: widths are 1 or more, got {self.projector_widths}")
        if self.huber_delta != 1 and self.loss != "huber":
            raise ValueError(f"huber_delta: loss: {self.loss} has none; set loss: huber, or leave it out")
        if self.cycle and self.targets == "pixels":
            raise ValueError(
                "cycle: the context is predicted back from predicted features, and targets: pixels predicts "
                "none; leave it 0"
            )
        return self
