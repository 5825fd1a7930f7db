"""Terms over the embeddings of views.

Those of a clip agree (LeJEPA, arXiv 2511.08544; LeVJEPA, arXiv 2608.27395), those of a batch do not.
"""

from __future__ import annotations

from torch import Tensor

from vjepa import config
from vjepa.objectives import vicreg
from vjepa.objectives.precision import at_least_fp32
from vjepa.objectives.sigreg import sigreg


def embedding_terms(objective: config.Objective, embeddings: Tensor, directions: Tensor | None) -> dict[str, Tensor]:
    """Compute the terms that have a weight, by name, from embeddings [V, B, D] of V views of B clips.

    directions: [S, D], the random lines of `sigreg`; None: without that term.

    Views that have to agree are spread by their mean, or differences of masks would do for differences of clips; their
    covariance is that of each view, which weighs what differs between them.
    """
    terms = {}
    if objective.view_invariance:
        terms["view_invariance"] = view_invariance(embeddings)
    if objective.vicreg_variance:
        spread = embeddings.mean(dim=0, keepdim=True) if objective.view_invariance else embeddings
        terms["variance"] = vicreg.variance(spread)
    if objective.vicreg_covariance:
        terms["covariance"] = vicreg.covariance(embeddings)
    if directions is not None:
        terms["sigreg"] = sigreg(embeddings, directions, objective.sigreg_knots)
    return terms


def view_invariance(embeddings: Tensor) -> Tensor:
    """Average the squared distance of each view to the mean of the views of its clip: [V, B, D] -> scalar.

    No gradient is stopped.
    """
    embeddings = at_least_fp32(embeddings)
    return (embeddings - embeddings.mean(dim=0)).square().mean()
