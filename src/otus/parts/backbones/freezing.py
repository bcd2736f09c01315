"""Which weights of a backbone are frozen: fine-tuning all ImageNet weights on few images would make them worse."""

from dataclasses import dataclass

from otus.parts.backbones.backbone import LayeredBackbone
from otus.parts.backbones.norms import freeze_norms, freeze_stages


@dataclass(frozen=True)
class Freezing:
    """Which weights of a backbone are not trained.

    Parameters
    ----------
    norms
        Whether batch norms keep their statistics and affine weights: batches of detectors are too small to estimate them.
    level
        Layers of stride up to 2**level are frozen: 2 freezes the stem and ``layer1`` of a ResNet (torchvision's
        ``trainable_layers=3``), 0 nothing.
    norm_eps
        Eps of the frozen norms (default: the backbone's own, with which its ImageNet weights were trained).
    """

    norms: bool = True
    level: int = 2
    norm_eps: float | None = None

    def apply(self, backbone: LayeredBackbone, *, norm_eps: float | None = None) -> None:
        """Freeze a backbone in place.

        Parameters
        ----------
        backbone
            Changed in place.
        norm_eps
            Eps of the frozen norms where :attr:`norm_eps` is None (default: each norm keeps its own).
        """
        if self.norms:
            freeze_norms(backbone, eps=norm_eps if self.norm_eps is None else self.norm_eps)
        freeze_stages(backbone, self.level)
